"""The same configuration for lsm and lsmpy-probe at the same time: the same events, told in the same words."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from lsmpy import model, verdict
from tests.lab.lsm_kit import BOTH, LSM, NEIGHBOUR, OURS, QUICK, Beside, Told, Values, configuration, silence_lsm

SEQUENCES = 100 if "LSMPY_LONG" in os.environ else 10
AT_ONCE = 10  # so many pairs share this machine
MOST_PROBES = 96  # a window's worth, so that what a script is told says how many there were
STEADY = 13  # so many probes a state lasts before the next can come: longer than lsm's second
MEASURED, TIME = range(5, 13), 15  # places of a script's arguments
KEYS = (
    *("interval_ms", "timeout_ms", "max_packet_loss", "min_packet_loss"),
    *("max_successive_pkts_lost", "min_successive_pkts_rcvd"),
)


@pytest.fixture(scope="module", autouse=True)
def _lsm() -> None:
    silence_lsm()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Beside]]:
    made: list[Beside] = []

    def one() -> Beside:
        made.append(Beside(tmp_path / str(len(made))))
        made[-1].build()
        return made[-1]

    yield one
    for each in made:
        each.clear()


# -- the differential test -------------------------------------------------------------------------------------


class Sequence:
    """What becomes of each probe of a connection, and the connection's thresholds; both by a seed."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        while True:
            self._invent(chance)
            if self._is_steady():
                return

    def _invent(self, chance: random.Random) -> None:
        lost, received = chance.randint(2, 5), chance.randint(2, 6)
        window = chance.random() < 0.25
        self.limits = model.Probe(
            interval_ms=100,
            timeout_ms=100,
            max_successive_pkts_lost=lost,
            min_successive_pkts_rcvd=received,
            max_packet_loss=chance.randint(6, 12) if window else 100,
            min_packet_loss=chance.randint(0, 5) if window else 99,
        )
        answered: list[bool] = []
        while len(answered) < MOST_PROBES - STEADY:
            length = chance.choice([1, 1, 2, 3, lost - 1, received - 1, STEADY + 3, STEADY + 6])
            answered += [chance.random() < 0.5] * max(1, length)
        self.answered = answered[: MOST_PROBES - 2 * STEADY]

    def events(self) -> list[tuple[int, str]]:
        """After which probe the connection is in which state, by LSM's rules without its delays."""
        link, found = verdict.Link(), list[tuple[int, str]]()
        for number in range(MOST_PROBES):
            answered = number >= len(self.answered) or self.answered[number]
            before, link = link.status, verdict.step(link, 1_000 if answered else None, self.limits)
            if link.status != before:
                found.append((number, link.status))
        return found

    def _is_steady(self) -> bool:
        """Whether whoever looks once in ten probes, and not at the newest, must see the same events."""
        events = self.events()
        ends = [*(number for number, _ in events[1:]), MOST_PROBES]
        lasting = all(
            end - number >= STEADY and self._lasts(number, status)
            for (number, status), end in zip(events, ends, strict=True)
        )
        return len(events) >= 2 and lasting and not self._glimpses()

    def _lasts(self, number: int, status: str) -> bool:
        """Whether what led to a state goes on, so that it is seen later as well."""
        if self.limits.max_packet_loss < 100 and status == "down":
            return True  # what is lost stays in the window
        return all(each is (status == "up") for each in self.answered[number : number + STEADY])

    def _glimpses(self) -> bool:
        """Whether a run is long enough for a state, and over before everybody has looked."""
        runs = [(answered, len(list(group))) for answered, group in groupby(self.answered)][:-1]
        needed = {True: self.limits.min_successive_pkts_rcvd, False: self.limits.max_successive_pkts_lost}
        return any(needed[answered] <= length < needed[answered] + STEADY for answered, length in runs)

    def losses(self) -> list[tuple[int, int]]:
        """The runs that are lost, from and to."""
        found, at = [], 0
        for answered, group in groupby(self.answered):
            length = len(list(group))
            if not answered:
                found.append((at, at + length - 1))
            at += length
        return found

    def configuration(self, script: str) -> str:
        limits = {key: getattr(self.limits, key) for key in KEYS}
        link: Values = {"name": "c", "checkip": NEIGHBOUR, "device": "wan", **limits}
        return configuration({"eventscript": script, "notifyscript": ""}, ("connection", link))


def seeds() -> list[list[int]]:
    numbers = random.Random(5).sample(range(10_000), SEQUENCES)
    return [numbers[at : at + AT_ONCE] for at in range(0, SEQUENCES, AT_ONCE)]


@pytest.mark.long
@pytest.mark.parametrize("some", seeds(), ids=lambda some: f"{some[0]}-")
def test_the_same_answers_losses_and_cuts_are_the_same_events_and_never_later(
    make: Callable[[], Beside], some: list[int]
) -> None:
    pairs = [(seed, Sequence(seed), make()) for seed in some]
    for _, sequence, pair in pairs:
        pair.path.write_text(sequence.configuration(pair.recorder("event")))
        for who in BOTH:
            pair.lose(who, sequence.losses())
        pair.start_both()
    wanted = {seed: [status for _, status in sequence.events()] for seed, sequence, _ in pairs}
    for seed, _, pair in pairs:
        pair.until(len(wanted[seed]), "event")
    # With thresholds of the window alone nobody is back within our patience, so these have no cut.
    cuts = [(seed, pair) for seed, sequence, pair in pairs if sequence.limits.max_packet_loss == 100]
    for up, status in ((False, "down"), (True, "up")):
        for seed, pair in cuts:
            if wanted[seed][-1] != status:
                wanted[seed].append(status)
            pair.plug(up)
        for seed, pair in cuts:
            pair.until(len(wanted[seed]), "event")
    for seed, sequence, pair in pairs:
        ours, theirs = (pair.told(who, "event") for who in (OURS, LSM))
        assert [each.words[0] for each in theirs] == wanted[seed], (seed, str(pair))
        assert [each.event for each in ours] == [each.event for each in theirs], (seed, str(pair))
        planned = len(sequence.events())
        for mine, other in zip(ours[:planned], theirs[:planned], strict=True):
            assert mine.sent <= other.sent, (seed, mine, other)


# -- every word ------------------------------------------------------------------------------------------------


def kind(told: Told) -> tuple[str, str, str, str]:
    return told.script, told.name, *told.event


def test_every_kind_of_event_is_told_in_lsm_s_words(make: Callable[[], Beside]) -> None:
    """All scripts, of connections and groups, from every state; only what is measured may differ."""
    pair = make()
    scripts: dict[str, object] = {
        key: pair.recorder(key)
        for key in ("eventscript", "notifyscript", "long_down_eventscript", "long_down_notifyscript")
    }
    defaults = (
        scripts
        | QUICK
        | {
            "warn_email": "root@example",
            "long_down_email": "boss@example",
            "long_down_time": 2,
        }
    )
    addresses = {
        "c1": "192.0.2.11",
        "c2": NEIGHBOUR,
        "dead": "192.0.2.99",
        "was-up": "192.0.2.12",
        "was-down": "192.0.2.13",
    }
    pair.ip("p", "".join(f"address add {each}/24 dev customer\n" for each in addresses.values() if each[-2] == "1"))
    links: list[tuple[str, Values]] = [
        ("connection", {"name": "c1", "checkip": addresses["c1"], "device": "wan", "ttl": 3}),
        ("connection", {"name": "c2", "checkip": addresses["c2"], "warn_email": ""}),
        ("connection", {"name": "dead", "checkip": addresses["dead"], "device": "wan", "sourceip": "192.0.2.1"}),
        ("connection", {"name": "was-up", "checkip": addresses["was-up"], "status": 1, "long_down_time": 0}),
        ("connection", {"name": "was-down", "checkip": addresses["was-down"], "status": 0, "long_down_time": 0}),
        ("connection", {"name": "six", "checkip": "2001:db8:1::2", "device": "wan"}),
        ("connection", {"name": "local", "checkip": "fe80::b", "device": "wan"}),
        ("connection", {"name": "self"}),
        ("connection", {"name": "arp", "checkip": NEIGHBOUR, "device": "wan", "check_arp": 1}),
    ]
    pair.ip("p", "address add fe80::b/64 dev customer nodad\n")
    groups: list[tuple[str, Values]] = [
        ("group", {"name": "one of", "logic": 0, "member-connection": ["c1", "c2"], "unknown_up_notify": 1}),
        ("group", {"name": "all-of", "logic": 1, "member-connection": ["c1", "c2"], "warn_email": "g@example"}),
        ("group", {"name": "none-of", "logic": 0, "member-connection": ["dead"]}),
        ("group", {"name": "empty", "logic": 1}),
    ]
    pair.path.write_text(configuration(defaults, *links, *groups))
    pair.start_both()

    def told_alike(of: str, wanted: set[tuple[str, str, str, str]]) -> None:
        pair.wait(lambda who: wanted <= set(map(kind, pair.told(who))), of)

    up = {("eventscript", name, "unknown", "up") for name in ("c1", "c2", "six", "local", "self", "arp")}
    up |= {("eventscript", name, "unknown", "up") for name in ("one of", "all-of", "empty")}
    up |= {("eventscript", "was-down", "down", "up"), ("long_down_notifyscript", "dead", "down", "long_down")}
    told_alike("the start", up | {("eventscript", "none-of", "unknown", "down")})
    for name in ("c1", "was-up"):
        pair.silence(addresses[name], True)
    down = {("notifyscript", name, "up", "down") for name in ("c1", "was-up", "all-of")}
    told_alike("an outage", down | {("long_down_eventscript", "c1", "down", "long_down")})
    for name in ("c1", "was-up"):
        pair.silence(addresses[name], False)
    told_alike(
        "its end",
        {
            ("long_down_eventscript", "c1", "long_down", "up"),
            ("notifyscript", "c1", "long_down", "up"),
            ("notifyscript", "was-up", "down", "up"),
            ("notifyscript", "all-of", "down", "up"),
        },
    )
    pair.wait(lambda _: {*map(kind, pair.told(OURS))} == {*map(kind, pair.told(LSM))}, "the same calls")
    ours, theirs = ({kind(each): each for each in pair.told(who)} for who in (OURS, LSM))
    assert {key: len([1 for each in pair.told(OURS) if kind(each) == key]) for key in ours} == dict.fromkeys(ours, 1)
    for key, other in theirs.items():
        mine = ours[key]
        assert len(other.words) == 16
        assert len(mine.words) == 18
        for place, (here, there) in enumerate(zip(mine.words, other.words, strict=False)):
            if place in MEASURED or place == TIME:
                assert here.isdecimal() == there.isdecimal(), (place, mine, other)
            else:
                assert here == there, (place, mine, other)
        is_group = key[1] in ("one of", "all-of", "none-of", "empty")
        if is_group:
            assert mine.words[5:13] == other.words[5:13] == ("0",) * 8
    for name in {each.name for each in pair.told(OURS)}:
        in_order = [[kind(each) for each in pair.begun(who) if each.name == name] for who in BOTH]
        assert in_order[0] == in_order[1], (name, str(pair))
    for told in (ours, theirs):  # when a long outage is told, it is told since when
        began = told["eventscript", "c1", "up", "down"].words[15]
        assert told["long_down_eventscript", "c1", "down", "long_down"].words[15] == began
    assert {each.words[13] for each in pair.told(OURS) if each.name == "six"} == {"2001:db8:1::1"}


def test_scripts_heed_the_signals_that_lsm_s_heed(make: Callable[[], Beside]) -> None:
    pair = make()
    script = pair.place / "event"
    script.write_text(f"#!/bin/sh\ngrep -E 'Sig(Ign|Blk)' /proc/self/status >>{pair.place}/signals.$TERM\n")
    script.chmod(0o755)
    link: Values = {"name": "c", "checkip": NEIGHBOUR, "device": "wan"}
    pair.path.write_text(configuration(QUICK | {"eventscript": str(script), "notifyscript": ""}, ("connection", link)))
    pair.start_both()

    def signals(who: str) -> list[int]:
        path = pair.place / f"signals.{who}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1], 16) & 0x7FFFFFFF for line in lines]  # above them are the C library's own

    pair.wait(lambda who: len(signals(who)) == 2, "an event")
    assert signals(OURS) == signals(LSM) == [0, 0]
