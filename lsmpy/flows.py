"""Drives real flows through a laboratory and collects what became of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

import msgspec
from msgspec import Struct

from lsmpy import command
from lsmpy.lab import PORT, ROUTER, Lab, LabError, lan_node
from lsmpy.model import Family

Proto = Literal["tcp", "udp"]
_TRACKED = re.compile(r"^(tcp|udp) .*?src=(\S+) dst=\S+ sport=(\d+) .*\bmark=(\d+)", re.MULTILINE)


class Flow(Struct, frozen=True, kw_only=True):
    """One flow of a LAN's host, from connect to answer.

    Attributes:
        t: when it began, monotonic seconds.
        isp: by which ISP the server got it; empty when it was lost.
        source: the address the server saw; empty when it was lost.
        ms: how long it took, in milliseconds.
        port: the host's port.
        why: what the host was told when it was lost.
    """

    t: float
    proto: Proto
    family: Family
    isp: str
    source: str
    ok: bool
    ms: float
    port: int
    why: str = ""


class Totals(Struct, frozen=True, kw_only=True):
    """The sum of a stream of flows: how many, how many of them by each ISP, how many lost."""

    flows: int
    isps: dict[str, int]
    lost: int


class LongEvent(Struct, frozen=True, kw_only=True):
    """What happened to one of the long flows.

    Attributes:
        event: `isp` (its ISP or source is new), `gap` (no answer for `ms` milliseconds from `t` on), `broken`, `end`.
        flow: its number; with two protocols, even ones are of the first.
    """

    event: Literal["isp", "gap", "broken", "end"]
    flow: int
    proto: str = ""
    t: float = 0.0
    isp: str = ""
    source: str = ""
    ms: float = 0.0
    why: str = ""
    sent: int = 0
    answered: int = 0
    broken: bool = False
    longest_gap_ms: float = 0.0


def sequence(lab: Lab, lan: str, count: int, proto: Proto = "udp", family: Family = 4) -> list[Flow]:
    """Send `count` new flows from a LAN's host to the server, one after another.

    Raises:
        CommandError: the client failed.
    """
    argv = _client(lab, "sequence", (proto,), (family,))
    lines = lab.run(lan_node(lan), *argv, f"--count={count}", timeout_s=30 + count).splitlines()
    return [msgspec.json.decode(line, type=Flow) for line in lines[:-1]]


class Stream:
    """Many new flows a second from a LAN's host, from the beginning of the `with` block to its end.

    Attributes:
        flows: those that ended so far; with `totals` only the lost ones, for thousands a second.
    """

    def __init__(
        self,
        lab: Lab,
        lan: str,
        rate: float,
        protos: Sequence[Proto] = ("tcp", "udp"),
        families: Sequence[Family] = (4,),
        totals: bool = False,
    ) -> None:
        """Start nothing yet; `rate` is flows a second, over all protocols and families together."""
        self._lab, self._lan = lab, lan
        self._argv = [*_client(lab, "flows", protos, families), f"--rate={rate}", *(["--totals"] if totals else [])]
        self._running: command.Running | None = None
        self._said: list[str] = []
        self._totals: Totals | None = None
        self.flows: list[Flow] = []

    def __enter__(self) -> Self:
        """Start."""
        self._running = self._lab.start(lan_node(self._lan), self._argv, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        if self._totals is None and error is None:
            self.stop()

    def _hear(self, line: str) -> None:
        try:
            if '"flows"' in line:
                self._totals = msgspec.json.decode(line, type=Totals)
            else:
                self.flows.append(msgspec.json.decode(line, type=Flow))
        except msgspec.DecodeError:
            self._said.append(line)

    def stop(self) -> Totals:
        """Begin no more flows, wait for those under way, and return the sum.

        Raises:
            LabError: the client died; the message shows what it said.
        """
        if self._running and self._totals is None:
            self._running.stop()
        if self._totals is None:
            raise LabError(f"the sender of flows in {self._lan} died: {''.join(self._said)}")
        return self._totals


class LongFlows:
    """Flows that stay, each with a message every 50 ms, from the beginning of the `with` block to its end.

    Attributes:
        events: what happened to them so far.
    """

    def __init__(
        self,
        lab: Lab,
        lan: str,
        count: int,
        protos: Sequence[Proto] = ("tcp",),
        families: Sequence[Family] = (4,),
    ) -> None:
        """Start nothing yet; the flows take turns among families and protocols."""
        self._lab, self._lan = lab, lan
        self._argv = [*_client(lab, "long", protos, families), f"--count={count}"]
        self._running: command.Running | None = None
        self._said: list[str] = []
        self.events: list[LongEvent] = []

    def start(self) -> Self:
        """Start; without a `with` block they last until `stop`, or as long as the laboratory."""
        self._running = self._lab.start(lan_node(self._lan), self._argv, self._hear)
        return self

    __enter__ = start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        if error is None:
            self.stop()

    def _hear(self, line: str) -> None:
        try:
            self.events.append(msgspec.json.decode(line, type=LongEvent))
        except msgspec.DecodeError:
            self._said.append(line)

    def stop(self) -> list[LongEvent]:
        """End the flows and return all events, the last ones being the sum of each flow.

        Raises:
            LabError: the client died; the message shows what it said.
        """
        if self._running and self._running.alive:
            self._running.stop()
        if not any(event.event == "end" for event in self.events):
            raise LabError(f"the sender of long flows in {self._lan} died: {''.join(self._said)}")
        return self.events

    def isps(self) -> dict[int, str]:
        """By which ISP each flow goes now."""
        return {event.flow: event.isp for event in list(self.events) if event.event == "isp"}

    def isp_at(self, flow: int, t: float) -> str:
        """By which ISP a flow was answered last until then; empty if it was not yet."""
        isps = [each.isp for each in list(self.events) if each.event == "isp" and each.flow == flow and each.t <= t]
        return isps[-1] if isps else ""


def tracked(lab: Lab, flows: Sequence[tuple[str, Flow]]) -> dict[tuple[str, Flow], str]:
    """For flows and their LANs, the ISP that the router's conntrack has each of them on; empty if it knows none.

    Raises:
        CommandError: conntrack failed.
    """
    wanted = {(flow.proto, str(lab.host(lan, flow.family)), flow.port): (lan, flow) for lan, flow in flows}
    found = dict.fromkeys(flows, "")
    names = {lab.router.mark_value(isp): isp.name for isp in lab.router.isps}
    for family in sorted({flow.family for _, flow in flows}):
        listing = lab.run(ROUTER, "conntrack", "-L", "-f", f"ipv{family}")
        for proto, source, port, mark in _TRACKED.findall(listing):
            if flow := wanted.get((proto, source, int(port))):
                found[flow] = names.get(int(mark) & lab.router.options.mark_mask, "")
    return found


def _client(lab: Lab, mode: str, protos: Sequence[Proto], families: Sequence[Family]) -> list[str]:
    targets = [f"--to={lab.server[family]}" for family in families]
    kinds = [f"--proto={proto}" for proto in protos]
    return [sys.executable, "-m", "lsmpy.traffic", mode, f"--port={PORT}", *targets, *kinds]
