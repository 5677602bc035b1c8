"""What a rehearsal found: the facts of every fault, whether the router kept its promises, and a table for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

FaultName = Literal["upstream dead", "cable out", "forced by hand"]
FAULTS: tuple[FaultName, ...] = ("upstream dead", "cable out", "forced by hand")
Shares = dict[str, float]


_REBUILT = re.compile(r"rebuilt in (\d+) ms: (.*)")


class Rebuild(Struct, frozen=True):
    """A rebuild, as `lsmpy-reconfig --watch` told of it.

    Attributes:
        heard: when it told so, monotonic seconds.
        took_s: how long it took, in seconds.
        up, down: the ISPs.
    """

    heard: float
    took_s: float
    up: Sequence[str]
    down: Sequence[str]

    @staticmethod
    def parse(line: str, heard: float) -> Rebuild | None:
        """The rebuild that a line tells of: `rebuilt in 62 ms: up ISP1 ISP2, down ISP3 (why), ISP4 (why)`."""
        found = _REBUILT.match(line)
        if not found:
            return None
        text, inner = found[2], 1
        while inner:  # reasons may hold parentheses themselves
            text, inner = re.subn(r" \([^()]*\)", "", text)
        parts = re.fullmatch(r"(?:up ([^,]*))?(?:, )?(?:down (.*))?", text.strip())
        up, down = (parts[1] or "", parts[2] or "") if parts else ("", "")
        return Rebuild(heard, float(found[1]) / 1000, up.split(), down.replace(",", " ").split())


class Trial(Struct, kw_only=True):
    """One fault of one ISP, from its beginning until the ISP carried new flows again.

    Attributes:
        switches: whether this ISP's failure must change where new flows go; not with a single ISP, nor for one that is
            spare to all of them.
        detected_s: from the fault until the state file or the router knew of it; None if that never came.
        rebuilt_s: from the fault until the router was rebuilt without it.
        back_s: from the repair until the router was rebuilt with it, for a dead line after the prober's thresholds.
        lost_here: new flows lost while they were on the faulty ISP.
        lost_elsewhere: new flows lost on the others, or lost when no fault can explain it; must be 0.
        hurt_elsewhere: long flows on other ISPs that broke or stood still for a second; must be 0.
        foreign: packets that reached an ISP with a source address that is not its own; must be 0.
        before, during, after: each ISP's part of the new flows, from 0 to 1.
        stayed: new flows that the ISP got after the rebuild though another could carry them; must be 0.
        failures: what was not as promised, in words.
    """

    isp: str
    fault: FaultName
    switches: bool
    detected_s: float | None = None
    rebuilt_s: float | None = None
    back_s: float | None = None
    lost_here: int = 0
    lost_elsewhere: int = 0
    hurt_elsewhere: int = 0
    foreign: int = 0
    before: Shares = {}
    during: Shares = {}
    after: Shares = {}
    stayed: int = 0
    failures: list[str] = []

    def judge(self) -> None:
        """Append to `failures` whatever the facts say against the router."""
        here = self.isp
        if self.lost_elsewhere:
            self.failures.append(f"{self.lost_elsewhere} new flows were lost that {here} does not answer for")
        if self.hurt_elsewhere:
            self.failures.append(f"{self.hurt_elsewhere} long flows on other ISPs were hurt")
        if self.foreign:
            self.failures.append(f"{self.foreign} packets reached an ISP with a foreign source address")
        if self.switches and self.stayed:
            self.failures.append(f"{here} still got {self.stayed} new flows after the rebuild")
        for when, shares in (("before", self.before), ("after", self.after)):
            if self.switches and shares and not shares.get(here):
                self.failures.append(f"{here} got no new flows {when} the fault")


class Report(Struct, kw_only=True):
    """A whole rehearsal.

    Attributes:
        ok: whether everything was as promised.
        seconds: how long it took.
        flows: how many new flows were sent.
    """

    ok: bool
    seconds: float
    flows: int
    trials: list[Trial]


def table(trials: Sequence[Trial]) -> str:
    """The trials as a table for people, with what failed below."""
    head = (
        "ISP",
        "fault",
        "detected",
        "rebuilt",
        "back",
        "lost here",
        "elsewhere",
        "foreign",
        "share before/during/after",
    )
    rows = [head] + [
        (
            trial.isp,
            trial.fault,
            _seconds(trial.detected_s),
            _seconds(trial.rebuilt_s),
            _seconds(trial.back_s),
            str(trial.lost_here),
            str(trial.lost_elsewhere + trial.hurt_elsewhere),
            str(trial.foreign),
            _three(trial),
        )
        for trial in trials
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    failures = [f"NOT AS PROMISED: {trial.isp}, {trial.fault}: {text}" for trial in trials for text in trial.failures]
    return "\n".join([*lines, *failures]) + "\n"


def shares(isps: Iterable[str], flows: Sequence[str]) -> Shares:
    """Each ISP's part of the flows, given by which ISP each of them went; nothing without flows."""
    return {isp: round(flows.count(isp) / len(flows), 3) for isp in isps} if flows else {}


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _three(trial: Trial) -> str:
    columns = (trial.before, trial.during, trial.after)
    return ", ".join(
        f"{isp} " + "/".join(f"{100 * each[isp]:.0f}" if each else "-" for each in columns) + " %"
        for isp in trial.before
    )
