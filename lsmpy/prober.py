"""Probes one ISP: sends what is due, takes in what comes back, and tells what that says of each check target."""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lsmpy import dial, standing, uplink, verdict, wire
from lsmpy.flight import Flight, Sample
from lsmpy.links import Snapshot
from lsmpy.model import Address, Check, Family, Isp
from lsmpy.uplink import Fault, Path

log = logging.getLogger(__name__)

_MS, _S = 1_000_000, 1_000_000_000  # nanoseconds
_REFRESH_NS = 30 * _S  # how old a gateway's hardware address may be while probes are answered
_MOST_REASONS = 3  # in a line of the log
_ASK_AGAIN_NS = _S // 4  # how often it is asked for while they are not


def clock_ns() -> int:
    """The clock that everything goes by: nobody sets it, and it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Hop:
    """Where on the link a gateway was last heard, which holds until something newer is."""

    mac: bytes = b""
    asked_ns: int = 0
    asked_from: bytes = b""  # our hardware address, which the question also tells


@dataclass(slots=True)
class Target:
    """One thing that is checked: how it is reached, and what came of it.

    Attributes:
        text, check: as configured.
        number: its place among the targets of its port.
        flight: its probes under way.
        times: their last round trip times.
        path: how it is reached now, or why it is not.
        silent_ns: when the first of the last probes that were all lost was given up.
        cannot: why it cannot be tested, which says nothing of the ISP; empty when it can.
        reason: of the present losses, where there is more than silence.
        foreign: answers with our tag from somebody else.
    """

    text: str
    check: Check
    number: int
    flight: Flight
    link: verdict.Link = field(default_factory=verdict.Link)
    times: standing.Window = field(default_factory=lambda: standing.Window(verdict.WINDOW))
    path: Path | Fault = field(default_factory=lambda: Fault("not looked for yet"))
    address: Address | None = None
    request: wire.Echo | None = None
    calls: dict[int, dial.Call] = field(default_factory=dict)
    counter: int = 0
    due_ns: int = 0
    silent_ns: int = 0
    cannot: str = ""
    reason: str = ""
    foreign: int = 0

    def __str__(self) -> str:
        """How it stands, for the log."""
        if isinstance(self.path, Fault):
            return self.path.reason
        if self.cannot:
            return f"{self.text} cannot be tested: {self.cannot}"
        return f"{self.text}: {self.link}{f' ({self.reason})' if self.reason else ''}"


class Prober:
    """Probes the targets of one `isp`; `status` is what that has come to."""

    def __init__(
        self,
        isp: Isp,
        port: wire.Port,
        selector: selectors.BaseSelector,
        old: Prober | None = None,
        find: uplink.Find = uplink.find,
    ) -> None:
        """Prepare to probe `isp` by a `port`, which is `old`'s if that is given, with what that one knows.

        `find` tells its way, as the kernel has it.
        """
        self.isp, self.port, self._selector, self._find = isp, port, selector, find
        self.status: verdict.Status = old.status if old else "unknown"
        self.since_s: float = old.since_s if old else time.time()
        self.why: str = old.why if old else "not enough probes yet"
        self.damping: verdict.Damping = old.damping if old else verdict.Damping()
        self.changed = True  # whether a target's status has changed since it was asked last
        self._problem: str = old._problem if old else ""
        self._hops: dict[Address, Hop] = dict(old._hops) if old else {}
        self._bound: tuple[object, ...] = ()
        known = {each.text: each for each in old.targets} if old else {}
        first = 1 + max((each.number for each in known.values()), default=-1)
        self.targets: list[Target] = []
        for number, (text, check) in enumerate(zip(isp.check, isp.checks, strict=True), first):
            target = known.pop(text, None) or Target(text, check, number, Flight(0))
            target.flight.timeout_ns = isp.probe.timeout_ms * _MS
            self.targets.append(target)
        for gone in known.values():
            self._hang_up(gone)
        self._by_number = {each.number: each for each in self.targets}
        register = selector.modify if old else selector.register
        register(port, selectors.EVENT_READ, self.receive)

    def close(self) -> None:
        """Probe no more."""
        for target in self.targets:
            self._hang_up(target)
        self._selector.unregister(self.port)
        self.port.close()

    # -- what the kernel has -----------------------------------------------------------------------------------------

    def see(self, snapshot: Snapshot, now_ns: int) -> None:
        """Follow interface, addresses and gateways to where they are now."""
        paths = {family: self._find(self.isp, family, snapshot) for family in self.isp.families}
        gateway = next((path for path in paths.values() if isinstance(path, Path)), next(iter(paths.values())))
        for target in self.targets:
            address = target.check.address
            self._lead(target, gateway if address is None else paths[4 if address.version == 4 else 6], now_ns)
        found = [each.path for each in self.targets if isinstance(each.path, Path)]
        if found:
            hops = tuple({path.hop: None for path in found if path.hop is not None})
            self._bind(found[0], hops)
            for path in dict.fromkeys(found):
                self._look_for(path, now_ns, False)

    def _lead(self, target: Target, path: Path | Fault, now_ns: int) -> None:
        if path == target.path:
            return
        target.path, target.cannot = path, ""
        if isinstance(path, Fault):
            # Down at once, and judged by probes again after its return, as if it had just come.
            target.link = verdict.Link(status="down")
            target.silent_ns, target.reason = now_ns, ""
            self._hang_up(target)
            self.changed = True
            return
        target.address = target.check.address or path.hop
        target.request = None  # made when it is sent first: hundreds at once would delay the first probe

    def _bind(self, path: Path, hops: tuple[Address, ...]) -> None:
        bound = (path.link.index, path.link.kind, hops)
        if bound != self._bound or self.port.problem:
            self.port.bind(path.link.name, path.link.kind, hops)
            self._bound = bound

    # -- probing -----------------------------------------------------------------------------------------------------

    def advance(self, target: Target, now_ns: int) -> int:
        """Judge and send what is due for a target; returns when there is something to do next."""
        for sample in target.flight.fates(now_ns):
            self._count(target, sample, now_ns)
        if now_ns >= target.due_ns:
            interval_ns = self._interval_ns(target)
            target.due_ns += ((now_ns - target.due_ns) // interval_ns + 1) * interval_ns  # what was missed stays missed
            if isinstance(target.path, Path):
                self._probe(target, target.path, now_ns)
        deadline_ns = target.flight.deadline_ns()
        return target.due_ns if deadline_ns is None else min(target.due_ns, deadline_ns)

    def _interval_ns(self, target: Target) -> int:
        probe = self.isp.probe
        in_burst = target.counter < probe.startup_burst_pkts
        return (probe.startup_burst_interval if in_burst else probe.interval_ms) * _MS

    def stalled(self) -> None:
        """The machine slept: what is unanswered now was not lost by the link."""
        for target in self.targets:
            target.flight.forget()

    def receive(self) -> None:
        """Take in what has arrived. What does not fit a probe of ours in every respect is no answer."""
        for heard in self.port.receive():
            if isinstance(heard, (wire.Sent, wire.Reply)):
                self._concerned(heard)
            elif isinstance(heard, wire.Neighbour):
                self._neighbour(heard)
            else:
                for each in self.targets:
                    if each.address == heard.target:
                        each.flight.unreachable(heard.seq, f"{heard.reason}, says {heard.by}")

    def _concerned(self, heard: wire.Sent | wire.Reply) -> None:
        target = self._by_number.get(heard.target)
        if target is None or target.address is None or isinstance(target.path, Fault):
            return
        if isinstance(heard, wire.Sent):
            target.flight.left(heard.counter, heard.at_ns)
        elif heard.source == target.address.packed and heard.destination == target.path.source.packed:
            target.flight.answered(heard.counter, heard.at_ns, clock_ns())
        else:
            target.foreign += 1

    def _neighbour(self, heard: wire.Neighbour) -> None:
        if hop := self._hops.get(heard.address):
            hop.mac = heard.mac
        for target in self.targets:
            number = target.flight.newest()  # nothing in it tells which question it answers; LSM does the same
            if target.check.kind == "neighbour" and target.address == heard.address and number is not None:
                target.flight.answered(number, heard.at_ns, clock_ns())

    def _probe(self, target: Target, path: Path, now_ns: int) -> None:
        number = target.counter
        target.counter += 1
        if target.check.kind in ("tcp", "dns") and target.address is not None:
            self._call(target, path, target.address, number)
            return
        if target.check.kind != "neighbour":
            self._look_for(path, now_ns, target.link.lost_in_a_row > 0)
        target.flight.sent(number, clock_ns(), time.time_ns())
        if path.own:  # the kernel takes no packets from itself off the wire, and would answer each: it has the address
            target.flight.answered(number, time.time_ns(), clock_ns())
            return
        if target.check.kind == "neighbour":
            self._ask(path, now_ns)
        elif target.address is not None:
            mac = self._hops[path.hop].mac if path.needs_mac and path.hop in self._hops else b""
            if target.request is None:
                target.request = self.port.echo(path.source, target.address, target.number, path.ttl)
            if mac or not path.needs_mac:
                self.port.probe(target.request, target.number, number, target.address.version, mac)
        self._tell_problem()

    def _tell_problem(self) -> None:
        problem = self.port.problem
        if problem and problem != self._problem:
            log.warning("%s: %s; its probes count as lost", self.isp.name, problem)
        elif self._problem and not problem:
            log.info("%s: probes are sent on %s again", self.isp.name, self.isp.interface)
        self._problem = problem

    def _look_for(self, path: Path, now_ns: int, unanswered: bool) -> None:
        """Ask where the gateway is if that is not known well enough."""
        if path.needs_mac and path.hop is not None:
            hop = self._hops.setdefault(path.hop, Hop())
            patience_ns = _ASK_AGAIN_NS if unanswered or not hop.mac else _REFRESH_NS
            if hop.asked_from != path.link.mac or now_ns >= hop.asked_ns + patience_ns:
                self._ask(path, now_ns)

    def _ask(self, path: Path, now_ns: int) -> None:
        if path.hop is not None and path.needs_mac:
            hop = self._hops.setdefault(path.hop, Hop())
            self.port.ask(wire.solicitation(path.link.mac, path.source, path.hop))
            hop.asked_ns, hop.asked_from = now_ns, path.link.mac

    def _call(self, target: Target, path: Path, address: Address, number: int) -> None:
        family: Family = 4 if address.version == 4 else 6
        on_link = path.hop is None or any(address in each.network for each in self.isp.addresses(family))
        try:
            call = dial.Call(target.check, address, path, on_link)
        except dial.CannotTestError as error:
            if not target.cannot:
                log.warning("%s: %s cannot be tested: %s", self.isp.name, target.text, error)
            target.cannot = str(error)
            return
        if target.cannot:
            log.info("%s: %s is tested again", self.isp.name, target.text)
        target.cannot = ""
        target.flight.sent(number, clock_ns())
        target.calls[number] = call
        event = selectors.EVENT_READ if call.awaits_reading else selectors.EVENT_WRITE
        self._selector.register(call, event, lambda: self._called(target, number))

    def _called(self, target: Target, number: int) -> None:
        call = target.calls.get(number)  # what came before it in the same turn may have ended it
        if call is not None and (answer := call.outcome()) is not None:
            self._end_call(target, number)
            target.flight.ended(number, answer.rtt_ns, answer.reason)

    def _end_call(self, target: Target, number: int) -> None:
        call = target.calls.pop(number)
        self._selector.unregister(call)
        call.close()

    def _hang_up(self, target: Target) -> None:
        """Give up on what is under way."""
        target.flight.abandon()
        for number in list(target.calls):
            self._end_call(target, number)

    # -- judging -----------------------------------------------------------------------------------------------------

    def _count(self, target: Target, sample: Sample, now_ns: int) -> None:
        before = target.link.status
        target.link = verdict.step(target.link, sample.rtt_ns, self.isp.probe)
        if target.link.lost_in_a_row == 1:
            target.silent_ns = now_ns
        target.reason = (sample.reason or target.reason) if sample.lost else ""  # not every loss is explained
        target.times.add(sample.rtt_ns)
        if target.calls:
            for number in [each for each in target.calls if each not in target.flight]:
                self._end_call(target, number)
        self.changed |= target.link.status != before

    def judge(self, blamed: frozenset[str], now_ns: int) -> bool:
        """Come to a status, not counting the `blamed` targets; returns whether it is another one, and up or down."""
        counted = [each.link.status for each in self.targets if isinstance(each.path, Fault) or each.text not in blamed]
        said = verdict.combine(counted, min(self.isp.quorum, len(counted))) if counted else "unknown"
        held = self.damping.up_ns is None and self.damping.held_ns > 0
        self.damping = verdict.damp(self.damping, said, now_ns, self.isp.probe.hold_down_ms)
        status: verdict.Status = "down" if said == "up" and self.damping.up_ns is None else said
        if status in (self.status, "unknown"):
            return False
        self.status, self.since_s = status, time.time()
        self.why = self._reasons()
        if held and status == "up":
            self.why += f"; was held down for {self.damping.held_ns / _S:g} s at least"
        log.info("%s %s: %s", self.isp.name, status, self.why)
        return True

    def trial(self, target: Target) -> verdict.Trial:
        """How a target does."""
        limits = self.isp.probe
        silent = verdict.is_silent(target.link, limits) or isinstance(target.path, Fault)
        fails = silent or target.link.status == "down"
        apart_ns = (2 * limits.interval_ms + limits.timeout_ms) * _MS
        return verdict.Trial(target.link.status == "up", fails, target.silent_ns if silent else None, apart_ns)

    def answers_steadily(self, target: Target) -> bool:
        """Whether so many of a target's probes have been answered in a row that it could be up."""
        return target.link.received_in_a_row >= self.isp.probe.min_successive_pkts_rcvd

    def begin_anew(self, target: Target) -> None:
        """Judge a target as if it had just been configured, unless there is no way to it."""
        if isinstance(target.path, Path):
            target.link = verdict.Link()

    def _reasons(self) -> str:
        """Why the status is what it is: the targets that have it too."""
        reasons = list(dict.fromkeys(str(each) for each in self.targets if each.link.status == self.status))
        more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
        return "; ".join(reasons[:_MOST_REASONS]) + more

    def standing(self, blamed: frozenset[str], now_ns: int) -> standing.IspStanding:
        """What is known, for people."""
        held_ns = self.damping.until_ns - now_ns if self.status == "down" else 0
        targets = {
            each.text: standing.TargetStanding(
                state=each.link.status,
                why=str(each),
                samples=each.link.samples,
                lost=each.link.lost,
                late=each.flight.late,
                foreign=each.foreign,
                blamed=each.text in blamed,
                rtt_ms=each.times.round_trips(),
            )
            for each in self.targets
        }
        held_until = time.time() + held_ns / _S if held_ns > 0 else 0.0
        return standing.IspStanding(self.status, self.since_s, self.why, round(held_until, 1), targets)


def trials(probers: Sequence[Prober]) -> dict[str, dict[str, verdict.Trial]]:
    """Of each ISP, how each of its check targets does, for `verdict.blamed`; its gateway is nobody else's target."""
    return {
        prober.isp.name: {each.text: prober.trial(each) for each in prober.targets if each.check.address is not None}
        for prober in probers
    }
