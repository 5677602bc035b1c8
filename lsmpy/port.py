"""A packet socket on one interface: the only place that knows packet sockets, their ring and their filter."""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator

from lsmpy import LsmpyError, wire
from lsmpy.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, Address, Echo, Heard, Question

_ETHER_TYPE = {4: ETH_IPV4, 6: ETH_IPV6}
# What a socket's ring holds: so many packets, and of each so much beside its header; longer ones are cut and then do
# not match. So many are also taken in at once: whatever waits when that begins, and no more however much arrives.
_SLOTS, _SLOT = 512, 512
_LARGEST = 2048  # of what the kernel gives back of our own packets

# <linux/if_packet.h>, <linux/if_ether.h>, <asm/socket.h>, <linux/net_tstamp.h>, <linux/filter.h>;
# the socket module lacks them.
_SOL_PACKET, _PACKET_RX_RING, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 263, 5, 10, 23
_TPACKET_V2, _TP_STATUS_KERNEL, _TP_STATUS_USER = 1, 0, 1
_ETH_P_ALL = 3
_SO_ATTACH_FILTER, _SO_TIMESTAMPING = 26, 37
_STAMPS = 1 << 1 | 1 << 3 | 1 << 4  # SOF_TIMESTAMPING: TX_SOFTWARE, RX_SOFTWARE, SOFTWARE
_SKF_AD_PROTOCOL, _SKF_AD_VLAN_TAG, _SKF_AD_VLAN_TAG_PRESENT = 0xFFFFF000, 0xFFFFF02C, 0xFFFFF030
_ALL = 0x40000  # of a packet
_MOST_HOPS = 32  # that the filter knows by name, as its jumps do not reach far; of more, every neighbour is heard

# struct tpacket2_hdr: status, captured length, offset of the packet, seconds, nanoseconds; and, in the struct
# sockaddr_ll that follows, the EtherType.
_SLOT_HEAD, _ETHER_TYPE_AT = struct.Struct("=I4xI2xHII"), struct.Struct("!34xH")
_STATUS = struct.Struct("I")

_ANCILLARY, _STAMP = 256, struct.Struct("=qq")


class PortError(LsmpyError):
    """The kernel does not let us have a packet socket."""


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
            PortError: we may not have packet sockets.
        """
        self.problem = ""
        self.ident = int.from_bytes(os.urandom(2), "big")
        self._nonce = os.urandom(4)
        self._interface, self._kind = "", 0
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        except OSError as error:
            raise PortError(
                f"cannot open a packet socket: {error.strerror}. No probe was sent; run it as root or with CAP_NET_RAW"
            ) from error
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _STAMPS)
        try:
            self._ring = _open_ring(self._socket)
        except OSError as error:
            self._socket.close()
            raise PortError(f"cannot open a packet socket: no memory for its packets: {error.strerror}") from error
        self._slot = 0

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._ring.close()
        self._socket.close()

    def bind(self, interface: str, kind: int, hops: tuple[Address, ...]) -> None:
        """Use this interface, of this hardware type (ARPHRD_…), with these neighbours to hear of, from now on."""
        self._interface, self._kind, self.problem = interface, kind, ""
        try:
            attach_filter(self._socket, self._nonce, self.ident, hops)
            self._socket.bind((interface, _ETH_P_ALL))
        except OSError as error:
            self._fail(error)

    @property
    def is_bound(self) -> bool:
        """Whether the interface is still there that `bind` has found; the kernel binds nothing to its successor."""
        return bool(self._socket.getsockname()[0])

    def echo(self, source: Address, target: Address, number: int, ttl: int = 0) -> Echo:
        """The echo request of this port's target number `number`; `ttl` 0 for the usual one."""
        return wire.echo(source, target, self.ident, self._nonce, number, ttl)

    def probe(self, request: Echo, counter: int, version: int, mac: bytes) -> bytes:
        """Send an echo request to the hardware address `mac`, which is empty on links without.

        Returns its tag, which nobody can guess, so that an answer that has it proves that the request arrived.
        """
        tag = os.urandom(wire.TAG)
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
            if sent := wire.departure(data, at_ns, self._nonce):
                yield sent
        for data, protocol, at_ns in frames:
            heard = wire.parse(protocol, data, at_ns, self.ident, self._nonce) or wire.complaint(protocol, data)
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
    request = struct.pack("=IIII", block, size // block, _SLOT, _SLOTS)
    # It takes the kernel 15 ms, in which Python's own setsockopt would let no other thread go on.
    if ctypes.CDLL(None, use_errno=True).setsockopt(sock.fileno(), _SOL_PACKET, _PACKET_RX_RING, request, len(request)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return mmap.mmap(sock.fileno(), size)


def attach_filter(sock: socket.socket, nonce: bytes, ident: int, hops: tuple[Address, ...]) -> None:
    """Let only what `parse` and `parse_error` understand wake us, however busy or hostile the link is."""
    program = array.array("B", b"".join(_filter(nonce, ident, hops)))
    address, length = program.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", length // 8, address))


def _filter(nonce: bytes, ident: int, hops: tuple[Address, ...]) -> Iterator[bytes]:
    """The classic BPF program (Documentation/networking/filter.rst): replies, errors and neighbours of ours."""
    (secret,) = struct.unpack("!I", nonce)
    hops4 = [int(hop) for hop in hops if hop.version == 4]
    hops6 = [int(hop) & 0xFFFFFFFF for hop in hops if hop.version == 6]
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

    def end_unless_one_of(known: list[int]) -> None:
        for each in known[:_MOST_HOPS]:
            jump(jeq, each, "accept", "")
        load(ret, _ALL if len(known) > _MOST_HOPS else 0)

    # A frame of another VLAN on the same cable looks like ours but for its tag, which nobody takes off where that VLAN
    # has no interface. The tag of VLAN 0 tells nothing but a priority.
    load(ld, _SKF_AD_VLAN_TAG_PRESENT)
    jump(jeq, 0, "untagged", "")
    load(ld, _SKF_AD_VLAN_TAG)
    jump(jset, 0xFFF, "drop", "")
    load(ldh, _SKF_AD_PROTOCOL, "untagged")
    jump(jeq, ETH_ARP, "arp", "")
    jump(jeq, ETH_IPV4, "ip4", "")
    jump(jeq, ETH_IPV6, "ip6", "drop")
    load(ld, 14, "arp")  # sender: the gateway, in an answer or in an announcement
    end_unless_one_of(hops4)
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
    end_unless_one_of(hops6)
    load(ldh, 48 + 40 + 4, "error6")
    jump(jeq, ident, "accept", "drop")
    load(ret, _ALL, "accept")
    load(ret, 0, "drop")
    for at, (code, operand, yes, no) in enumerate(program, 1):
        yield struct.pack("HBBI", code, labels[yes] - at if yes else 0, labels[no] - at if no else 0, operand)
