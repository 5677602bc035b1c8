"""What the prober knows of every ISP, as it stands in STATE_DIR/lsmpy/probe.json. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec import Struct

FILE = "lsmpy/probe.json"  # in the state directory

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
        why: the samples in words, or what stands in their way.
        samples, lost: of the window of the last 100 probes.
        late, foreign: answers ever that came too late, and that came from somebody else.
        blamed: whether it does not count at the moment, because it fails for its own reasons.
        rtt_ms: None without an answer in the window.
    """

    state: str
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


def round_trips(rtts_ns: Sequence[int]) -> RoundTrips | None:
    """The statistics of round trip times in nanoseconds, in the order of arrival; None without any."""
    if not rtts_ns:
        return None
    count, ordered = len(rtts_ns), sorted(rtts_ns)
    mean = sum(ordered) / count
    deviation = math.dist(ordered, [mean] * count) / math.sqrt(count)
    ranks = [ordered[math.ceil(count * percent / 100) - 1] for percent in _PERCENTILES]  # nearest rank
    last, mean, deviation, p50, p95, p99 = (round(each / 1e6, 3) for each in (rtts_ns[-1], mean, deviation, *ranks))
    return RoundTrips(last, mean, deviation, p50, p95, p99)


def encode(standing: Standing) -> str:
    """The file's text."""
    return msgspec.json.encode(standing).decode()


def decode(text: str) -> Standing | None:
    """What a text says; None if it is no such file."""
    try:
        return msgspec.json.decode(text, type=Standing)
    except (msgspec.MsgspecError, UnicodeError):
        return None
