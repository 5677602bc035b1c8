"""Asks the kernel for its interfaces, addresses, default routes and the way to an address (rtnetlink(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from msgspec import Struct

from lsmpy import LsmpyError, netlink

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_GET_LINK, _GET_ADDRESS, _GET_ROUTE = 18, 22, 26
_NEW_ROUTE, _ERROR, _DONE = 24, 2, 3
_REQUEST, _DUMP = 0x1, 0x300
_SOL_NETLINK, _STRICT_CHECK = 270, 12
_LINK, _ADDRESS, _ROUTE = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_MAC, _NAME = 1, 3  # IFLA_ADDRESS, IFLA_IFNAME
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_DESTINATION, _SOURCE, _OIF, _GATEWAY, _PRIORITY, _PREFERRED_SOURCE = 1, 2, 4, 5, 6, 7  # RTA_…
_MULTIPATH, _NEXT_HOP = 9, struct.Struct("=HxxI")  # RTA_MULTIPATH; struct rtnexthop: length, interface
_UP, _RUNNING, _NOARP = 0x1, 0x40, 0x80  # IFF_…
_UNUSABLE = 0x08 | 0x40  # IFA_F_DADFAILED, IFA_F_TENTATIVE
_PASSING = 0x01 | 0x20  # IFA_F_TEMPORARY, IFA_F_DEPRECATED
_MAIN, _UNICAST, _LOCAL = 254, 1, 2
_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 6}
_BUFFER = 1 << 16


class NetlinkError(LsmpyError):
    """The kernel does not tell what it has."""


class Link(Struct, frozen=True):
    """One interface.

    Attributes:
        kind: its hardware type, ARPHRD_….
        up: whether an administrator has set it up.
        running: whether it has a carrier.
        arp: whether its neighbours have hardware addresses to be asked for.
        mac: its own hardware address.
    """

    name: str
    index: int
    kind: int
    up: bool
    running: bool
    arp: bool
    mac: bytes


class Snapshot(Struct, frozen=True):
    """What the kernel has at one moment.

    Attributes:
        links: the interfaces by name.
        addresses: the usable addresses by interface index, lasting ones first.
        hops: by interface index and family, the gateway of the best default route of the main table that goes by it,
            maybe by others too; None for one without a gateway; empty unless asked for.
        networks: by interface index, whom the addresses make neighbours.
    """

    links: dict[str, Link]
    addresses: dict[int, tuple[Address, ...]]
    hops: dict[tuple[int, int], Address | None]
    networks: dict[int, tuple[Network, ...]] = {}


def look(with_routes: bool) -> Snapshot:
    """A new snapshot.

    Raises:
        NetlinkError: the kernel does not answer.
    """
    with _open() as kernel:
        links = {link.name: link for link in map(_link, _dump(kernel, _GET_LINK, _LINK.pack(0, 0, 0, 0, 0)))}
        found: dict[int, list[tuple[bool, Address, Network]]] = {}
        for message in _dump(kernel, _GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, 0)):
            _note_address(found, message)
        for some in found.values():
            some.sort(key=_passing)
        addresses = {index: tuple(own for _, own, _ in some) for index, some in found.items()}
        networks = {index: tuple(network for _, _, network in some) for index, some in found.items()}
        hops = _default_hops(kernel) if with_routes else {}
    return Snapshot(links, addresses, hops, networks)


class Route(Struct, frozen=True):
    """How the kernel would send to an address.

    Attributes:
        index: of the interface.
        hop: the gateway; None without one.
        source: our address.
        own: whether the address is this machine's own.
    """

    index: int
    hop: Address | None
    source: Address | None
    own: bool


def way(source: Address, target: Address, link: Link) -> tuple[int, Address | None] | None:
    """By which interface (its index) and gateway the kernel would send from `source` to `target` out of `link`.

    None if it would not send at all, or only to itself.

    Raises:
        NetlinkError: the kernel does not answer.
    """
    found = route(target, source, link)
    return (found.index, found.hop) if found and not found.own else None


def route(target: Address, source: Address | None, link: Link | None) -> Route | None:
    """How the kernel would send to `target`, from `source` and out of `link` if these are given; None if it would not.

    Raises:
        NetlinkError: the kernel does not answer.
    """
    size = 32 if target.version == 4 else 128
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, size, size if source else 0, 0, 0, 0, 0, 0, 0) + _attribute(_DESTINATION, target.packed)
    if source:
        body += _attribute(_SOURCE, source.packed)
    if link:
        body += _attribute(_OIF, struct.pack("=I", link.index))
    with _open() as kernel:
        for kind, message in _ask(kernel, _GET_ROUTE, _REQUEST, body):
            if kind == _NEW_ROUTE and (of := message[netlink.HEADER.size + 7]) in (_UNICAST, _LOCAL):
                attributes = _attributes(message, _ROUTE.size)
                hop, own = (attributes.get(each) for each in (_GATEWAY, _PREFERRED_SOURCE))
                index = _number(attributes.get(_OIF, b""))
                sender = ip_address(own) if own else source
                return Route(index, ip_address(hop) if hop else None, sender, of == _LOCAL)
            return None
    return None


def _open() -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError as error:
        raise NetlinkError(f"the kernel cannot be asked for its interfaces: {error.strerror}") from error
    opened.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)  # so that a dump can be of one table
    opened.settimeout(5.0)
    return opened


def _dump(kernel: socket.socket, request: int, body: bytes) -> Iterator[bytes]:
    return (message for _, message in _ask(kernel, request, _REQUEST | _DUMP, body))


def _ask(kernel: socket.socket, request: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of the answer; an answer that is an error is its errno's message, or nothing when dumping."""
    try:
        kernel.send(netlink.HEADER.pack(netlink.HEADER.size + len(body), request, flags, 1, 0) + body)
        while True:
            for kind, message in netlink.messages(kernel.recv(_BUFFER)):
                if kind == _DONE:
                    return
                if kind == _ERROR and flags & _DUMP:
                    number = -struct.unpack_from("=i", message, netlink.HEADER.size)[0]
                    if number in (errno.EOPNOTSUPP, errno.ENOENT):  # this kernel has no such family or table
                        return
                    raise NetlinkError(f"the kernel does not tell its interfaces: {os.strerror(number)}")
                yield kind, message
    except OSError as error:
        raise NetlinkError(f"the kernel does not tell its interfaces: {error}") from error


def _link(message: bytes) -> Link:
    _, kind, index, flags, _ = _LINK.unpack_from(message, netlink.HEADER.size)
    attributes = _attributes(message, _LINK.size)
    name = attributes.get(_NAME, b"").rstrip(b"\0").decode(errors="replace")
    mac = attributes.get(_MAC, b"")
    return Link(name, index, kind, bool(flags & _UP), bool(flags & _RUNNING), not flags & _NOARP, mac)


def _note_address(found: dict[int, list[tuple[bool, Address, Network]]], message: bytes) -> None:
    family, length, short_flags, _, index = _ADDRESS.unpack_from(message, netlink.HEADER.size)
    attributes = _attributes(message, _ADDRESS.size)
    flags = _number(attributes[_IFA_FLAGS]) if _IFA_FLAGS in attributes else short_flags
    theirs = attributes.get(_IFA_ADDRESS, b"")  # the peer's where there is one of our own as well
    own = attributes.get(_IFA_LOCAL, theirs)
    if own and family in _FAMILIES and not flags & _UNUSABLE:
        network = ip_network((theirs or own, length), strict=False)
        found.setdefault(index, []).append((bool(flags & _PASSING), ip_address(own), network))


def _passing(address: tuple[bool, Address, Network]) -> bool:
    return address[0]


def _default_hops(kernel: socket.socket) -> dict[tuple[int, int], Address | None]:
    best: dict[tuple[int, int], tuple[int, Address | None]] = {}
    for number, family in _FAMILIES.items():
        for message in _dump(kernel, _GET_ROUTE, _ROUTE.pack(number, 0, 0, 0, _MAIN, 0, 0, 0, 0)):
            said, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message, netlink.HEADER.size)
            attributes = _attributes(message, _ROUTE.size)
            # A kernel without IPv6 answers with what it has of IPv4.
            if said != number or length or table != _MAIN or kind != _UNICAST:
                continue
            metric = _number(attributes.get(_PRIORITY, bytes(4)))
            for index, gateway in _next_hops(attributes):
                if (index, family) not in best or metric < best[index, family][0]:
                    best[index, family] = metric, ip_address(gateway) if gateway else None
    return {key: hop for key, (_, hop) in best.items()}


def _next_hops(attributes: dict[int, bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Interface and gateway of every way that one route has."""
    if _OIF in attributes:
        yield _number(attributes[_OIF]), attributes.get(_GATEWAY)
    several = attributes.get(_MULTIPATH, b"")
    while len(several) >= _NEXT_HOP.size:
        length, index = _NEXT_HOP.unpack_from(several)
        if length < _NEXT_HOP.size:
            return
        yield index, _attributes_from(several[:length], _NEXT_HOP.size).get(_GATEWAY)
        several = several[(length + 3) & ~3 :]


def _attributes(message: bytes, body: int) -> dict[int, bytes]:
    return _attributes_from(message, netlink.HEADER.size + body)


def _attributes_from(message: bytes, offset: int) -> dict[int, bytes]:
    found = {}
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value  # addresses and numbers need no padding


def _number(value: bytes) -> int:
    return int.from_bytes(value[:4], sys.byteorder)
