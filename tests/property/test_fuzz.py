"""Whatever arrives from outside: nothing raises, nothing hangs, and nothing counts that does not carry our tag.

Hypothesis looks for small examples; plain dice throw as many bytes and damaged packets as there is time for.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from lsmpy import dial, flight, links, netlink, standing, state, wire
from lsmpy.netlink import Interest
from lsmpy.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, Neighbour, Reply, Unreachable

pytestmark = pytest.mark.long

SHORT_S, LONG_S = 1.0, 8.0  # of dice for each family; in CI a minute in all
IDENT, NONCE, TAG = 4711, b"\xa7\x01\xfe\x5c", b"no guess"
SOURCE4, TARGET4, SOURCE6, TARGET6 = "192.0.2.1", "203.0.113.1", "2001:db8:1::1", "2001:db8:ffff::1"
PROTOCOLS = (ETH_ARP, ETH_IPV4, ETH_IPV6)
_SLOWEST_S = 10.0  # thousands of times what any of it takes


SENT = struct.pack("!4sIQ8s32x", NONCE, 3, 70_009, TAG)
REQUEST4 = IP(src=SOURCE4, dst=TARGET4) / ICMP(id=IDENT, seq=70_009 & 0xFFFF) / SENT
REQUEST6 = IPv6(src=SOURCE6, dst=TARGET6) / ICMPv6EchoRequest(id=IDENT, seq=70_009 & 0xFFFF, data=SENT)
ERROR6 = IPv6(src=TARGET6, dst=SOURCE6)
PACKETS: dict[int, list[Packet]] = {
    ETH_IPV4: [
        IP(src=TARGET4, dst=SOURCE4) / ICMP(type=0, id=IDENT, seq=70_009 & 0xFFFF) / SENT,
        IP(src=TARGET4, dst=SOURCE4) / ICMP(type=3, code=1) / Raw(bytes(REQUEST4)),
        IP(src=TARGET4, dst=SOURCE4) / ICMP(type=11) / Raw(bytes(REQUEST4)[:28]),
        IP(src=TARGET4, dst=SOURCE4) / ICMP(type=3, code=4) / Raw(bytes(IP(dst=TARGET4) / UDP() / SENT)),
        IP(src=TARGET4, dst=SOURCE4, options=b"\x07\x07\x04\x01\x02\x03\x04\x00") / ICMP(type=3) / Raw(bytes(REQUEST4)),
    ],
    ETH_IPV6: [
        IPv6(src=TARGET6, dst=SOURCE6) / ICMPv6EchoReply(id=IDENT, seq=70_009 & 0xFFFF, data=SENT),
        IPv6(src=TARGET6, dst=SOURCE6, hlim=255)
        / ICMPv6ND_NA(tgt=TARGET6)
        / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:02"),
        ERROR6 / ICMPv6DestUnreach() / Raw(bytes(REQUEST6)),
        ERROR6 / ICMPv6TimeExceeded() / Raw(bytes(REQUEST6)),
        ERROR6 / ICMPv6DestUnreach(ext=b"\x20\x00\x00\x00", length=16) / Raw(bytes(REQUEST6)),
        ERROR6 / IPv6ExtHdrHopByHop() / ICMPv6DestUnreach() / Raw(bytes(REQUEST6)),
    ],
    ETH_ARP: [
        ARP(op=2, psrc="192.0.2.2", hwsrc="02:00:00:00:00:02"),
        ARP(op=1, psrc=SOURCE4, pdst="192.0.2.2", hwsrc="02:00:00:00:00:01"),
    ],
}
SAMPLES = {protocol: [bytes(packet) for packet in packets] for protocol, packets in PACKETS.items()}


def damage(dice: random.Random, samples: Sequence[bytes], longest: int = 200) -> bytes:
    """Bytes by chance, or one of the samples with a few of its bytes changed, cut out, doubled or put elsewhere."""
    if dice.random() < 0.1:
        return dice.randbytes(dice.randrange(longest))
    data = bytearray(dice.choice(samples))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at, length = dice.randrange(len(data) + 1), dice.choice((1, 1, 2, 4, 8, 16))
        match dice.randrange(6):
            case 0:
                data[at : at + length] = dice.randbytes(length)
            case 1 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 2:
                data[at : at + length] = dice.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\1")) * length
            case 3:
                del data[at : at + length if dice.random() < 0.7 else None]
            case 4:
                data[at:at] = data[dice.randrange(len(data) + 1) :][:length]
            case _:
                other = dice.choice(samples)
                data[at : at + length] = other[at : at + length]
    return bytes(data)


def throws(long: bool, share: float = 1.0) -> Iterator[random.Random]:
    """Dice, for as long as there is time; the same ones each time, but when there is much of it."""
    seed = time.time_ns() if long else 4711
    in_ci = os.environ.get("CI") == "true"
    ends = time.monotonic() + (LONG_S if long or in_ci else SHORT_S) * share
    print(f"seed {seed}")  # pytest shows it where something fails
    dice = random.Random(seed)
    number = 0
    while time.monotonic() < ends:
        for _ in range(50):
            number += 1
            yield dice
    print(f"{number} throws")


@contextmanager
def swiftly() -> Iterator[None]:
    """It comes to an end, and soon."""
    began = time.process_time()
    yield
    assert time.process_time() - began < _SLOWEST_S


# -- packets ---------------------------------------------------------------------------------------


def check_packet(protocol: int, data: bytes) -> Reply | Neighbour | None:
    """It is understood as nothing, as our own answer, or as what it says in plain bytes."""
    with swiftly():
        heard = wire.parse(protocol, data, 5, IDENT, NONCE)
    if isinstance(heard, Reply):
        carried = NONCE + struct.pack("!IQ8s", heard.target, heard.counter, heard.tag)
        assert carried in data
        assert struct.pack("!HH", IDENT, heard.counter & 0xFFFF) + carried in data
        assert heard.source in data
        assert heard.destination in data
        assert protocol in (ETH_IPV4, ETH_IPV6)
    elif heard is not None:
        assert heard.address.packed in data
        assert heard.mac in data
        assert (len(heard.mac), heard.mac[0] & 1) == (6, 0)
        assert protocol in (ETH_ARP, ETH_IPV6)
    return heard


def check_error(protocol: int, data: bytes) -> Unreachable | None:
    """It is nothing, or an error about an echo request with our identifier; and the first look raises nothing."""
    with swiftly():
        heard = wire.parse_error(protocol, data, IDENT)
        first = wire.complaint(protocol, data)
    assert first is None or (first.target in data and 0 <= first.seq <= 0xFFFF)
    if heard is not None:
        assert struct.pack("!H", IDENT) in data
        assert heard.target.packed in data
        assert heard.by.packed in data
        assert 0 <= heard.seq <= 0xFFFF
        assert isinstance(heard.reason, str)
    return heard


samples = st.sampled_from([(protocol, data) for protocol, each in SAMPLES.items() for data in each])


@given(st.sampled_from((*PROTOCOLS, 0, 0x88CC)), st.binary(max_size=200))
def test_no_bytes_are_too_much_for_the_wire(protocol: int, data: bytes) -> None:
    assert not isinstance(check_packet(protocol, data), Reply)
    check_error(protocol, data)


@given(samples, st.randoms(use_true_random=False))
def test_no_damaged_packet_is_too_much_for_the_wire(sample: tuple[int, bytes], dice: random.Random) -> None:
    protocol, data = sample
    damaged = damage(dice, [data])
    check_packet(protocol, damaged)
    check_error(protocol, damaged)


def test_the_samples_are_understood_as_they_are() -> None:
    replies = [check_packet(protocol, data) for protocol, each in SAMPLES.items() for data in each]
    assert sum(isinstance(heard, Reply) for heard in replies) == 2
    assert sum(isinstance(heard, Neighbour) for heard in replies) == 3
    errors = [check_error(protocol, data) for protocol in (ETH_IPV4, ETH_IPV6) for data in SAMPLES[protocol]]
    assert sum(heard is not None for heard in errors) >= 5


def test_dice_find_no_packet_that_raises_or_counts_wrongly(long: bool) -> None:
    heard = {Reply: 0, Neighbour: 0, type(None): 0}
    for dice in throws(long):
        protocol = dice.choice(PROTOCOLS)
        heard[type(check_packet(protocol, damage(dice, SAMPLES[protocol])))] += 1
    assert all(heard.values()), heard  # they do reach what is behind the first look


def test_dice_find_no_error_that_raises(long: bool) -> None:
    found = 0
    for dice in throws(long):
        protocol = dice.choice((ETH_IPV4, ETH_IPV6))
        found += check_error(protocol, damage(dice, SAMPLES[protocol][1:])) is not None
    assert found


def test_dice_find_no_packet_that_raises_as_another_protocol(long: bool) -> None:
    every = [data for each in SAMPLES.values() for data in each]
    for dice in throws(long, 0.3):
        protocol = dice.choice((*PROTOCOLS, 0, 0x8864))
        data = damage(dice, every)
        check_packet(protocol, data)
        check_error(protocol, data)


def test_dice_never_make_a_tag(long: bool) -> None:
    """Replies that are right in every respect but the tag, as somebody would send who has seen some of ours."""
    good, counted = SAMPLES[ETH_IPV4][0], 0
    probes = flight.Flight(1_000_000_000)
    probes.sent(70_009, 0, 1, TAG)
    for dice in throws(long, 0.3):
        forged = bytearray(good)
        what = dice.randrange(3)
        if what == 0:
            forged[44:52] = dice.randbytes(8)
        elif what == 1:  # another number, with the old tag
            counter = dice.getrandbits(64)
            forged[36:44] = struct.pack("!Q", counter)
            forged[26:28] = struct.pack("!H", counter & 0xFFFF)
        else:
            forged[32:36] = dice.randbytes(4)
        heard = wire.parse(ETH_IPV4, bytes(forged), 5, IDENT, NONCE)
        if isinstance(heard, Reply) and heard.target == 3 and forged != good:
            counted += 1
            assert not probes.is_true(heard.counter, heard.tag)
            probes.answered(heard.counter, heard.tag, 5, 5)
    assert counted
    assert probes.fates(5) == []


# -- DNS -------------------------------------------------------------------------------------------

QUESTION = struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\x07example\x03org\x00\x00\x01\x00\x01"
ANSWERS = [
    struct.pack("!HHHHHH", 0x1234, 0x8180, 1, 1, 0, 0) + QUESTION[12:] + b"\xc0\x0c\x00\x01\x00\x01" + bytes(10),
    struct.pack("!HHHHHH", 0x1234, 0x8183, 1, 0, 0, 0) + QUESTION[12:],
    struct.pack("!HHHHHH", 0x1234, 0x8185, 0, 0, 0, 0),
    QUESTION,
]


def check_answer(data: bytes) -> bool:
    with swiftly():
        said = dial.answers(QUESTION, data)
    if said:
        assert data[:2] == QUESTION[:2]
        assert data[2] & 0x80
        if any(data[4:6]):
            assert data[12 : len(QUESTION)].lower() == QUESTION[12:]
        else:
            assert data[3] & 0x0F  # an error that repeats nothing
    return said


@given(st.binary(max_size=100) | st.binary(max_size=40).map(lambda end: QUESTION[:2] + end))
def test_no_bytes_are_too_much_for_a_query(data: bytes) -> None:
    check_answer(data)


def test_dice_find_no_datagram_that_raises(long: bool) -> None:
    said = {True: 0, False: 0}
    for dice in throws(long):
        said[check_answer(damage(dice, ANSWERS))] += 1
    assert all(said.values())


# -- the kernel's own messages ---------------------------------------------------------------------


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=LHHLL", 16 + len(body), kind, 0, 1, 0) + body


MESSAGES = [
    message(16, struct.pack("=BxHiII", 0, 1, 3, 0x41, 0) + attribute(3, b"wan1\0") + attribute(1, b"\2\0\0\0\0\1")),
    message(17, struct.pack("=BxHiII", 0, 1, 1_000_000, 0, 0) + attribute(3, b"wan1\0")),
    message(
        20, struct.pack("=BBBBI", socket.AF_INET, 24, 128, 0, 3) + attribute(2, b"\xc0\0\2\1") + attribute(8, bytes(4))
    ),
    message(20, struct.pack("=BBBBI", socket.AF_INET6, 64, 0, 0, 3) + attribute(1, ip_address(SOURCE6).packed)),
    message(24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 250, 4, 0, 1, 0) + attribute(15, b"\xfa\0\0\0")),
    message(25, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 250, 76, 0, 1, 0) + attribute(15, b"\xfa\0\0\0")),
    message(32, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 250, 0, 0, 1, 0) + attribute(21, b"\x4c")),
]
INTEREST = Interest(frozenset({"wan1", "lo"}), frozenset({250}))


def check_messages(data: bytes) -> int:
    """Every message lies in what was received, one after another, and is judged."""
    with swiftly():
        found = list(netlink.messages(data))
    assert len(found) <= len(data) // 16
    at = 0
    for kind, text in found:
        assert len(text) >= 16
        assert data[at : at + len(text)] == text
        assert struct.unpack_from("=H", data, at + 4) == (kind,)
        at += (len(text) + 3) & ~3
        assert netlink._matters(kind, text, INTEREST) in (True, False)
    return len(found)


def check_attributes(data: bytes, body: int) -> dict[int, bytes]:
    with swiftly():
        found = links._attributes(data, body)
    assert all(value in data for value in found.values())
    assert sum(4 + len(value) for value in found.values()) <= max(0, len(data) - 16 - body)
    return found


def check_told(data: bytes) -> None:
    """What has the length that the kernel gives it is read, whatever its attributes hold."""
    if len(data) >= 16 + 16:
        with swiftly():
            link = links._link(data)
        assert isinstance(link.name, str)
        assert link.mac in data


@given(st.lists(st.sampled_from(MESSAGES) | st.binary(max_size=40), max_size=5).map(b"".join))
def test_no_bytes_are_too_much_for_the_listener(data: bytes) -> None:
    check_messages(data)
    check_attributes(data, 8)
    check_told(data)


def test_dice_find_no_message_that_raises(long: bool) -> None:
    several = 0
    for dice in throws(long):
        data = damage(dice, MESSAGES) + damage(dice, MESSAGES)
        several += check_messages(data) > 1
        check_attributes(data, dice.choice((8, 12, 16)))
        check_told(data)
    assert several


def test_dice_find_no_address_that_raises(long: bool) -> None:
    """As the kernel gives families, lengths and prefixes; other families are told in tests/unit/test_links.py."""
    noted = 0
    for dice in throws(long, 0.3):
        found: dict[int, list[tuple[bool, links.Address, links.Network]]] = {}
        data = damage(dice, MESSAGES[2:4])
        own = links._attributes(data, 8)
        sizes = [len(own[each]) for each in (1, 2) if each in own]
        if len(data) >= 24 and all(size in (4, 16) and data[17] <= 8 * size for size in sizes):
            links._note_address(found, data)
            noted += bool(found)
    assert noted


# -- files -----------------------------------------------------------------------------------------

STANDING = standing.encode(
    standing.Standing(
        1.5,
        {
            "ISP1": standing.IspStanding(
                *("up", 1.0, "well", 0.0),
                {
                    TARGET4: standing.TargetStanding(
                        *("up", 1.0, "it answered", "well", 100, 0, 0, 0, False), standing.RoundTrips(1, 2, 3, 4, 5, 6)
                    )
                },
            )
        },
    )
)


def test_dice_find_no_standing_that_raises(long: bool) -> None:
    read = 0
    for dice in throws(long):
        text = damage(dice, [STANDING.encode()]).decode(errors=dice.choice(("replace", "surrogateescape")))
        with swiftly():
            found = standing.decode(text)
        assert isinstance(found, standing.Standing | None)
        read += found is not None
    assert read


WORDS = [b"up\n", b"down\n", b"long_down\n", b"", b"up", b"up\0", b" up\n", b"\xff\xfe", b"up\r\n", b"\xef\xbb\xbfup\n"]


def test_dice_find_no_state_file_that_raises(long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_REREAD_S", 0.0)
    path = state.state_path(tmp_path, "ISP1")
    ups = 0
    for dice in throws(long):
        data = damage(dice, WORDS, 8192)
        path.write_bytes(data)
        status = state.read(tmp_path, "ISP1")
        assert status.text is not None
        assert status.up == (status.text == "up") == (data[:4096].rstrip() == b"up")
        assert len(status.warning) < 500
        ups += status.up
    assert ups


@given(st.binary(max_size=200), st.none() | st.binary(max_size=20))
def test_whatever_lies_in_the_state_directory_is_judged(text: bytes, force: bytes | None) -> None:
    forced = None if force is None else force.decode(errors="replace")
    status = state.judge(text.decode(errors="replace"), forced)
    assert status.up == (forced == "up" if forced in ("up", "down") else text == b"up")
