"""Tells log, files and scripts of every change that the prober finds, as LSM does."""

from __future__ import annotations

import contextlib
import logging
import selectors
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from lsmpy import munin, pending, state
from lsmpy.calls import Caller
from lsmpy.events import Counters, Ledger, Moment, Outcome, State, Word
from lsmpy.model import Check
from lsmpy.prober import Prober, clock_ns
from lsmpy.source import Source
from lsmpy.standing import as_json
from lsmpy.target import Target
from lsmpy.uplink import Path as Way
from lsmpy.verdict import WINDOW

log = logging.getLogger(__name__)

FILE = "lsmpy/events.json"  # in the state directory: what has been told, so that a restart does not tell it again
_OWN = Path("/var/lib")  # where LSM has a directory by its name
_S = 1_000_000_000  # nanoseconds


class Memory(Struct):
    """What is written down: the states, and in which boot; at the next one everything is told anew, as LSM does."""

    boot: str
    states: dict[str, State]


class Herald:
    """What has been told of whom, and whoever is to be told more."""

    def __init__(self, source: Source, directory: Path, old: Herald | None = None) -> None:
        """Go on where `old`, or whoever wrote into the state directory before, has left off."""
        self._source = source
        self._directory = directory
        self._ledger: Ledger = Ledger(source.settings, old._ledger.states if old else self._remembered())
        self._own = _OWN / source.settings.flavour if source.lsm else None
        self._own_problem = ""
        self._remembers = True
        self._munin_ns: int = old._munin_ns if old else clock_ns() + munin.INTERVAL_S * _S
        self._counts: dict[str, Count] = dict(old._counts) if old else {}
        self._probers: dict[str, Prober] = {}
        self._news = Outcome()
        self._caller: Caller | None = old._caller if old else None

    def begin(self, selector: selectors.BaseSelector) -> None:
        """Be ready to run scripts if there are any.

        Raises:
            CallerError: they cannot be run.
        """
        if self._caller is None and self._source.settings.scripts:
            words = ["--ident", self._source.settings.flavour] if self._source.lsm else []
            self._caller = Caller(selector, self._directory / pending.DIRECTORY, words)
            self._caller.resume(self._source.settings.scripts)

    def close(self) -> None:
        """There is no more to tell."""
        if self._caller:
            self._caller.close()

    def follow(self, probers: Sequence[Prober]) -> None:
        """These are the probers from now on."""
        self._probers = {each.isp.name: each for each in probers}
        old, self._counts = self._counts, {}
        for name, prober in self._probers.items():
            target, count = prober.targets[0], old.get(name)
            self._counts[name] = count if count and count.target is target else Count(target)
            self._ledger.adopt(name, State(prober.status, Moment(prober.since_s, _now().age)))

    def say(self, prober: Prober) -> None:
        """A prober has come to a verdict, which `tick` tells of with all others."""
        name = prober.isp.name
        if name in self._ledger.connections and prober.status != "unknown":
            self._news.add(self._ledger.say(name, prober.status, self._counted(name), _now()))

    def tick(self) -> None:
        """Time has passed, or something was said: tell of it."""
        news, self._news = self._news, Outcome()
        news.add(self._ledger.tick(self._counted, _now()))
        self._do(news)
        if clock_ns() >= self._munin_ns:
            self._munin_ns += munin.INTERVAL_S * _S
            counters = {name: self._counted(name) for name in self._ledger.connections}
            self._write_own(munin.files(self._source.settings.flavour, self._words(), counters))

    def groups(self) -> Iterator[tuple[str, Word]]:
        """Every group and where it is."""
        return ((name, self._ledger.states[name].word) for name in self._ledger.groups)

    def dump(self) -> None:
        """Log how every connection is."""
        for line in self._ledger.dump(self._counted):
            log.info("%s", line)

    def _counted(self, name: str) -> Counters:
        return self._counts[name].counters()

    def _do(self, outcome: Outcome) -> None:
        for line in outcome.lines:
            log.info("%s", line)
        if outcome.changed:
            # LSM's own file of all connections; before the scripts, which may look into it.
            self._write_own({"status_export": "\n".join(f"{name} {word}" for name, word in self._words().items())})
        if outcome.calls and self._caller:
            self._caller.call(outcome.calls)
        if outcome.changed:  # once the calls are kept: rather told twice than never
            self._remember()

    def _remember(self) -> None:
        path = self._directory / FILE
        state.make_own_directory(path)
        try:
            state.write(path, as_json(Memory(state.boot(), self._ledger.states)))
            self._remembers = True
        except state.StateError as error:
            if self._remembers:
                log.error("a restart would tell again what has been told: %s", error)
            self._remembers = False

    def _words(self) -> dict[str, Word]:
        return {name: self._ledger.states[name].word for name in self._ledger.connections}

    def _write_own(self, files: Mapping[str, str]) -> None:
        """Write LSM's own files, which nothing here depends on."""
        if self._own is None:
            return
        try:
            for name, text in files.items():
                state.write(self._own / name, text)
            self._own_problem = ""
        except state.StateError as error:
            if str(error) != self._own_problem:
                log.error("%s", error)
            self._own_problem = str(error)

    def _remembered(self) -> dict[str, State]:
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeError):
            memory = msgspec.json.decode((self._directory / FILE).read_bytes(), type=Memory)
            return memory.states if memory.boot == state.boot() else {}
        return {}


def _now() -> Moment:
    return Moment(time.time(), clock_ns() / _S)


class Count:
    """Counts of one connection's `target` what a window of losses does not tell: answers that came too late."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._late: deque[tuple[int, int]] = deque([(0, 0)])  # at which probe there had been how many
        self._source = ""

    def counters(self) -> Counters:
        """What LSM would count of it now."""
        target = self.target
        link, waiting = target.link, target.flight.unanswered()
        settled = target.counter - waiting
        if target.flight.late != self._late[-1][1]:
            self._late.append((settled, target.flight.late))
        while len(self._late) > 1 and self._late[1][0] <= settled - WINDOW:
            self._late.popleft()
        late = min(self._late[-1][1] - self._late[0][1], link.lost)
        if isinstance(target.path, Way):
            self._source = str(target.path.source)
        trips, (shortest_ns, longest_ns) = target.times.round_trips(), target.times.extremes_ns()
        return Counters(
            replied=link.samples - link.lost + late,
            waiting=link.lost - late + waiting,
            timeout=link.lost,
            reply_late=late,
            cons_rcvd=min(link.received_in_a_row, WINDOW),
            cons_wait=min(link.lost_in_a_row, link.lost - late),
            cons_miss=min(link.lost_in_a_row, WINDOW),
            avg_rtt=round(trips.mean * 1000) if trips else 0,
            source=self._source or _no_address(target.check),
            min_rtt=shortest_ns // 1000,
            max_rtt=longest_ns // 1000,
            probes=target.counter + target.unsent,
        )


def _no_address(check: Check) -> str:
    return "::" if check.address and check.address.version == 6 else "0.0.0.0"  # noqa: S104  # as LSM says it
