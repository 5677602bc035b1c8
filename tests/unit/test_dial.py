"""Which datagrams answer a DNS query, and how a call that cannot be made is told, without sending anything."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import dial, links
from lsmpy.dial import Answer, Call, CannotTestError, answers
from lsmpy.links import Link
from lsmpy.model import parse_check
from lsmpy.uplink import Path

QUESTION = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01"
RECORD = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\x5d\xb8\xd8\x22"
SOURCE, HOP = ip_address("192.0.2.1"), ip_address("192.0.2.2")
PATH = Path(Link("lo", 1, 1, True, True, True, b"\2\0\0\0\0\1"), SOURCE, HOP)


def dns(flags: int = 0x8180, ident: int = 0x1234, questions: int = 1, name: bytes = QUESTION[12:]) -> bytes:
    """A server's answer: one record, or what its flags say."""
    return struct.pack("!HHHHHH", ident, flags, questions, 1, 0, 0) + name + RECORD


@pytest.mark.parametrize(
    "data",
    [
        dns(),
        dns(0x8183),  # no such name
        dns(0x8182),  # the server has failed: it is there
        dns(0x8185),  # it refuses us
        dns(0x8380),  # cut off
        dns()[: len(QUESTION)],
        dns(name=b"\x07eXaMpLe\x03ORG\x00\x00\x01\x00\x01"),
        dns(0x8181, questions=0)[:12],  # it does not understand us, and repeats nothing
        dns(0x8185, questions=0)[:12],
    ],
    ids=["record", "no name", "failure", "refusal", "truncated", "bare", "letters", "format error", "curt refusal"],
)
def test_whatever_the_server_says_is_an_answer(data: bytes) -> None:
    assert answers(QUESTION, data)


@pytest.mark.parametrize(
    "data",
    [
        dns(ident=0x1235),
        dns(ident=0x3412),
        dns(flags=0x0180),
        QUESTION,
        dns(questions=0),
        dns(questions=2),
        dns(name=b"\x07example\x03com\x00\x00\x01\x00\x01"),
        dns(name=b"\x07example\x03org\x00\x00\x1c\x00\x01"),
        dns(name=b"\x07example\x03org\x00\x00\x01\x00\x03"),
        dns()[: len(QUESTION) - 1],
        dns()[:12],
        dns(questions=0)[:12],
        dns(0x0185, questions=0)[:12],
        dns(0x8185, 0x1235, 0)[:12],
        dns(0x8185, questions=0)[:11],
        b"\x12\x34",
        b"",
    ],
    ids=[
        *("another's", "byte order", "no answer", "our question", "no question", "two questions"),
        *("another name", "another type", "another class", "cut off", "head alone", "no error and no question"),
        *("curt, but no answer", "curt, but another's", "half a head", "two bytes", "nothing"),
    ],
)
def test_what_is_no_answer_to_our_question_is_none(data: bytes) -> None:
    assert not answers(QUESTION, data)


@given(st.integers(0, len(QUESTION) - 1), st.integers(1, 255))
def test_a_damaged_answer_is_none_unless_it_says_the_same(at: int, change: int) -> None:
    damaged = bytearray(dns())
    damaged[at] ^= change
    same = bytes(damaged[12 : len(QUESTION)]).lower() == QUESTION[12:]
    unread = (at in range(2, 4) and damaged[2] & 0x80) or at in range(6, 12)
    assert answers(QUESTION, bytes(damaged)) == bool(unread or (at >= 12 and same))


# -- calls -----------------------------------------------------------------------------------------


class FakeSocket:
    """A socket of the kernel's that does as told."""

    def __init__(self) -> None:
        self.bound: tuple[str, int] | None = None
        self.options: list[tuple[object, ...]] = []
        self.connected: tuple[str, int] | None = None
        self.result: int = errno.EINPROGRESS
        self.error = 0
        self.sent = b""
        self.datagrams: list[tuple[bytes, int]] = []
        self.rtt_us = 0
        self.closed = False

    def setsockopt(self, *option: object) -> None:
        self.options.append(option)

    def bind(self, address: tuple[str, int]) -> None:
        if self.error == errno.EADDRNOTAVAIL:
            raise OSError(self.error, os.strerror(self.error))
        self.bound = address

    def connect_ex(self, address: tuple[str, int]) -> int:
        self.connected = address
        return self.result

    def connect(self, address: tuple[str, int]) -> None:
        self.connected = address

    def send(self, data: bytes) -> None:
        self.sent = data

    def getpeername(self) -> tuple[str, int]:
        if self.result == errno.EINPROGRESS:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return "203.0.113.1", 443

    def getsockopt(self, level: int, _: int, size: int = 0) -> int | bytes:
        if level == socket.SOL_SOCKET:
            return self.error
        return struct.pack("=68xI", self.rtt_us).ljust(size, b"\0")

    def recvmsg(self, *_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if not self.datagrams:
            raise BlockingIOError(errno.EAGAIN, "again")
        data, at_ns = self.datagrams.pop(0)
        stamp = struct.pack("=qq", at_ns // 10**9, at_ns % 10**9)
        return data, [(socket.SOL_SOCKET, 35, stamp)] if at_ns else [], 0, None

    def close(self) -> None:
        self.closed = True


class Clock:
    """Both clocks of the calls, which stand still."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.set_ns = 1_700_000_000_000_000_000

    def monotonic_ns(self) -> int:
        return self.now_ns

    def time_ns(self) -> int:
        return self.now_ns + self.set_ns


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeSocket:
    """The next socket that is opened; the kernel's route is the ISP's."""
    made = FakeSocket()
    monkeypatch.setattr(socket, "socket", lambda *_: made)
    monkeypatch.setattr(links, "way", lambda *_: (1, HOP))
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(dial, "time", made)
    return made


def call(text: str, on_link: bool = False) -> Call:
    check = parse_check(text)
    assert check.address is not None
    return Call(check, check.address, PATH, on_link)


@pytest.mark.parametrize("text", ["tcp://203.0.113.1:443", "dns://203.0.113.1/example.org"])
def test_a_call_leaves_from_the_isps_address_by_its_interface(kernel: FakeSocket, text: str) -> None:
    assert call(text).awaits_reading == text.startswith("dns")
    assert kernel.bound == ("192.0.2.1", 0)
    assert (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo") in kernel.options
    assert kernel.connected == ("203.0.113.1", 443 if text.startswith("tcp") else 53)


@pytest.mark.parametrize(
    ("way", "on_link", "can"),
    [
        ((1, HOP), False, True),
        ((1, None), True, True),
        ((2, HOP), False, False),
        ((1, ip_address("192.0.2.9")), False, False),
        ((1, None), False, False),
        ((1, HOP), True, True),
        ((2, None), True, False),
        (None, False, False),
    ],
)
def test_a_call_that_would_go_another_way_is_not_made(
    kernel: FakeSocket, monkeypatch: pytest.MonkeyPatch, way: object, on_link: bool, can: bool
) -> None:
    monkeypatch.setattr(links, "way", lambda *_: way)
    if can:
        call("tcp://203.0.113.1:443", on_link)
        return
    with pytest.raises(CannotTestError, match=r"the kernel's routes from 192.0.2.1 to 203.0.113.1 go another way"):
        call("tcp://203.0.113.1:443", on_link)
    assert kernel.connected is None


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.ENETUNREACH])
def test_what_the_kernel_does_not_send_says_nothing_of_the_isp(kernel: FakeSocket, number: int) -> None:
    kernel.error = kernel.result = number
    with pytest.raises(CannotTestError, match=f"the kernel does not send from 192.0.2.1: {os.strerror(number)}"):
        call("tcp://203.0.113.1:443")
    assert kernel.closed


@pytest.mark.parametrize("way", [lambda *_: (1, HOP), links.way], ids=["asked", "not asked"])
def test_without_descriptors_it_cannot_be_tested(
    kernel: FakeSocket, monkeypatch: pytest.MonkeyPatch, way: Callable[..., object]
) -> None:
    """Whether the kernel could still be asked for the way or not."""

    def none(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", none)
    monkeypatch.setattr(links, "way", way)
    with pytest.raises(CannotTestError, match="Too many open files"):
        call("tcp://203.0.113.1:443")
    assert not kernel.bound


def test_a_connection_is_answered_when_it_stands(kernel: FakeSocket, clock: Clock) -> None:
    made = call("tcp://203.0.113.1:443")
    assert made.outcome() is None
    kernel.result, kernel.rtt_us, clock.now_ns = 0, 2500, clock.now_ns + 4_000_000
    assert made.outcome() == Answer(2_500_000)
    made.close()
    assert kernel.closed


@pytest.mark.parametrize("rtt_us", [0, 4001, 0xFFFFFFFF])
def test_a_round_trip_that_cannot_be_is_not_believed(kernel: FakeSocket, clock: Clock, rtt_us: int) -> None:
    made = call("tcp://203.0.113.1:443")
    kernel.result, kernel.rtt_us, clock.now_ns = 0, rtt_us, clock.now_ns + 4_000_000
    assert made.outcome() == Answer(4_000_000)


@pytest.mark.parametrize("text", ["tcp://203.0.113.1:443", "dns://203.0.113.1/example.org"])
def test_a_call_that_is_refused_says_so(kernel: FakeSocket, text: str) -> None:
    made = call(text)
    kernel.error = errno.ECONNREFUSED
    assert made.outcome() == Answer(None, "connection refused")


def test_a_query_is_what_rfc_1035_says(kernel: FakeSocket) -> None:
    call("dns://203.0.113.1/example.org")
    assert kernel.sent[2:] == QUESTION[2:]
    first = kernel.sent[:2]
    idents = set()
    for _ in range(20):
        call("dns://203.0.113.1/example.org")
        idents.add(kernel.sent[:2])
    assert idents - {first}


def test_a_query_is_answered_by_the_kernels_stamp(kernel: FakeSocket, clock: Clock) -> None:
    made = call("dns://203.0.113.1/example.org")
    assert made.outcome() is None
    answer = dns(ident=int.from_bytes(kernel.sent[:2], "big"))
    kernel.datagrams = [(dns(ident=0), 0), (b"", 0), (answer, clock.time_ns() + 3_000_000), (answer, 1)]
    clock.now_ns += 5_000_000
    assert made.outcome() == Answer(3_000_000)


@pytest.mark.parametrize("set_ns", [-3600 * 10**9, 3600 * 10**9])
def test_a_clock_that_is_set_meanwhile_does_not_matter(kernel: FakeSocket, clock: Clock, set_ns: int) -> None:
    made = call("dns://203.0.113.1/example.org")
    clock.now_ns += 5_000_000
    answer = dns(ident=int.from_bytes(kernel.sent[:2], "big"))
    kernel.datagrams = [(answer, clock.time_ns() + set_ns)]
    assert made.outcome() == Answer(5_000_000)


def test_an_answer_without_a_stamp_counts_by_our_clock(kernel: FakeSocket, clock: Clock) -> None:
    made = call("dns://203.0.113.1/example.org")
    clock.now_ns += 5_000_000
    kernel.datagrams = [(dns(ident=int.from_bytes(kernel.sent[:2], "big")), 0)]
    assert made.outcome() == Answer(5_000_000)


def test_wrong_answers_alone_are_none(kernel: FakeSocket) -> None:
    made = call("dns://203.0.113.1/example.org")
    kernel.datagrams = [(dns(flags=0x0100), 1)] * 5
    assert made.outcome() is None
    assert kernel.datagrams == []


def test_a_stream_of_wrong_answers_does_not_hold_the_loop(kernel: FakeSocket) -> None:
    made = call("dns://203.0.113.1/example.org")
    kernel.datagrams = [(dns(flags=0x0100), 1)] * 20_000
    assert made.outcome() is None
    assert kernel.datagrams
