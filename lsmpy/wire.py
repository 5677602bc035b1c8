"""Packets and the socket that carries them: the only place that knows scapy, packet formats and packet sockets."""

from __future__ import annotations

import array
import errno
import functools
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from msgspec import Struct
from scapy.layers.inet import ICMP, IP, ICMPerror, IPerror
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPerror6, IPv6
from scapy.layers.l2 import ARP

from lsmpy import LsmpyError

Address = IPv4Address | IPv6Address

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
_ETHER_TYPE = {4: ETH_IPV4, 6: ETH_IPV6}
_BROADCAST = b"\xff" * 6
# What a socket's ring holds: so many packets, and of each so much beside its header; longer ones are cut and then do
# not match. So many are also taken in at once: whatever waits when that begins, and no more however much arrives.
_SLOTS, _SLOT = 512, 512
_LARGEST = 2048  # of what the kernel gives back of our own packets

# <linux/if_packet.h>, <linux/if_ether.h>, <linux/if_arp.h>, <asm/socket.h>, <linux/net_tstamp.h>, <linux/filter.h>;
# the socket module lacks them.
_SOL_PACKET, _PACKET_RX_RING, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 263, 5, 10, 23
_TPACKET_V2, _TP_STATUS_KERNEL, _TP_STATUS_USER = 1, 0, 1
_ETH_P_ALL, ARPHRD_ETHER = 3, 1
_SO_ATTACH_FILTER, _SO_TIMESTAMPING = 26, 37
_STAMPS = 1 << 1 | 1 << 3 | 1 << 4  # SOF_TIMESTAMPING: TX_SOFTWARE, RX_SOFTWARE, SOFTWARE
_SKF_AD_PROTOCOL = 0xFFFFF000

# struct tpacket2_hdr: status, captured length, offset of the packet, seconds, nanoseconds; and, in the struct
# sockaddr_ll that follows, the EtherType.
_SLOT_HEAD, _ETHER_TYPE_AT = struct.Struct("=I4xI2xHII"), struct.Struct("!34xH")
_STATUS = struct.Struct("I")

_ANCILLARY, _STAMP = 256, struct.Struct("=qq")

# What an echo request carries: nonce, target, counter, tag, and as much more as ping(8) would send.
_PAYLOAD = struct.Struct("!4sIQ8s32x")
_TAG = 8
# Headers, as far as they matter: of IPv4 first byte, length, fragment, protocol, addresses; of IPv6 first word, length,
# protocol, hop limit, addresses; of ICMP type, code, identifier, sequence number, and then the payload.
_IPV4, _IPV6 = struct.Struct("!BxH2xHxB2x4s4s"), struct.Struct("!IHBB16s16s")
_ECHO = struct.Struct("!BB2xHH4sIQ8s32x")
# The addressee and the sequence number of the request that an ICMP error is about, which lies after its 8 bytes.
_ABOUT4, _ABOUT6 = struct.Struct("!24x4s6xH"), struct.Struct("!32x16s6xH")
_PATCH, _WORDS = struct.Struct("!Q8s"), struct.Struct("!8H")  # what differs, and its words for the checksum
_VARYING, _FILLING = struct.Struct("!HHH"), bytes(32)


class WireError(LsmpyError):
    """The kernel does not let us have a packet socket."""


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
    """What ARP or a neighbour advertisement tells: the hardware address of an address on the link."""

    address: Address
    mac: bytes
    at_ns: int


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


def echo(source: Address, target: Address, ident: int, nonce: bytes, number: int) -> Echo:
    """The echo request from `source` to `target`, which is number `number` of its port."""
    payload = _PAYLOAD.pack(nonce, number, 0, bytes(8))
    if target.version == 4:
        packet = bytes(IP(src=str(source), dst=str(target), flags="DF", id=0) / ICMP(id=ident, seq=0) / payload)
        icmp = 20
    else:
        packet = bytes(IPv6(src=str(source), dst=str(target)) / ICMPv6EchoRequest(id=ident, seq=0, data=payload))
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


class Port:
    """A packet socket on one interface, with the secrets of the probes that leave by it.

    Packets go out and come in beside routes, rules and netfilter, so that only the link decides what a probe meets.
    Only the link's own header is the kernel's, so that links with and without Ethernet look the same.

    Attributes:
        problem: why nothing can be sent at the moment, for a person; empty when it can.
    """

    def __init__(self) -> None:
        """Open the socket; it hears nothing before `bind`.

        Raises:
            WireError: we may not have packet sockets.
        """
        self.problem = ""
        self.ident = int.from_bytes(os.urandom(2), "big")
        self._nonce = os.urandom(4)
        self._interface, self._kind = "", 0
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        except OSError as error:
            raise WireError(
                f"cannot open a packet socket: {error.strerror}. No probe was sent; run it as root or with CAP_NET_RAW"
            ) from error
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _STAMPS)
        try:
            self._ring = _open_ring(self._socket)
        except OSError as error:
            self._socket.close()
            raise WireError(f"cannot open a packet socket: no memory for its packets: {error.strerror}") from error
        self._slot = 0

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._ring.close()
        self._socket.close()

    def bind(self, interface: str, kind: int, hops: tuple[Address, ...]) -> None:
        """Use this interface, of this hardware type (ARPHRD_…), with these gateways to hear of, from now on."""
        self._interface, self._kind, self.problem = interface, kind, ""
        try:
            attach_filter(self._socket, self._nonce, self.ident, hops)
            self._socket.bind((interface, _ETH_P_ALL))
        except OSError as error:
            self._fail(error)

    def echo(self, source: Address, target: Address, number: int) -> Echo:
        """The echo request of this port's target number `number`."""
        return echo(source, target, self.ident, self._nonce, number)

    def probe(self, request: Echo, counter: int, version: int, mac: bytes) -> bytes:
        """Send an echo request to the hardware address `mac`, which is empty on links without.

        Returns its tag, which nobody can guess, so that an answer that has it proves that the request arrived.
        """
        tag = os.urandom(_TAG)
        self._send(request.packet(counter, tag), _ETHER_TYPE[version], mac)
        return tag

    def ask(self, question: Question) -> None:
        """Ask the link for a gateway's hardware address."""
        self._send(question.packet, question.protocol, question.group)

    def receive(self) -> Iterator[Heard]:
        """What has arrived and concerns probes, without waiting."""
        # Frames first: what the kernel says of a probe's departure was there before its answer.
        frames = list(self._frames())
        if not frames:
            self._take_error()
        for data, at_ns in self._stamps():
            try:
                nonce, target, counter, _ = _PAYLOAD.unpack_from(data, len(data) - _PAYLOAD.size)
            except struct.error:  # a question for a gateway
                continue
            if nonce == self._nonce:
                yield Sent(target, counter, at_ns)
        for data, protocol, at_ns in frames:
            heard = parse(protocol, data, at_ns, self.ident, self._nonce) or complaint(protocol, data)
            if heard is not None:
                yield heard

    def _send(self, packet: bytes, protocol: int, mac: bytes) -> None:
        try:
            self._socket.sendto(packet, (self._interface, protocol, 0, self._kind, mac))
            self.problem = ""
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            self.problem = f"{self._interface} does not exist"
        elif error.errno not in (errno.ENOBUFS, errno.EAGAIN):  # a full queue: a link's normal way to lose a packet
            self.problem = f"{self._interface}: {error.strerror}"

    def _take_error(self) -> None:
        """That the interface has gone down or away wakes us until we have read it; others say it in words."""
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _frames(self) -> Iterator[tuple[bytes, int, int]]:
        """Data, EtherType and time of what waits in the ring."""
        ring = self._ring
        for _ in range(_SLOTS):
            at = self._slot * _SLOT
            status, length, offset, seconds, nanoseconds = _SLOT_HEAD.unpack_from(ring, at)
            if not status & _TP_STATUS_USER:
                return
            (protocol,) = _ETHER_TYPE_AT.unpack_from(ring, at)
            data = ring[at + offset : at + offset + length]
            _STATUS.pack_into(ring, at, _TP_STATUS_KERNEL)
            self._slot = (self._slot + 1) % _SLOTS
            yield data, protocol, seconds * 1_000_000_000 + nanoseconds

    def _stamps(self) -> Iterator[tuple[bytes, int]]:
        """What has been sent, and when it left."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, _ANCILLARY, socket.MSG_ERRQUEUE)
            except OSError:  # for want of any more
                return
            if ancillary:  # the stamp comes first, and in it, of three, that of the software
                seconds, nanoseconds = _STAMP.unpack_from(ancillary[0][2])
                yield data, seconds * 1_000_000_000 + nanoseconds


def _open_ring(sock: socket.socket) -> mmap.mmap:
    """Let the kernel put what arrives into memory of ours, which costs no system call for a packet.

    Documentation/networking/packet_mmap.rst. Raises OSError.
    """
    sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
    size = _SLOTS * _SLOT
    block = max(mmap.PAGESIZE, _SLOT)
    sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("=IIII", block, size // block, _SLOT, _SLOTS))
    return mmap.mmap(sock.fileno(), size)


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
                return _advertised(packet[40:length], at_ns)
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


def attach_filter(sock: socket.socket, nonce: bytes, ident: int, hops: tuple[Address, ...]) -> None:
    """Let only what `parse` and `parse_error` understand wake us, however busy or hostile the link is."""
    program = array.array("B", b"".join(_filter(nonce, ident, hops)))
    address, length = program.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", length // 8, address))


def _filter(nonce: bytes, ident: int, hops: tuple[Address, ...]) -> Iterator[bytes]:
    """The classic BPF program (Documentation/networking/filter.rst): replies, errors and neighbours of ours."""
    (secret,) = struct.unpack("!I", nonce)
    hop4 = next((int(hop) for hop in hops if hop.version == 4), 0)
    hop6 = next((int(hop) & 0xFFFFFFFF for hop in hops if hop.version == 6), 0)
    ld, ldh, ldb, ld_x, ldh_x, ldb_x, ldx_ihl = 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xB1
    jeq, jset, ret = 0x15, 0x45, 0x06
    program: list[tuple[int, int, str, str]] = []
    labels: dict[str, int] = {}

    def load(code: int, operand: int, label: str = "") -> None:
        if label:
            labels[label] = len(program)
        program.append((code, operand, "", ""))

    def jump(code: int, operand: int, yes: str, no: str) -> None:
        program.append((code, operand, yes, no))

    load(ldh, _SKF_AD_PROTOCOL)
    jump(jeq, ETH_ARP, "arp", "")
    jump(jeq, ETH_IPV4, "ip4", "")
    jump(jeq, ETH_IPV6, "ip6", "drop")
    load(ld, 14, "arp")  # sender: the gateway, in an answer or in an announcement
    jump(jeq, hop4, "accept", "drop")
    load(ldb, 9, "ip4")
    jump(jeq, socket.IPPROTO_ICMP, "", "drop")
    load(ldh, 6)  # fragment offset: a later fragment has no ICMP header
    jump(jset, 0x1FFF, "drop", "")
    load(ldx_ihl, 0)
    load(ldb_x, 0)  # ICMP type: echo reply, unreachable, time exceeded
    jump(jeq, 0, "reply4", "")
    jump(jeq, 3, "error4", "")
    jump(jeq, 11, "error4", "drop")
    load(ld_x, 8, "reply4")
    jump(jeq, secret, "accept", "drop")
    load(ldh_x, 8 + 20 + 4, "error4")
    jump(jeq, ident, "accept", "drop")
    load(ldb, 6, "ip6")
    jump(jeq, socket.IPPROTO_ICMPV6, "", "drop")
    load(ldb, 40)  # ICMPv6 type: echo reply, neighbour advertisement, unreachable, time exceeded
    jump(jeq, 129, "reply6", "")
    jump(jeq, 136, "neighbour6", "")
    jump(jeq, 1, "error6", "")
    jump(jeq, 3, "error6", "drop")
    load(ld, 48, "reply6")
    jump(jeq, secret, "accept", "drop")
    load(ld, 60, "neighbour6")  # the end of the address that is advertised
    jump(jeq, hop6, "accept", "drop")
    load(ldh, 48 + 40 + 4, "error6")
    jump(jeq, ident, "accept", "drop")
    load(ret, 0x40000, "accept")
    load(ret, 0, "drop")
    for at, (code, operand, yes, no) in enumerate(program, 1):
        yield struct.pack("HBBI", code, labels[yes] - at if yes else 0, labels[no] - at if no else 0, operand)


def _arp(packet: bytes, at_ns: int) -> Neighbour | None:
    hardware, protocol, lengths, operation = struct.unpack_from("!HHHH", packet)
    # An answer, or the question by which a host announces itself (RFC 5227, 3): its sender fields say the same.
    if (hardware, protocol, lengths) != (1, ETH_IPV4, 0x0604) or operation not in (1, 2) or len(packet) < 28:
        return None
    return _neighbour(packet[14:18], packet[8:14], at_ns)


def _advertised(message: bytes, at_ns: int) -> Neighbour | None:
    options = message[24:]
    while len(options) >= 8 and options[1]:
        if options[:2] == b"\x02\x01":  # target link-layer address, of Ethernet
            return _neighbour(message[8:24], options[2:8], at_ns)
        options = options[options[1] * 8 :]
    return None


def _neighbour(address: bytes, mac: bytes, at_ns: int) -> Neighbour | None:
    no_host = mac[0] & 1 or not any(mac)  # a group's address, or none
    return None if no_host else Neighbour(ip_address(address), mac, at_ns)
