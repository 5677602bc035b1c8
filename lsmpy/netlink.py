"""Hears from the kernel that interfaces, addresses, routes or rules have changed (rtnetlink(7)), or our chains gone."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lsmpy.netfilter import PREFIX
from lsmpy.routing import MAIN, PROTOCOL

# Groups to listen to: RTMGRP_LINK; IPV4_IFADDR and IPV6_IFADDR; IPV4_ROUTE and IPV6_ROUTE; IPV4_RULE, and group 20,
# which is IPV6_RULE.
LINKS, ADDRESSES, ROUTES, RULES = 0x1, 0x10 | 0x100, 0x40 | 0x400, 0x80 | 0x80000
_LINKS_AND_ADDRESSES = frozenset({16, 17, 20, 21})
_NEW_ROUTE, _DEL_ROUTE, _NEW_RULE, _DEL_RULE = 24, 25, 32, 33
_ROUTES_AND_RULES = frozenset({_NEW_ROUTE, _DEL_ROUTE, _NEW_RULE, _DEL_RULE})
# NETLINK_NETFILTER and NFNLGRP_NFTABLES (nfnetlink.h); of NFNL_SUBSYS_NFTABLES, NFT_MSG_DELTABLE, DELCHAIN, DELRULE.
_NETFILTER, _NFTABLES = 12, 0x40
_GONE_FROM_TABLES = frozenset({10 << 8 | 2, 10 << 8 | 5, 10 << 8 | 8})
HEADER = struct.Struct("=LHHLL")  # struct nlmsghdr: length, type, flags, sequence, port
_INDEX_AT = HEADER.size + 4  # in struct ifinfomsg and struct ifaddrmsg
_LENGTH_AT, _PROTOCOL_AT = HEADER.size + 1, HEADER.size + 5  # in struct rtmsg
_ATTRIBUTES_AT = HEADER.size + 12  # after struct rtmsg or struct fib_rule_hdr
_TABLE, _RULE_PROTOCOL = 15, 21  # RTA_TABLE and FRA_TABLE; FRA_PROTOCOL
_BUFFER_BYTES = 1 << 20
_QUIET_S = 0.5  # also how long it takes to notice that a socket has been closed
_MOST_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Interest:
    """What changes are to be told of: of these interfaces, and of these routing tables or rules to them.

    Those of default routes in main that are not ours always are; with `chains` also what is removed from our chains.
    """

    interfaces: frozenset[str]
    tables: frozenset[int]
    chains: bool = False


def open_socket(groups: int = LINKS | ADDRESSES | ROUTES | RULES) -> socket.socket:
    """A socket that becomes readable when something of these groups has changed."""
    return _open(socket.NETLINK_ROUTE, groups)


def open_tables_socket() -> socket.socket | None:
    """The same for the tables of nftables, iptables-nft's too; None where the kernel has none. Needs CAP_NET_ADMIN."""
    try:
        return _open(_NETFILTER, _NFTABLES)
    except OSError:
        return None


def _open(protocol: int, groups: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    opened.bind((0, groups))
    opened.settimeout(_QUIET_S)
    return opened


def listen(
    opened: socket.socket, interest: Callable[[], Interest], on_change: Callable[[], object], patient: bool = False
) -> None:
    """Call `on_change` for every change of interest that is not our own; for a thread, until the socket is closed.

    Messages that the kernel had to throw away count as a change: the listener is told to look for itself. Who is
    `patient` hears of changes once nothing at all is told of for half a second: whoever rebuilds all tables, as
    firewalld does, takes several commits, and some of his tools fail if somebody else's come between.
    """
    since: float | None = None  # when the first change came that is not told of yet
    while True:
        now = time.monotonic()
        try:
            data = opened.recv(65536)
            if since is None and any(_matters(kind, message, interest()) for kind, message in messages(data)):
                since = now
            tell = not patient
        except TimeoutError:
            tell = True
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                return
            since = since or now
            tell = not patient
        if since is not None and (tell or now - since > _MOST_PATIENCE_S):
            since = None
            on_change()


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and whole text of each message in what was received."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, data[offset : offset + length]
        offset += (length + 3) & ~3


def only_routes(data: bytes) -> bool:
    """Whether what was received tells of nothing but routes and rules."""
    return {kind for kind, _ in messages(data)} <= _ROUTES_AND_RULES


def _matters(kind: int, message: bytes, interest: Interest) -> bool:
    if kind in _GONE_FROM_TABLES:
        return interest.chains and PREFIX.encode() in message
    if kind in _LINKS_AND_ADDRESSES:
        return _interface(message) in interest.interfaces or any(
            name.encode() + b"\0" in message for name in interest.interfaces
        )
    if kind not in _ROUTES_AND_RULES:
        return False
    if _is_ours(kind, message):
        return kind in (_DEL_ROUTE, _DEL_RULE)
    attributes = message[_ATTRIBUTES_AT:]
    tables = {*interest.tables, *([MAIN] if _is_default(kind, message) else [])}
    return any(struct.pack("=HHI", 8, _TABLE, table) in attributes for table in tables)


def _interface(message: bytes) -> str | None:
    """The interface that a message is about, None when it is gone: then its name is in the message."""
    try:
        return socket.if_indextoname(struct.unpack_from("=I", message, _INDEX_AT)[0])
    except (OSError, struct.error):
        return None


def _is_default(kind: int, message: bytes) -> bool:
    return kind in (_NEW_ROUTE, _DEL_ROUTE) and message[_LENGTH_AT : _LENGTH_AT + 1] == b"\0"


def _is_ours(kind: int, message: bytes) -> bool:
    if kind in (_NEW_ROUTE, _DEL_ROUTE):
        return message[_PROTOCOL_AT : _PROTOCOL_AT + 1] == bytes([PROTOCOL])
    return struct.pack("=HHB", 5, _RULE_PROTOCOL, PROTOCOL) in message[_ATTRIBUTES_AT:]
