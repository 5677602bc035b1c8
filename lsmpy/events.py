"""What LSM would do when a connection changes: which scripts with which arguments, and which lines in the log. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from lsmpy.lsmmodel import Connection, Group, Settings

Word = Literal["down", "up", "unknown", "long_down"]
WORDS: tuple[Word, ...] = ("down", "up", "unknown", "long_down")  # in the order of their numbers
_STILL_PROBES = 100  # so often a connection that stays down is told of


class Counters(Struct, frozen=True):
    """What LSM counts of the last 100 probes of a connection; times in microseconds.

    Attributes:
        replied, waiting, timeout, reply_late: answered ever, never, not in time, and after that time.
        cons_rcvd, cons_wait, cons_miss: in a row up to the newest: answered in time, not answered, not in time.
        source: from where.
        probes: ever sent, or due when they could not be.
    """

    replied: int = 0
    waiting: int = 0
    timeout: int = 0
    reply_late: int = 0
    cons_rcvd: int = 0
    cons_wait: int = 0
    cons_miss: int = 0
    avg_rtt: int = 0
    source: str = "0.0.0.0"  # noqa: S104  # what LSM says without an address
    min_rtt: int = 0
    max_rtt: int = 0
    probes: int = 0


class Call(Struct, frozen=True):
    """A script and its arguments.

    Attributes:
        keys: of what no two calls may run at a time, and none before an earlier one: the connection, and its queue.
        argv: the script and what it is told.
    """

    keys: tuple[str, ...]
    argv: tuple[str, ...]


class Moment(Struct, frozen=True):
    """A time, in seconds: `said` since the epoch, as scripts are told it; `age` by a clock that nobody sets."""

    said: float
    age: float


class State(Struct, frozen=True):
    """Where a connection or a group is, and since when; None if that is not known."""

    word: Word
    since: Moment | None = None


class Outcome(Struct):
    """What is to be done: calls in their order, and lines for the log; and whether some state is another now."""

    calls: list[Call] = []
    lines: list[str] = []
    changed: bool = False

    def add(self, later: Outcome) -> None:
        """And then this."""
        self.calls += later.calls
        self.lines += later.lines
        self.changed |= later.changed


class Ledger:
    """The states of all connections and groups, and what follows from a change of one.

    Attributes:
        connections, groups: as configured, by a name that is theirs alone.
        states: of both, by the same name.
    """

    def __init__(self, settings: Settings, known: Mapping[str, State]) -> None:
        """Begin with what is `known` by name, and for the others with their `status`."""
        self.connections = {each.name: each for each in settings.connections}
        self.groups = {name: each for name, each in settings.named.items() if isinstance(each, Group)}
        self._debug, self._flavour = settings.debug, settings.flavour
        self.states: dict[str, State] = {
            name: known.get(name, State(WORDS[each.status])) for name, each in settings.named.items()
        }
        self._told_at: dict[str, int] = {}
        self._most: dict[str, tuple[int, int]] = {}  # timeout and cons_miss, since it was up

    def adopt(self, name: str, state: State) -> None:
        """A connection is already there, and nobody needs to be told."""
        if name in self.connections and self.states[name].word == "unknown":
            self.states[name] = state

    def say(self, name: str, word: Literal["up", "down"], counters: Counters, now: Moment) -> Outcome:
        """The probes have come to a verdict on a connection, which may be what is known already."""
        outcome = Outcome()
        before = self.states[name].word
        if word == before or (word == "down" and before == "long_down"):
            return outcome
        self.states[name] = State(word, now)
        outcome.changed = True
        self._told_at[name] = counters.probes
        connection = self.connections[name]
        self._note(outcome, f"link {name} {word} event")
        told = _Told(word, before, counters, now)
        if before == "long_down":
            outcome.calls += _long_down_calls(connection, told)
        outcome.calls += _calls(connection, told)
        self._count(outcome, name, counters)
        return outcome

    def tick(self, counted: Callable[[str], Counters], now: Moment) -> Outcome:
        """Time has passed: who has been down for long, and where groups are now; `counted` tells of a connection."""
        outcome = Outcome()
        for name, connection in self.connections.items():
            state = self.states[name]
            since = state.since or now  # who is configured to begin so is down for as long as we know of it
            if state.word == "down" and not state.since:
                self.states[name] = State("down", now)
            if state.word == "down" and 0 < connection.long_down_time < now.age - since.age:
                self.states[name] = State("long_down", since)
                outcome.changed = True
                self._note(outcome, f"link {name} long down event")
                outcome.calls += _long_down_calls(connection, _Told("long_down", "down", counted(name), since))
            elif state.word in ("down", "long_down"):
                self._still(outcome, name, counted(name))
        for name, group in self.groups.items():
            self._group(outcome, name, group, now)
        return outcome

    def dump(self, counted: Callable[[str], Counters]) -> list[str]:
        """The statistics of every connection (SIGUSR1)."""
        return [self._statistics(name, counted(name)) for name in self.connections]

    def _still(self, outcome: Outcome, name: str, counters: Counters) -> None:
        if counters.probes >= self._told_at.setdefault(name, counters.probes) + _STILL_PROBES:
            self._told_at[name] = counters.probes
            if self._debug >= 0:
                outcome.lines.append(f"link {name} still down")
            self._count(outcome, name, counters)

    def _group(self, outcome: Outcome, name: str, group: Group, now: Moment) -> None:
        before = self.states[name].word
        word = joined(group.logic, [self.states[each].word for each in group.members])
        if word == before:
            return
        self.states[name] = State(word, now)
        outcome.changed = True
        if word != "unknown":
            self._note(outcome, f"group {group.name} {word} event")
            outcome.calls += _calls(group, _Told(word, before, None, now))

    def _note(self, outcome: Outcome, line: str) -> None:
        if self._debug >= 8:
            outcome.lines.append(line)

    def _count(self, outcome: Outcome, name: str, counters: Counters) -> None:
        if self._debug >= 6:
            outcome.lines.append(self._statistics(name, counters))

    def _statistics(self, name: str, counters: Counters) -> str:
        """LSM's line of them; foolsm's has two times more."""
        word = self.states[name].word
        most = self._most.get(name, (0, 0))
        most = max(most[0], counters.timeout), max(most[1], counters.cons_miss)
        self._most[name] = (0, 0) if word == "up" else most
        times = {"min_rtt": counters.min_rtt, "avg_rtt": counters.avg_rtt, "max_rtt": counters.max_rtt}
        said = {
            "name": name,
            "replied": counters.replied,
            "waiting": counters.waiting,
            "timeout": counters.timeout,
            "timeout max": most[0],
            "late reply": counters.reply_late,
            "cons rcvd": counters.cons_rcvd,
            "cons wait": counters.cons_wait,
            "cons miss": counters.cons_miss,
            "cons miss max": most[1],
            **{key: f"{us / 1000:.3f}" for key, us in times.items() if self._flavour == "foolsm" or key == "avg_rtt"},
            "seq": counters.probes,
            "status": WORDS.index(word),
        }
        return ", ".join(f"{key} = {value}" for key, value in said.items())


def joined(logic: int, members: Sequence[Word]) -> Literal["up", "down", "unknown"]:
    """The state of a group: unknown while a member is; up while one is (`logic` 0), or each (any other)."""
    if "unknown" in members:
        return "unknown"
    up = [each == "up" for each in members]
    return "up" if (all(up) if logic else any(up)) else "down"


class _Told(Struct, frozen=True):
    """What a script is told; `counters` None of a group, which has none."""

    word: Word
    before: Word
    counters: Counters | None
    at: Moment


def _calls(of: Connection | Group, told: _Told) -> Iterator[Call]:
    for script in of.eventscript:
        yield Call(_keys(of, of.queue), (script, *_arguments(of, told, of.warn_email)))
    # LSM tells of a connection's first up whatever `unknown_up_notify` says; 0 is obeyed where somebody has written it.
    quiet = of.unknown_up_notify == 0 or (of.unknown_up_notify is None and isinstance(of, Group))
    if of.notifyscript and not (quiet and (told.before, told.word) == ("unknown", "up")):
        yield Call(_keys(of, ""), (of.notifyscript, *_arguments(of, told, of.warn_email)))


def _long_down_calls(of: Connection, told: _Told) -> Iterator[Call]:
    for script, queue in ((of.long_down_eventscript, of.queue), (of.long_down_notifyscript, "")):
        if script:
            yield Call(_keys(of, queue), (script, *_arguments(of, told, of.long_down_email)))


def _keys(of: Connection | Group, queue: str) -> tuple[str, ...]:
    return (f"of {of.name}", f"queue {queue}") if queue else (f"of {of.name}",)


def _arguments(of: Connection | Group, told: _Told, email: str) -> tuple[str, ...]:
    """LSM's 16, and foolsm's two more."""
    counted = told.counters or Counters(source="")
    numbers = (
        *(counted.replied, counted.waiting, counted.timeout, counted.reply_late),
        *(counted.cons_rcvd, counted.cons_wait, counted.cons_miss, counted.avg_rtt),
    )
    return (
        *(told.word, of.name, of.checkip if isinstance(of, Connection) else "", of.device, email),
        *map(str, numbers),
        *(counted.source, told.before, str(int(told.at.said)), str(counted.min_rtt), str(counted.max_rtt)),
    )
