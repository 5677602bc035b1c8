"""Sends plain TCP and UDP flows from a laboratory's host to its server and tells, in JSON lines, what became of each.

`t` is the monotonic clock in seconds, which all namespaces of a machine share.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from lsmpy.labserver import MORE, ONCE

MESSAGE_S, GAP_S = 0.05, 0.2
_TURN_S = 0.05  # how long a signal may go unnoticed
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_IN_FLIGHT = {errno.EINPROGRESS, errno.EAGAIN}
_FIRST_PORT, _PORTS = 1024, 64512


@dataclass(slots=True)
class Flow:
    """One flow under way.

    Attributes:
        began: when, monotonic seconds.
        heard: when it was last answered.
        answer: what the server said last, `ISP SOURCE`.
        gap: the longest time between two answers, in seconds.
    """

    sock: socket.socket
    proto: str
    began: float
    heard: float
    port: int = 0
    sent: int = 0
    answered: int = 0
    gap: float = 0.0
    answer: str = ""
    done: bool = False
    buffer: bytearray = field(default_factory=bytearray)


class Client:
    """Sends flows, many at a time, and tells what became of each.

    Args:
        targets: the server's addresses; flows take turns among them and the protocols.
        protos: `tcp`, `udp` or both.
        timeout_s: an answer later than this is none. Under the second after which TCP repeats a SYN, so that a lost
            one is seen as such.
        totals: tell only of lost flows, and the rest as a sum at the end.
    """

    def __init__(
        self, targets: Sequence[str], port: int, protos: Sequence[str], timeout_s: float, totals: bool
    ) -> None:
        """See the class."""
        self._ways = [(target, proto) for target in targets for proto in protos]
        self._port, self._timeout_s, self._totals = port, timeout_s, totals
        self._loop = selectors.EpollSelector()
        self._open: deque[Flow] = deque()  # in the order of their deadlines
        self._in_flight = 0
        self._by_isp: Counter[str] = Counter()
        self._lost = 0
        self._ports = _ports()
        self.ended = False
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: object) -> None:
        self.ended = True

    def flows(self, rate: float, seconds: float) -> None:
        """Begin `rate` flows a second for so long or until SIGTERM, then wait for those under way."""
        due = start = time.monotonic()
        number = 0
        while not self.ended and due - start < seconds:
            while due <= time.monotonic():
                self._begin(number)
                number += 1
                due = start + number / rate
            self._turn(min(due - time.monotonic(), _TURN_S))
        while self._in_flight:
            self._turn(_TURN_S)
        self._sum()

    def sequence(self, count: int) -> None:
        """Send `count` flows, each after the end of the one before."""
        for number in range(count):
            self._begin(number)
            while self._in_flight:
                self._turn(_TURN_S)
        self._sum()

    def _sum(self) -> None:
        _say({"flows": self._by_isp.total() + self._lost, "isps": dict(self._by_isp), "lost": self._lost})

    def _begin(self, number: int) -> None:
        target, proto = self._ways[number % len(self._ways)]
        now = time.monotonic()
        flow = Flow(socket.socket(_family(target), _KINDS[proto]), proto, now, now)
        self._in_flight += 1
        self._open.append(flow)
        try:
            flow.port = _connect(flow.sock, (target, self._port), self._ports)
            self._loop.register(flow.sock, selectors.EVENT_WRITE if proto == "tcp" else selectors.EVENT_READ, flow)
            if proto == "udp":
                flow.sock.send(ONCE)
        except OSError as error:
            self._finish(flow, error)

    def _turn(self, wait_s: float) -> None:
        for key, events in self._loop.select(max(wait_s, 0)):
            flow: Flow = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    flow.sock.send(ONCE)  # raises what became of the connection, if it failed
                    self._loop.modify(flow.sock, selectors.EVENT_READ, flow)
                else:
                    flow.answer = flow.sock.recv(200).decode()
                    self._finish(flow, None if flow.answer else ConnectionAbortedError(errno.ECONNABORTED, "closed"))
            except OSError as error:
                self._finish(flow, error)
        late = time.monotonic() - self._timeout_s
        while self._open and (self._open[0].done or self._open[0].began < late):
            self._finish(self._open.popleft(), TimeoutError(errno.ETIMEDOUT, "no answer"))

    def _finish(self, flow: Flow, error: OSError | None) -> None:
        if flow.done:
            return
        flow.done = True
        self._in_flight -= 1
        with suppress(KeyError):
            self._loop.unregister(flow.sock)
        family = 4 if flow.sock.family == socket.AF_INET else 6
        flow.sock.close()
        isp, source = flow.answer.split() if not error else ("", "")
        if error:
            self._lost += 1
        else:
            self._by_isp[isp] += 1
        if error or not self._totals:
            facts = {"t": flow.began, "proto": flow.proto, "family": family, "isp": isp, "source": source}
            facts |= {"ok": not error, "ms": round(1000 * (time.monotonic() - flow.began), 3), "port": flow.port}
            _say(facts | ({"why": error.strerror or str(error)} if error else {}))

    def long(self, count: int, seconds: float) -> None:
        """Keep `count` flows for so long or until SIGTERM, a message every 50 ms on each; tell of gaps and ends.

        Each event has the flow's number; `isp` events tell where it is, at its beginning and when that changes.
        """
        flows: list[Flow] = []
        start = now = time.monotonic()
        for number in range(count):
            target, proto = self._ways[number % len(self._ways)]
            flow = Flow(socket.socket(_family(target), _KINDS[proto]), proto, now, now)
            flows.append(flow)
            with suppress(OSError):
                flow.port = _connect(flow.sock, (target, self._port), self._ports)
            self._loop.register(flow.sock, selectors.EVENT_READ, (number, flow))
        due = start
        while not self.ended and time.monotonic() - start < seconds:
            if due <= time.monotonic():
                due += MESSAGE_S
                for flow in flows:
                    self._message(flows.index(flow), flow)
            for key, _events in self._loop.select(max(due - time.monotonic(), 0)):
                self._heard(*key.data)
        for number, flow in enumerate(flows):
            flow.gap = max(flow.gap, time.monotonic() - flow.heard)
            facts = {"flow": number, "proto": flow.proto, "sent": flow.sent, "answered": flow.answered}
            _say({"event": "end", **facts, "broken": flow.done, "longest_gap_ms": round(1000 * flow.gap)})

    def _message(self, number: int, flow: Flow) -> None:
        if flow.done:
            return
        try:
            flow.sock.send(MORE)
            flow.sent += 1
        except BlockingIOError:
            pass  # still connecting, or nothing has been acknowledged for long: the gap tells
        except OSError as error:
            self._hurt(number, flow, error)

    def _heard(self, number: int, flow: Flow) -> None:
        if flow.done:
            return None
        try:
            text = flow.sock.recv(4096)
        except OSError as error:
            return self._hurt(number, flow, error)
        if not text:
            return self._hurt(number, flow, ConnectionAbortedError(errno.ECONNABORTED, "closed"))
        now = time.monotonic()
        flow.buffer += text
        *lines, rest = bytes(flow.buffer).decode().split("\n")
        flow.buffer[:] = rest.encode()
        flow.answered += len(lines)
        flow.gap = max(flow.gap, now - flow.heard)
        if now - flow.heard > GAP_S:
            _say({"event": "gap", "flow": number, "t": flow.heard, "ms": round(1000 * (now - flow.heard))})
        flow.heard = now
        if lines and lines[-1] != flow.answer:
            flow.answer = lines[-1]
            isp, source = flow.answer.split()
            _say({"event": "isp", "flow": number, "proto": flow.proto, "t": now, "isp": isp, "source": source})
        return None

    def _hurt(self, number: int, flow: Flow, error: OSError) -> None:
        """A TCP flow is broken for good; a datagram's error (a router's ICMP, say) is only a lost message."""
        if flow.proto == "tcp":
            flow.done = True
            self._loop.unregister(flow.sock)
            _say({"event": "broken", "flow": number, "t": time.monotonic(), "why": error.strerror or str(error)})


def _ports() -> Iterator[int]:
    """Source ports, none twice within half a minute, over several clients of a host one after another too.

    A port that comes back while the router still knows its last conversation (30 s for UDP) would be no new flow. So
    the clock says where to begin, two ports a millisecond: whoever sends up to 2,000 flows a second stays behind it.
    """
    number = int(time.monotonic() * 2000)
    while True:
        yield _FIRST_PORT + number % _PORTS
        number += 1


def _connect(sock: socket.socket, target: tuple[str, int], ports: Iterator[int]) -> int:
    """Begin to connect from the next free port and return that."""
    sock.setblocking(False)
    for port in ports:
        try:
            sock.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        break
    status = sock.connect_ex(target)
    if status and status not in _IN_FLIGHT:
        raise OSError(status, os.strerror(status))
    return port


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6


def _say(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main() -> int:
    """`python -m lsmpy.traffic flows|sequence|long …`."""
    parser = argparse.ArgumentParser(prog="python -m lsmpy.traffic")
    modes = parser.add_subparsers(dest="mode", required=True)
    client = argparse.ArgumentParser(add_help=False)
    client.add_argument("--to", action="append", required=True, metavar="ADDRESS")
    client.add_argument("--proto", action="append", required=True, choices=sorted(_KINDS))
    client.add_argument("--timeout", type=float, default=0.9, metavar="SECONDS")
    client.add_argument("--totals", action="store_true")
    flows = modes.add_parser("flows", parents=[client])
    flows.add_argument("--rate", type=float, required=True)
    sequence = modes.add_parser("sequence", parents=[client])
    long = modes.add_parser("long", parents=[client])
    for mode in (flows, long):
        mode.add_argument("--seconds", type=float, default=float("inf"))
    for mode in (sequence, long):
        mode.add_argument("--count", type=int, required=True)
    for mode in (flows, sequence, long):
        mode.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us, and SIGTERM comes from there
    sender = Client(args.to, args.port, args.proto, args.timeout, args.totals)
    if args.mode == "flows":
        sender.flows(args.rate, args.seconds)
    elif args.mode == "sequence":
        sender.sequence(args.count)
    else:
        sender.long(args.count, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
