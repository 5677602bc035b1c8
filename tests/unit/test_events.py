"""What LSM does when a connection changes: scripts, arguments, order, groups, long outages, and lines of the log."""

from __future__ import annotations

from typing import Literal

import pytest

from lsmpy.events import Call, Counters, Ledger, Moment, Outcome, State, Word, joined
from lsmpy.lsmmodel import Connection, Group, Settings

NOW = 1_795_388_348.9
LINK = Connection(
    name="c1",
    checkip="198.51.100.2",
    device="lsva",
    warn_email="root@example",
    eventscript=("/e",),
    notifyscript="/n",
    long_down_time=3,
    long_down_email="boss@example",
    long_down_eventscript="/le",
    long_down_notifyscript="/ln",
    queue="q",
)
COUNTERS = Counters(11, 1, 2, 3, 10, 4, 5, 78, "198.51.100.1", 60, 99, 15)
NUMBERS = ("11", "1", "2", "3", "10", "4", "5", "78", "198.51.100.1")


def ledger(*links: Connection, groups: tuple[Group, ...] = (), known: dict[str, State] | None = None) -> Ledger:
    return Ledger(Settings("lsm", 8, links or (LINK,), groups, ()), known or {})


def at(now: float) -> Moment:
    """A time when the machine had run for an hour."""
    return Moment(now, now - NOW + 3600)


def argvs(outcome: Outcome) -> list[tuple[str, ...]]:
    return [call.argv for call in outcome.calls]


def say(book: Ledger, name: str, word: Literal["up", "down"], now: float = NOW) -> Outcome:
    return book.say(name, word, COUNTERS, at(now))


def tick(book: Ledger, now: float = NOW) -> Outcome:
    return book.tick(lambda _: COUNTERS, at(now))


# -- calls -----------------------------------------------------------------------------------------------------


def test_scripts_are_told_lsm_s_eighteen() -> None:
    told = ("up", "c1", "198.51.100.2", "lsva", "root@example", *NUMBERS, "unknown", "1795388348", "60", "99")
    outcome = say(ledger(), "c1", "up")
    assert argvs(outcome) == [("/e", *told), ("/n", *told)]
    assert outcome.changed


def test_what_is_missing_is_empty() -> None:
    bare = Connection(name="c", checkip="192.0.2.1", eventscript=("/e",), warn_email="")
    (argv,) = argvs(ledger(bare).say("c", "down", Counters(), at(NOW)))
    assert argv[1:6] == ("down", "c", "192.0.2.1", "", "")
    assert argv[14:] == ("0.0.0.0", "unknown", "1795388348", "0", "0")


def test_a_verdict_that_is_known_is_no_event() -> None:
    book = ledger()
    say(book, "c1", "up")
    assert say(book, "c1", "up") == Outcome()
    assert argvs(say(book, "c1", "down"))[0][1] == "down"


def test_a_long_outage_is_told_after_its_time_and_once() -> None:
    book = ledger()
    say(book, "c1", "up")
    say(book, "c1", "down", NOW)
    assert tick(book, NOW + 3).calls == []
    outcome = tick(book, NOW + 3.1)
    told = ("long_down", "c1", "198.51.100.2", "lsva", "boss@example", *NUMBERS, "down", "1795388348", "60", "99")
    assert argvs(outcome) == [("/le", *told), ("/ln", *told)]
    assert outcome.lines[0] == "link c1 long down event"
    assert tick(book, NOW + 9).calls == []
    assert say(book, "c1", "down", NOW + 9).calls == []


def test_the_end_of_a_long_outage_is_told_to_all_four_in_lsm_s_order() -> None:
    book = ledger()
    say(book, "c1", "down")
    tick(book, NOW + 4)
    calls = argvs(say(book, "c1", "up", NOW + 8))
    assert [argv[0] for argv in calls] == ["/le", "/ln", "/e", "/n"]
    assert [argv[5] for argv in calls] == ["boss@example"] * 2 + ["root@example"] * 2
    assert {(argv[1], argv[15], argv[16]) for argv in calls} == {("up", "long_down", "1795388356")}


@pytest.mark.parametrize("by", [3600, -3600])
def test_a_clock_that_is_set_makes_no_outage_longer_or_shorter(by: int) -> None:
    book = ledger()
    say(book, "c1", "down", NOW)
    assert book.tick(lambda _: COUNTERS, Moment(NOW + by + 2, 3602)).calls == []
    calls = argvs(book.tick(lambda _: COUNTERS, Moment(NOW + by + 4, 3604)))
    assert {(argv[1], argv[16]) for argv in calls} == {("long_down", str(int(NOW)))}


def test_without_a_time_no_outage_is_long() -> None:
    book = ledger(Connection(name="c1", long_down_eventscript="/le"))
    say(book, "c1", "down")
    assert tick(book, NOW + 1e9).calls == []


def test_calls_of_a_connection_share_a_key_and_those_of_a_queue_another() -> None:
    outcome = say(ledger(), "c1", "up")
    assert [call.keys for call in outcome.calls] == [("of c1", "queue q"), ("of c1",)]


@pytest.mark.parametrize(
    ("notify", "status", "told"), [(None, 2, True), (1, 2, True), (0, 2, False), (0, 0, True), (None, 0, True)]
)
def test_the_first_up_is_not_notified_if_somebody_said_so(notify: int | None, status: int, told: bool) -> None:
    book = ledger(Connection(name="c1", notifyscript="/n", unknown_up_notify=notify, status=status))
    assert bool(say(book, "c1", "up").calls) is told


# -- where it begins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "word", "before"),
    [(2, "up", "unknown"), (2, "down", "unknown"), (1, "down", "up"), (0, "up", "down"), (3, "up", "long_down")],
)
def test_a_connection_begins_with_its_status(status: int, word: Literal["up", "down"], before: str) -> None:
    calls = argvs(say(ledger(Connection(name="c1", eventscript=("/e",), status=status)), "c1", word))
    assert calls[-1][15] == before


@pytest.mark.parametrize(("status", "word"), [(1, "up"), (0, "down"), (3, "down")])
def test_what_it_begins_with_is_no_event(status: int, word: Literal["up", "down"]) -> None:
    assert say(ledger(Connection(name="c1", eventscript=("/e",), status=status)), "c1", word) == Outcome()


def test_who_begins_down_has_not_been_down_for_long() -> None:
    """LSM says so at once, with the time 0."""
    book = ledger(Connection(name="c1", status=0, long_down_time=3, long_down_eventscript="/l"))
    assert tick(book).calls == []
    assert tick(book, NOW + 3).calls == []
    assert argvs(tick(book, NOW + 4))[0][16] == str(int(NOW))


def test_who_is_there_already_is_no_event() -> None:
    book = ledger()
    book.adopt("c1", State("up", at(NOW - 9)))
    book.adopt("nobody", State("up"))
    assert say(book, "c1", "up") == Outcome()
    book.adopt("c1", State("down"))
    assert argvs(say(book, "c1", "down"))[0][15] == "up"


def test_what_was_told_before_a_restart_is_not_told_again() -> None:
    book = ledger(known={"c1": State("down", at(NOW))})
    assert say(book, "c1", "down") == Outcome()
    assert argvs(tick(book, NOW + 4))[0][1] == "long_down"


# -- groups ----------------------------------------------------------------------------------------------------

A, B = Connection(name="a"), Connection(name="b")


def group(logic: int, *members: str, **values: object) -> Group:
    return Group(name="g", logic=logic, members=members, eventscript=("/g",), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("logic", "members", "word"),
    [
        (0, [], "down"),
        (1, [], "up"),
        (0, ["up", "down"], "up"),
        (1, ["up", "down"], "down"),
        (1, ["up", "up"], "up"),
        (-3, ["up", "long_down"], "down"),
        (0, ["long_down", "down"], "down"),
        (0, ["up", "unknown"], "unknown"),
        (1, ["down", "unknown"], "unknown"),
    ],
)
def test_a_group_is_where_its_members_make_it(logic: int, members: list[Word], word: str) -> None:
    assert joined(logic, members) == word


def test_a_group_s_script_is_told_little() -> None:
    book = ledger(A, B, groups=(group(0, "a", "b", warn_email="root@example", device="eth9"),))
    say(book, "a", "up")
    assert tick(book).calls == []
    say(book, "b", "down")
    outcome = tick(book)
    told = ("up", "g", "", "eth9", "root@example", *["0"] * 8, "", "unknown", "1795388348", "0", "0")
    assert outcome.calls == [Call(("of g",), ("/g", *told))]
    assert outcome.lines == ["group g up event"]
    assert outcome.changed
    say(book, "a", "down", NOW + 5)
    assert [argv[1] for argv in argvs(tick(book, NOW + 5))] == ["down"]
    assert tick(book, NOW + 6).calls == []


def test_a_group_comes_after_its_connections_and_long_down_is_down_for_it() -> None:
    book = ledger(LINK, groups=(group(1, "c1"),))
    say(book, "c1", "down")
    assert [argv[1] for argv in argvs(tick(book))] == ["down"]
    outcome = tick(book, NOW + 4)
    assert [argv[0] for argv in argvs(outcome)] == ["/le", "/ln"]


@pytest.mark.parametrize(("notify", "told"), [(None, ["down"]), (0, ["down"]), (1, ["up", "down"])])
def test_a_group_s_first_up_is_notified_only_if_somebody_said_so(notify: int | None, told: list[str]) -> None:
    book = ledger(A, groups=(Group(name="g", members=("a",), notifyscript="/n", unknown_up_notify=notify),))
    say(book, "a", "up")
    first = argvs(tick(book))
    say(book, "a", "down")
    assert [argv[1] for argv in (*first, *argvs(tick(book)))] == told


def test_a_group_that_becomes_unknown_says_nothing() -> None:
    book = ledger(A, B, groups=(group(0, "a", "b"),), known={"g": State("up"), "a": State("up")})
    outcome = tick(book)
    assert (outcome.calls, outcome.lines, outcome.changed) == ([], [], True)


# -- the log ---------------------------------------------------------------------------------------------------

STATISTICS = (
    "name = c1, replied = 11, waiting = 1, timeout = 2, timeout max = 2, late reply = 3, cons rcvd = 10, "
    "cons wait = 4, cons miss = 5, cons miss max = 5, avg_rtt = 0.078, seq = 15, status = 0"
)


@pytest.mark.parametrize(
    ("debug", "lines"), [(-1, []), (5, []), (6, [STATISTICS]), (8, ["link c1 down event", STATISTICS])]
)
def test_the_log_says_as_much_as_debug_wants(debug: int, lines: list[str]) -> None:
    book = Ledger(Settings("lsm", debug, (LINK,), (), ()), {})
    assert say(book, "c1", "down").lines == lines


def test_foolsm_tells_two_times_more() -> None:
    book = Ledger(Settings("foolsm", 6, (LINK,), (), ()), {})
    (line,) = say(book, "c1", "up").lines
    assert "cons miss max = 5, min_rtt = 0.060, avg_rtt = 0.078, max_rtt = 0.099, seq = 15, status = 1" in line


def test_the_most_is_that_since_it_was_up() -> None:
    book = ledger()
    say(book, "c1", "down")
    few = Counters(timeout=1)
    (line,) = book.dump(lambda _: few)
    assert "timeout = 1, timeout max = 2," in line
    assert "cons miss = 0, cons miss max = 5," in line
    say(book, "c1", "up")
    assert "timeout max = 1," in book.dump(lambda _: few)[0]


@pytest.mark.parametrize("debug", [0, 8])
def test_who_stays_down_is_told_of_every_hundred_probes(debug: int) -> None:
    book = Ledger(Settings("lsm", debug, (A,), (), ()), {})
    book.say("a", "down", Counters(probes=10), at(NOW))
    said = []
    for probes in range(11, 320):
        outcome = book.tick(lambda _, n=probes: Counters(probes=n), at(NOW))  # type: ignore[misc]
        said += [(probes, line) for line in outcome.lines if "still" in line]
    assert said == [(110, "link a still down"), (210, "link a still down"), (310, "link a still down")]


def test_silence_is_silence() -> None:
    book = Ledger(Settings("lsm", -1, (A,), (), ()), {})
    book.say("a", "down", Counters(probes=0), at(NOW))
    assert book.tick(lambda _: Counters(probes=1000), at(NOW)).lines == []
