"""Probes under way: what became of each, in the order of sending. Pure: all times are given."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from msgspec import Struct

_MOST = 1 << 15  # half of the sequence numbers, so that none is under way twice
_REMEMBERED = 100  # probes whose answers are recognised although they are late (LSM: one round of its window)


class Sample(Struct, frozen=True):
    """What became of a probe.

    Attributes:
        rtt_ns: its round trip; None when it was not answered in time.
        reason: why it was lost, for a person; empty if it was not, or if nothing but silence is known.
    """

    rtt_ns: int | None
    reason: str = ""

    @property
    def lost(self) -> bool:
        """Whether it counts as lost."""
        return self.rtt_ns is None


class Probe(Struct):
    """One probe under way; times in nanoseconds.

    Attributes:
        sent_ns: when it was sent, by the clock that the loop goes by.
        left_ns: when it left, by the clock of the kernel's time stamps; 0 if the kernel has not said.
        tag: what its answer has to carry.
        rtt_ns: its round trip, once it is answered.
        reason: what somebody on the way said against it.
        failed: whether it is lost before its time.
    """

    sent_ns: int
    left_ns: int
    tag: bytes = b""
    rtt_ns: int | None = None
    reason: str = ""
    failed: bool = False


@dataclass(slots=True)
class Flight:
    """The probes of one target whose fate is not told yet, by number, in the order in which they were sent."""

    timeout_ns: int
    late: int = 0
    # Ordered ones know their first entry, however many there were before it.
    _probes: OrderedDict[int, Probe] = field(default_factory=OrderedDict)
    _expired: OrderedDict[int, bytes] = field(default_factory=OrderedDict)

    def __contains__(self, number: int) -> bool:
        """Whether this probe is under way."""
        return number in self._probes

    def sent(self, number: int, now_ns: int, left_ns: int = 0, tag: bytes = b"") -> None:
        """A probe has been sent, or should have been: one that could not be is lost like any other (LSM)."""
        self._probes[number] = Probe(now_ns, left_ns, tag)

    def left(self, number: int, at_ns: int) -> None:
        """The kernel says when a probe left."""
        if probe := self._probes.get(number):
            probe.left_ns = at_ns

    def is_true(self, number: int, tag: bytes) -> bool:
        """Whether a probe that is remembered has this tag."""
        probe = self._probes.get(number)
        return (self._expired.get(number) if probe is None else probe.tag) == tag

    def answered(self, number: int, tag: bytes, at_ns: int, now_ns: int) -> None:
        """An answer has come at `at_ns` by the kernel's stamp; it counts once, and only while the fate is not told.

        The kernel's stamps are exact, but by a clock that may be set; then what the loop's clock says is the truth.
        """
        probe = self._probes.get(number)
        if probe is None:
            if self._expired.get(number) == tag:
                del self._expired[number]
                self.late += 1
        elif probe.rtt_ns is None and probe.tag == tag:
            rtt_ns, most_ns = at_ns - probe.left_ns, now_ns - probe.sent_ns
            probe.rtt_ns = rtt_ns if probe.left_ns and 0 <= rtt_ns <= most_ns else most_ns

    def ended(self, number: int, rtt_ns: int | None, reason: str) -> None:
        """A probe by the kernel's own sockets has come to its end: answered, or failed for a `reason`."""
        if probe := self._probes.get(number):
            probe.rtt_ns, probe.reason, probe.failed = rtt_ns, reason, rtt_ns is None

    def is_unexplained(self, seq: int) -> bool:
        """Whether the probe with this sequence number is under way, and nobody has said anything against it."""
        probe = self._by_seq(seq)
        return probe is not None and not probe.reason

    def unreachable(self, seq: int, reason: str) -> None:
        """Somebody on the way says that the probe with this sequence number did not arrive.

        It stays under way: anybody could have said so.
        """
        if probe := self._by_seq(seq):
            probe.reason = reason

    def _by_seq(self, seq: int) -> Probe | None:
        newest = self.newest()
        return None if newest is None else self._probes.get(newest - (newest - seq & 0xFFFF))

    def newest(self) -> int | None:
        """The number of the probe that was sent last, None with none under way."""
        return next(reversed(self._probes), None)

    def unanswered(self) -> int:
        """How many are under way without an answer."""
        return sum(probe.rtt_ns is None for probe in self._probes.values())

    def failed(self) -> int:
        """How many have failed in a row whose turn to be told has not come; none if one among them is answered."""
        probes = self._probes.values()
        return 0 if any(each.rtt_ns is not None for each in probes) else sum(each.failed for each in probes)

    def fates(self, now_ns: int) -> list[Sample]:
        """The samples that are settled now, oldest first, each told once.

        An answer waits until all earlier probes are settled, so that "in a row" means in the order of sending.
        """
        told = []
        while self._probes:
            number = next(iter(self._probes))
            probe = self._probes[number]
            waiting = probe.rtt_ns is None and not probe.failed and now_ns < probe.sent_ns + self.timeout_ns
            if waiting and len(self._probes) < _MOST:
                break
            del self._probes[number]
            told.append(self._settle(number, probe))
        return told

    def _settle(self, number: int, probe: Probe) -> Sample:
        if probe.rtt_ns is None:
            self._expired[number] = probe.tag
            if len(self._expired) > _REMEMBERED:
                self._expired.popitem(last=False)
            return Sample(None, probe.reason)
        if probe.rtt_ns > self.timeout_ns:
            self.late += 1
            return Sample(None, f"answered after {probe.rtt_ns / 1e6:.0f} ms")
        return Sample(probe.rtt_ns)

    def forget(self) -> None:
        """Nothing can be said of what is still unanswered: the link is not to blame for it."""
        for number in [number for number, probe in self._probes.items() if probe.rtt_ns is None]:
            del self._probes[number]

    def abandon(self) -> None:
        """Nothing that was sent until now is of interest any more."""
        self._probes.clear()
        self._expired.clear()

    def deadline_ns(self) -> int | None:
        """When the oldest probe will be lost, None with none under way."""
        return next(iter(self._probes.values())).sent_ns + self.timeout_ns if self._probes else None
