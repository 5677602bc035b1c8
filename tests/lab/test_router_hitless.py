"""Rebuilds one after another under load hurt nobody (R3)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lsmpy import flows
from lsmpy.lab import wait_until
from lsmpy.model import FAMILIES
from tests.lab.router_kit import LAN, Rig, configuration, rig

pytestmark = pytest.mark.lab

RATE = 1000.0
# An ISP that is said to be down keeps its connections here: what is lost must be the rebuilds' doing.
KEEP = "flush_conntrack = false"
STILL_MS = 1000.0  # a long flow without an answer for so long has been hurt
ARTICLE = Path(__file__).with_name("article.sh")

Change = Callable[[str], None]  # what ISP2's state file shall say; returns after the rebuild


def steady(router: Rig) -> tuple[flows.Stream, flows.LongFlows]:
    """New flows of both families by UDP, and long ones by TCP."""
    stream = flows.Stream(router.lab, LAN, RATE, ("udp",), FAMILIES, totals=True)
    return stream, flows.LongFlows(router.lab, "rnd", 8, ("tcp",), FAMILIES)


def assert_unhurt(stream: flows.Stream, long: flows.LongFlows, seconds: float, isps: set[str]) -> None:
    """Not one flow was lost, and no long one has noticed anything."""
    totals, events = stream.stop(), long.stop()
    assert totals.lost == 0, stream.flows[:10]
    assert set(totals.isps) == isps
    assert totals.flows > 0.9 * RATE * seconds
    ends = [event for event in events if event.event == "end"]
    assert len(ends) == 8
    assert not any(event.broken or event.longest_gap_ms > STILL_MS for event in ends), ends
    assert sum(event.event == "isp" for event in events) == 8, events


@pytest.mark.long
@pytest.mark.parametrize(
    ("ipv6", "backend", "default", "flush"),
    [
        ("snat", "nft", None, "all"),
        ("none", "legacy", "ISP1", "all"),
        ("none", "nft", "ISP1", "own"),
        ("npt", "legacy", "ISP2", "own"),
    ],
)
def test_rebuilds_under_load_hurt_nobody(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, flush: str, long: bool
) -> None:
    """ISP2 is said to go down and up; its line is well, and so not one flow may be lost, whoever has it."""
    text = configuration((1, 1), ipv6, backend, f'{KEEP}\nflush = "{flush}"')
    with rig(tmp_path, text, default) as router, router.watching() as watcher:
        stream, stay = steady(router)
        with stream, stay:
            wait_until(lambda: len(stay.isps()) == 8, what="long flows")
            began = time.monotonic()
            for number in range(100 if long else 20):
                before = len(watcher.rebuilds)
                router.say("ISP2", "up" if number % 2 else "down")
                wait_until(lambda: len(watcher.rebuilds) > before, what="a rebuild")  # noqa: B023
            assert_unhurt(stream, stay, time.monotonic() - began, {"ISP1", "ISP2"})
        assert router.foreign() == 0


@pytest.mark.long
def test_one_shot_rebuilds_under_load_hurt_nobody(tmp_path: Path, long: bool) -> None:
    """The same, each rebuild by a process of its own."""
    with rig(tmp_path, configuration((3, 1), router=KEEP)) as router:
        router.rebuild()
        stream, stay = steady(router)
        with stream, stay:
            wait_until(lambda: len(stay.isps()) == 8, what="long flows")
            began = time.monotonic()
            for number in range(100 if long else 6):
                router.say("ISP2", "up" if number % 2 else "down")
                router.rebuild()
            assert_unhurt(stream, stay, time.monotonic() - began, {"ISP1", "ISP2"})
        assert router.foreign() == 0


@pytest.mark.long
@pytest.mark.parametrize("keep", [KEEP, ""])
def test_a_link_that_really_goes_hurts_no_flow_on_the_other(tmp_path: Path, keep: str, long: bool) -> None:
    """ISP2's interface goes down and up; only flows that were on it, or on their way to it, may be lost."""
    with rig(tmp_path, configuration(router=keep), "ISP2") as router:
        router.shell("echo 1 >/proc/sys/net/ipv6/conf/eth3/keep_addr_on_down\n")
        with router.watching() as watcher:
            stream = flows.Stream(router.lab, LAN, RATE, ("udp",), FAMILIES, totals=True)
            stay = flows.LongFlows(router.lab, "rnd", 8, ("tcp",), FAMILIES)
            with stream, stay:
                wait_until(lambda: len(stay.isps()) == 8, what="long flows")
                homes = stay.isps()
                began, down = time.monotonic(), []
                for _ in range(20 if long else 3):
                    before = len(watcher.rebuilds)
                    down.append(time.monotonic())
                    router.shell("ip link set eth3 down\n")
                    wait_until(lambda: "up ISP1, down ISP2" in "".join(watcher.rebuilds[before:]), what="ISP2 to go")  # noqa: B023
                    down.append(time.monotonic())
                    before = len(watcher.rebuilds)
                    router.shell("ip link set eth3 up\n")
                    wait_until(lambda: "up ISP1 ISP2" in "".join(watcher.rebuilds[before:]), what="ISP2 to return")  # noqa: B023
                ended = time.monotonic()
                totals = stream.stop()
                lost = flows.tracked(router.lab, [(LAN, flow) for flow in stream.flows])
                events = stay.stop()
        assert [flow for (_, flow), isp in lost.items() if isp == "ISP1"] == []
        # A flow that found no way out at all did so while ISP2 was going, not later.
        spans = list(zip(down[::2], down[1::2], strict=True))
        for (_, flow), isp in lost.items():
            assert isp == "ISP2" or any(start - 1 < flow.t < end for start, end in spans), flow
        assert totals.flows > 0.9 * RATE * (ended - began)
        for event in events:
            if event.event == "end" and homes[event.flow] == "ISP1":
                assert not event.broken
                assert event.longest_gap_ms <= STILL_MS
        if keep:
            assert stay.isps() == homes
        assert router.foreign() == 0


@pytest.mark.long
@pytest.mark.parametrize("flush", ["all", "own"])
def test_an_isp_that_is_taken_out_of_the_file_and_put_in_again_hurts_no_other(
    tmp_path: Path, flush: str, long: bool
) -> None:
    """Whatever is on its way, nothing leaves by its line without its address."""
    both = configuration(router=f'flush = "{flush}"')
    one = both[: both.index('[[isp]]\nname = "ISP2"')] + both[both.index("[[lan]]") :]
    with rig(tmp_path, both) as router, router.watching() as watcher:
        stream, stay = steady(router)
        with stream, stay:
            wait_until(lambda: len(stay.isps()) == 8, what="long flows")
            homes = stay.isps()
            for number in range(40 if long else 6):
                before = len(watcher.rebuilds)
                router.configure(both if number % 2 else one)
                watcher.running.process.signal(signal.SIGHUP)
                wait_until(lambda: len(watcher.rebuilds) > before, what="a rebuild")  # noqa: B023
            stream.stop()
            lost = flows.tracked(router.lab, [(LAN, flow) for flow in stream.flows])
            events = stay.stop()
        assert "ISP1" not in lost.values()
        ends = {event.flow: event for event in events if event.event == "end"}
        assert not any(ends[flow].broken for flow, isp in homes.items() if isp == "ISP1")
        assert router.foreign() == 0


@dataclass(frozen=True)
class Harm:
    """What rebuilds, one after another, did to new flows."""

    rebuilds: int
    seconds: float
    flows: int
    lost: int
    foreign: int

    def __str__(self) -> str:
        loss = f"lost {self.lost} ({self.lost / self.flows:.1%}), {self.foreign} packets with a foreign source"
        return f"{self.rebuilds} rebuilds in {self.seconds:.1f} s under {self.flows} new flows: {loss}"


@contextmanager
def by_the_article(router: Rig) -> Iterator[Change]:
    def change(text: str) -> None:
        router.say("ISP2", text)
        result = router.anyhow("bash", str(ARTICLE), str(router.states))
        assert result.status == 0, result.err

    router.shell("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$file; done\n")  # it asks for that
    change("up")
    yield change


@contextmanager
def one_shot(router: Rig) -> Iterator[Change]:
    def change(text: str) -> None:
        router.say("ISP2", text)
        router.rebuild()

    change("up")
    yield change


@contextmanager
def watching(router: Rig) -> Iterator[Change]:
    with router.watching() as watcher:

        def change(text: str) -> None:
            before = len(watcher.rebuilds)
            router.say("ISP2", text)
            wait_until(lambda: len(watcher.rebuilds) > before, what="a rebuild")

        yield change


def harm(router: Rig, change: Change, rebuilds: int) -> Harm:
    """ISP2 is said to go down and up under load; without load all is well, before and afterwards.

    For that it is another LAN that asks: the router may still know the load's ports.
    """
    everyone = {"ISP1", "ISP2"}
    assert {flow.isp for flow in router.send(8, lan="rnd")} == everyone
    arrived = router.arrived("ISP1", "-p udp")
    with flows.Stream(router.lab, LAN, 1.1 * RATE, ("udp",), totals=True) as stream:
        wait_until(arrived, what="new flows")
        began = time.monotonic()
        for number in range(rebuilds):
            change("up" if number % 2 else "down")
        seconds = time.monotonic() - began
        totals = stream.stop()
    assert totals.flows >= RATE * seconds
    result = Harm(rebuilds, seconds, totals.flows, totals.lost, router.foreign())
    # Packets between the making of its two counters leave the article's script out of step, until its next run.
    change("down")
    change("up")
    assert {flow.isp for flow in router.send(8, lan="rnd")} == everyone
    return result


@pytest.mark.long
@pytest.mark.parametrize("default", [None, "ISP1"])
def test_what_the_articles_script_does_to_flows_we_do_not(tmp_path: Path, default: str | None, long: bool) -> None:
    """Under the same load: what finds no harm in our rebuilds must be able to see some."""
    found = {}
    for way in (by_the_article, one_shot, watching):
        place = tmp_path / way.__name__
        place.mkdir()
        with rig(place, configuration(router=KEEP), default) as router, way(router) as change:
            found[way] = harm(router, change, 100 if long else 6)
        print(f"\n{way.__name__}, main's default {default}: {found[way]}", end="")
    article = found[by_the_article]
    assert article.lost > article.flows / 10
    assert article.foreign >= article.rebuilds
    for ours in (found[one_shot], found[watching]):
        assert (ours.lost, ours.foreign) == (0, 0)
