"""Which of the kernel's notifications wake the router, in the bytes of rtnetlink(7)."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lsmpy import netlink
from lsmpy.netlink import Interest

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNEIGH, NEWRULE, DELRULE = 16, 17, 20, 21, 24, 25, 28, 32, 33
LOOPBACK = socket.if_nametoindex("lo")
OURS, STATIC = 76, 4
ALL = Interest(frozenset({"eth2", "lo"}), frozenset({250, 254}))


def message(kind: int, body: bytes) -> bytes:
    padding = b"\0" * (-len(body) % 4)
    return struct.pack("=LHHLL", 16 + len(body), kind, 0, 0, 0) + body + padding


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def link(kind: int, index: int, name: str = "") -> bytes:
    """struct ifinfomsg and IFLA_IFNAME."""
    return message(kind, struct.pack("=BBHiII", 0, 0, 1, index, 0, 0) + attribute(3, name.encode() + b"\0"))


def address(kind: int, index: int) -> bytes:
    """struct ifaddrmsg."""
    return message(kind, struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, index))


def route(kind: int, protocol: int, table: int) -> bytes:
    """struct rtmsg and RTA_TABLE."""
    header = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, min(table, 252), protocol, 0, 1, 0)
    return message(kind, header + attribute(15, struct.pack("=I", table)))


def default_route(kind: int, protocol: int = STATIC, length: int = 0) -> bytes:
    """One of the main table."""
    made = bytearray(route(kind, protocol, 254))
    made[17] = length
    return bytes(made)


def rule(kind: int, protocol: int, table: int) -> bytes:
    """struct fib_rule_hdr, FRA_TABLE and FRA_PROTOCOL."""
    header = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, min(table, 252), 0, 0, 1, 0)
    return message(kind, header + attribute(15, struct.pack("=I", table)) + attribute(21, bytes([protocol])))


class Told:
    """A socket of notifications, given by hand."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers: Iterator[bytes | OSError] = iter(answers)

    def recv(self, _: int) -> bytes:
        answer = next(self.answers, OSError(errno.EBADF, "closed"))
        if isinstance(answer, OSError):
            raise answer
        return answer


def wakes(*answers: bytes | OSError, interest: Interest = ALL) -> int:
    woken: list[None] = []
    netlink.listen(Told(*answers), lambda: interest, lambda: woken.append(None))  # type: ignore[arg-type]
    return len(woken)


@pytest.mark.parametrize("kind", [NEWLINK, NEWADDR, DELADDR])
def test_a_configured_interface_wakes(kind: int) -> None:
    assert wakes(address(kind, LOOPBACK) if kind != NEWLINK else link(kind, LOOPBACK, "lo")) == 1


def test_a_configured_interface_that_is_gone_wakes_by_its_name() -> None:
    assert wakes(link(DELLINK, 1_000_000, "eth2")) == 1


def test_another_interface_does_not() -> None:
    assert wakes(link(NEWLINK, 1_000_000, "docker0"), address(NEWADDR, 1_000_000)) == 0
    assert wakes(address(NEWADDR, LOOPBACK), interest=Interest(frozenset({"eth2"}), frozenset())) == 0


@pytest.mark.parametrize("make", [route, rule])
@pytest.mark.parametrize("kind", ["new", "del"])
def test_others_routes_and_rules_in_our_tables_wake(make: type, kind: str) -> None:
    number = {(route, "new"): NEWROUTE, (route, "del"): DELROUTE, (rule, "new"): NEWRULE, (rule, "del"): DELRULE}
    assert wakes(make(number[make, kind], STATIC, 250)) == 1
    assert wakes(make(number[make, kind], STATIC, 77)) == 0


def test_default_routes_of_main_wake() -> None:
    whom = Interest(frozenset(), frozenset({250}))
    assert wakes(default_route(NEWROUTE), default_route(DELROUTE), interest=whom) == 2
    assert wakes(default_route(NEWROUTE, length=8), default_route(NEWROUTE, OURS), interest=whom) == 0


def test_our_own_additions_do_not_wake() -> None:
    assert wakes(route(NEWROUTE, OURS, 250), rule(NEWRULE, OURS, 250)) == 0


def test_what_is_ours_and_goes_wakes() -> None:
    assert wakes(route(DELROUTE, OURS, 250), rule(DELRULE, OURS, 250)) == 2


def test_a_table_beyond_255_is_known() -> None:
    assert wakes(route(DELROUTE, STATIC, 100_000), interest=Interest(frozenset(), frozenset({100_000}))) == 1


def test_several_messages_at_once_wake_once() -> None:
    own = route(NEWROUTE, OURS, 250)
    assert wakes(own + own) == 0
    assert wakes(own + address(NEWADDR, LOOPBACK) + route(NEWROUTE, STATIC, 250)) == 1


def test_what_concerns_nobody_does_not_wake() -> None:
    assert wakes(message(NEWNEIGH, b"\0" * 12)) == 0


def test_messages_that_were_lost_wake() -> None:
    assert wakes(OSError(errno.ENOBUFS, "No buffer space available")) == 1


def test_waiting_in_vain_does_not_wake() -> None:
    assert wakes(TimeoutError(), TimeoutError(), address(NEWADDR, LOOPBACK)) == 1


@pytest.mark.parametrize(
    "data", [b"", b"\1", b"\0" * 16, address(NEWADDR, LOOPBACK)[:18], struct.pack("=LHHLL", 3, 16, 0, 0, 0)]
)
def test_what_is_cut_off_is_no_end_of_the_listener(data: bytes) -> None:
    assert wakes(data, address(NEWADDR, LOOPBACK)) in (1, 2)


def chain_gone(kind: int, chain: str) -> bytes:
    """struct nfgenmsg, NFTA_CHAIN_TABLE and NFTA_CHAIN_NAME, in a message of NFNL_SUBSYS_NFTABLES."""
    return message(10 << 8 | kind, b"\2\0\0\0" + attribute(1, b"mangle\0") + attribute(3, chain.encode() + b"\0"))


@pytest.mark.parametrize("kind", [2, 5, 8])
def test_what_is_removed_from_our_chains_wakes_whom_it_concerns(kind: int) -> None:
    whom = Interest(frozenset(), frozenset(), chains=True)
    assert wakes(chain_gone(kind, "LSMPY-PREROUTING"), interest=whom) == 1
    assert wakes(chain_gone(kind, "DOCKER"), chain_gone(kind - 1, "LSMPY-PREROUTING"), interest=whom) == 0
    assert wakes(chain_gone(kind, "LSMPY-PREROUTING")) == 0


def test_who_is_patient_hears_of_it_once_all_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is told of puts it off, concerning us or not, but not for ever; and routes are told of at once."""
    whom, gone, others = (
        Interest(frozenset(), frozenset(), chains=True),
        chain_gone(5, "LSMPY-OUTPUT"),
        chain_gone(5, "X"),
    )
    told: list[float] = []
    clock = [0.0]

    def hear(*answers: bytes | OSError, patient: bool = True) -> list[float]:
        told.clear()
        clock[0] = 0.0
        netlink.listen(Told(*answers), lambda: whom, lambda: told.append(clock[0]), patient)  # type: ignore[arg-type]
        return told

    def now() -> float:
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr("lsmpy.netlink.time", SimpleNamespace(monotonic=now))
    quiet = TimeoutError()
    assert hear(gone, others, gone, quiet, quiet, gone, quiet) == [4, 7]
    assert hear(gone, others, others) == []
    assert hear(OSError(errno.ENOBUFS, "no buffer space"), quiet) == [2]
    assert hear(others, quiet) == []
    assert hear(*[gone] * 14) == [7, 14]
    assert hear(gone, others, gone, patient=False) == [1, 3]


def test_a_closed_socket_ends_the_listener() -> None:
    opened = netlink.open_socket()
    listener = threading.Thread(target=netlink.listen, args=(opened, lambda: ALL, lambda: None))
    listener.start()
    opened.close()
    listener.join(10)
    assert not listener.is_alive()


@pytest.mark.parametrize(
    ("data", "only"),
    [
        (route(NEWROUTE, STATIC, 254) + rule(DELRULE, OURS, 250), True),
        (route(DELROUTE, STATIC, 254), True),
        (route(NEWROUTE, STATIC, 254) + link(NEWLINK, 3, "eth2"), False),
        (address(DELADDR, 3), False),
    ],
)
def test_news_of_routes_and_rules_alone_are_told_from_others(data: bytes, only: bool) -> None:
    assert netlink.only_routes(data) == only
