"""Packets byte by byte against scapy, and what never counts."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from lsmpy import wire
from lsmpy.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, Neighbour, Reply, Unreachable
from tests.unit.packets import (
    AT,
    GATEWAY_MAC,
    HOP4,
    HOP6,
    IDENT,
    MAC,
    NONCE,
    NUMBER,
    SOURCE4,
    SOURCE6,
    TAG,
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

COUNTERS = [0, 1, 77, 255, 256, 32767, 65534, 65535, 65536, (1 << 32) + 5, (1 << 64) - 1]
TAGS = [bytes(8), b"\xff" * 8, b"12345678"]


# -- what is sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", TAGS)
@pytest.mark.parametrize("counter", COUNTERS)
def test_an_echo_request_is_scapys(counter: int, said: bytes) -> None:
    template = wire.echo(SOURCE4, TARGET4, IDENT, NONCE, NUMBER)
    packet = IP(src=str(SOURCE4), dst=str(TARGET4), flags="DF", id=0)
    packet /= ICMP(id=IDENT, seq=counter & 0xFFFF) / payload(counter, said)
    assert template.packet(counter, said) == bytes(packet)


@pytest.mark.parametrize("said", TAGS)
@pytest.mark.parametrize("counter", COUNTERS)
def test_an_icmpv6_echo_request_is_scapys(counter: int, said: bytes) -> None:
    template = wire.echo(SOURCE6, TARGET6, IDENT, NONCE, NUMBER)
    packet = IPv6(src=str(SOURCE6), dst=str(TARGET6))
    packet /= ICMPv6EchoRequest(id=IDENT, seq=counter & 0xFFFF, data=payload(counter, said))
    assert template.packet(counter, said) == bytes(packet)


@given(st.integers(0, (1 << 64) - 1), st.binary(min_size=8, max_size=8), st.integers(0, 65535), st.binary(max_size=4))
def test_every_checksum_is_right(counter: int, said: bytes, ident: int, nonce: bytes) -> None:
    echo4 = wire.echo(SOURCE4, TARGET4, ident, nonce.ljust(4, b"\xff"), NUMBER).packet(counter, said)
    echo6 = wire.echo(SOURCE6, TARGET6, ident, nonce.ljust(4, b"\xff"), NUMBER).packet(counter, said)
    pseudo = SOURCE6.packed + TARGET6.packed + struct.pack("!II", len(echo6) - 40, socket.IPPROTO_ICMPV6)
    assert (checksum(echo4[:20]), checksum(echo4[20:]), checksum(pseudo + echo6[40:])) == (0, 0, 0)


def test_a_probe_is_as_long_as_that_of_ping() -> None:
    assert len(wire.echo(SOURCE4, TARGET4, IDENT, NONCE, NUMBER).packet(1, bytes(8))) == 84
    assert len(wire.echo(SOURCE6, TARGET6, IDENT, NONCE, NUMBER).packet(1, bytes(8))) == 104


def test_the_arp_question_is_scapys() -> None:
    question = wire.solicitation(MAC, SOURCE4, HOP4)
    packet = ARP(op=1, hwsrc=MAC.hex(":"), psrc=str(SOURCE4), hwdst="00:00:00:00:00:00", pdst=str(HOP4))
    assert question == wire.Question(bytes(packet), ETH_ARP, b"\xff" * 6)


def test_the_neighbour_solicitation_goes_to_the_solicited_node() -> None:
    question = wire.solicitation(MAC, SOURCE6, HOP6)
    packet = IPv6(question.packet)
    assert (question.protocol, question.group) == (ETH_IPV6, bytes.fromhex("3333ffa1b2c3"))
    assert (packet.src, packet.dst, packet.hlim) == (str(SOURCE6), "ff02::1:ffa1:b2c3", 255)
    assert (packet[ICMPv6ND_NS].tgt, packet[ICMPv6NDOptSrcLLAddr].lladdr) == (str(HOP6), MAC.hex(":"))
    pseudo = packet.src, packet.dst, struct.pack("!II", packet.plen, socket.IPPROTO_ICMPV6)
    ends = ip_address(pseudo[0]).packed + ip_address(pseudo[1]).packed
    assert checksum(ends + pseudo[2] + question.packet[40:]) == 0


# -- what is heard ---------------------------------------------------------------------------------


@pytest.mark.parametrize("counter", COUNTERS)
def test_replies_are_understood(counter: int) -> None:
    assert parse(reply(counter)) == Reply(NUMBER, counter, TAG, TARGET4.packed, SOURCE4.packed, AT)
    assert parse(reply6(counter)) == Reply(NUMBER, counter, TAG, TARGET6.packed, SOURCE6.packed, AT)


def test_the_answer_to_what_we_send_is_understood() -> None:
    for source, target, icmp, answer in ((SOURCE4, TARGET4, 20, 0), (SOURCE6, TARGET6, 40, 129)):
        packet = bytearray(wire.echo(source, target, IDENT, NONCE, NUMBER).packet(70_000, TAG))
        packet[icmp] = answer
        heard = parse(bytes(packet))
        assert heard == Reply(NUMBER, 70_000, TAG, source.packed, target.packed, AT)


ANSWER4 = Neighbour(HOP4, GATEWAY_MAC, AT, SOURCE4.packed, MAC)
ANSWER6 = Neighbour(HOP6, GATEWAY_MAC, AT, SOURCE6.packed)


def test_neighbours_are_understood() -> None:
    assert parse(arp()) == ANSWER4
    assert parse(advertisement()) == ANSWER6


def test_a_host_that_announces_itself_is_heard() -> None:
    assert parse(arp("who-has", target=str(HOP4))) == Neighbour(HOP4, GATEWAY_MAC, AT)
    assert parse(arp("is-at", target=str(HOP4))) == Neighbour(HOP4, GATEWAY_MAC, AT, HOP4.packed, MAC)
    assert parse(advertisement(solicited=0)) == Neighbour(HOP6, GATEWAY_MAC, AT)


def test_an_advertisement_may_have_other_options_first() -> None:
    packet = bytearray(bytes(advertisement()))
    packet[64:64] = bytes([1, 1, 9, 9, 9, 9, 9, 9]) + bytes([14, 2]) + bytes(14)
    packet[4:6] = struct.pack("!H", len(packet) - 40)
    assert parse(bytes(packet)) == ANSWER6


def test_options_and_padding_are_not_payload() -> None:
    packet = bytes(reply(options=b"\x01\x01\x01\x00")) + bytes(18)
    assert parse(packet) == Reply(NUMBER, 9, TAG, TARGET4.packed, SOURCE4.packed, AT)
    assert parse(bytes(reply6()) + bytes(18)) == Reply(NUMBER, 9, TAG, TARGET6.packed, SOURCE6.packed, AT)
    assert parse(bytes(arp()) + bytes(18), ETH_ARP) == ANSWER4


WRONG = {
    "wrong nonce": payload(9, nonce=b"abce"),
    "no payload": b"\0",
    "one byte less": payload(9)[:-1],
    "one byte more": payload(9) + b"\0",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_carry_our_payload_is_no_reply(name: str) -> None:
    assert parse(reply(data=WRONG[name])) is None
    assert parse(reply6(data=WRONG[name])) is None


@pytest.mark.parametrize("counter", [9, 9 + 65536])
def test_a_reply_played_again_under_another_number_does_not_count(counter: int) -> None:
    for seq in (0, 8, 10, 65535):
        assert parse(reply(counter, seq=seq)) is None
        assert parse(reply6(counter, seq=seq)) is None


@pytest.mark.parametrize(
    "packet",
    [
        request(),
        request6(),
        IP(src=str(TARGET4), dst=str(SOURCE4)) / ICMP(type="echo-reply", code=1, id=IDENT, seq=9) / payload(9),
        reply(ident=IDENT + 1),
        reply6(ident=IDENT + 1),
        reply(frag=1),
        reply(flags="MF"),
        reply(ihl=4),
        reply(len=83),
        reply(len=85),
        reply(version=6),
        IP(src=str(TARGET4), dst=str(SOURCE4)) / UDP() / payload(9),
        IP(src=str(TARGET4), dst=str(SOURCE4), proto=17) / bytes(reply()[ICMP]),
        IPv6(src=str(TARGET6), dst=str(SOURCE6)) / UDP() / payload(9),
        IPv6(src=str(TARGET6), dst=str(SOURCE6), nh=58, plen=500) / bytes(reply6().payload),
        ARP(op="who-has", psrc=str(HOP4), hwsrc="00:00:00:00:00:00"),
        ARP(op=3, psrc=str(HOP4), hwsrc="02:00:00:00:00:02"),
        ARP(op=2, hwtype=6, psrc=str(HOP4), hwsrc="02:00:00:00:00:02"),
        arp(mac="ff:ff:ff:ff:ff:ff"),
        arp(mac="01:00:5e:00:00:01"),
        arp(mac="00:00:00:00:00:00"),
        advertisement(hlim=254),
        advertisement(mac="33:33:00:00:00:01"),
        IPv6(src=str(HOP6), dst=str(SOURCE6), hlim=255) / ICMPv6ND_NA(tgt=str(HOP6)),
        IPv6(src=str(HOP6), dst=str(SOURCE6), hlim=255) / ICMPv6ND_NA(tgt=str(HOP6)) / Raw(b"\x02\x00" + bytes(14)),
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_is_no_reply_does_not_count(packet: Packet) -> None:
    assert parse(packet) is None


@pytest.mark.parametrize("packet", [reply(), reply6(), arp(), advertisement()], ids=["4", "6", "arp", "na"])
def test_a_packet_cut_short_anywhere_does_not_count(packet: Packet) -> None:
    whole, protocol = bytes(packet), protocol_of(packet)
    assert parse(whole, protocol) is not None
    assert {parse(whole[:length], protocol) for length in range(len(whole))} == {None}


@pytest.mark.parametrize("packet", [reply(), reply6(), arp(), advertisement()], ids=["4", "6", "arp", "na"])
def test_a_packet_of_another_type_does_not_count(packet: Packet) -> None:
    for protocol in {ETH_ARP, ETH_IPV4, ETH_IPV6, 0x88CC, 0} - {protocol_of(packet)}:
        assert parse(bytes(packet), protocol) is None


@given(st.sampled_from([reply(), reply6()]), st.data())
def test_a_damaged_reply_does_not_count_as_the_whole_one(packet: Packet, data: st.DataObject) -> None:
    whole, icmp = bytes(packet), 20 if isinstance(packet, IP) else 40
    ends = [*range(12, 20)] if icmp == 20 else [*range(8, 40)]
    tagged = [icmp, icmp + 1, *range(icmp + 4, icmp + 32)]  # not what only the network looks at, nor the filling
    at = data.draw(st.sampled_from(ends + tagged))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    heard = parse(bytes(damaged), protocol_of(packet))
    assert heard != parse(whole)
    said = (heard.target, heard.counter, heard.tag) if isinstance(heard, Reply) else None
    assert said != (NUMBER, 9, TAG) or at in ends  # and no other goes with what is under way


# -- what others say against it --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (error4(3, 0), "network-unreachable"),
        (error4(3, 1), "host-unreachable"),
        (error4(3, 10), "host-prohibited"),
        (error4(3, 13), "communication-prohibited"),
        (error4(11, 0), "ttl-zero-during-transit"),
        (error6(ICMPv6DestUnreach(code=0)), "No route to destination"),
        (error6(ICMPv6DestUnreach(code=1)), "Communication with destination administratively prohibited"),
        (error6(ICMPv6DestUnreach(code=3)), "Address unreachable"),
        (error6(ICMPv6TimeExceeded(code=0)), "hop limit exceeded in transit"),
    ],
)
def test_who_says_that_a_probe_did_not_arrive_is_heard(packet: Packet, reason: str) -> None:
    four = packet.version == 4
    target, by = (TARGET4, "198.51.100.7") if four else (TARGET6, "2001:db8:7::7")
    assert wire.parse_error(protocol_of(packet), bytes(packet), IDENT) == Unreachable(
        target, 77, ip_address(by), reason
    )
    first = wire.complaint(protocol_of(packet), bytes(packet))
    assert first == wire.Complaint(target.packed, 77, protocol_of(packet), bytes(packet))


def test_a_whole_packet_in_an_error_and_its_options_are_understood() -> None:
    outer = IP(src="198.51.100.7", dst=str(SOURCE4), options=b"\x01\x01\x01\x00") / ICMP(type=3, code=1)
    heard = wire.parse_error(ETH_IPV4, bytes(outer / Raw(bytes(request(70_000)))), IDENT)
    assert heard == Unreachable(TARGET4, 70_000 & 0xFFFF, ip_address("198.51.100.7"), "host-unreachable")
    first = wire.complaint(ETH_IPV4, bytes(outer / Raw(bytes(request(70_000)))))
    assert first
    assert (first.target, first.seq) == (TARGET4.packed, 70_000 & 0xFFFF)


@pytest.mark.parametrize(
    "packet",
    [
        error4(3, 1, others(request())),
        error6(ICMPv6DestUnreach(code=0), others(request6())),
        error4(3, 3, IP(src=str(SOURCE4), dst=str(TARGET4)) / UDP(sport=IDENT, dport=IDENT) / bytes(40)),
        error6(ICMPv6DestUnreach(code=4), IPv6(src=str(SOURCE6), dst=str(TARGET6)) / UDP() / bytes(40)),
        reply(),
        reply6(),
        request(),
        request6(),
        advertisement(),
        IP(src="198.51.100.7", dst=str(SOURCE4)) / ICMP(type=3, code=1),
        IPv6(src="2001:db8:7::7", dst=str(SOURCE6)) / ICMPv6DestUnreach(),
        IPv6(src="2001:db8:7::7", dst=str(SOURCE6)) / IPv6ExtHdrFragment(offset=5) / bytes(80),
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_is_not_about_a_probe_of_ours_is_no_error(packet: Packet) -> None:
    assert wire.parse_error(protocol_of(packet), bytes(packet), IDENT) is None


@pytest.mark.parametrize("packet", [reply(), reply6(), request(), request6(), advertisement(), arp(), error4(5, 1)])
def test_what_is_no_error_is_no_complaint(packet: Packet) -> None:
    assert wire.complaint(protocol_of(packet), bytes(packet)) is None


@pytest.mark.parametrize("packet", [error4(3, 1), error6(ICMPv6DestUnreach(code=0))], ids=["4", "6"])
def test_an_error_cut_short_before_the_ident_is_none(packet: Packet) -> None:
    whole, protocol = bytes(packet), protocol_of(packet)
    ident = 20 + 8 + 20 + 4 if protocol == ETH_IPV4 else 40 + 8 + 40 + 4
    for length in range(ident + 2):
        assert wire.parse_error(protocol, whole[:length], IDENT) is None
        assert wire.complaint(protocol, whole[:length]) is None
