"""Checks by the kernel's own sockets: TCP connections and DNS queries from an ISP's address, out of its interface."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from msgspec import Struct

from lsmpy import LsmpyError, links
from lsmpy.model import Address, Check
from lsmpy.uplink import Path

_TIMESTAMPNS = 35  # SO_TIMESTAMPNS, <asm/socket.h>; the socket module lacks it
_RTT_AT = 68  # tcpi_rtt in struct tcp_info, microseconds
_LARGEST = 4096
_MOST_AT_ONCE = 16  # wrong answers, so that a flood of them cannot keep the caller from its clock
_QUERY = struct.Struct("!HHHHHH")  # RFC 1035, 4.1.1
_RECURSE, _IS_ANSWER, _RCODE = 0x0100, 0x8000, 0x000F
_TYPE_A, _CLASS_IN = 1, 1


class CannotTestError(LsmpyError):
    """The kernel would not send this check by its ISP, which says nothing of the ISP."""


class Answer(Struct, frozen=True):
    """How a call ended: `rtt_ns`, or None and the `reason` why it failed."""

    rtt_ns: int | None
    reason: str = ""


class Call:
    """One TCP connection or DNS query under way."""

    def __init__(self, check: Check, address: Address, path: Path, on_link: bool) -> None:
        """Begin it.

        Args:
            check: what to do.
            address: whom to call.
            path: from where, and out of which interface.
            on_link: whether whom we call is a neighbour, so that no gateway need be on the way.

        Raises:
            CannotTestError: there is no such way at the moment.
        """
        self._question = b""
        try:
            way = links.way(path.source, address, path.link)
        except links.NetlinkError as error:
            raise CannotTestError(str(error)) from error
        straight = on_link and way == (path.link.index, None)
        if way != (path.link.index, path.hop) and not straight:
            raise CannotTestError(f"the kernel's routes from {path.source} to {address} go another way")
        kind = socket.SOCK_STREAM if check.kind == "tcp" else socket.SOCK_DGRAM
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise CannotTestError(f"no socket can be had: {error.strerror}") from error
        try:
            # To the interface as well, so that it cannot leave by another one even when the routes change meanwhile.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, path.link.name.encode())
            self._socket.bind((str(path.source), 0))
            self._sent_ns = time.monotonic_ns()
            if check.kind == "dns":
                self._ask((str(address), check.port), check.name)
            elif (code := self._socket.connect_ex((str(address), check.port))) not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            self._socket.close()
            raise CannotTestError(f"the kernel does not send from {path.source}: {error.strerror}") from error

    def _ask(self, server: tuple[str, int], name: str) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        self._socket.connect(server)
        labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split(".")) + b"\0"
        question = labels + struct.pack("!HH", _TYPE_A, _CLASS_IN)
        self._question = _QUERY.pack(int.from_bytes(os.urandom(2), "big"), _RECURSE, 1, 0, 0, 0) + question
        self._sent_at_ns = time.time_ns()
        self._socket.send(self._question)

    def fileno(self) -> int:
        """For a selector: readable or writable when there is an outcome."""
        return self._socket.fileno()

    @property
    def awaits_reading(self) -> bool:
        """Whether it is to be watched for reading, and else for writing."""
        return bool(self._question)

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def outcome(self) -> Answer | None:
        """How it ended, None while it has not."""
        elapsed_ns = time.monotonic_ns() - self._sent_ns
        try:
            return self._heard(elapsed_ns) if self._question else self._connected(elapsed_ns)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOTCONN):
                return None
            return Answer(None, str(error.strerror).lower())

    def _connected(self, elapsed_ns: int) -> Answer:
        if code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        self._socket.getpeername()  # raises while there is none
        (rtt_us,) = struct.unpack_from("=I", self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128), _RTT_AT)
        return Answer(rtt_us * 1000 if 0 < rtt_us * 1000 <= elapsed_ns else elapsed_ns)

    def _heard(self, elapsed_ns: int) -> Answer | None:
        for _ in range(_MOST_AT_ONCE):
            data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, 64)
            if not answers(self._question, data):
                continue
            for _, kind, value in ancillary:
                if kind == _TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack_from("=qq", value)
                    rtt_ns = seconds * 1_000_000_000 + nanoseconds - self._sent_at_ns
                    return Answer(rtt_ns if 0 <= rtt_ns <= elapsed_ns else elapsed_ns)
            return Answer(elapsed_ns)
        return None


def answers(question: bytes, data: bytes) -> bool:
    """Whether `data` is a DNS server's answer to this `question`, whatever it says; never raises."""
    if len(data) < _QUERY.size or data[:2] != question[:2]:
        return False
    _, flags, questions, *_ = _QUERY.unpack_from(data)
    if not flags & _IS_ANSWER:
        return False
    if not questions:  # a server that refuses or fails need not repeat what it was asked
        return bool(flags & _RCODE)
    return questions == 1 and data[12 : len(question)].lower() == question[12:].lower()
