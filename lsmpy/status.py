"""`lsmpy status`: what the state files and the prober say of every ISP, as a table for people or as JSON."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from lsmpy import standing, state
from lsmpy.standing import IspStanding, Standing, TargetStanding

_STALE_S = 4.0  # so much later than it should the prober writes when it is busy
_UNITS = (("d", 86400), ("h", 3600), ("min", 60))
_HEAD = ("ISP", "STATE", "FORCED", "SINCE", "WHY", "LOSS", "RTT")
_STATE, _FORCED, _WHY = 1, 2, 4
_COLOURS = {"up": 32, "down": 31, "unknown": 33}
_CLEAR = "\x1b[H\x1b[2J"


class Files(Struct, frozen=True):
    """What lies in the state directory about the ISP `name`; times in seconds since the epoch, None without a file."""

    name: str
    says: state.Status
    record: str | None = None
    state_at: float | None = None
    force_at: float | None = None


class IspStatus(Struct, frozen=True):
    """One ISP; times in seconds since the epoch.

    Attributes:
        state, up: what the router part goes by, in two ways.
        forced: what it is forced to, None if it is not.
        since: when the state became so, as far as anybody knows.
        hand: what somebody wrote into the state file against the prober; None if nobody did.
        held_until: until when it is held down because it changes too often; 0 if it is not.
        warning: what is wrong with the files, or an empty string.
        targets: as the prober wrote them.
    """

    name: str
    state: str
    up: bool
    forced: str | None
    since: float | None
    why: str
    hand: str | None
    held_until: float
    warning: str
    targets: dict[str, TargetStanding]


class ProberStatus(Struct, frozen=True):
    """When the prober wrote what it knows, None for never, and whether that is too long ago to hold."""

    written: float | None
    stale: bool


class Overview(Struct, frozen=True):
    """All of it, as `--json` prints it."""

    isps: list[IspStatus]
    prober: ProberStatus

    @property
    def exit_status(self) -> int:
        """0 with all ISPs up, 1 with some, 2 with none."""
        up = [isp.up for isp in self.isps]
        return 0 if all(up) else 1 if any(up) else 2


def judge(files: Sequence[Files], known: Standing | None, now: float) -> Overview:
    """What the files and the prober, if it ever wrote what it knows, amount to."""
    prober, isps = ProberStatus(None, True), dict[str, IspStanding]()
    if known:
        patience_s = _STALE_S + standing.apart_s(sum(len(each.targets) for each in known.isps.values()))
        # What is from the future was written before the clock was set back, and nobody knows how long before.
        prober, isps = ProberStatus(known.written, abs(now - known.written) > patience_s), known.isps
    return Overview([_isp(each, isps.get(each.name), prober.stale, now) for each in files], prober)


def _isp(files: Files, known: IspStanding | None, stale: bool, now: float) -> IspStatus:
    text, force, up = files.says.text, files.says.force, files.says.up
    word, said = "up" if up else "down", known.state if known else "unknown"
    hand = None if text is None or files.record in (None, text) or text == said else text
    decides = known if known and said == word and not force and hand is None else None
    held_until = decides.held_until if decides and not stale and decides.held_until > now else 0.0
    why = "no state file" if text is None else f"its state file says {text[:40]!r}"
    if decides:
        why = f"held down for another {_age(held_until - now)}; {decides.why}" if held_until else decides.why
    elif force:
        why = f"forced by hand; {why}"
    elif hand is not None:
        why = f"somebody wrote {hand[:40]!r}" + (f"; the prober says {said}" if known else "")
    elif known and said == "unknown":
        why += f"; {known.why}"
    # The earliest of those that tell of this very state: a prober that has started again knows less than its file.
    times = (
        files.force_at if force else None,
        files.state_at if state.judge(text).up == up else None,
        known.since if known and said == word else None,
    )
    since = min((each for each in times if each is not None), default=None)
    targets = known.targets if known else {}
    return IspStatus(files.name, word, up, force, since, why, hand, held_until, files.says.warning, targets)


def table(seen: Overview, now: float, width: int | None = None, colour: bool = False) -> str:
    """The table for people, and below it what else they should know; reasons are cut to fit `width`."""
    rows = [("", _HEAD), *_rows(seen, now)]
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    if width is not None:
        others = sum(widths) - widths[_WHY] + 2 * (len(widths) - 1)
        widths[_WHY] = min(widths[_WHY], max(len(_HEAD[_WHY]), width - others))
    lines = []
    for shade, cells in rows:
        line = [_fit(cell, size) for cell, size in zip(cells, widths, strict=True)]
        if colour and shade:
            line[_STATE] = f"\x1b[{_COLOURS[shade]}m{line[_STATE]}\x1b[0m"
        lines.append("  ".join(line).rstrip())
    lines += [f"{isp.name}: {isp.warning}" for isp in seen.isps if isp.warning]
    if seen.prober.stale:
        long = "" if seen.prober.written is None else f" for {_age(now - seen.prober.written)}"
        lines.append(f"the prober has written nothing{long}; is lsmpy-probe running?")
    return "\n".join(lines)


def _rows(seen: Overview, now: float) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What shades the state of each line, and its cells; what a prober measured that has gone is of no use by now."""
    for isp in seen.isps:
        targets = {} if seen.prober.stale else isp.targets
        alone = len(targets) == 1  # and has no line of its own
        blamed = "".join(f"{text} is blamed itself; " for text, each in targets.items() if alone and each.blamed)
        since = "-" if isp.since is None else _age(now - isp.since)
        cells = (isp.name, isp.state, isp.forced or "-", since, blamed + isp.why, *_measured(targets.values()))
        yield "unknown" if isp.held_until else isp.state, cells
        for text, each in () if alone else targets.items():
            why = ("blamed itself; " if each.blamed else "") + each.why.removeprefix(f"{text}: ")
            shade = "unknown" if each.blamed or each.state not in _COLOURS else each.state
            yield shade, (f"  {text}", each.state, "", _age(now - each.since), why, *_measured([each]))


def _measured(targets: Collection[TargetStanding]) -> tuple[str, str]:
    """Losses of all targets together, round trips of the first that has any."""
    samples, lost = sum(each.samples for each in targets), sum(each.lost for each in targets)
    rtt = next((each.rtt_ms for each in targets if each.rtt_ms), None)
    loss = f"{100 * lost / samples:.0f} %" if samples else "-"
    return loss, f"{rtt.mean:.1f} ± {rtt.deviation:.1f} ms" if rtt else "-"


def _age(seconds: float) -> str:
    unit, size = next((each for each in _UNITS if seconds >= each[1]), ("s", 1))
    return f"{max(0, int(seconds // size))} {unit}"


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def look(names: Sequence[str], directory: Path) -> Overview:
    """What the files in `directory` say of the ISPs now.

    Raises:
        StateError: there is no such directory.
    """
    state.require_directory(directory)
    known = None
    with contextlib.suppress(OSError):
        known = standing.decode((directory / standing.FILE).read_text(errors="replace"))
    return judge([_files(directory, name) for name in names], known, time.time())


def _files(directory: Path, name: str) -> Files:
    written, forced = (_changed(path(directory, name)) for path in (state.state_path, state.force_path))
    says = state.read(directory, name)
    record = state.written(state.glance(state.record_path(directory, name)), says.text)
    return Files(name, says, record, written, forced)


def _changed(path: Path) -> float | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None


def show(names: Sequence[str], directory: Path, again: bool, as_json: bool) -> int:
    """Print how the ISPs are; returns 0 if all are up, 1 if some are, 2 if none is.

    With `again`, every second until Ctrl-C; a table that is not for a terminal only after a change of a state.
    """
    terminal, before = sys.stdout.isatty(), None
    status = 128 + signal.SIGINT  # if that comes before the first table
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            seen, now = look(names, directory), time.time()
            status = seen.exit_status
            states = [cells[: _FORCED + 1] for _, cells in _rows(seen, now)], seen.prober.stale
            if as_json:
                print(msgspec.json.encode(seen).decode(), flush=True)
            elif terminal:
                text = table(seen, now, shutil.get_terminal_size().columns, not os.environ.get("NO_COLOR"))
                print((_CLEAR if again else "") + text, flush=True)
            elif states != before:
                print(("\n" if before else "") + table(seen, now), flush=True)
            before = states
            if not again:
                return status
            time.sleep(1)
    return status
