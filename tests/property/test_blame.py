"""Whose fault it is, over histories of links, cables, targets and filters that fail one after another."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lsmpy import probe
from lsmpy.prober import Prober
from tests.unit import prober_kit as kit
from tests.unit.prober_kit import MS, Address, World, ethernet, snapshot

pytestmark = pytest.mark.long

SHARED = "203.0.113.1"
LONG = 6  # seconds, in which every window forgets
SHORT, MANY = 60, 600


class Town:
    """Some ISPs that all probe one target and some others, with thresholds and paces of their own.

    Attributes:
        broken: what does not work: interfaces whose upstream is dead or whose cable is out, addresses, and pairs of
            an interface and an address.
    """

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.wans = [f"wan{n}" for n in range(1, dice.choice((2, 2, 3, 4)) + 1)]
        self.broken: set[str | tuple[str, str]] = set()
        self.out: set[str] = set()
        self.world = World(kit.snapshot())
        self.world.answer = self.answer
        self.plug()

    def answer(self, wan: str, address: Address) -> int | None:
        return MS if self.reaches(wan, str(address)) else None

    def reaches(self, wan: str, address: str) -> bool:
        return wan not in self.out and not {wan, address, (wan, address)} & self.broken

    def plug(self) -> None:
        links = [ethernet(wan, 2 + n, wan not in self.out) for n, wan in enumerate(self.wans, 1)]
        found = snapshot(*links, addresses={2 + n: (f"192.0.{n}.1",) for n in range(1, len(links) + 1)})
        self.world.say(found)

    def configuration(self) -> str:
        text = 'state_dir = "/run"\n'
        for n, wan in enumerate(self.wans, 1):
            check = [SHARED, *self.dice.choice(([], [], [f"203.0.113.1{n}"], [f"203.0.113.1{n}", "203.0.113.2"]))]
            pace, lost = self.dice.choice((15, 25, 50)), self.dice.choice((1, 2, 3, 5))
            hold_ms = self.dice.choice((0, 0, 500))
            text += f"""
[[isp]]
name = "{wan}"
interface = "{wan}"
address = "192.0.{n}.1/24"
gateway = "192.0.{n}.2"
check = {json.dumps(check)}
quorum = {self.dice.randint(1, len(check))}
[isp.probe]
interval_ms = {pace}
timeout_ms = {pace}
max_packet_loss = {self.dice.choice((max(lost, 2), 100))}
min_packet_loss = 1
max_successive_pkts_lost = {lost}
min_successive_pkts_rcvd = {self.dice.choice((2, 4))}
hold_down_ms = {hold_ms}
"""
        return text

    def happen(self) -> None:
        """Something breaks or is mended."""
        wan = self.dice.choice(self.wans)
        own = f"203.0.113.1{wan[-1]}"
        target = self.dice.choice((SHARED, SHARED, own, "203.0.113.2"))
        if self.dice.random() < 0.25:
            self.out ^= {wan}
            self.plug()
        else:
            self.broken ^= {self.dice.choice((wan, target, (wan, target)))}

    def mend(self) -> None:
        """Half of what is broken works again."""
        self.broken = {each for each in sorted(self.broken, key=str) if self.dice.random() < 0.5} - {SHARED}
        self.out = {each for each in sorted(self.out) if self.dice.random() < 0.5}
        self.plug()


@contextmanager
def history(seed: object) -> Iterator[tuple[Town, probe.Daemon]]:
    """Much has happened, and then nothing for long."""
    dice = random.Random(str(seed))
    town = Town(dice)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        kit.begin(patch, town.world)
        if dice.random() < 0.3:
            town.happen()
        daemon = kit.daemon_of(Path(place) / "lsmpy.toml", town.configuration())
        for _ in range(dice.randint(0, 6)):
            kit.run(daemon, town.world, dice.choice((0.05, 0.2, 1)))
            town.happen()
        kit.run(daemon, town.world, 1)
        town.mend()
        kit.run(daemon, town.world, LONG)
        yield town, daemon
        daemon.close()


def up_by(town: Town, daemon: probe.Daemon, address: str) -> list[Prober]:
    """Those that are up and reach this target."""
    return [
        each
        for each in daemon._probers
        if each.status == "up" and address in each.isp.check and town.reaches(each.isp.interface, address)
    ]


@pytest.fixture
def seeds(long: bool) -> range:
    return range(MANY if long else SHORT)


def test_one_dead_target_never_takes_down_all_that_were_up_by_it(seeds: range) -> None:
    tried = 0
    for seed in seeds:
        with history(seed) as (town, daemon):
            healthy = up_by(town, daemon, SHARED)
            # One that is down for other reasons, and asks more patiently, is waited for.
            others = [each for each in daemon._probers if each not in healthy]
            at_any_time = not any(town.reaches(each.isp.interface, SHARED) for each in others)
            town.broken |= {SHARED}
            if len(healthy) > 1:
                tried += 1
                for _ in range(60):
                    kit.run(daemon, town.world, 0.01)
                    assert not at_any_time or any(each.status == "up" for each in healthy), seed
                kit.run(daemon, town.world, 2)
                assert all(each.status == "up" for each in healthy), seed
    assert tried > len(seeds) / 2


def test_an_isp_that_dies_alone_is_down_within_its_thresholds(seeds: range) -> None:
    tried = 0
    for seed in seeds:
        with history(seed) as (town, daemon):
            alive = [each for each in daemon._probers if each.status == "up" and counts(town, daemon, each)]
            if alive:
                tried += 1
                dead = town.dice.choice(alive)
                others = [(each, each.status) for each in daemon._probers if each is not dead]
                town.broken |= {dead.isp.interface}
                limits = dead.isp.probe
                patience_ms = (limits.max_successive_pkts_lost + 1) * limits.interval_ms + limits.timeout_ms
                kit.run(daemon, town.world, patience_ms / 1000)
                assert dead.status == "down", seed
                kit.run(daemon, town.world, 2)
                assert dead.status == "down", seed
                assert others == [(each, each.status) for each, _ in others], seed
    assert tried > len(seeds) / 2


def counts(town: Town, daemon: probe.Daemon, prober: Prober) -> bool:
    """Whether something that it reaches can tell that it is dead."""
    blamed = daemon._blame.blamed
    return any(each.check not in blamed and town.reaches(prober.isp.interface, each.text) for each in prober.targets)
