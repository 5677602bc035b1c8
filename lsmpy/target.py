"""One thing that is checked through an ISP: how it is reached, what is under way, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lsmpy import dial, standing, verdict, wire
from lsmpy.flight import Flight
from lsmpy.model import Address, Check
from lsmpy.neighbours import Hop
from lsmpy.uplink import Fault, Path


@dataclass(slots=True)
class Target:
    """One thing that is checked: how it is reached, and what came of it.

    Attributes:
        text, check: as configured.
        number: its place among the targets of its port.
        flight: its probes under way.
        since_s, cause: when its status became what it is, in seconds since the epoch, and why.
        times: their last round trip times.
        path: how it is reached now, or why it is not; `hop` is whom its frames go to, if he must be asked for.
        ends: who answers it, and to whom.
        counter, unsent: how many probes were sent, and for how many there was no path to send them by.
        due_ns, beat_ns: when its next probe is due, and a time on the beat of the later ones.
        next_ns: when there is something to do for it.
        silent_ns: when the first of the last probes that were all lost was given up.
        cannot: why it cannot be tested, which says nothing of the ISP; empty when it can.
        reason: of the present losses, where there is more than silence.
        foreign: answers with our tag from somebody else.
        moot: whether it failed already while the ISP was up by a target that is dead itself now.
    """

    text: str
    check: Check
    number: int
    flight: Flight
    since_s: float
    cause: str = verdict.NOT_YET
    link: verdict.Link = field(default_factory=verdict.Link)
    times: standing.Window = field(default_factory=lambda: standing.Window(verdict.WINDOW))
    path: Path | Fault = field(default_factory=lambda: Fault("not looked for yet"))
    address: Address | None = None
    ends: tuple[bytes, bytes] = (b"", b"")
    hop: Hop | None = None
    request: wire.Echo | None = None
    calls: dict[int, dial.Call] = field(default_factory=dict)
    counter: int = 0
    unsent: int = 0
    due_ns: int = 0
    beat_ns: int = 0
    next_ns: int = 0
    silent_ns: int = 0
    cannot: str = ""
    reason: str = ""
    foreign: int = 0
    moot: bool = False

    def __str__(self) -> str:
        """How it stands, for the log."""
        if isinstance(self.path, Fault):
            return self.path.reason
        if self.cannot:
            return f"{self.text} cannot be tested: {self.cannot}"
        return f"{self.text}: {self.link}{f' ({self.reason})' if self.reason else ''}"
