"""Tiers: who is used while the better ones are up, and primary and backup, where nothing is chosen (R1, R2, R5)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lsmpy import flows
from lsmpy.lab import INTERNET, ROUTER, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, Talk, configuration, rig, source
from tests.lab.test_router_shares import UNBELIEVABLE, chi_square, choose, prepare

pytestmark = pytest.mark.lab


def primary_and_backup(backend: str = "auto", mask: int = 0xFFFFFFFF, more: str = "") -> str:
    """The router of the article's last comment: one LAN, a primary and a backup, IPv4 and IPv6 behind NAT."""
    text = configuration(backend=backend, router=f"mark_mask = {mask:#x}\n{more}")
    return text.partition('[[lan]]\nname = "rnd"')[0].replace('name = "ISP2"\n', 'name = "ISP2"\ntier = 2\n')


def moved(router: Rig, up: str) -> None:
    """Rebuild with only this one up, and see that all that is new goes there."""
    for isp in ("ISP1", "ISP2"):
        router.say(isp, "up" if isp == up else "down")
    router.rebuild()
    assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == {up}


@pytest.mark.parametrize(("backend", "mask", "default"), [("nft", 0xFFFFFFFF, None), ("legacy", 0xFF00, "ISP1")])
def test_with_a_primary_and_a_backup_nothing_is_chosen_and_connections_stay(
    tmp_path: Path, backend: str, mask: int, default: str | None
) -> None:
    with rig(tmp_path, primary_and_backup(backend, mask, "flush_conntrack = false"), default) as router:
        router.rebuild()
        assert not any(word in line for line in router.dump() for word in ("statistic", "CHOOSE", "-i eth0"))
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == {"ISP1"}
        moved(router, "ISP2")
        with flows.LongFlows(router.lab, LAN, 8, ("tcp", "udp"), FAMILIES) as long:
            wait_until(lambda: len(long.isps()) == 8, what="all flows")
            moved(router, "ISP1")
            moved(router, "ISP2")
            router.say("ISP1", "up")
            router.rebuild()
            seen = router.send(8, ("tcp", "udp"), FAMILIES)
        assert {flow.isp for flow in seen} == {"ISP1"}
        assert {event.isp for event in long.events if event.event == "isp"} == {"ISP2"}
        assert not any(event.broken for event in long.events)
        assert router.foreign() == 0
        assert router.idle()


@pytest.mark.parametrize(("backend", "mask", "default"), [("legacy", 0xFFFFFFFF, None), ("nft", 0xFF00, "ISP1")])
def test_what_the_primary_had_goes_on_by_the_backup_and_stays_there(
    tmp_path: Path, backend: str, mask: int, default: str | None
) -> None:
    with rig(tmp_path, primary_and_backup(backend, mask), default) as router:
        router.rebuild()
        router.settle()
        with flows.LongFlows(router.lab, LAN, 8, ("tcp", "udp"), FAMILIES) as long:
            wait_until(lambda: len(long.isps()) == 8, what="all flows")
            assert set(long.isps().values()) == {"ISP1"}
            moved(router, "ISP2")
            wait_until(lambda: sum(event.event == "broken" for event in list(long.events)) == 4, what="resets")
            wait_until(lambda: sorted(long.isps().values()) == ["ISP1"] * 4 + ["ISP2"] * 4, what="the others by ISP2")
            router.say("ISP1", "up")
            router.rebuild()
            answered = router.arrived("ISP2", "-p udp")
            wait_until(lambda: answered() > 40, what="a second of them")
            assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == {"ISP1"}
        assert {event.why for event in long.events if event.event == "broken"} == {"Connection reset by peer"}
        assert sorted(long.isps().values()) == ["ISP1"] * 4 + ["ISP2"] * 4
        assert router.foreign() == 0
        assert router.idle()


def test_what_comes_in_by_the_backup_is_answered_by_it(tmp_path: Path) -> None:
    with rig(tmp_path, primary_and_backup()) as router:
        router.rebuild()
        router.listen(ROUTER, 7000)
        talks = [
            Talk(source(isp, family), "tcp", str(server), router.lab.link(isp), 7000)
            for isp in ("ISP1", "ISP2")
            for family, server in router.lab.server.items()
        ]
        assert router.talk(INTERNET, talks) == [talk.address for talk in talks]
        assert router.foreign() == 0


def test_the_script_and_the_way_out_know_the_rules_by_tier(tmp_path: Path) -> None:
    with rig(tmp_path, primary_and_backup()) as router:
        before = router.dump()
        router.rebuild()
        for down in ("ISP1", ""):
            for isp in ("ISP1", "ISP2"):
                router.say(isp, "down" if isp == down else "up")
            router.shell(router.reconfig("--dry-run").out)
            assert router.idle()
        router.rebuild("--clear")
        assert router.dump() == before


@pytest.mark.parametrize(("balance", "family"), [("nth", 4), ("random", 6), ("hash", 4), ("hash", 6)])
def test_a_lower_tier_is_used_only_while_none_of_the_higher_is_up(tmp_path: Path, family: Family, balance: str) -> None:
    """Two of the first tier with weights, two of the second with others."""
    text = configuration((3, 1, 1, 2), router=f'balance = "{balance}"')
    for isp in ("ISP3", "ISP4"):
        text = text.replace(f'name = "{isp}"\n', f'name = "{isp}"\ntier = 2\n')
    with rig(tmp_path, text) as router:
        prepare(router)
        for up, shares in {
            "1234": {"ISP1": 3, "ISP2": 1},
            "234": {"ISP2": 1},
            "34": {"ISP3": 1, "ISP4": 2},
            "3": {"ISP3": 1},
            "": {"ISP1": 3, "ISP2": 1},
            "14": {"ISP1": 3},
        }.items():
            for number in "1234":
                router.say(f"ISP{number}", "up" if number in up else "down")
            router.rebuild()
            chosen = choose(router, family, 40, 25)
            assert chi_square(chosen, shares) < UNBELIEVABLE.get(len(shares) - 1, 0.001), Counter(chosen.values())
        assert router.foreign() == 0
