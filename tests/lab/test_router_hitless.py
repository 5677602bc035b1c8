"""Rebuilds one after another under load hurt nobody (R3)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lsmpy import flows
from lsmpy.lab import wait_until
from lsmpy.model import FAMILIES
from tests.lab.router_kit import LAN, Rig, configuration, rig

pytestmark = pytest.mark.lab

RATE = 1000.0
STILL_MS = 1000.0  # a long flow without an answer for so long has been hurt


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
    ("ipv6", "backend", "default"), [("snat", "nft", None), ("none", "legacy", "ISP1"), ("snat", "legacy", "ISP2")]
)
def test_rebuilds_under_load_hurt_nobody(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, long: bool
) -> None:
    """ISP2 is said to go down and up; its line is well, and so not one flow may be lost, whoever has it."""
    with rig(tmp_path, configuration((1, 1), ipv6, backend), default) as router, router.watching() as watcher:
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
    with rig(tmp_path, configuration((3, 1))) as router:
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
def test_a_link_that_really_goes_hurts_no_flow_on_the_other(tmp_path: Path, long: bool) -> None:
    """ISP2's interface goes down and up; only flows that were on it, or on their way to it, may be lost."""
    with rig(tmp_path, configuration(), "ISP2") as router:
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
        assert stay.isps() == homes
        assert router.foreign() == 0
