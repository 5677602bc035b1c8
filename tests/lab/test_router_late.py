"""Answers that are still on their way when their connection is freed do not keep it where it was (R4)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lsmpy.flows import LongFlows
from lsmpy.lab import INTERNET, PORT, ROUTER, lan_node, wait_until
from lsmpy.model import Family
from tests.lab.router_kit import LAN, Rig, Talk, configuration, rig

pytestmark = pytest.mark.lab

ISPS = ("ISP1", "ISP2")
_POURING = Path(__file__).with_name("pouring.py")


@contextmanager
def pouring(place: Path, text: str, family: Family, *down: str) -> Iterator[Rig]:
    """A rebuilt router; the internet's server never falls silent."""
    with rig(place, text, server=False) as router:
        for isp in down:
            router.say(isp, "down")
        router.rebuild()
        lab, ready = router.lab, list[str]()
        links = [f"{lab.link(isp)}={isp}" for isp in ISPS]
        lab.start(INTERNET, [sys.executable, str(_POURING), str(lab.server[family]), str(PORT), *links], ready.append)
        wait_until(lambda: ready, what="a server")
        yield router


@contextmanager
def talking(router: Rig, family: Family, *isps: str) -> Iterator[LongFlows]:
    """Eight conversations, by these ISPs and no others."""
    with LongFlows(router.lab, LAN, 8, ("udp",), (family,)) as long:
        wait_until(lambda: len(long.isps()) == 8, what="conversations")
        assert {*long.isps().values()} == {*isps}
        yield long


def await_move(long: LongFlows, isp: str) -> None:
    """Wait until all conversations go by one ISP."""
    wait_until(lambda: {*long.isps().values()} == {isp}, what=f"all conversations by {isp}")


@pytest.mark.parametrize(
    ("kind", "backend", "family", "script"),
    [
        ("snat", "nft", 4, False),
        ("snat", "legacy", 6, True),
        ("npt", "nft", 6, True),
        ("npt", "legacy", 6, False),
        ("none", "nft", 6, False),
    ],
)
def test_conversations_go_on_by_another_isp(
    tmp_path: Path, kind: str, backend: str, family: Family, script: bool
) -> None:
    """As soon as they speak, though their ISP still brings answers; and who calls by it a little later is let in."""
    with pouring(tmp_path, configuration(ipv6=kind, backend=backend), family) as router:
        with talking(router, family, *ISPS) as long:
            router.say("ISP1", "down")
            if script:
                router.shell(router.reconfig("--dry-run").out)
            else:
                assert "connections of ISP1 freed" in router.rebuild()
            await_move(long, "ISP2")
        assert router.foreign() == 0
        assert router.idle()
        if kind == "none":
            host, server = str(router.lab.host(LAN, 6)), str(router.lab.server[6])
            arrived = router.seen(lan_node(LAN), "-p udp --dport 7000", 6)
            call = Talk(host, "udp", server, router.lab.link("ISP1"), 7000)
            wait_until(lambda: router.talk(INTERNET, [call]) and arrived(), what="a call")


def test_without_translation_of_ipv4(tmp_path: Path) -> None:
    text = configuration().replace("[nat]\n", '[nat]\nipv4 = "none"\n')
    with pouring(tmp_path, text, 4) as router, talking(router, 4, *ISPS) as long:
        router.say("ISP1", "down")
        router.rebuild()
        await_move(long, "ISP2")


@pytest.mark.parametrize("kind", ["npt", "none"])
def test_the_routers_own_do_as_well(tmp_path: Path, kind: str) -> None:
    text = configuration(ipv6=kind, router='local_traffic = "balance"')
    with pouring(tmp_path, text, 6) as router:
        said: list[str] = []
        server = ["--to", str(router.lab.server[6]), "--proto", "udp", "--port", str(PORT), "--count", "8"]
        router.lab.start(ROUTER, [sys.executable, "-m", "lsmpy.traffic", "long", *server], said.append)

        def isps() -> dict[str, str]:
            found = (re.search(r'"event": "isp", "flow": (\d+).*"isp": "(\w+)"', line) for line in list(said))
            return {each[1]: each[2] for each in found if each}

        wait_until(lambda: len(isps()) == 8, what="conversations")
        assert {*isps().values()} == {*ISPS}
        router.say("ISP1", "down")
        router.rebuild()
        wait_until(lambda: {*isps().values()} == {"ISP2"}, what="all by ISP2")
        assert router.foreign() == 0


def test_they_move_back_to_a_better_tier(tmp_path: Path) -> None:
    text = configuration(ipv6="none", router='failback = "move"')
    text = text.replace('name = "ISP2"\n', 'name = "ISP2"\ntier = 2\n')
    with pouring(tmp_path, text, 6, "ISP1") as router, talking(router, 6, "ISP2") as long:
        router.say("ISP1", "up")
        router.rebuild()
        await_move(long, "ISP1")


def test_they_leave_an_isp_that_is_taken_out(tmp_path: Path) -> None:
    """And of what is still on its way to them nobody is told from an address of the LANs (R2)."""
    text = configuration(ipv6="npt")
    with pouring(tmp_path, text, 6) as router, talking(router, 6, *ISPS) as long:
        alone = re.sub(r'(?s)\[\[isp\]\]\nname = "ISP1".*?(?=\[\[isp\]\])', "", text)
        router.configure(alone.replace('name = "ISP2"\n', 'name = "ISP2"\nmark = 2\ntable = 249\n'))
        assert "connections of ISP1 freed" in router.rebuild()
        await_move(long, "ISP2")
        assert router.foreign() == 0


def test_they_take_up_another_prefix(tmp_path: Path) -> None:
    text = configuration(ipv6="npt")
    with pouring(tmp_path, text, 6) as router, talking(router, 6, *ISPS) as long:
        router.configure(text.replace("2001:db8:101::/48", "2001:db8:101:4000::/50"))
        assert "4 connections of 2001:db8:101:1::/64, 2001:db8:101:2::/64 freed" in router.rebuild()

        def sources() -> set[str]:
            return {*{each.flow: each.source for each in list(long.events) if each.event == "isp"}.values()}

        before, after = "2001:db8:101:1::2", "2001:db8:101:4001::2"
        wait_until(lambda: after in sources() and before not in sources(), what="the new prefix")
        assert router.foreign() == 0
