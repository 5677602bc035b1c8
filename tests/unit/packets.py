"""Packets that a probe sends and meets, as scapy builds them."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any

from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6NDOptDstLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from lsmpy import wire
from lsmpy.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, Neighbour, Reply

MAC, GATEWAY_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
SOURCE4, TARGET4, HOP4 = ip_address("192.0.2.1"), ip_address("203.0.113.1"), ip_address("192.0.2.2")
SOURCE6, TARGET6, HOP6 = ip_address("2001:db8:1::1"), ip_address("2001:db8:ffff::1"), ip_address("2001:db8:1::a1:b2c3")
IDENT, NONCE, NUMBER = 4711, b"abcd", 3
AT = 123456789


TAG = b"\x9e tag \0\xff"


def payload(counter: int, said: bytes = TAG, nonce: bytes = NONCE, number: int = NUMBER) -> bytes:
    return nonce + struct.pack("!IQ", number, counter) + said + bytes(32)


def request(counter: int = 9) -> Packet:
    """A probe of IPv4, as scapy builds it."""
    packet = IP(src=str(SOURCE4), dst=str(TARGET4), flags="DF", id=0)
    return packet / ICMP(id=IDENT, seq=counter & 0xFFFF) / payload(counter)


def request6(counter: int = 9) -> Packet:
    packet = IPv6(src=str(SOURCE6), dst=str(TARGET6))
    return packet / ICMPv6EchoRequest(id=IDENT, seq=counter & 0xFFFF, data=payload(counter))


def reply(counter: int = 9, data: bytes = b"", seq: int | None = None, ident: int = IDENT, **ip: Any) -> Packet:
    packet = IP(src=str(TARGET4), dst=str(SOURCE4), **ip)
    seq = counter & 0xFFFF if seq is None else seq
    return packet / ICMP(type="echo-reply", id=ident, seq=seq) / (data or payload(counter))


def reply6(counter: int = 9, data: bytes = b"", seq: int | None = None, ident: int = IDENT) -> Packet:
    seq = counter & 0xFFFF if seq is None else seq
    packet = IPv6(src=str(TARGET6), dst=str(SOURCE6))
    return packet / ICMPv6EchoReply(id=ident, seq=seq, data=data or payload(counter))


def advertisement(hlim: int = 255, mac: str = "02:00:00:00:00:02", solicited: int = 1) -> Packet:
    packet = IPv6(src=str(HOP6), dst=str(SOURCE6), hlim=hlim)
    return packet / ICMPv6ND_NA(tgt=str(HOP6), S=solicited) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def arp(op: str = "is-at", mac: str = "02:00:00:00:00:02", target: str = "192.0.2.1") -> Packet:
    return ARP(op=op, hwsrc=mac, psrc=str(HOP4), hwdst=MAC.hex(":"), pdst=target)


def parse(packet: Packet | bytes, protocol: int | None = None) -> Reply | Neighbour | None:
    return wire.parse(protocol_of(packet) if protocol is None else protocol, bytes(packet), AT, IDENT, NONCE)


def protocol_of(packet: Packet | bytes) -> int:
    if isinstance(packet, ARP):
        return ETH_ARP
    return ETH_IPV6 if bytes(packet)[0] >> 4 == 6 else ETH_IPV4


def error4(kind: int, code: int, inner: Packet | None = None) -> Packet:
    outer = IP(src="198.51.100.7", dst=str(SOURCE4)) / ICMP(type=kind, code=code)
    return outer / Raw(bytes(inner or request(77))[:28])


def error6(message: Packet, inner: Packet | None = None) -> Packet:
    return IPv6(src="2001:db8:7::7", dst=str(SOURCE6)) / message / Raw(bytes(inner or request6(77)))


def others(packet: Packet) -> Packet:
    """The same request of another program."""
    packet = packet.copy()
    packet[ICMP if IP in packet else ICMPv6EchoRequest].id = IDENT + 1
    return packet
