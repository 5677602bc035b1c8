"""Hears from the kernel that interfaces, addresses, routes or rules have changed (rtnetlink(7))."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

from lsmpy.routing import PROTOCOL

_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x80000
# RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, and group 20, IPV6_RULE
_NEW = frozenset({24, 32})  # RTM_NEWROUTE, RTM_NEWRULE
_HEADER = struct.Struct("=LHHLL")  # struct nlmsghdr: length, type, flags, sequence, port
_PROTOCOL_AT = {24: _HEADER.size + 5}  # rtm_protocol in struct rtmsg
_FRA_PROTOCOL = 21
_ENOUGH = 1 << 20


def open_socket() -> socket.socket:
    """A socket that becomes readable when something has changed."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ENOUGH)
    opened.bind((0, _GROUPS))
    return opened


def listen(opened: socket.socket, on_change: Callable[[], object]) -> None:
    """Call `on_change` for every change that is not our own, until the socket is closed; for a thread.

    Messages that the kernel had to throw away count as a change: the listener is told to look for itself.
    """
    while True:
        try:
            data = opened.recv(65536)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                on_change()
                continue
            return
        if not data:
            return
        if not is_own(data):
            on_change()


def is_own(data: bytes) -> bool:
    """Whether all messages of a datagram only say that a route or rule of ours was added."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        message = data[offset : offset + length]
        if length < _HEADER.size or kind not in _NEW or not _says_protocol(kind, message):
            return False
        offset += (length + 3) & ~3
    return True


def _says_protocol(kind: int, message: bytes) -> bool:
    if kind in _PROTOCOL_AT:
        return len(message) > _PROTOCOL_AT[kind] and message[_PROTOCOL_AT[kind]] == PROTOCOL
    # A rule has its protocol in an attribute, after the 12 bytes of struct fib_rule_hdr.
    wanted = struct.pack("=HHB", 5, _FRA_PROTOCOL, PROTOCOL)
    return wanted in message[_HEADER.size + 12 :]
