"""What probes say of a link, by LSM's window and thresholds, and who may write that down. Pure: no clock, no file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

from lsmpy import model

WINDOW = 100
NOT_YET = "not enough probes yet"
_MS = 1_000_000  # nanoseconds
_ALL = (1 << WINDOW) - 1
_MOST_DOUBLINGS = 5  # of the time that an ISP is held down

Status = Literal["up", "down", "unknown"]
Action = Literal["write", "adopt", "leave", "nothing"]


class Link(Struct, frozen=True):
    """The last `WINDOW` samples of one check target and what they amount to.

    Attributes:
        status: up or down as of the last sample, unknown until the thresholds have spoken once.
        losses: a bit for each sample, the newest the lowest, set where the probe was lost.
        samples: how many of the bits are samples.
        lost_in_a_row, received_in_a_row: up to the newest sample; one of them is 0.
        rtt_ns, jitter_ns: smoothed round trip time and its variation (RFC 6298, 2); 0 before the first answer.
        before: its status before the last probes that were all lost.
    """

    status: Status = "unknown"
    losses: int = 0
    samples: int = 0
    lost_in_a_row: int = 0
    received_in_a_row: int = 0
    rtt_ns: int = 0
    jitter_ns: int = 0
    before: Status = "unknown"

    @property
    def lost(self) -> int:
        """How many of the samples were lost."""
        return self.losses.bit_count()

    @property
    def was_down(self) -> bool:
        """Whether it was down before the last probes that were all lost."""
        return (self.before if self.lost_in_a_row else self.status) == "down"

    def __str__(self) -> str:
        """The samples in words, for the log."""
        if not self.samples:
            return NOT_YET
        run = f"{self.lost_in_a_row}" if self.lost_in_a_row else f"{self.received_in_a_row} answered"
        rtt = f", round trip {self.rtt_ns / _MS:.1f} ms ± {self.jitter_ns / _MS:.1f}" if self.rtt_ns else ""
        return f"{self.lost} of the last {self.samples} probes lost, {run} in a row{rtt}"


def step(link: Link, rtt_ns: int | None, limits: model.Probe) -> Link:
    """The link after one more sample, whose round trip time is None if it was lost (LSM's README, "connection")."""
    lost = rtt_ns is None
    smoothed_ns, jitter_ns = link.rtt_ns, link.jitter_ns
    if rtt_ns is not None and smoothed_ns:
        jitter_ns += (abs(smoothed_ns - rtt_ns) - jitter_ns) // 4
        smoothed_ns += (rtt_ns - smoothed_ns) // 8
    elif rtt_ns is not None:
        smoothed_ns, jitter_ns = rtt_ns, rtt_ns // 2
    losses = (link.losses << 1 | lost) & _ALL
    lost_run = link.lost_in_a_row + 1 if lost else 0
    received_run = 0 if lost else link.received_in_a_row + 1
    samples = min(link.samples + 1, WINDOW)
    before = link.before if lost_run > 1 else link.status
    after = Link(link.status, losses, samples, lost_run, received_run, smoothed_ns, jitter_ns, before)
    status = _status(after, limits)
    if status == link.status:
        return after
    return Link(status, losses, samples, lost_run, received_run, smoothed_ns, jitter_ns, before)


def combine(statuses: Iterable[Status], quorum: int) -> Status:
    """The status of an ISP of whose check targets `quorum` must be up: unknown while it could still be either."""
    each = list(statuses)
    if each.count("up") >= quorum:
        return "up"
    return "unknown" if each.count("up") + each.count("unknown") >= quorum else "down"


class Trial(Struct, frozen=True):
    """How a check target does by one ISP that has a way to it, for the question whose fault it is when it fails.

    Attributes:
        silent: whether it does not answer at all, or seems so: another ISP's probes may have been the first to see it.
        since_ns: when the first of the last probes that were all lost was given up; None if the last one was answered,
            and if it was down before already.
        apart_ns: how far apart two ISPs may notice that one thing has happened.
    """

    status: Status
    silent: bool
    since_ns: int | None
    apart_ns: int

    @property
    def fails(self) -> bool:
        """Whether it is down, or one probe away from it."""
        return self.silent or self.status == "down"

    @property
    def answers(self) -> bool:
        """Whether it speaks for the ISP."""
        return self.status == "up" and self.since_ns is None

    def fell_since(self, at_ns: int) -> bool:
        """Whether it has stopped answering since then."""
        return self.since_ns is not None and self.since_ns >= at_ns


def is_silent(link: Link, failed: int, limits: model.Probe) -> bool:
    """Whether a target does not answer at all, or is one probe away from being down for that.

    Whatever made it down, it is silent if it has not answered since.

    Args:
        link: its samples.
        failed: how many more have failed already, and will be samples when an earlier one's time is over.
        limits: its thresholds.
    """
    if link.status == "down" and (link.lost == link.samples or (link.lost_in_a_row and not link.was_down)):
        return True
    return link.lost_in_a_row + failed >= max(1, limits.max_successive_pkts_lost - 1)


def is_turning(link: Link) -> bool:
    """Whether the last sample spoke against the status, so that the next ones may change it."""
    return bool(link.received_in_a_row if link.status == "down" else link.lost_in_a_row)


def blamed(trials: Mapping[str, Mapping[model.Check, Trial]]) -> dict[model.Check, dict[str, int]]:
    """The check targets that are dead themselves; of each, the ISPs by which it fell silent then, and when.

    A target is dead if it fails by every ISP that has a way to it, and no ISP can be the reason. An ISP cannot be where
    another target answers, whenever this one began to fail. Nor can several be by which it fell silent at once, as
    links die one by one; unless all else fell silent there too, as it does when the whole site is cut off. An ISP by
    which it failed before is no witness, and there must be two.

    So one dead target never takes down all ISPs that were up by it, and an ISP that dies alone is never kept up.

    Args:
        trials: of each ISP, how each of its check targets does to which there is a way.
    """
    by_check: dict[model.Check, dict[str, Mapping[model.Check, Trial]]] = {}
    for isp, targets in trials.items():
        for check in targets:
            by_check.setdefault(check, {})[isp] = targets
    deaths = {check: _death(check, isps) for check, isps in by_check.items()}
    return {check: fell for check, fell in deaths.items() if fell is not None}


def _death(check: model.Check, isps: Mapping[str, Mapping[model.Check, Trial]]) -> dict[str, int] | None:
    """By which ISPs a target that is dead itself fell silent then, and when; None if it is not dead."""
    tried = {isp: targets[check] for isp, targets in isps.items()}
    if not all(trial.fails for trial in tried.values()):
        return None
    last_ns = max(trial.since_ns or 0 for trial in tried.values())
    then_ns = last_ns - max(trial.apart_ns for trial in tried.values())
    fell = {isp: trial.since_ns or 0 for isp, trial in tried.items() if trial.silent and trial.fell_since(then_ns)}
    working = {isp for isp, targets in isps.items() if any(each.answers for each in targets.values())}
    suspect = {isp for isp, trial in tried.items() if isp in fell or not trial.silent} - working
    if len(fell.keys() | working) < 2:
        return None
    at_once = len(fell) > 1 and suspect <= fell.keys()
    if suspect and not (at_once and _fell_alone(check, [isps[isp] for isp in fell], then_ns)):
        return None
    return fell


def _fell_alone(check: model.Check, isps: Iterable[Mapping[model.Check, Trial]], then_ns: int) -> bool:
    """Whether these ISPs' other targets did not fall silent as well; what else is asked of its host is no other."""
    others = [other for targets in isps for each, other in targets.items() if each.address != check.address]
    return any(other.answers for other in others) or not any(other.fell_since(then_ns) for other in others)


class Damping(Struct, frozen=True):
    """How an ISP that keeps changing is held down, longer each time.

    Attributes:
        times: how often it has gone down again before it had been up for as long as it was held.
        until_ns: until when it is held.
        held_ns: for how long, from going down until then.
        up_ns: when it last came up; None while it is not.
    """

    times: int = 0
    until_ns: int = 0
    held_ns: int = 0
    up_ns: int | None = None


def damp(before: Damping, said: Status, now_ns: int, hold_down_ms: int) -> Damping:
    """The damping after the probes have `said` something."""
    if said == "up" and before.up_ns is None and now_ns >= before.until_ns:
        return Damping(before.times, before.until_ns, before.held_ns, now_ns)
    if said != "down" or before.up_ns is None:
        return before
    again = before.times + 1 if before.held_ns and now_ns < before.up_ns + before.held_ns else 0
    held_ns = (hold_down_ms << min(again, _MOST_DOUBLINGS)) * 1_000_000
    return Damping(again, now_ns + held_ns, held_ns, None)


def excuse(damping: Damping, while_up: Damping, since_ns: int) -> Damping:
    """The damping of an ISP if it went down since then for no reason of its own, `while_up` being the last before."""
    went_ns = damping.until_ns - damping.held_ns
    return while_up if damping.up_ns is None and went_ns >= since_ns else damping


def decide(verdict: str | None, record: str | None, file: str | None) -> Action:
    """What to do with the state file of an ISP: what an administrator writes holds.

    Args:
        verdict: what the probes say, `up` or `down`; None while they have not said anything.
        record: what the prober wrote last; None if it never did.
        file: what the state file says; None without one.

    Returns:
        `write`: the verdict into the file, the record before and after (`state.written`).
        `adopt`: the file's text into the record.
        `leave`: somebody else decided; hands off.
        `nothing`: all is as it should be, or there is no verdict yet.
    """
    if file is None:
        return "write" if verdict else "nothing"
    if record is None or (file != record and file == verdict):
        return "adopt"
    if file != record:
        return "leave"
    return "write" if verdict and verdict != file else "nothing"


def _status(link: Link, limits: model.Probe) -> Status:
    lost = link.lost
    if link.status != "down" and (
        lost >= limits.max_packet_loss
        or link.lost_in_a_row >= limits.max_successive_pkts_lost
        or _is_slow(link, limits, limits.max_rtt_ms, limits.max_jitter_ms)
    ):
        return "down"
    if (
        link.status != "up"
        and (_is_accelerated(link, limits) or _is_steady(link, limits))
        and not _is_slow(link, limits, limits.min_rtt_ms, limits.min_jitter_ms)
    ):
        return "up"
    return link.status


def _is_steady(link: Link, limits: model.Probe) -> bool:
    enough = link.received_in_a_row >= limits.min_successive_pkts_rcvd
    return enough and link.lost <= limits.min_packet_loss


def _is_accelerated(link: Link, limits: model.Probe) -> bool:
    """Whether a link that has lost nothing yet has been answered often enough to be up sooner."""
    return 0 < limits.startup_acceleration <= link.received_in_a_row and not link.losses


def _is_slow(link: Link, limits: model.Probe, rtt_ms: int, jitter_ms: int) -> bool:
    """Whether a limit is passed; not before there were enough answers, so that one slow first one is none."""
    if link.samples < limits.min_successive_pkts_rcvd:
        return False
    return bool(rtt_ms and link.rtt_ns > rtt_ms * _MS) or bool(jitter_ms and link.jitter_ns > jitter_ms * _MS)
