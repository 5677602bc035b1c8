"""What probes say of a link, by LSM's window and thresholds, and who may write that down. Pure: no clock, no file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from lsmpy import model

WINDOW = 100
_ALL = (1 << WINDOW) - 1
_MOST_IN_FLIGHT = 1 << 15  # half of the sequence numbers, so that none is in flight twice

Status = Literal["up", "down", "unknown"]
Action = Literal["write", "adopt", "leave", "nothing"]


@dataclass(frozen=True, slots=True)
class Link:
    """The last `WINDOW` samples of one check target and what they amount to.

    Attributes:
        status: up or down as of the last sample, unknown until the thresholds have spoken once.
        losses: a bit for each sample, the newest the lowest, set where the probe was lost.
        samples: how many of the bits are samples.
        lost_in_a_row, received_in_a_row: up to the newest sample; one of them is 0.
    """

    status: Status = "unknown"
    losses: int = 0
    samples: int = 0
    lost_in_a_row: int = 0
    received_in_a_row: int = 0

    @property
    def lost(self) -> int:
        """How many of the samples were lost."""
        return self.losses.bit_count()

    def __str__(self) -> str:
        """The samples in words, for the log."""
        run = f"{self.lost_in_a_row}" if self.lost_in_a_row else f"{self.received_in_a_row} answered"
        return f"{self.lost} of the last {self.samples} probes lost, {run} in a row"


def step(link: Link, lost: bool, thresholds: model.Probe) -> Link:
    """The link after one more sample (LSM's README, "connection")."""
    after = Link(
        link.status,
        (link.losses << 1 | lost) & _ALL,
        min(link.samples + 1, WINDOW),
        link.lost_in_a_row + 1 if lost else 0,
        0 if lost else link.received_in_a_row + 1,
    )
    return replace(after, status=_status(after, thresholds))


def combine(statuses: Iterable[Status], quorum: int) -> Status:
    """The status of an ISP of whose check targets `quorum` must be up: unknown while it could still be either."""
    each = list(statuses)
    if each.count("up") >= quorum:
        return "up"
    return "unknown" if each.count("up") + each.count("unknown") >= quorum else "down"


@dataclass(slots=True)
class Flight:
    """The probes of one target whose fate is not told yet, in the order in which they were sent."""

    _sent_ns: dict[int, int] = field(default_factory=dict)
    _answered: set[int] = field(default_factory=set)

    def sent(self, seq: int, now_ns: int) -> None:
        """A probe has left, or should have: a send that failed is lost like one that nobody answered (LSM)."""
        self._sent_ns[seq] = now_ns

    def answered(self, seq: int) -> None:
        """An answer has come; it counts only for a probe whose fate is not told yet."""
        if seq in self._sent_ns:
            self._answered.add(seq)

    def fates(self, now_ns: int, timeout_ns: int) -> list[bool]:
        """The samples that are settled now, oldest first, each told once: True for lost.

        An answer waits until all earlier probes are settled, so that "in a row" means in the order of sending.
        """
        told = []
        while self._sent_ns:
            seq = next(iter(self._sent_ns))
            lost = seq not in self._answered
            if lost and now_ns < self._sent_ns[seq] + timeout_ns and len(self._sent_ns) < _MOST_IN_FLIGHT:
                break
            told.append(lost)
            del self._sent_ns[seq]
            self._answered.discard(seq)
        return told

    def deadline_ns(self, timeout_ns: int) -> int | None:
        """When the oldest probe will be lost, None with none in flight."""
        return self._sent_ns[next(iter(self._sent_ns))] + timeout_ns if self._sent_ns else None


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


def _status(link: Link, thresholds: model.Probe) -> Status:
    too_many = link.lost >= thresholds.max_packet_loss
    if link.status != "down" and (too_many or link.lost_in_a_row >= thresholds.max_successive_pkts_lost):
        return "down"
    few = link.lost <= thresholds.min_packet_loss
    if link.status != "up" and few and link.received_in_a_row >= thresholds.min_successive_pkts_rcvd:
        return "up"
    return link.status
