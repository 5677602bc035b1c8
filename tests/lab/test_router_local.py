"""The router's own connections: balanced over what is up, with the right source address (R6)."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest

from lsmpy import flows
from lsmpy.lab import INTERNET, ROUTER, isp_node, lan_node, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, Talk, configuration, rig, source, tunnel

pytestmark = pytest.mark.lab

PROTOS: tuple[flows.Proto, ...] = get_args(flows.Proto)
ISPS = ("ISP1", "ISP2")
BALANCE = 'local_traffic = "balance"'
# Sends datagrams that nobody answers, all from one socket.
_UNANSWERED = """
import socket, sys, time
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for _ in range(10):
        sock.sendto(b"more", (sys.argv[1], 9))
        time.sleep(0.01)
"""


def begun(router: Rig, family: Family, count: int = 12, protos: tuple[flows.Proto, ...] = PROTOS) -> list[str]:
    """What the internet's server says of connections that the router begins: by which ISP, from which address.

    They are new: of the kernel's random ports for UDP one in a hundred calls would meet a conversation it remembers.
    """
    router.shell("conntrack -F 2>&1\n")
    return router.talk(ROUTER, [Talk(str(router.lab.server[family]), proto) for proto in protos] * count)


def answers(isps: Iterable[str], family: Family, ipv6: str = "snat") -> set[str]:
    """What it says of these ISPs: from an address of theirs, or from the LAN's where nothing is translated."""
    own = "2001:db8:a:1::1" if (family, ipv6) == (6, "none") else ""
    return {f"{isp} {own or source(isp, family)}" for isp in isps}


@pytest.mark.parametrize("default", [None, "ISP1", "ISP2"])
@pytest.mark.parametrize(
    ("backend", "ipv6", "balance", "mask"),
    [("nft", "snat", "nth", 0xFFFFFFFF), ("legacy", "none", "nth", 0xFF00), ("nft", "none", "random", 0xF0)],
)
def test_what_the_router_begins_is_balanced_over_what_is_up(
    tmp_path: Path, backend: str, ipv6: str, balance: str, mask: int, default: str | None
) -> None:
    text = configuration((1, 1), ipv6, backend, f'{BALANCE}\nbalance = "{balance}"\nmark_mask = {mask:#x}')
    with rig(tmp_path, text, default) as router:
        before = router.dump()
        for up in ({"ISP1", "ISP2"}, {"ISP2"}, {"ISP1"}, {"ISP1", "ISP2"}):
            for isp in ("ISP1", "ISP2"):
                router.say(isp, "up" if isp in up else "down")
            router.rebuild()
            for family in FAMILIES:
                assert set(begun(router, family)) == answers(up, family, ipv6)
        assert {flow.isp for flow in router.send(12, PROTOS, FAMILIES)} == {"ISP1", "ISP2"}
        assert router.foreign() == 0
        assert router.idle()
        router.shell(router.reconfig("--dry-run").out)
        assert router.idle()
        router.rebuild("--clear")
        assert router.dump() == before


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_with_main_it_goes_by_mains_default_while_that_is_by_an_isp_that_is_up(tmp_path: Path, backend: str) -> None:
    """And else by one that is; the watcher follows main."""
    with rig(tmp_path, configuration(backend=backend, router='local_traffic = "main"'), "ISP1") as router:
        before = router.dump()
        for down, by in (("", "ISP1"), ("ISP2", "ISP1"), ("ISP1", "ISP2"), ("", "ISP1")):
            for isp in ISPS:
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            for family in FAMILIES:
                assert set(begun(router, family, 4)) == answers({by}, family)
            assert router.idle()
            router.shell(router.reconfig("--dry-run").out)
            assert router.idle()
        router.say("ISP2", "down")
        with router.watching() as watcher:
            watcher.await_line("up ISP1, down ISP2")
            router.shell("ip route replace default via 2.2.2.2\nip -6 route replace default via 2001:db8:0:2::2\n")
            for family in FAMILIES:
                rules = f"ip -{family} rule show pref 32765\n"
                wait_until(lambda: "lookup 76" in router.shell(rules), what="the watcher to see it")  # noqa: B023
                assert set(begun(router, family, 4)) == answers({"ISP1"}, family)
            router.shell("ip route replace default via 1.1.1.2\nip -6 route replace default via 2001:db8:0:1::2\n")
            wait_until(lambda: router.reconfig("--diff").out == "", what="the watcher to see that too")
        assert router.foreign() == 0
        router.rebuild("--clear")
        assert router.dump() == before


def test_a_default_of_main_by_both_isps_is_passed_while_one_of_them_is_down(tmp_path: Path) -> None:
    """Or some of what goes by main would leave by that one, whichever the kernel's hash says."""
    with rig(tmp_path, configuration(router='local_traffic = "main"')) as router:
        before = router.dump()
        router.shell(
            "ip route add default nexthop via 1.1.1.2 dev eth2 nexthop via 2.2.2.2 dev eth3\n"
            "ip -6 route add default nexthop via 2001:db8:0:1::2 dev eth2 nexthop via 2001:db8:0:2::2 dev eth3\n"
            "sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1\n"
        )
        for down, by in (("", set(ISPS)), ("ISP1", {"ISP2"}), ("ISP2", {"ISP1"}), ("", set(ISPS))):
            for isp in ISPS:
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            for family in FAMILIES:
                assert {line.split()[0] for line in begun(router, family, 16)} == by
            assert router.idle()
        assert router.foreign() == 0
        router.shell("ip route del default\nip -6 route del default\n")
        router.rebuild("--clear")
        assert router.dump() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_are_exact_and_nobody_elses(tmp_path: Path, family: Family) -> None:
    with rig(tmp_path, configuration((3, 2, 1), router=BALANCE)) as router:
        router.rebuild()
        router.listen(lan_node(LAN), 7000)
        count: Counter[str] = Counter()
        for _ in range(4):
            count.update(line.split()[0] for line in begun(router, family, 3, ("udp",)))
            # What goes to a LAN, to the router itself or comes from a LAN takes none of the router's turns.
            router.talk(ROUTER, [Talk(str(router.lab.host(LAN, family)), "tcp", port=7000)] * 3)
            router.send(5, families=[family])
        assert count == {"ISP1": 6, "ISP2": 4, "ISP3": 2}
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_conversation_without_an_answer_stays_with_its_isp(tmp_path: Path, backend: str, family: Family) -> None:
    to = {4: "198.18.7.1", 6: "2001:db8:beef::1"}[family]
    with rig(tmp_path, configuration(backend=backend, router=BALANCE)) as router:
        router.rebuild()
        router.lab.shell(INTERNET, f"ip route add blackhole {to}\n")
        counts = [router.arrived(isp, f"-p udp -d {to}", family) for isp in ("ISP1", "ISP2")]
        for turn in range(1, 5):
            router.lab.run(ROUTER, sys.executable, "-c", _UNANSWERED, to)
            seen = [count() for count in counts]
            assert sum(seen) == 10 * turn
            assert all(each % 10 == 0 for each in seen), seen
        assert seen == [20, 20]
        assert router.foreign() == 0


@pytest.mark.parametrize("default", [None, "ISP1"])
@pytest.mark.parametrize(("ipv6", "backend"), [("snat", "nft"), ("none", "legacy")])
def test_a_socket_bound_to_an_isp_uses_it_whatever_is_balanced(
    tmp_path: Path, ipv6: str, backend: str, default: str | None
) -> None:
    with rig(tmp_path, configuration((1, 1), ipv6, backend, BALANCE), default) as router:
        talks, answers = [], []
        for family, server in router.lab.server.items():
            for isp, device in (("ISP1", "eth2"), ("ISP2", "eth3")):
                own = source(isp, family)
                talks += [Talk(str(server), proto, address=own) for proto in PROTOS]
                talks += [Talk(str(server), proto, device=device) for proto in PROTOS]
                answers += [f"{isp} {own}"] * 4
        for down in ("", "ISP1", "ISP2"):
            for isp in ("ISP1", "ISP2"):
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            assert router.talk(ROUTER, talks) == answers
        assert router.foreign() == 0


def test_others_defaults_stay_and_sockets_bound_to_their_device_find_them(tmp_path: Path) -> None:
    """A VPN with a default of its own in main, of a high metric, and static routes that main knows better."""
    with rig(tmp_path, configuration(router=BALANCE), "ISP2") as router, tunnel(router.lab, ROUTER, "tun0", "--answer"):
        router.shell(
            "ip addr add 10.99.0.1/30 dev tun0\nip addr add fd99::1/64 dev tun0 nodad\n"
            "ip route add default dev tun0 metric 5000\nip -6 route add default dev tun0 metric 5000\n"
            "ip route add 10.50.0.0/16 dev tun0\nip -6 route add fd50::/16 dev tun0\n"
        )
        defaults = "ip route show default\nip -6 route show default\n"
        before = router.shell(defaults)
        there: dict[Family, str] = {4: "10.50.0.1", 6: "fd50::1"}
        strayed = [router.arrived(isp, f"-d {to}", f) for isp in ("ISP1", "ISP2") for f, to in there.items()]
        for down in ("ISP1", "ISP2", ""):
            for isp in ("ISP1", "ISP2"):
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            assert router.shell(defaults) == before
            bound = [Talk(to, proto, device="tun0") for to in ("10.60.0.1", "fd60::1") for proto in PROTOS]
            better = [Talk(to, proto) for to in ("10.50.0.1", "fd50::1") for proto in PROTOS]
            assert router.talk(ROUTER, [*bound, *better]) == ["once"] * 8
        assert [count() for count in strayed] == [0] * 4
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_primary_and_backup_and_policies_hold_for_the_router_too(tmp_path: Path, family: Family) -> None:
    text = configuration((1, 1, 1), router=BALANCE, more='[[policy]]\nname = "tcp"\nprotocol = "tcp"\nuse = ["ISP3"]\n')
    tiers = text
    for tier in (2, 3):
        tiers = tiers.replace(f'name = "ISP{tier}"\n', f'name = "ISP{tier}"\ntier = {tier}\n')
    with rig(tmp_path, text) as router:
        for layout, rest in ((text, {"ISP1", "ISP2", "ISP3"}), (tiers, {"ISP1"})):
            router.configure(layout)
            router.rebuild()
            assert set(begun(router, family, 6, ("udp",))) == answers(rest, family)
            assert set(begun(router, family, 6, ("tcp",))) == answers({"ISP3"}, family)
            router.say("ISP1", "down")
            router.rebuild()
            assert set(begun(router, family, 6, ("udp",))) == answers({"ISP2", *rest} - {"ISP1"}, family)
            router.say("ISP1", "up")
        assert router.foreign() == 0
        router.rebuild()
        assert router.idle()


def test_the_router_fails_over_when_a_cable_is_pulled(tmp_path: Path) -> None:
    """Also while main has nothing but a default by that very ISP."""
    with rig(tmp_path, configuration(router=BALANCE), "ISP1") as router, router.watching():
        router.lab.pull_cable("ISP1")
        router.rebuild()
        for family in FAMILIES:
            assert set(begun(router, family)) == answers({"ISP2"}, family)
        assert router.foreign() == 0


@pytest.mark.parametrize("traffic", ["balance", "main"])
@pytest.mark.parametrize("default", [None, "ISP1"])
def test_what_it_says_about_a_packet_leaves_by_the_packets_isp(
    tmp_path: Path, default: str | None, traffic: str
) -> None:
    """It belongs to no connection: who traces a way through an ISP sees the router's address there."""
    with rig(tmp_path, configuration(router=f'local_traffic = "{traffic}"'), default) as router:
        for isp, family in itertools.product(ISPS, FAMILIES):
            way = f"{router.lab.host(LAN, family)} via {source(isp, family)}"
            router.lab.shell(isp_node(isp), f"ip route replace {way}\n")
        for down in ("", *ISPS):
            for isp in ISPS:
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            for isp, family in itertools.product(ISPS, FAMILIES):
                trace = ("ping", "-n", "-c1", "-W2", "-t2", "-I", router.lab.link(isp))
                heard = router.anyhow(*trace, str(router.lab.host(LAN, family)), node=INTERNET).out.lower()
                assert f"from {source(isp, family)} icmp_seq=1 time" in heard.replace(": ", " "), heard
        assert router.foreign() == 0
