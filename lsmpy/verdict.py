"""What probes say of a link, by LSM's window and thresholds, and who may write that down. Pure: no clock, no file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from lsmpy import model

WINDOW = 100
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
    """

    status: Status = "unknown"
    losses: int = 0
    samples: int = 0
    lost_in_a_row: int = 0
    received_in_a_row: int = 0
    rtt_ns: int = 0
    jitter_ns: int = 0

    @property
    def lost(self) -> int:
        """How many of the samples were lost."""
        return self.losses.bit_count()

    def __str__(self) -> str:
        """The samples in words, for the log."""
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
    after = Link(link.status, losses, samples, lost_run, received_run, smoothed_ns, jitter_ns)
    status = _status(after, limits)
    if status == link.status:
        return after
    return Link(status, losses, samples, lost_run, received_run, smoothed_ns, jitter_ns)


def combine(statuses: Iterable[Status], quorum: int) -> Status:
    """The status of an ISP of whose check targets `quorum` must be up: unknown while it could still be either."""
    each = list(statuses)
    if each.count("up") >= quorum:
        return "up"
    return "unknown" if each.count("up") + each.count("unknown") >= quorum else "down"


class Trial(Struct, frozen=True):
    """How a check target does by one ISP, for the question whose fault it is when it fails.

    Attributes:
        up: whether it answers well.
        fails: whether it is down, or one probe away from it: another ISP's may have been the first to see it.
        silent_ns: since when it does not answer at all; None if it does, or if it does not fail.
        apart_ns: how far apart two ISPs may notice that one thing has happened.
    """

    up: bool
    fails: bool
    silent_ns: int | None
    apart_ns: int


def is_silent(link: Link, failed: int, limits: model.Probe) -> bool:
    """Whether a target does not answer at all, or is one probe away from being down for that.

    Args:
        link: its samples.
        failed: how many more have failed already, and will be samples when an earlier one's time is over.
        limits: its thresholds.
    """
    return link.lost_in_a_row + failed >= max(1, limits.max_successive_pkts_lost - 1)


def is_turning(link: Link) -> bool:
    """Whether the last sample spoke against the status, so that the next ones may change it."""
    return bool(link.received_in_a_row if link.status == "down" else link.lost_in_a_row)


def blamed(trials: Mapping[str, Mapping[str, Trial]]) -> frozenset[str]:
    """The check targets that are dead themselves, of those that several ISPs probe.

    A target that fails on every ISP while another one answers fails for its own reasons. So does one that is all that
    they probe and that falls silent on all of them at once, as far as can be told: one dead target must not take every
    ISP down.

    Args:
        trials: of each ISP, how each of its check targets does.
    """
    by_target: dict[str, list[Mapping[str, Trial]]] = {}
    for targets in trials.values():
        for target in targets:
            by_target.setdefault(target, []).append(targets)
    return frozenset(target for target, isps in by_target.items() if _fails_itself(target, isps))


def _fails_itself(target: str, isps: Sequence[Mapping[str, Trial]]) -> bool:
    trials = [each[target] for each in isps]
    if len(isps) < 2 or not all(trial.fails for trial in trials):
        return False
    if any(len(each) > 1 for each in isps):
        return any(other.up for each in isps for other in each.values())
    since = [trial.silent_ns for trial in trials if trial.silent_ns is not None]
    return len(since) == len(trials) and max(since) - min(since) <= max(trial.apart_ns for trial in trials)


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


def decide(verdict: str | None, record: str | None, file: str | None) -> Action:
    """What to do with the state file of an ISP: what an administrator writes holds.

    Args:
        verdict: what the probes say, `up` or `down`; None while they have not said anything.
        record: what the prober wrote last; None if it never did.
        file: what the state file says; None without one.

    Returns:
        `write`: the verdict into the file, then into the record. After the reverse order, a crash between the two
        would leave a file that looks like somebody else's while the verdict lasts.
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
