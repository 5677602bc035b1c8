"""A day of probing in minutes: the daemon's own loop in a world whose links fail by chance, against a plain model.

The world knows when every probe left and when its answer arrived; LSM's rule is applied to that, in lists.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lsmpy import flight, probe, standing, state, verdict
from lsmpy.links import Snapshot
from lsmpy.model import Check, Probe
from lsmpy.prober import Prober
from lsmpy.target import Target
from lsmpy.uplink import Fault
from lsmpy.uplink import Path as Way
from tests.unit import prober_kit as kit
from tests.unit.prober_kit import MS, Address, S, World, ethernet, snapshot

pytestmark = pytest.mark.long

SHORT_H, LONG_H = 0.5, 24
CONFIGURATION = """
state_dir = "/run"
[probe]
max_packet_loss = 15
max_successive_pkts_lost = 5
min_packet_loss = 5
min_successive_pkts_rcvd = 4
[[isp]]
name = "SLOW"
interface = "wan1"
address = "192.0.1.1/24"
gateway = "192.0.1.2"
check = ["203.0.113.11", "203.0.113.12", "203.0.113.13"]
quorum = 2
probe = { interval_ms = 1000, timeout_ms = 1000 }
[[isp]]
name = "FAST"
interface = "wan2"
address = "192.0.2.1/24"
gateway = "192.0.2.2"
check = ["203.0.113.21", "203.0.113.22"]
probe = { interval_ms = 250, timeout_ms = 1100 }
"""
Gaps = list[tuple[int, int]]
SLACK_NS = 25 * MS  # how late the loop may be: it waits a little for more to arrive


@dataclass
class Weather:
    """How links do by and by: a target answers, answers badly or slowly, or not at all."""

    dice: random.Random
    world: World
    regimes: dict[Address, tuple[int, float, int, int]] = field(default_factory=dict)

    def answer(self, _: str, target: Address) -> int | None:
        until_ns, loss, delay_ns, jitter_ns = self.regimes.get(target, (0, 0.0, 0, 0))
        if self.world.now_ns >= until_ns:
            kind = self.dice.choices(["well", "lossy", "slow", "uneven", "dead"], [8, 3, 1, 2, 2])[0]
            loss = {"well": 0.002, "lossy": self.dice.choice((0.02, 0.1, 0.3, 0.6)), "dead": 1.0}.get(kind, 0.01)
            delay_ns = {"slow": 900 * MS, "uneven": 400 * MS}.get(kind, self.dice.randrange(MS, 200 * MS))
            jitter_ns = {"slow": 300 * MS, "uneven": 900 * MS}.get(kind, 20 * MS)
            until_ns = self.world.now_ns + round(self.dice.expovariate(1 / 90) * S)
            self.regimes[target] = until_ns, loss, delay_ns, jitter_ns
        if self.dice.random() < loss:
            return None
        return delay_ns + self.dice.randrange(jitter_ns)


class Model:
    """LSM's rule for one target, in lists (README of LSM, "connection")."""

    def __init__(self, limits: Probe) -> None:
        self.limits = limits
        self.begin("unknown")

    def begin(self, status: verdict.Status) -> None:
        self.window: deque[bool] = deque(maxlen=100)
        self.status: verdict.Status = status

    def count(self, lost: bool) -> None:
        self.window.append(lost)
        run = 0
        for each in reversed(self.window):
            if each != lost:
                break
            run += 1
        losses, limits = sum(self.window), self.limits
        bad = losses >= limits.max_packet_loss or (lost and run >= limits.max_successive_pkts_lost)
        good = losses <= limits.min_packet_loss and not lost and run >= limits.min_successive_pkts_rcvd
        if bad and self.status != "down":
            self.status = "down"
        elif good and self.status != "up":
            self.status = "up"


class Witness:
    """Sees what the daemon makes of every probe, and holds it against what the world knows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        self.world = world
        self.sleeps: Gaps = []
        self.of_flight: dict[int, tuple[Prober, Target]] = {}
        self.models: dict[int, Model] = {}
        self.told: dict[int, list[int]] = {}
        self.settled_ns: dict[int, int] = {}
        self.begun: dict[int, list[tuple[int, int]]] = {}
        self.kinds = {"answered": 0, "lost": 0, "late": 0, "set": 0, "faults": 0, "changes": 0}
        self.expected: dict[str, verdict.Status] = {}
        self._spy(monkeypatch)

    def know(self, daemon: probe.Daemon) -> None:
        for each in daemon._probers:
            for target in each.targets:
                self.of_flight[id(target.flight)] = each, target
                self.models[id(target)] = Model(each.isp.probe)
                self.told[id(target)], self.begun[id(target)] = [], []

    def _spy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settle, count, judge, lead, sent = (
            *(flight.Flight._settle, Prober._count, Prober.judge, Prober._lead),
            flight.Flight.sent,
        )

        def spy_sent(probes: flight.Flight, number: int, now_ns: int, left_ns: int, tag: bytes) -> None:
            _, target = self.of_flight[id(probes)]
            self.begun[id(target)].append((number, now_ns))
            sent(probes, number, now_ns, left_ns, tag)

        def spy_settle(probes: flight.Flight, number: int, one: flight.Probe) -> flight.Sample:
            sample = settle(probes, number, one)
            self._settled(probes, number, one, sample)
            return sample

        def spy_count(who: Prober, target: Target, sample: flight.Sample, now_ns: int) -> None:
            assert isinstance(target.path, Way)  # nothing that was under way speaks for a link that is gone
            count(who, target, sample, now_ns)
            model = self.models[id(target)]
            model.count(sample.rtt_ns is None)
            assert target.link.status == model.status
            assert (target.link.lost, target.link.samples) == (sum(model.window), len(model.window))

        def spy_lead(who: Prober, target: Target, path: Way | Fault, now_ns: int) -> None:
            if isinstance(path, Fault) and path != target.path:
                self.models[id(target)].begin("down")
                self.kinds["faults"] += 1
            lead(who, target, path, now_ns)

        def spy_judge(who: Prober, blamed: frozenset[Check], now_ns: int) -> bool:
            assert not blamed  # each ISP has its own targets here
            each = [self.models[id(target)].status for target in who.targets]
            name, quorum = who.isp.name, who.isp.quorum
            if each.count("up") >= quorum:
                self.expected[name] = "up"
            elif len(each) - each.count("down") < quorum:
                self.expected[name] = "down"
            changed = judge(who, blamed, now_ns)
            assert who.status == self.expected.get(name, "unknown")
            self.kinds["changes"] += changed
            return changed

        monkeypatch.setattr(flight.Flight, "sent", spy_sent)
        monkeypatch.setattr(flight.Flight, "_settle", spy_settle)
        monkeypatch.setattr(Prober, "_count", spy_count)
        monkeypatch.setattr(Prober, "_lead", spy_lead)
        monkeypatch.setattr(Prober, "judge", spy_judge)

    def _settled(self, probes: flight.Flight, number: int, one: flight.Probe, sample: flight.Sample) -> None:
        who, target = self.of_flight[id(probes)]
        told = self.told[id(target)]
        assert not told or number > told[-1]  # in the order of sending, and each once
        told.append(number)
        left_ns, at_ns = who.port.truth.pop((target.number, number), (one.sent_ns, None))  # type: ignore[attr-defined]
        self._told_at_once(id(target), one.sent_ns + probes.timeout_ns, at_ns)
        sets = self.world.clock_sets(left_ns, at_ns or left_ns)
        if sets and overlaps(left_ns, at_ns or left_ns, self.sleeps):
            return  # the one clock was set and we had no look at the other
        # A clock that is set while a probe is under way leaves the loop's own clock, or is too little to be noticed.
        doubt_ns = sum(min(abs(by_ns), 2 * SLACK_NS) for by_ns in sets) + (SLACK_NS if sets else 50_000)
        timeout_ns = probes.timeout_ns
        if at_ns is None or at_ns > self.world.now_ns:
            assert sample.rtt_ns is None
            assert self.world.now_ns >= one.sent_ns + timeout_ns
            self.kinds["lost" if at_ns is None else "late"] += 1
            for begin_ns, end_ns in self.sleeps:  # what was under way then is nobody's fault
                slept_away = one.sent_ns < begin_ns < one.sent_ns + timeout_ns - SLACK_NS
                assert not (slept_away and self.world.now_ns >= end_ns)
        elif at_ns - left_ns > timeout_ns + doubt_ns:
            assert sample.rtt_ns is None
            self.kinds["late"] += 1
        elif at_ns - left_ns < timeout_ns - doubt_ns:
            assert sample.rtt_ns is not None
            if sets:
                assert abs(sample.rtt_ns - (at_ns - left_ns)) <= doubt_ns
            else:
                assert sample.rtt_ns == at_ns - left_ns  # to the nanosecond
            self.kinds["answered"] += 1
        self.kinds["set"] += bool(sets)
        assert len(probes._probes) <= timeout_ns // (who.isp.probe.interval_ms * MS) + 2
        assert len(probes._expired) <= 100

    def _told_at_once(self, target: int, over_ns: int, at_ns: int | None) -> None:
        """It counts as soon as it is answered or its time is over, but in the order of sending."""
        own_ns = over_ns if at_ns is None else min(at_ns, over_ns)
        settled_ns = self.settled_ns[target] = max(own_ns, self.settled_ns.get(target, 0))
        if not overlaps(settled_ns, self.world.now_ns, self.sleeps):
            assert settled_ns <= self.world.now_ns <= settled_ns + SLACK_NS


def overlaps(from_ns: int, until_ns: int, gaps: Gaps) -> bool:
    """Whether something happened in one of the gaps, or so close to it that nobody can tell."""
    return any(begin - SLACK_NS <= until_ns and from_ns <= end + SLACK_NS for begin, end in gaps)


def wires(out: str = "") -> Snapshot:
    """Both interfaces, one of them without a cable."""
    cables = [ethernet("wan1", 3, out != "wan1"), ethernet("wan2", 4, out != "wan2")]
    return snapshot(*cables, addresses={3: ("192.0.1.1",), 4: ("192.0.2.1",)})


def pull_cables(dice: random.Random, world: World, ends_ns: int) -> dict[str, Gaps]:
    """Now and then one, for some seconds."""
    pulled: dict[str, Gaps] = {"wan1": [], "wan2": []}
    at_ns = world.now_ns
    while (at_ns := at_ns + round(dice.expovariate(1 / 300) * S)) < ends_ns:
        name, back_ns = dice.choice(("wan1", "wan2")), at_ns + round(dice.expovariate(1 / 20) * S)
        world.say(wires(name), at_ns)
        world.say(wires(), back_ns)
        pulled[name].append((at_ns, back_ns))
        at_ns = back_ns
    return pulled


def fall_asleep(dice: random.Random, world: World, ends_ns: int) -> Gaps:
    """Now and then the machine is suspended, or has no time for us."""
    at_ns = world.now_ns
    while (at_ns := at_ns + round(dice.expovariate(1 / 600) * S)) < ends_ns:
        length_ns = dice.choice((2 * S, 5 * S, 60 * S, 600 * S))
        world.sleeps.append((at_ns, at_ns + length_ns, dice.random() < 0.5))
        at_ns += length_ns
    return [(begin_ns, end_ns) for begin_ns, end_ns, _ in world.sleeps]


def set_clock(dice: random.Random, world: World, ends_ns: int) -> None:
    """Once a minute, a little or by a day."""
    at_ns = world.now_ns
    while (at_ns := at_ns + round(dice.expovariate(1 / 60) * S)) < ends_ns:
        world.set_clock(dice.choice((MS, 20 * MS, 3600 * S, 86400 * S)) * dice.choice((1, -1)), at_ns)


def check_pace(begun: list[tuple[int, int]], interval_ns: int, ends_ns: int, gaps: Gaps) -> None:
    """A probe in each interval and no more, at its place in it, but where the machine slept or the cable was out."""
    assert [number for number, _ in begun] == list(range(len(begun)))
    first_ns = begun[0][1]
    by_slot = {(at_ns + MS - first_ns) // interval_ns: at_ns for _, at_ns in begun}
    assert len(by_slot) == len(begun)
    missing = 0
    for slot in range((ends_ns - first_ns) // interval_ns):
        due_ns = first_ns + slot * interval_ns
        at_ns = by_slot.get(slot)
        if at_ns is None or not -MS <= at_ns - due_ns <= SLACK_NS:
            assert overlaps(due_ns, due_ns, gaps)
        missing += at_ns is None
    if not gaps:
        assert missing == 0


@pytest.mark.parametrize("what", ["links", "links, clock, sleep", "cables"])
def test_a_day_of_probing_is_what_a_plain_model_says(
    long: bool, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dice = random.Random(what)
    world = World(wires())
    world.answer = Weather(dice, world).answer
    kit.begin(monkeypatch, world)
    ends_ns = world.now_ns + round((LONG_H if long else SHORT_H) * 3600) * S
    witness = Witness(monkeypatch, world)
    sleeps: Gaps = []
    pulled: dict[str, Gaps] = {}
    if "clock" in what:
        set_clock(dice, world, ends_ns)
    if "sleep" in what:
        sleeps = witness.sleeps = fall_asleep(dice, world, ends_ns)
    if "cables" in what:
        pulled = pull_cables(dice, world, ends_ns)

    daemon = kit.daemon_of(tmp_path / "lsmpy.toml", CONFIGURATION)
    witness.know(daemon)
    kit.run(daemon, world, (ends_ns - world.now_ns) / S)

    kinds = witness.kinds
    assert min(kinds["answered"], kinds["lost"], kinds["late"]) > 50
    assert kinds["changes"] > 5
    assert bool(kinds["set"]) == ("clock" in what)
    assert bool(kinds["faults"]) == ("cables" in what)
    for who in daemon._probers:
        gaps = sleeps + pulled.get(who.isp.interface, [])
        interval_ns, timeout_ns = who.isp.probe.interval_ms * MS, who.isp.probe.timeout_ms * MS
        assert state.read_text(state.state_path(tmp_path, who.isp.name)) == who.status
        assert len(who._neighbours._hops) == 1
        for target in who.targets:
            begun, told = witness.begun[id(target)], witness.told[id(target)]
            settled = set(told)
            check_pace(begun, interval_ns, world.now_ns, gaps)
            assert len(told) > 0.5 * len(begun)
            for number, at_ns in begun:
                if number not in settled and number not in target.flight:
                    assert overlaps(at_ns, at_ns + timeout_ns, gaps)
            assert max(len(target.times._times), len(target.times._ordered)) <= 100
            assert target.calls == {}
    assert len(daemon._agenda) == 5
    assert len(daemon._selector.get_map()) == 3
    known = standing.decode((tmp_path / standing.FILE).read_text())
    assert known is not None
    assert {name: isp.state for name, isp in known.isps.items()} == {
        who.isp.name: who.status for who in daemon._probers
    }
    daemon.close()
