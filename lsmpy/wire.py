"""Packets, as they are sent and as they arrive: the only place that knows scapy and the formats of packets."""

from __future__ import annotations

import functools
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from msgspec import Struct
from scapy.layers.inet import ICMP, IP, ICMPerror, IPerror
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPerror6, IPv6
from scapy.layers.l2 import ARP

Address = IPv4Address | IPv6Address

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
_BROADCAST = b"\xff" * 6
_ARP_REQUEST, _ARP_REPLY = 1, 2  # RFC 826
_SOLICITED = 0x40  # of a neighbour advertisement (RFC 4861, 4.4)
_TTL = 64  # IPDEFTTL (RFC 1700)
# What an echo request carries: nonce, target, counter, tag, and as much more as ping(8) would send.
_PAYLOAD = struct.Struct("!4sIQ8s32x")
TAG = 8
# Headers, as far as they matter: of IPv4 first byte, length, fragment, protocol, addresses; of IPv6 first word, length,
# protocol, hop limit, addresses; of ICMP type, code, identifier, sequence number, and then the payload.
_IPV4, _IPV6 = struct.Struct("!BxH2xHxB2x4s4s"), struct.Struct("!IHBB16s16s")
_ECHO = struct.Struct("!BB2xHH4sIQ8s32x")
# The addressee and the sequence number of the request that an ICMP error is about, which lies after its 8 bytes.
_ABOUT4, _ABOUT6 = struct.Struct("!24x4s6xH"), struct.Struct("!32x16s6xH")
_PATCH, _WORDS = struct.Struct("!Q8s"), struct.Struct("!8H")  # what differs, and its words for the checksum
_VARYING, _FILLING = struct.Struct("!HHH"), bytes(32)


class Sent(Struct, frozen=True):
    """A probe has left the kernel; `at_ns` by CLOCK_REALTIME, as all times here."""

    target: int
    counter: int
    at_ns: int


class Reply(Struct, frozen=True):
    """An answer to a probe of this port, or a lie; whether tag and addresses are the right ones is for the receiver."""

    target: int
    counter: int
    tag: bytes
    source: bytes
    destination: bytes
    at_ns: int


class Neighbour(Struct, frozen=True):
    """What ARP or a neighbour advertisement tells: the hardware address of an address on the link.

    Attributes:
        to: whose question it answers; empty if it answers none.
        to_mac: his hardware address; empty if the packet does not say.
    """

    address: Address
    mac: bytes
    at_ns: int
    to: bytes = b""
    to_mac: bytes = b""


class Unreachable(Struct, frozen=True):
    """Somebody on the way says that a probe of ours did not get there.

    Attributes:
        target, seq: the address that was probed, and the low 16 bits of the probe's counter.
        by: who says so.
        reason: in scapy's words.
    """

    target: Address
    seq: int
    by: Address
    reason: str


class Complaint(Struct, frozen=True):
    """What may be an ICMP error about a probe of ours, before `parse_error` has had a closer look, which takes long.

    Attributes:
        target, seq: the address that was probed, and the low 16 bits of the probe's counter.
        protocol, packet: all of it.
    """

    target: bytes
    seq: int
    protocol: int
    packet: bytes


Heard = Sent | Reply | Neighbour | Complaint


class Echo(Struct, frozen=True):
    """An echo request that lacks only what differs from probe to probe.

    scapy needs most of a millisecond for a packet, so it builds one for each target, and the rest is patched.

    Attributes:
        head: up to the checksum.
        ident: the ICMP identifier.
        fixed: nonce and target, with which the payload begins.
        sum: ones' complement sum of all that the checksum covers and that stays (RFC 1071).
    """

    head: bytes
    ident: int
    fixed: bytes
    sum: int

    def packet(self, counter: int, tag: bytes) -> bytes:
        """The packet of probe number `counter`, whose low 16 bits are the sequence number."""
        patch, seq = _PATCH.pack(counter, tag), counter & 0xFFFF
        total = self.sum + seq + sum(_WORDS.unpack(patch))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        return b"".join((self.head, _VARYING.pack(checksum, self.ident, seq), self.fixed, patch, _FILLING))


def echo(source: Address, target: Address, ident: int, nonce: bytes, number: int, ttl: int = 0) -> Echo:
    """The echo request from `source` to `target`, which is number `number` of its port; `ttl` 0 for the usual one."""
    ttl = ttl or _TTL
    payload = _PAYLOAD.pack(nonce, number, 0, bytes(8))
    if target.version == 4:
        packet = bytes(
            IP(src=str(source), dst=str(target), flags="DF", id=0, ttl=ttl) / ICMP(id=ident, seq=0) / payload
        )
        icmp = 20
    else:
        packet = bytes(
            IPv6(src=str(source), dst=str(target), hlim=ttl) / ICMPv6EchoRequest(id=ident, seq=0, data=payload)
        )
        icmp = 40
    (checksum,) = struct.unpack_from("!H", packet, icmp + 2)
    return Echo(packet[: icmp + 2], ident, payload[:8], ~checksum & 0xFFFF)


class Question(Struct, frozen=True):
    """A packet that asks all on the link for an address, with its EtherType and whom its frame goes to."""

    packet: bytes
    protocol: int
    group: bytes


@functools.lru_cache(256)
def solicitation(mac: bytes, source: Address, gateway: Address) -> Question:
    """What asks for the gateway's hardware address, and tells it ours."""
    if gateway.version == 4:
        question = ARP(op="who-has", hwsrc=mac.hex(":"), psrc=str(source), pdst=str(gateway))
        return Question(bytes(question), ETH_ARP, _BROADCAST)
    low = gateway.packed[-3:]  # the solicited-node multicast address and its frame address (RFC 4291, RFC 2464)
    group = IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + low)
    packet = IPv6(src=str(source), dst=str(group), hlim=255)
    packet /= ICMPv6ND_NS(tgt=str(gateway)) / ICMPv6NDOptSrcLLAddr(lladdr=mac.hex(":"))
    return Question(bytes(packet), ETH_IPV6, b"\x33\x33\xff" + low)


def departure(packet: bytes, at_ns: int, nonce: bytes) -> Sent | None:
    """Which probe it was that left the kernel, None for a question for a gateway."""
    if len(packet) < _PAYLOAD.size:
        return None
    its_nonce, target, counter, _ = _PAYLOAD.unpack_from(packet, len(packet) - _PAYLOAD.size)
    return Sent(target, counter, at_ns) if its_nonce == nonce else None


def parse(protocol: int, packet: bytes, at_ns: int, ident: int, nonce: bytes) -> Reply | Neighbour | None:
    """What a packet of an EtherType means to us, None for everything else; never raises, whatever the packet holds.

    Args:
        protocol, packet, at_ns: the EtherType, what follows the link's header, and when it arrived.
        ident, nonce: by which answers to our probes are known.
    """
    try:
        if protocol == ETH_IPV4:
            version, length, fragment, kind, source, destination = _IPV4.unpack_from(packet)
            header = (version & 0xF) * 4
            if version >> 4 != 4 or header < 20 or kind != socket.IPPROTO_ICMP or fragment & 0x3FFF:
                return None
            answer = 0
        elif protocol == ETH_IPV6:
            first, length, kind, hops, source, destination = _IPV6.unpack_from(packet)
            header, length = 40, 40 + length
            if first >> 28 != 6 or kind != socket.IPPROTO_ICMPV6:
                return None
            # Hop limit 255: from this link and nowhere else (RFC 4861, 7.1.2).
            if packet[40:42] == b"\x88\x00" and hops == 255 and 64 <= length <= len(packet):
                return _advertised(packet[40:length], destination, at_ns)
            answer = 129
        else:
            return _arp(packet, at_ns) if protocol == ETH_ARP else None
        if length != header + _ECHO.size:
            return None
        said, code, its, seq, its_nonce, target, counter, tag = _ECHO.unpack_from(packet, header)
    except struct.error:  # cut short somewhere
        return None
    if (said, code, its, its_nonce) != (answer, 0, ident, nonce) or seq != counter & 0xFFFF:
        return None
    return Reply(target, counter, tag, source, destination, at_ns)


def complaint(protocol: int, packet: bytes) -> Complaint | None:
    """What a packet complains of if it is an ICMP error about an echo request; the filter knows that it may be."""
    try:
        if protocol == ETH_IPV4:
            message, errors, about = (packet[0] & 0xF) * 4, (3, 11), _ABOUT4
        elif protocol == ETH_IPV6:
            message, errors, about = 40, (1, 3), _ABOUT6
        else:
            return None
        if packet[message] not in errors:
            return None
        target, seq = about.unpack_from(packet, message)
    except (struct.error, IndexError):  # cut short somewhere
        return None
    return Complaint(target, seq, protocol, packet)


def parse_error(protocol: int, packet: bytes, ident: int) -> Unreachable | None:
    """The ICMP error that a packet is, if it is about an echo request of ours; never raises."""
    try:
        outer = (IP if protocol == ETH_IPV4 else IPv6)(packet)
        message = outer.payload
        inner = outer[IPerror if protocol == ETH_IPV4 else IPerror6]
        request = inner[ICMPerror if protocol == ETH_IPV4 else ICMPv6EchoRequest]
        if request.id == ident:
            reason = message.sprintf("%code%")  # its name, or its number
            return Unreachable(ip_address(inner.dst), request.seq, ip_address(outer.src), reason)
    except (IndexError, AttributeError, TypeError, ValueError, struct.error):  # not of that form, or cut short
        pass
    return None


def _arp(packet: bytes, at_ns: int) -> Neighbour | None:
    hardware, protocol, lengths, operation = struct.unpack_from("!HHHH", packet)
    # An answer, or a question, by which a host may announce itself (RFC 5227, 3): its sender fields say the same.
    known = operation in (_ARP_REQUEST, _ARP_REPLY)
    if (hardware, protocol, lengths) != (1, ETH_IPV4, 0x0604) or not known or len(packet) < 28:
        return None
    to_mac, to = (packet[18:24], packet[24:28]) if operation == _ARP_REPLY else (b"", b"")
    return _neighbour(packet[14:18], packet[8:14], at_ns, to, to_mac)


def _advertised(message: bytes, destination: bytes, at_ns: int) -> Neighbour | None:
    options, to = message[24:], destination if message[4] & _SOLICITED else b""
    while len(options) >= 8 and options[1]:
        if options[:2] == b"\x02\x01":  # target link-layer address, of Ethernet
            return _neighbour(message[8:24], options[2:8], at_ns, to)
        options = options[options[1] * 8 :]
    return None


def _neighbour(address: bytes, mac: bytes, at_ns: int, to: bytes, to_mac: bytes = b"") -> Neighbour | None:
    no_host = mac[0] & 1 or not any(mac)  # a group's address, or none
    return None if no_host else Neighbour(ip_address(address), mac, at_ns, to, to_mac)
