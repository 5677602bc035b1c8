"""Frames byte by byte against scapy, and garbage that never counts."""

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils import checksum

from lsmpy import wire
from lsmpy.wire import EchoReply, Neighbour

MAC, GATEWAY_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
OURS, THEIRS = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02"), Ether(src="02:00:00:00:00:02", dst=MAC.hex(":"))
SOURCE4, TARGET4 = ip_address("192.0.2.1"), ip_address("203.0.113.1")
SOURCE6, TARGET6 = ip_address("2001:db8:1::1"), ip_address("2001:db8:ffff::1")
PAYLOAD = bytes(range(56))
SEQS = [0, 1, 77, 255, 256, 32767, 65534, 65535]


def reply4(code: int = 0) -> Packet:
    return THEIRS / IP(src=str(TARGET4), dst=str(SOURCE4)) / ICMP(type="echo-reply", code=code, id=7, seq=9) / PAYLOAD


def reply6() -> Packet:
    return THEIRS / IPv6(src=str(TARGET6), dst=str(SOURCE6)) / ICMPv6EchoReply(id=7, seq=9, data=PAYLOAD)


def advertisement(hlim: int = 255, mac: str = "02:00:00:00:00:02") -> Packet:
    packet = THEIRS / IPv6(src=str(TARGET6), dst=str(SOURCE6), hlim=hlim)
    return packet / ICMPv6ND_NA(tgt=str(TARGET6)) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def arp_reply(mac: str = "02:00:00:00:00:02") -> Packet:
    return THEIRS / ARP(op="is-at", hwsrc=mac, psrc=str(TARGET4), hwdst=MAC.hex(":"), pdst=str(SOURCE4))


@pytest.mark.parametrize("seq", SEQS)
def test_an_echo_request_is_scapys(seq: int) -> None:
    echo = wire.echo(MAC, GATEWAY_MAC, SOURCE4, TARGET4, 4711, PAYLOAD)
    packet = OURS / IP(src=str(SOURCE4), dst=str(TARGET4), flags="DF", id=0) / ICMP(id=4711, seq=seq) / PAYLOAD
    assert echo.frame(seq) == bytes(packet)


@pytest.mark.parametrize("seq", SEQS)
def test_an_icmpv6_echo_request_is_scapys(seq: int) -> None:
    echo = wire.echo(MAC, GATEWAY_MAC, SOURCE6, TARGET6, 4711, PAYLOAD)
    packet = OURS / IPv6(src=str(SOURCE6), dst=str(TARGET6)) / ICMPv6EchoRequest(id=4711, seq=seq, data=PAYLOAD)
    assert echo.frame(seq) == bytes(packet)


def test_every_checksum_is_right() -> None:
    echo4 = wire.echo(MAC, GATEWAY_MAC, SOURCE4, TARGET4, 4711, PAYLOAD)
    echo6 = wire.echo(MAC, GATEWAY_MAC, SOURCE6, TARGET6, 4711, PAYLOAD)
    pseudo = SOURCE6.packed + TARGET6.packed + struct.pack("!II", 64, socket.IPPROTO_ICMPV6)
    for seq in range(65536):
        assert checksum(echo4.frame(seq)[34:]) == 0
        assert checksum(pseudo + echo6.frame(seq)[54:]) == 0


def test_the_arp_question_is_scapys() -> None:
    packet = Ether(src=MAC.hex(":"), dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=1, hwsrc=MAC.hex(":"), psrc=str(SOURCE4), hwdst="00:00:00:00:00:00", pdst="192.0.2.2"
    )
    assert wire.solicitation(MAC, SOURCE4, ip_address("192.0.2.2")) == bytes(packet)


def test_the_neighbour_solicitation_goes_to_the_solicited_node() -> None:
    frame = Ether(wire.solicitation(MAC, SOURCE6, ip_address("2001:db8:1::a1:b2c3")))
    assert (frame.dst, frame[IPv6].dst, frame[IPv6].hlim) == ("33:33:ff:a1:b2:c3", "ff02::1:ffa1:b2c3", 255)
    assert (frame[ICMPv6ND_NS].tgt, frame[ICMPv6NDOptSrcLLAddr].lladdr) == ("2001:db8:1::a1:b2c3", MAC.hex(":"))


def test_replies_are_understood() -> None:
    assert wire.parse(bytes(reply4())) == EchoReply(TARGET4, SOURCE4, 7, 9, PAYLOAD)
    assert wire.parse(bytes(reply6())) == EchoReply(TARGET6, SOURCE6, 7, 9, PAYLOAD)
    assert wire.parse(bytes(arp_reply())) == Neighbour(TARGET4, GATEWAY_MAC)
    assert wire.parse(bytes(advertisement())) == Neighbour(TARGET6, GATEWAY_MAC)


def test_options_and_padding_are_not_payload() -> None:
    options = IP(src=str(TARGET4), dst=str(SOURCE4), options=b"\x01\x01\x01\x00")
    frame = bytes(THEIRS / options / ICMP(type="echo-reply", id=7, seq=9) / b"abc") + bytes(18)
    assert wire.parse(frame) == EchoReply(TARGET4, SOURCE4, 7, 9, b"abc")


@pytest.mark.parametrize(
    "packet",
    [
        OURS / IP(src=str(SOURCE4), dst=str(TARGET4)) / ICMP() / PAYLOAD,
        OURS / IPv6(src=str(SOURCE6), dst=str(TARGET6)) / ICMPv6EchoRequest(data=PAYLOAD),
        reply4(code=1),
        THEIRS / IP(src=str(TARGET4), dst=str(SOURCE4), frag=1) / ICMP(type=0) / PAYLOAD,
        THEIRS / IP(src=str(TARGET4), dst=str(SOURCE4), flags="MF") / ICMP(type=0) / PAYLOAD,
        THEIRS / IP(src=str(TARGET4), dst=str(SOURCE4)) / UDP() / PAYLOAD,
        THEIRS / IP(src=str(TARGET4), dst=str(SOURCE4), ihl=4) / ICMP(type=0) / PAYLOAD,
        THEIRS / IP(src=str(TARGET4), dst=str(SOURCE4), len=1000) / ICMP(type=0) / PAYLOAD,
        THEIRS / ARP(op="who-has", psrc=str(TARGET4), pdst=str(SOURCE4), hwsrc="02:00:00:00:00:02"),
        arp_reply("ff:ff:ff:ff:ff:ff"),
        arp_reply("00:00:00:00:00:00"),
        advertisement(hlim=254),
        advertisement(mac="33:33:00:00:00:01"),
        THEIRS / IPv6(src=str(TARGET6), dst=str(SOURCE6), hlim=255) / ICMPv6ND_NA(tgt=str(TARGET6)),
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_is_no_reply_does_not_count(packet: Packet) -> None:
    assert wire.parse(bytes(packet)) is None


@pytest.mark.parametrize("packet", [reply4(), reply6(), arp_reply(), advertisement()], ids=["4", "6", "arp", "na"])
def test_a_frame_cut_short_anywhere_does_not_count(packet: Packet) -> None:
    whole = bytes(packet)
    end = (
        whole.rindex(PAYLOAD) + len(PAYLOAD) if PAYLOAD in whole else 42 if packet.type == wire.ETH_ARP else len(whole)
    )
    assert wire.parse(whole[:end]) is not None
    assert {wire.parse(whole[:length]) for length in range(end)} == {None}


ours = EchoReply(TARGET4, SOURCE4, 7, 9, PAYLOAD)
heads = st.sampled_from(
    [b"", bytes(THEIRS / ARP())[:14], bytes(reply4())[:34], bytes(reply6())[:54], bytes(advertisement())]
)


@given(heads, st.binary(max_size=120))
def test_garbage_never_raises_and_never_counts(head: bytes, garbage: bytes) -> None:
    heard = wire.parse(head + garbage)
    assert not isinstance(heard, EchoReply) or heard.payload != PAYLOAD


@given(st.sampled_from([reply4(), reply6()]).map(bytes), st.data())
def test_a_damaged_reply_never_raises_and_is_another_one(frame: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(frame) - 1))
    damaged = bytearray(frame)
    damaged[at] ^= data.draw(st.integers(1, 255))
    whole, heard = wire.parse(frame), wire.parse(bytes(damaged))
    assert isinstance(whole, EchoReply)
    icmp = 34 if whole.source.version == 4 else 54
    addresses = range(26, 34) if whole.source.version == 4 else range(22, 54)
    if (at >= icmp and at not in (icmp + 2, icmp + 3)) or at in addresses:  # not the checksum, which nobody checks here
        assert heard != whole


def test_the_filter_lets_only_replies_through() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    wanted = [bytes(each) for each in (reply4(), reply6(), arp_reply(), advertisement())]
    noise = [
        OURS / IP() / ICMP() / PAYLOAD,
        THEIRS / IP() / UDP(sport=0, dport=0) / bytes(8),
        THEIRS / IP(frag=1) / ICMP(type=0),
        THEIRS / IPv6() / ICMPv6EchoRequest(),
        THEIRS / IPv6() / ICMPv6ND_NS(),
        THEIRS / IPv6() / UDP(sport=33024, dport=129),
        THEIRS / ARP(op="who-has"),
        Ether(type=0x88CC) / reply4()[IP],
    ]
    with sender, receiver:
        receiver.setblocking(False)
        wire.attach_filter(receiver)
        for frame in [*map(bytes, noise), b"short", *wanted]:
            sender.send(frame)
        assert [receiver.recv(2048) for _ in wanted] == wanted
        with pytest.raises(BlockingIOError):
            receiver.recv(2048)
