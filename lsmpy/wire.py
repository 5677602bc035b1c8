"""Frames and the socket that carries them: the only place that knows scapy, packet formats and packet sockets."""

from __future__ import annotations

import array
import contextlib
import errno
import functools
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from lsmpy import LsmpyError

Address = IPv4Address | IPv6Address

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_LARGEST = 2048  # of the frames that are of interest; longer ones are cut and then do not match
_MOST_AT_ONCE = 256  # frames a call of `receive`, so that a flood cannot keep the caller from its clock

# <linux/if_packet.h>, <linux/if_ether.h>, <linux/if_arp.h>, <asm/socket.h>; the socket module lacks them.
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_ETH_P_ALL, _ARPHRD_ETHER = 3, 1
_SO_ATTACH_FILTER = 26


class WireError(LsmpyError):
    """The kernel does not let us have a packet socket."""


@dataclass(frozen=True, slots=True)
class EchoReply:
    """An ICMP or ICMPv6 echo reply as it came in; whose it is, is for the receiver to check."""

    source: Address
    destination: Address
    ident: int
    seq: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What an ARP reply or a neighbour advertisement tells: the hardware address of an address on the link."""

    address: Address
    mac: bytes


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request that lacks only its sequence number.

    scapy needs most of a millisecond for a frame, so it builds one for each target and only two fields are patched.
    """

    head: bytes
    ident: int
    payload: bytes
    sum: int  # ones' complement sum of all that the checksum covers, with sequence number 0 (RFC 1071)

    def frame(self, seq: int) -> bytes:
        """The frame with sequence number `seq`, 0 to 65535."""
        total = self.sum + seq
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        return self.head + struct.pack("!HHH", checksum, self.ident, seq) + self.payload


@functools.lru_cache(256)
def echo(mac: bytes, gateway_mac: bytes, source: Address, target: Address, ident: int, payload: bytes) -> Echo:
    """An echo request from `source` to `target`, framed from our `mac` to the gateway's."""
    packet = Ether(src=mac.hex(":"), dst=gateway_mac.hex(":"))
    if target.version == 4:
        packet /= IP(src=str(source), dst=str(target), flags="DF", id=0) / ICMP(id=ident, seq=0) / payload
        icmp = 34
    else:
        packet /= IPv6(src=str(source), dst=str(target)) / ICMPv6EchoRequest(id=ident, seq=0, data=payload)
        icmp = 54
    frame = bytes(packet)
    (checksum,) = struct.unpack_from("!H", frame, icmp + 2)
    return Echo(frame[: icmp + 2], ident, payload, ~checksum & 0xFFFF)


@functools.lru_cache(64)
def solicitation(mac: bytes, source: Address, gateway: Address) -> bytes:
    """The frame that asks all on the link for the gateway's hardware address, and tells them ours."""
    if gateway.version == 4:
        question = ARP(op="who-has", hwsrc=mac.hex(":"), psrc=str(source), pdst=str(gateway))
        return bytes(Ether(src=mac.hex(":"), dst=_BROADCAST) / question)
    low = gateway.packed[-3:]  # the solicited-node multicast address and its frame address (RFC 4291, RFC 2464)
    group = IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + low)
    ether = Ether(src=mac.hex(":"), dst=(b"\x33\x33\xff" + low).hex(":"))
    packet = IPv6(src=str(source), dst=str(group), hlim=255)
    return bytes(ether / packet / ICMPv6ND_NS(tgt=str(gateway)) / ICMPv6NDOptSrcLLAddr(lladdr=mac.hex(":")))


def parse(frame: bytes) -> EchoReply | Neighbour | None:
    """What a frame means to us, None for everything else; never raises, whatever the frame holds."""
    with contextlib.suppress(struct.error, ValueError):  # cut short somewhere
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == ETH_ARP:
            return _arp_reply(frame[14:])
        if kind == ETH_IPV4:
            return _ipv4(frame[14:])
        if kind == ETH_IPV6:
            return _ipv6(frame[14:])
    return None


class Port:
    """A packet socket on one interface, which it follows when it goes, comes back or gets another hardware address.

    Frames go out and come in beside routes, rules and netfilter, so that only the link decides what a probe meets.

    Attributes:
        mac: our hardware address on the interface; empty until it was there once.
        problem: why frames cannot be sent at the moment, for a person; empty when they can.
    """

    def __init__(self, interface: str) -> None:
        """Open the socket; the interface may be missing.

        Raises:
            WireError: we may not have packet sockets.
        """
        self.interface, self.mac, self.problem, self._usable = interface, b"", "", False
        try:
            # No protocol: nothing arrives before the filter stands and the interface is chosen.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        except OSError as error:
            raise WireError(
                f"cannot open a packet socket: {error.strerror}. No probe was sent; run it as root or with CAP_NET_RAW"
            ) from error
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        attach_filter(self._socket)
        self.follow()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def follow(self) -> None:
        """Find the interface again if it has gone, and read its hardware address."""
        name, _, _, kind, mac = self._socket.getsockname()
        self._usable = False
        if name != self.interface:
            try:
                self._socket.bind((self.interface, _ETH_P_ALL))
            except OSError as error:
                self._fail(error)
                return
            _, _, _, kind, mac = self._socket.getsockname()
        if kind != _ARPHRD_ETHER:
            self.problem = f"{self.interface} is no Ethernet interface"
            return
        self.mac, self._usable = mac, True

    def send(self, frame: bytes) -> None:
        """Send a frame if that is possible now; if not, `problem` says why."""
        if not self._usable:
            return
        try:
            self._socket.send(frame)
            self.problem = ""
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            self.problem = f"{self.interface} does not exist"
        elif error.errno not in (errno.ENOBUFS, errno.EAGAIN):  # a full queue: a link's normal way to lose a packet
            self.problem = f"{self.interface}: {error.strerror}"

    def receive(self) -> Iterator[EchoReply | Neighbour]:
        """What has arrived and concerns probes, without waiting."""
        for _ in range(_MOST_AT_ONCE):
            try:
                frame = self._socket.recv(_LARGEST)
            except OSError:  # nothing more, or the interface has gone down or away, which sending will tell
                return
            if (heard := parse(frame)) is not None:
                yield heard


def attach_filter(sock: socket.socket) -> None:
    """Let only what `parse` understands wake us, however busy the router is."""
    program = array.array("B", b"".join(_filter()))
    address, length = program.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", length // 8, address))


def _filter() -> Iterator[bytes]:
    """The classic BPF program (Documentation/networking/filter.rst): ARP replies, echo replies, advertisements."""
    ldh, ldb, ldb_x, ldx_ihl, jeq, jset, ret = 0x28, 0x30, 0x50, 0xB1, 0x15, 0x45, 0x06
    accept, drop = 18, 19
    for at, (code, operand, yes, no) in enumerate(
        (
            (ldh, 12, 0, 0),  # EtherType
            (jeq, ETH_ARP, 4, 2),
            (jeq, ETH_IPV4, 6, 3),
            (jeq, ETH_IPV6, 13, drop),
            (ldh, 20, 0, 0),  # 4: ARP operation
            (jeq, 2, accept, drop),
            (ldb, 23, 0, 0),  # 6: IPv4 protocol
            (jeq, socket.IPPROTO_ICMP, 8, drop),
            (ldh, 20, 0, 0),  # fragment offset: a later fragment has no ICMP header
            (jset, 0x1FFF, drop, 10),
            (ldx_ihl, 14, 0, 0),
            (ldb_x, 14, 0, 0),  # ICMP type
            (jeq, 0, accept, drop),
            (ldb, 20, 0, 0),  # 13: IPv6 next header
            (jeq, socket.IPPROTO_ICMPV6, 15, drop),
            (ldb, 54, 0, 0),  # ICMPv6 type
            (jeq, 129, accept, 17),
            (jeq, 136, accept, drop),
            (ret, 0x40000, 0, 0),
            (ret, 0, 0, 0),
        )
    ):
        jumps = code in (jeq, jset)
        yield struct.pack("HBBI", code, yes - at - 1 if jumps else 0, no - at - 1 if jumps else 0, operand)


def _arp_reply(packet: bytes) -> Neighbour | None:
    hardware, protocol, lengths, operation = struct.unpack_from("!HHHH", packet)
    if (hardware, protocol, lengths, operation) != (1, ETH_IPV4, 0x0604, 2) or len(packet) < 28:
        return None
    return _neighbour(packet[14:18], packet[8:14])


def _ipv4(packet: bytes) -> EchoReply | None:
    version, _, length, _, fragment, _, protocol = struct.unpack_from("!BBHHHBB", packet)
    header = (version & 0xF) * 4
    if version >> 4 != 4 or header < 20 or protocol != socket.IPPROTO_ICMP or fragment & 0x3FFF or length > len(packet):
        return None
    return _echo_reply(0, packet[12:16], packet[16:20], packet[header:length])


def _ipv6(packet: bytes) -> EchoReply | Neighbour | None:
    first, length, protocol, hops = struct.unpack_from("!IHBB", packet)
    if first >> 28 != 6 or protocol != socket.IPPROTO_ICMPV6 or 40 + length > len(packet):
        return None
    message = packet[40 : 40 + length]
    # Hop limit 255: from this link and nowhere else (RFC 4861, 7.1.2).
    if message[:2] == b"\x88\x00" and hops == 255 and len(message) >= 24:
        return _advertised(message)
    return _echo_reply(129, packet[8:24], packet[24:40], message)


def _echo_reply(reply: int, source: bytes, destination: bytes, message: bytes) -> EchoReply | None:
    kind, code, _, ident, seq = struct.unpack_from("!BBHHH", message)
    if (kind, code) != (reply, 0):
        return None
    return EchoReply(ip_address(source), ip_address(destination), ident, seq, message[8:])


def _advertised(message: bytes) -> Neighbour | None:
    options = message[24:]
    while len(options) >= 8 and options[1]:
        if options[:2] == b"\x02\x01":  # target link-layer address, of Ethernet
            return _neighbour(message[8:24], options[2:8])
        options = options[options[1] * 8 :]
    return None


def _neighbour(address: bytes, mac: bytes) -> Neighbour | None:
    no_host = mac[0] & 1 or not any(mac)  # a group's address, or none
    return None if no_host else Neighbour(ip_address(address), mac)
