"""The ring that the kernel fills, and its filter against what it shall let through."""

from __future__ import annotations

import mmap
import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import ARP
from scapy.packet import Raw

from lsmpy import port, wire
from lsmpy.port import Port
from lsmpy.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, Reply
from tests.unit.packets import (
    AT,
    HOP4,
    HOP6,
    IDENT,
    NONCE,
    SOURCE6,
    TARGET4,
    TARGET6,
    advertisement,
    arp,
    error4,
    error6,
    others,
    parse,
    payload,
    protocol_of,
    reply,
    reply6,
    request,
    request6,
)

# -- the ring -----------------------------------------------------------------------------------------------


class Ring:
    """A port's ring, into which packets are put as the kernel does (struct tpacket2_hdr, struct sockaddr_ll)."""

    def __init__(self) -> None:
        self.port = Port.__new__(Port)
        self.port._ring, self.port._slot = mmap.mmap(-1, port._SLOTS * port._SLOT), 0
        self.head = 0

    def put(self, packet: bytes, protocol: int = ETH_IPV4, at_ns: int = AT) -> bool:
        at = self.head * port._SLOT
        if struct.unpack_from("=I", self.port._ring, at) != (0,):
            return False  # full
        times = divmod(at_ns, 1_000_000_000)
        head = struct.pack("=IIIHHIIHHI", 1 | 1 << 29, len(packet), len(packet), 80, 80, *times, 0, 0, 0)
        head += struct.pack("=H", socket.AF_PACKET) + struct.pack("!H", protocol)
        self.port._ring[at : at + len(head)] = head
        self.port._ring[at + 80 : at + 80 + len(packet)] = packet
        self.head = (self.head + 1) % port._SLOTS
        return True

    def take(self) -> list[tuple[bytes, int, int]]:
        return list(self.port._frames())


def test_what_the_kernel_puts_into_the_ring_is_taken_in_its_order() -> None:
    ring = Ring()
    assert ring.take() == []
    told = [
        (b"%d" % n * (n % 90 + 1), ETH_IPV6 if n % 2 else ETH_ARP, 1_700_000_000_123_456_789 + n) for n in range(90)
    ]
    for each in told:
        assert ring.put(*each)
    assert ring.take() == told
    assert ring.take() == []


def test_the_ring_goes_round_and_is_given_back() -> None:
    ring = Ring()
    for turn in range(20):
        packets = [b"%d" % (1000 * turn + n) for n in range(400)]
        assert all(map(ring.put, packets))
        assert [each for each, _, _ in ring.take()] == packets


def test_what_arrives_meanwhile_waits_for_the_next_time() -> None:
    """So that nobody who sends and sends keeps the caller from its clock."""
    ring = Ring()
    while ring.put(b"first"):
        pass
    taken = []
    for each in ring.port._frames():
        taken.append(each[0])
        ring.put(b"next")
    assert taken == [b"first"] * port._SLOTS
    assert [each for each, _, _ in ring.take()] == [b"next"] * port._SLOTS


# -- the kernel's filter ---------------------------------------------------------------------------


def run_bpf(program: bytes, protocol: int, packet: bytes, tag: int | None = None) -> int:
    """What a classic BPF program returns for a packet (Documentation/networking/filter.rst); 0 drops it.

    `tag` is what 802.1Q says of it: priority and VLAN; without one the kernel may have kept that of another (0xFFFF).
    """
    beside = {0xFFFFF000: protocol, 0xFFFFF02C: 0xFFFF if tag is None else tag, 0xFFFFF030: int(tag is not None)}
    size = struct.calcsize("HBBI")
    steps = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), size)]
    accumulator = index = place = 0
    widths = {0x00: "!I", 0x08: "!H", 0x10: "!B"}
    for _ in range(len(steps)):  # there are only jumps forward
        code, yes, no, operand = steps[place]
        place += 1
        kind = code & 0x07
        if kind == 0x06:  # ret
            return int(operand)
        if kind == 0x05:  # jeq, jset
            assert code in (0x15, 0x45), hex(code)
            held = accumulator == operand if code == 0x15 else bool(accumulator & operand)
            place += yes if held else no
            continue
        if code in (0x28, 0x20, 0x30) and operand in beside:  # SKF_AD_OFF and what is told beside the packet
            accumulator = beside[operand]
            continue
        at = operand + (index if code & 0xE0 == 0x40 else 0)
        width = widths[0x10 if code == 0xB1 else code & 0x18]
        if at + struct.calcsize(width) > len(packet):  # the kernel drops what is read beyond the end
            return 0
        (value,) = struct.unpack_from(width, packet, at)
        if code == 0xB1:  # ldx: four times the header's length in 32 bit words
            index = (value & 0xF) * 4
        else:
            assert code & 0xE0 in (0x20, 0x40), hex(code)
            assert kind == 0, hex(code)
            accumulator = value
    raise AssertionError("the program does not end")


def program(*hops: str) -> bytes:
    return b"".join(port._filter(NONCE, IDENT, tuple(map(ip_address, hops))))


WANTED = {
    "reply": reply(),
    "reply with options": reply(options=b"\x01\x01\x01\x00"),
    "reply of IPv6": reply6(),
    "error": error4(3, 1),
    "error with options": IP(src="198.51.100.7", options=b"\x01" * 8) / ICMP(type=3, code=1) / Raw(bytes(request())),
    "time exceeded": error4(11, 0),
    "error of IPv6": error6(ICMPv6DestUnreach()),
    "time exceeded of IPv6": error6(ICMPv6TimeExceeded()),
    "arp answer": arp(),
    "arp announcement": arp("who-has", target=str(HOP4)),
    "advertisement": advertisement(),
}
UNWANTED = {
    "request": request(),
    "request of IPv6": request6(),
    "reply to others": reply(data=payload(9, nonce=b"zzzz")),
    "reply to others of IPv6": reply6(data=payload(9, nonce=b"zzzz")),
    "later fragment": reply(frag=1),
    "udp": IP(src=str(TARGET4)) / UDP() / payload(9),
    "udp of IPv6": IPv6(src=str(TARGET6)) / UDP(sport=33024, dport=129) / payload(9),
    "error to others": error4(3, 1, others(request())),
    "error to others of IPv6": error6(ICMPv6DestUnreach(), others(request6())),
    "redirect": error4(5, 1),
    "too big": error6(ICMPv6PacketTooBig()),
    "solicitation": IPv6(dst=str(SOURCE6)) / ICMPv6ND_NS(tgt=str(HOP6)),
    "another's arp": ARP(op=2, psrc="192.0.2.3"),
    "another's advertisement": IPv6(dst=str(SOURCE6)) / ICMPv6ND_NA(tgt="2001:db8:1::9"),
}


def test_the_filter_is_a_program_that_the_kernel_takes() -> None:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with opened:
        port.attach_filter(opened, NONCE, IDENT, (HOP4, HOP6))
        port.attach_filter(opened, NONCE, IDENT, ())  # again, in the place of the first


@pytest.mark.parametrize("name", WANTED)
def test_the_filter_lets_through_what_is_understood(name: str) -> None:
    packet = WANTED[name]
    protocol = protocol_of(packet)
    assert run_bpf(program(str(HOP4), str(HOP6)), protocol, bytes(packet))
    understood = wire.parse_error(protocol, bytes(packet), IDENT) and wire.complaint(protocol, bytes(packet))
    assert parse(packet) or understood


@pytest.mark.parametrize("name", WANTED)
def test_the_filter_tells_the_vlans_of_a_cable_apart(name: str) -> None:
    packet = WANTED[name]
    whole, protocol, data = program(str(HOP4), str(HOP6)), protocol_of(packet), bytes(packet)
    assert not run_bpf(whole, protocol, data, tag=10)
    assert not run_bpf(whole, protocol, data, tag=0xE000 | 4094)
    assert run_bpf(whole, protocol, data, tag=0xE000)  # a priority alone


@pytest.mark.parametrize("name", UNWANTED)
def test_the_filter_drops_what_concerns_others(name: str) -> None:
    packet = UNWANTED[name]
    assert not run_bpf(program(str(HOP4), str(HOP6)), protocol_of(packet), bytes(packet))


@pytest.mark.parametrize("name", sorted({*WANTED, *UNWANTED}))
def test_the_filter_drops_every_packet_under_another_protocol(name: str) -> None:
    data = bytes((WANTED | UNWANTED)[name])
    for protocol in (0, 0x88CC, 0x8100, 0x8864):
        assert not run_bpf(program(str(HOP4), str(HOP6)), protocol, data)


def test_the_filter_hears_no_neighbour_where_there_is_no_gateway() -> None:
    for name in ("arp answer", "arp announcement", "advertisement"):
        assert not run_bpf(program(), protocol_of(WANTED[name]), bytes(WANTED[name]))
    assert run_bpf(program(), ETH_IPV4, bytes(reply()))


@pytest.mark.parametrize("count", [2, 32, 33, 500])
def test_the_filter_hears_each_of_several_neighbours(count: int) -> None:
    hops = [f"10.0.{n // 250}.{n % 250}" for n in range(count)] + [f"fe80::1:{n:x}" for n in range(count)]
    whole = program(*hops)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        port.attach_filter(opened, NONCE, IDENT, tuple(map(ip_address, hops)))
    for hop in (hops[0], hops[count - 1]):
        assert run_bpf(whole, ETH_ARP, bytes(ARP(op=2, psrc=hop)))
    for hop in (hops[count], hops[-1]):
        assert run_bpf(whole, ETH_IPV6, bytes(IPv6() / ICMPv6ND_NA(tgt=hop)))
    assert bool(run_bpf(whole, ETH_ARP, bytes(ARP(op=2, psrc="192.0.2.3")))) == (count > 32)
    assert not run_bpf(whole, ETH_IPV4, bytes(UNWANTED["udp"]))


@given(st.sampled_from(["reply", "reply with options", "reply of IPv6", "arp answer", "advertisement"]), st.data())
def test_the_filter_lets_through_whatever_counts_however_damaged(name: str, data: st.DataObject) -> None:
    damaged, protocol = bytearray(bytes(WANTED[name])), protocol_of(WANTED[name])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    heard = parse(bytes(damaged), protocol)
    if isinstance(heard, Reply) or (heard and heard.address in (HOP4, HOP6)):
        assert run_bpf(program(str(HOP4), str(HOP6)), protocol, bytes(damaged))
