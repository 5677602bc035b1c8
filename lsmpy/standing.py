"""What the prober knows of every ISP, as it stands in STATE_DIR/lsmpy/probe.json. Pure."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, insort
from collections import deque

import msgspec
from msgspec import Struct

FILE = "lsmpy/probe.json"  # in the state directory

_TELL_S = 0.005  # so much less often for every target, or hundreds would cost more to tell of than to probe
_PERCENTILES = (50, 95, 99)


class RoundTrips(Struct, frozen=True):
    """Round trip times of the probes of the window that were answered, in milliseconds."""

    last: float
    mean: float
    deviation: float
    p50: float
    p95: float
    p99: float


class TargetStanding(Struct, frozen=True):
    """One check target through one ISP.

    Attributes:
        state: up, down or unknown.
        since: when that became so, in seconds since the epoch.
        cause: the reason of that change.
        why: the samples in words as they are now, or what stands in their way.
        samples, lost: of the window of the last 100 probes.
        late, foreign: answers ever that came too late, and that came from somebody else.
        blamed: whether it does not count at the moment, because it fails for its own reasons.
        rtt_ms: None without an answer in the window.
    """

    state: str
    since: float
    cause: str
    why: str
    samples: int
    lost: int
    late: int
    foreign: int
    blamed: bool
    rtt_ms: RoundTrips | None


class IspStanding(Struct, frozen=True):
    """One ISP; times in seconds since the epoch.

    Attributes:
        state: up, down or unknown, by its probes; what others wrote into its state file is not in here.
        since: when that became so.
        why: the reason of the last change.
        held_until: until when it is held down because it changes too often; 0 if it is not.
        targets: by the text of `check`.
    """

    state: str
    since: float
    why: str
    held_until: float
    targets: dict[str, TargetStanding]


class Standing(Struct, frozen=True):
    """All of it, and when it was written."""

    written: float
    isps: dict[str, IspStanding]


def apart_s(targets: int) -> float:
    """How long after one `Standing` of so many targets the next one is written."""
    return max(1.0, targets * _TELL_S)


class Window:
    """The round trip times of the last probes, in nanoseconds, so kept that their statistics cost next to nothing."""

    def __init__(self, size: int) -> None:
        """Keep those of `size` probes."""
        self._size = size
        self._times: deque[int | None] = deque()
        self._last = 0
        self._ordered: list[int] = []
        self._sum = self._squares = 0

    def add(self, rtt_ns: int | None) -> None:
        """One more probe, None for a lost one, and one less if that is one too many."""
        self._times.append(rtt_ns)
        if rtt_ns is not None:
            self._last = rtt_ns
            insort(self._ordered, rtt_ns)
            self._sum += rtt_ns
            self._squares += rtt_ns * rtt_ns
        gone = self._times.popleft() if len(self._times) > self._size else None
        if gone is not None:
            del self._ordered[bisect_left(self._ordered, gone)]
            self._sum -= gone
            self._squares -= gone * gone

    def round_trips(self) -> RoundTrips | None:
        """Their statistics; None without any."""
        count = len(self._ordered)
        if not count:
            return None
        deviation = math.sqrt(count * self._squares - self._sum * self._sum) / count  # of whole numbers: exact
        ranks = (self._ordered[-(-count * percent // 100) - 1] for percent in _PERCENTILES)  # nearest rank
        return RoundTrips(*(round(each / 1e6, 3) for each in (self._last, self._sum / count, deviation, *ranks)))

    def extremes_ns(self) -> tuple[int, int]:
        """The shortest and the longest; 0 without any."""
        return (self._ordered[0], self._ordered[-1]) if self._ordered else (0, 0)


def encode(standing: Standing) -> str:
    """The file's text."""
    return as_json(standing)


def as_json(value: object) -> str:
    """A value as JSON, in which names that are no text, as an lsm.conf may hold, are made one."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode(errors="replace").decode()


def decode(text: str) -> Standing | None:
    """What a text says; None if it is no such file."""
    try:
        return msgspec.json.decode(text, type=Standing)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
