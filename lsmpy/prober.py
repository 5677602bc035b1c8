"""Probes one ISP: sends what is due, takes in what comes back, and tells what that says of each check target."""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Collection, Iterator

from lsmpy import dial, standing, uplink, verdict, wire
from lsmpy.flight import Flight, Sample
from lsmpy.links import Snapshot
from lsmpy.model import Address, Check, Isp
from lsmpy.neighbours import Neighbours
from lsmpy.port import Port
from lsmpy.target import Target
from lsmpy.uplink import Fault, Path, Unrouted

log = logging.getLogger(__name__)

_MS, _S = 1_000_000, 1_000_000_000  # nanoseconds
_MOST_REASONS = 3  # in a line of the log
_CALLS = ("tcp", "dns")  # checks by the kernel's own sockets


def clock_ns() -> int:
    """The clock that everything goes by: nobody sets it, and it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Prober:
    """Probes the targets of one `isp`; `status` is what that has come to."""

    def __init__(
        self,
        isp: Isp,
        port: Port,
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
        self.why: str = old.why if old else verdict.NOT_YET
        self.damping: verdict.Damping = old.damping if old else verdict.Damping()
        self._while_up: verdict.Damping = old._while_up if old else self.damping
        self.changed = True  # whether a target's status has changed since it was asked last
        self._problem: str = old._problem if old else ""
        self._neighbours: Neighbours = old._neighbours if old else Neighbours(port)
        self._bound: tuple[object, ...] = ()
        known = {each.text: each for each in old.targets} if old else {}
        first = 1 + max((each.number for each in known.values()), default=-1)
        self.targets: list[Target] = []
        for number, (text, check) in enumerate(zip(isp.check, isp.checks, strict=True), first):
            target = known.pop(text, None) or Target(text, check, number, Flight(0), time.time())
            target.flight.timeout_ns = isp.probe.timeout_ms * _MS
            self.targets.append(target)
        for gone in known.values():
            self._hang_up(gone)
        self._by_number = {each.number: each for each in self.targets}
        self._by_address: dict[bytes, list[Target]] = {}
        # Those whose next samples may change their status.
        self.turning = {each.number: each for each in self.targets if verdict.is_turning(each.link)}
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
        self._by_address = {}
        for target in self.targets:
            self._by_address.setdefault(target.ends[0], []).append(target)
        found = [each.path for each in self.targets if isinstance(each.path, Path)]
        if found:
            hops = {each.hop.address: each for each in self.targets if each.hop}
            self._bind(found[0], tuple(hops))
            for each in hops.values():
                if each.hop and isinstance(each.path, Path):
                    self._neighbours.look_for(each.hop, each.path, now_ns, False)

    def _lead(self, target: Target, path: Path | Fault, now_ns: int) -> None:
        if path == target.path:
            return
        was = target.path
        target.path, target.hop = path, None
        if isinstance(path, Unrouted):
            return
        if isinstance(path, Fault):
            # Down at once, and judged by probes again after its return, as if it had just come.
            self._begin(target, "down")
            target.silent_ns, target.cannot, target.moot = now_ns, "", False
            self._hang_up(target)
            self.changed = True
            return
        target.address = target.check.address or path.hop
        ends = (target.address.packed if target.address else b"", path.source.packed)
        before = (was.link.index, was.link.mac, target.ends) if isinstance(was, Path) else None
        if before and before != (path.link.index, path.link.mac, ends):
            target.flight.forget()  # answers go to where it was asked from
        target.ends = ends
        target.request = None  # made when it is sent first: hundreds at once would delay the first probe
        hop = path.hop or target.address  # without a gateway everybody is his own, as for the kernel
        if path.needs_mac and hop is not None:
            target.hop = self._neighbours.at(hop, now_ns)
        if target.check.kind not in _CALLS:  # which find out for themselves
            self._test(target, _obstacle(target, path))
            if target.cannot and isinstance(was, Fault):
                self._begin(target)  # what was wrong is over, and more is not known

    def _test(self, target: Target, cannot: str = "") -> None:
        """It can be tested from now on, or it cannot."""
        if cannot and not target.cannot:
            log.warning("%s: %s cannot be tested: %s", self.isp.name, target.text, cannot)
        elif target.cannot and not cannot:
            log.info("%s: %s is tested again", self.isp.name, target.text)
        target.cannot = cannot

    def _bind(self, path: Path, hops: tuple[Address, ...]) -> None:
        bound = (path.link.index, path.link.kind, hops)
        # Another interface may have this one's name and index.
        if bound != self._bound or self.port.problem or not self.port.is_bound:
            self.port.bind(path.link.name, path.link.kind, hops)
            self._bound = bound

    # -- probing -----------------------------------------------------------------------------------------------------

    def advance(self, target: Target, now_ns: int) -> int:
        """Judge and send what is due for a target; returns when there is something to do next."""
        deadline_ns = target.flight.deadline_ns()
        if deadline_ns is not None and now_ns >= deadline_ns:
            self._judge_probes(target, now_ns)
        if now_ns >= target.due_ns:
            target.due_ns = self._after(target, now_ns)
            if isinstance(target.path, Path):
                self._probe(target, target.path, now_ns)
            elif isinstance(target.path, Unrouted):
                target.flight.sent(self._next(target), clock_ns())
            else:
                target.unsent += 1  # LSM counts these too
        deadline_ns = target.flight.deadline_ns()
        target.next_ns = target.due_ns if deadline_ns is None else min(target.due_ns, deadline_ns)
        return target.next_ns

    def _after(self, target: Target, now_ns: int) -> int:
        """When the next probe is due on its beat, which a burst ends on; what was missed stays missed."""
        probe = self.isp.probe
        if target.counter < probe.startup_burst_pkts:
            target.beat_ns = _next_on(target.due_ns, probe.startup_burst_interval * _MS, now_ns)
            return target.beat_ns
        return _next_on(target.beat_ns, probe.interval_ms * _MS, now_ns)

    def stalled(self) -> None:
        """The machine slept: what is unanswered now was not lost by the link."""
        for target in self.targets:
            target.flight.forget()

    def receive(self, now_ns: int) -> None:
        """Take in what has arrived, and judge what was sent in time to have arrived by `now_ns`.

        What does not fit a probe of ours in every respect is no answer.
        """
        answered: dict[int, Target] = {}
        heard_ns = 0
        for heard in self.port.receive():
            heard_ns = heard_ns or clock_ns()  # after all of it has arrived
            if isinstance(heard, wire.Sent):
                if target := self._by_number.get(heard.target):
                    target.flight.left(heard.counter, heard.at_ns)
            elif isinstance(heard, wire.Reply):
                if target := self._by_number.get(heard.target):
                    self._replied(target, heard, heard_ns)
                    answered[heard.target] = target
            elif isinstance(heard, wire.Neighbour):
                answered |= {each.number: each for each in self._neighbour(heard, heard_ns)}
            else:
                self._complaint(heard)
        for target in answered.values():
            self._judge_probes(target, now_ns)

    def _replied(self, target: Target, heard: wire.Reply, now_ns: int) -> None:
        if (heard.source, heard.destination) == target.ends:
            target.flight.answered(heard.counter, heard.tag, heard.at_ns, now_ns)
        elif target.flight.is_true(heard.counter, heard.tag):
            target.foreign += 1

    def _neighbour(self, heard: wire.Neighbour, now_ns: int) -> Iterator[Target]:
        """Learn where a gateway is; whose check that answers: those who asked, by what the question told of them."""
        self._neighbours.heard(heard.address, heard.mac)
        for target in self._by_address.get(heard.address.packed, ()):
            if target.check.kind != "neighbour" or target.hop is None or heard.to != target.ends[1]:
                continue
            number = target.flight.newest()  # nothing in it tells which question it answers; LSM takes the newest too
            if number is not None and heard.to_mac in (b"", target.hop.asked_from):
                target.flight.answered(number, b"", heard.at_ns, now_ns)
                yield target

    def _complaint(self, heard: wire.Complaint) -> None:
        """Have it explained, once for each probe: that takes long, and anybody may send as many as he wants."""
        concerned = [each for each in self._by_address.get(heard.target, ()) if each.flight.is_unexplained(heard.seq)]
        if concerned:
            error = wire.parse_error(heard.protocol, heard.packet, self.port.ident)
            reason = f"{error.reason}, says {error.by}" if error else "somebody sends errors that nobody understands"
            for each in concerned:
                each.flight.unreachable(heard.seq, reason)

    def _probe(self, target: Target, path: Path, now_ns: int) -> None:
        if target.check.kind in _CALLS and target.address is not None:
            self._call(target, path, target.address)
        elif target.cannot or target.address is None:
            return
        elif path.own:
            self._answer_ourselves(target, now_ns)
        elif target.check.kind == "neighbour" and target.hop is not None:
            target.flight.sent(self._next(target), clock_ns(), time.time_ns())
            self._neighbours.ask(target.hop, path, now_ns)
        else:
            self._echo(target, path, target.address, now_ns)
        self._tell_problem()

    def _next(self, target: Target) -> int:
        target.counter += 1
        return target.counter - 1

    def _answer_ourselves(self, target: Target, now_ns: int) -> None:
        """The kernel takes no packets from itself off the wire, and would answer each: it has the address."""
        number = self._next(target)
        target.flight.sent(number, clock_ns(), time.time_ns())
        target.flight.answered(number, b"", time.time_ns(), clock_ns())
        self._judge_probes(target, now_ns)

    def _echo(self, target: Target, path: Path, address: Address, now_ns: int) -> None:
        hop = target.hop
        if hop is not None:
            self._neighbours.look_for(hop, path, now_ns, target.link.lost_in_a_row > 0)
            if hop.may_answer_yet(now_ns):
                return
        if target.request is None:
            target.request = self.port.echo(path.source, address, target.number, path.ttl)
        number, tag = self._next(target), b""
        sent_ns, left_ns = clock_ns(), time.time_ns()
        if hop is None or hop.mac:
            tag = self.port.probe(target.request, number, address.version, hop.mac if hop else path.mac)
        target.flight.sent(number, sent_ns, left_ns, tag)

    def _tell_problem(self) -> None:
        problem = self.port.problem
        if problem and problem != self._problem:
            log.warning("%s: %s; its probes count as lost", self.isp.name, problem)
        elif self._problem and not problem:
            log.info("%s: probes are sent on %s again", self.isp.name, self.isp.interface)
        self._problem = problem

    def _call(self, target: Target, path: Path, address: Address) -> None:
        try:
            call = dial.Call(target.check, address, path, path.is_neighbour(address))
        except dial.CannotTestError as error:
            self._test(target, str(error))
            return
        self._test(target)
        number = self._next(target)
        target.flight.sent(number, clock_ns())
        target.calls[number] = call
        event = selectors.EVENT_READ if call.awaits_reading else selectors.EVENT_WRITE
        self._selector.register(call, event, lambda now_ns: self._called(target, now_ns))

    def _called(self, target: Target, now_ns: int) -> None:
        """Take in what has come of any of its calls before one is judged as unanswered."""
        for number, call in list(target.calls.items()):
            if (answer := call.outcome()) is not None:
                self._end_call(target, number)
                target.flight.ended(number, answer.rtt_ns, answer.reason)
        self._judge_probes(target, now_ns)

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

    def _judge_probes(self, target: Target, now_ns: int) -> None:
        for sample in target.flight.fates(now_ns):
            self._count(target, sample, now_ns)

    def _begin(self, target: Target, status: verdict.Status = "unknown") -> None:
        """Judge by none of the samples that there were."""
        target.reason = ""
        self._know(target, verdict.Link(status))
        target.times = standing.Window(verdict.WINDOW)

    def _know(self, target: Target, link: verdict.Link) -> None:
        before, target.link = target.link.status, link
        if link.status != before:
            self.changed = True
            target.since_s, target.cause = time.time(), str(target)
        target.moot &= link.status == "down"
        if verdict.is_turning(link):
            self.turning[target.number] = target
        else:
            self.turning.pop(target.number, None)

    def _count(self, target: Target, sample: Sample, now_ns: int) -> None:
        target.reason = (sample.reason or target.reason) if sample.lost else ""  # not every loss is explained
        self._know(target, verdict.step(target.link, sample.rtt_ns, self.isp.probe))
        if target.link.lost_in_a_row == 1:
            target.silent_ns = now_ns
        target.times.add(sample.rtt_ns)
        if target.calls:
            for number in [each for each in target.calls if each not in target.flight]:
                self._end_call(target, number)

    def is_well(self) -> bool:
        """Whether nothing fails, as far as the last probes say."""
        return not any(each.link.lost_in_a_row or each.link.status == "down" for each in self.targets)

    def judge(self, blamed: Collection[Check], now_ns: int) -> bool:
        """Come to a status by the targets that have a say; returns whether it is another one, and up or down."""
        counted = [each for each in self.targets if self._counts(each, blamed)]
        was_up = self.damping.up_ns is not None
        if counted:
            said = verdict.combine((each.link.status for each in counted), min(self.isp.quorum, len(counted)))
        else:
            said = "up" if was_up else "unknown"  # nothing is known: it stays
        held = not was_up and self.damping.held_ns > 0
        self.damping = verdict.damp(self.damping, said, now_ns, self.isp.probe.hold_down_ms)
        if self.damping.up_ns is not None:
            self._while_up = self.damping
        status: verdict.Status = "down" if said == "up" and self.damping.up_ns is None else said
        if status in (self.status, "unknown"):
            return False
        self.status, self.since_s = status, time.time()
        self.why = self._reasons(counted) if counted else "it went down for a target that is dead itself"
        if held and status == "up":
            self.why += f"; was held down for {self.damping.held_ns / _S:g} s at least"
        log.info("%s %s: %s", self.isp.name, status, self.why)
        return True

    def _counts(self, target: Target, blamed: Collection[Check]) -> bool:
        """Whether a target has a say; one that cannot be reached has, whoever is blamed."""
        heard = not target.cannot and target.check not in blamed
        return not target.moot and (isinstance(target.path, Fault) or heard)

    def excuse(self, since_ns: int) -> None:
        """A target that fell silent then is dead itself: it was not the ISP's fault if it went down since.

        Nor shall it go down for what is left of its targets if that failed before, while it was up by this one.
        """
        self.damping = verdict.excuse(self.damping, self._while_up, since_ns)
        for target in self.targets if self.damping.up_ns is not None else ():
            trial = self.trial(target)
            target.moot |= target.link.status == "down" and not trial.fell_since(since_ns - trial.apart_ns)

    def trials(self) -> dict[Check, verdict.Trial]:
        """How its check targets do, for `verdict.blamed`.

        Its gateway is nobody else's target, and what could not be asked has not failed.
        """
        asked = (each for each in self.targets if isinstance(each.path, Path) and not each.cannot)
        return {each.check: self.trial(each) for each in asked if each.check.address is not None}

    def trial(self, target: Target) -> verdict.Trial:
        """How a target does."""
        limits, link, failed = self.isp.probe, target.link, target.flight.failed()
        since_ns = target.silent_ns if link.lost_in_a_row else clock_ns() if failed else None
        apart_ns = (2 * limits.interval_ms + limits.timeout_ms) * _MS
        silent = verdict.is_silent(link, failed, limits)
        return verdict.Trial(link.status, silent, None if link.was_down else since_ns, apart_ns)

    def answers_steadily(self, target: Target) -> bool:
        """Whether so many of a target's probes have been answered in a row that it could be up."""
        enough = target.link.received_in_a_row >= self.isp.probe.min_successive_pkts_rcvd
        return enough and not target.cannot and not target.flight.failed()

    def begin_anew(self, target: Target) -> None:
        """Judge a target as if it had just been configured, unless there is no way to it."""
        if isinstance(target.path, Path):
            self._begin(target)

    def _reasons(self, counted: list[Target]) -> str:
        """Why the status is what it is: those that count and have it too."""
        reasons = list(dict.fromkeys(str(each) for each in counted if each.link.status == self.status))
        more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
        return "; ".join(reasons[:_MOST_REASONS]) + more

    def standing(self, blamed: Collection[Check], now_ns: int) -> standing.IspStanding:
        """What is known, for people."""
        held_ns = self.damping.until_ns - now_ns if self.status == "down" else 0
        targets = {
            each.text: standing.TargetStanding(
                state=each.link.status,
                since=each.since_s,
                cause=each.cause,
                why=str(each),
                samples=each.link.samples,
                lost=each.link.lost,
                late=each.flight.late,
                foreign=each.foreign,
                blamed=each.check in blamed,
                rtt_ms=each.times.round_trips(),
            )
            for each in self.targets
        }
        untested = [str(each) for each in self.targets if each.cannot]
        why = self.why
        if len(untested) == len(self.targets):
            why = untested[0] + (f"; before that {why}" if self.status != "unknown" else "")
        held_until = time.time() + held_ns / _S if held_ns > 0 else 0.0
        return standing.IspStanding(self.status, self.since_s, why, round(held_until, 1), targets)


def _next_on(beat_ns: int, interval_ns: int, now_ns: int) -> int:
    return now_ns + interval_ns - (now_ns - beat_ns) % interval_ns


def _obstacle(target: Target, path: Path) -> str:
    """Why a target cannot be tested on this path; empty if it can."""
    if target.address is None:
        return f"{path.link.name} has no gateway at the moment"
    if target.check.kind == "neighbour" and target.hop is None:
        return f"{path.link.name} is a link on which nobody can be asked for"
    return ""
