"""Addresses and gateways that come and go: DHCP, PPP and router advertisements; NAT and tables follow by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lsmpy.flows import LongFlows
from lsmpy.lab import ROUTER, isp_node, lan_node, wait_until
from lsmpy.model import Family
from tests.lab.dynamic import Advertiser, Dhcp
from tests.lab.router_kit import LAN, Rig, configuration, rig, source, tunnel

pytestmark = pytest.mark.lab


def following(text: str, lans: bool = False) -> str:
    """The same configuration with "auto" for what an ISP gives; with `lans` for LANs' addresses too."""
    isps, lan, rest = text.partition("[[lan]]")
    isps = re.sub(r"^(address|gateway) = .*$", r'\1 = "auto"', isps, flags=re.MULTILINE)
    return isps + lan + (re.sub(r"^address = .*$", 'address = "auto"', rest, flags=re.MULTILINE) if lans else rest)


@contextmanager
def bare(tmp_path: Path, backend: str = "nft", lans: bool = False) -> Iterator[Rig]:
    """A laboratory whose router has no address at any ISP, and a configuration that follows."""
    text = configuration(backend=backend)
    with rig(tmp_path, text) as router:
        for device in ("eth2", "eth3"):
            router.shell(f"ip address flush dev {device} scope global\nip -6 route flush dev {device} proto 4\n")
        router.configure(following(text, lans))
        yield router


def sources(router: Rig, family: Family = 4) -> set[str]:
    return {flow.source for flow in router.send(8, ("udp", "tcp"), (family,)) if flow.ok}


def await_sources(router: Rig, *wanted: str, family: Family = 4) -> None:
    wait_until(lambda: sources(router, family) == set(wanted), what=f"flows from {wanted}", deadline_s=20)


def now(long: LongFlows) -> dict[int, str]:
    """From which address each conversation comes now."""
    return {event.flow: event.source for event in list(long.events) if event.event == "isp"}


def table(router: Rig, number: int, family: Family = 4) -> str:
    return router.shell(f"ip -{family} route show table {number} default\n")


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_an_address_of_dhcp_is_followed_and_so_is_the_next_one(tmp_path: Path, backend: str) -> None:
    with bare(tmp_path, backend) as router:
        one, two = Dhcp(router, tmp_path, 1), Dhcp(router, tmp_path, 2)
        said = router.rebuild()
        assert "ISP1: interface eth2 has no IPv4 address: not used, whatever its state file says" in said
        assert router.idle()
        with router.watching() as watcher:
            first, other = one.serve(10), two.serve(10)
            one.ask()
            await_sources(router, first)
            two.ask()
            await_sources(router, first, other)
            with LongFlows(router.lab, LAN, 4, ("udp",)) as long:
                wait_until(lambda: set(long.isps().values()) == {"ISP1", "ISP2"}, what="conversations by both")
                second = one.serve(20)
                old = router.arrived("ISP1", f"-s {first}")
                one.ask()
                await_sources(router, second, other)
                before = old()
                await_sources(router, second, other)
                assert old() == before  # nothing leaves with the old one since
                wait_until(lambda: first not in now(long).values(), what="the conversations to go on")
                assert set(now(long).values()) <= {second, other}
                assert not any(event.broken for event in long.stop())
            assert f"--reply-dst {first}" in "".join(watcher.lines)
            assert not router.shell(f"conntrack -L --reply-dst {first}\n")
        assert router.idle()
        assert router.foreign() == 0


def test_a_gateway_is_followed_by_its_route_alone(tmp_path: Path) -> None:
    with bare(tmp_path) as router, router.watching() as watcher:
        one = Dhcp(router, tmp_path, 1)
        first = one.serve(10)
        one.ask()
        await_sources(router, first)
        assert "via 1.1.1.2" in table(router, 250)
        move = "ip address del 1.1.1.2/24 dev router\nip address add 1.1.1.3/24 dev router\n"
        router.lab.shell(isp_node("ISP1"), move)
        one.serve(10, gateway=3)
        heard = len(watcher.lines)
        one.renew()
        wait_until(lambda: "via 1.1.1.3" in table(router, 250), what="the other gateway")
        watcher.await_line("up ISP1", after=heard)  # it may have had none for a moment
        await_sources(router, first)
        seen = len(watcher.rebuilds)
        router.shell("ip route add default via 1.1.1.99 dev eth2 metric 900\n")  # a worse one
        router.shell("ip route add 10.77.0.0/16 via 1.1.1.99 dev eth2\n")
        assert router.idle()
        rebuilds = len(watcher.rebuilds)
        assert rebuilds == seen
        heard = len(watcher.lines)
        router.shell("ip route del default via 1.1.1.99 dev eth2\nip route del default dev eth2\n")
        watcher.await_line("down ISP1 (interface eth2 has no IPv4 default route in the main table)", after=heard)
        assert "via" not in table(router, 250)
        assert (router.foreign(), router.idle()) == (0, True)


@pytest.mark.parametrize("objects", [False, True])
def test_a_default_route_by_both_isps_tells_the_gateway_of_each(tmp_path: Path, objects: bool) -> None:
    with rig(tmp_path, configuration()) as router:
        router.configure(following(configuration()))
        gateways: dict[Family, str] = {4: "{n}.{n}.{n}.2", 6: "2001:db8:0:{n}::2"}
        for family, gateway in gateways.items():
            ways = [f"via {gateway.format(n=n)} dev eth{n + 1}" for n in (1, 2)]
            by = " ".join(f"nexthop {way}" for way in ways)
            if objects:
                ids = [family * 10 + n for n in range(3)]
                router.shell("".join(f"ip nexthop add id {n} {way}\n" for n, way in zip(ids, ways, strict=False)))
                router.shell(f"ip nexthop add id {ids[2]} group {ids[0]}/{ids[1]}\n")
                by = f"nhid {ids[2]}"
            router.shell(f"ip -{family} route add default {by}\n")
        router.rebuild()
        for family in gateways:
            for number in (250, 249):
                assert gateways[family].format(n=251 - number) in table(router, number, family)
            assert sources(router, family) == {source(isp, family) for isp in ("ISP1", "ISP2")}
        assert (router.foreign(), router.idle()) == (0, True)


def test_while_an_isp_has_no_address_nothing_leaves_by_it(tmp_path: Path) -> None:
    """Not even what main sends there, nor what was under way; and with the same address it goes on."""
    with bare(tmp_path) as router, router.watching() as watcher:
        one, two = Dhcp(router, tmp_path, 1), Dhcp(router, tmp_path, 2)
        first, other = one.serve(10), two.serve(10)
        one.ask()
        two.ask()
        await_sources(router, first, other)
        out = router.arrived("ISP1", "-p udp --dport 7777")
        with LongFlows(router.lab, "rnd", 4, ("udp",)) as long:
            wait_until(lambda: set(long.isps().values()) == {"ISP1", "ISP2"}, what="conversations by both")
            heard = len(watcher.lines)
            router.shell("ip address flush dev eth2\nip route add 203.0.113.0/24 dev eth2\n")
            router.shell("ip neigh add 203.0.113.7 lladdr 02:00:00:00:00:01 dev eth2\n")
            watcher.await_line("down ISP1 (interface eth2 has no IPv4 address)", after=heard)
            before = out()
            await_sources(router, other)
            router.lab.shell(lan_node(LAN), "ping -c2 -W1 203.0.113.7 || true\n")
            router.shell("ping -c2 -W1 -I eth2 203.0.113.7 || true\n")
            wait_until(lambda: set(long.isps().values()) == {"ISP2"}, what="all conversations to go by ISP2")
            assert out() == before
            long.stop()
        assert router.foreign() == 0
        router.shell("ip route del 203.0.113.0/24 dev eth2\n")
        one.ask()
        await_sources(router, first, other)
        assert router.idle()


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_tunnel_without_gateway_is_followed_from_one_call_to_the_next(tmp_path: Path, backend: str) -> None:
    text = configuration(backend=backend)
    ppp = text.replace("eth3", "ppp0")
    ppp = ppp.replace('["2.2.2.1/24", "2001:db8:0:2::1/64"]', '"auto"').replace(
        '["2.2.2.2", "2001:db8:0:2::2"]', '"none"'
    )
    with rig(tmp_path, text) as router:
        router.configure(ppp)
        assert "down ISP2 (there is no interface ppp0)" in router.rebuild()
        with router.watching() as watcher:
            for mine in ("10.64.0.2", "10.64.0.77"):
                seen, heard = len(watcher.rebuilds), len(watcher.lines)
                with tunnel(router.lab, ROUTER, "ppp0") as said:
                    router.shell(f"ip address add {mine} peer 10.64.0.1/32 dev ppp0\n")
                    wait_until(lambda: "up ISP1 ISP2" in "".join(watcher.rebuilds[seen:]), what="the call")  # noqa: B023
                    assert table(router, 249).startswith("default dev ppp0")
                    assert router.idle()
                    sent = router.send(4)
                    assert {flow.source for flow in sent if flow.ok} == {"1.1.1.1"}
                    wait_until(lambda: len(said) > 2, what="packets in the tunnel")
                    # The same while it has lost its address, and while main prefers it.
                    router.shell("ip address flush dev ppp0\nip route add default dev ppp0\n")
                    heard = watcher.await_line("down ISP2 (interface ppp0 has no IPv4 address)", after=heard)
                    assert {flow.source for flow in router.send(4) if flow.ok} == {"1.1.1.1"}
                    router.shell("ping -c1 -W1 203.0.113.9 || true\n")
                    lines = [line for line in said[1:] if not line.startswith("fe80:")]
                assert lines
                assert {line.split()[0] for line in lines} == {mine}, lines
                watcher.await_line("down ISP2 (there is no interface ppp0)", after=heard)
        assert (router.foreign(), router.idle()) == (0, True)


def test_router_advertisements_are_followed_and_so_is_another_prefix(tmp_path: Path) -> None:
    with bare(tmp_path) as router, router.watching() as watcher:
        one, two = (Advertiser(router, tmp_path, number) for number in (1, 2))
        one.advertise("2001:db8:0:1::/64")
        two.advertise("2001:db8:0:2::/64")
        wait_until(lambda: len(sources(router, 6)) == 2, what="both ISPs", deadline_s=20)
        assert {each[:13] for each in sources(router, 6)} == {"2001:db8:0:1:", "2001:db8:0:2:"}
        assert "via fe80::" in table(router, 250, 6)
        node = isp_node("ISP1")
        router.lab.shell(node, "ip6tables -w -t raw -I FROM-ROUTER -s 2001:db8:0:11::/64 -j RETURN\n")
        router.lab.shell(node, "ip address add 2001:db8:0:11::2/64 dev router nodad\n")
        with LongFlows(router.lab, "rnd", 4, ("udp", "tcp"), (6,)) as long:
            wait_until(lambda: set(long.isps().values()) == {"ISP1", "ISP2"}, what="conversations by both")
            before = now(long)
            one.advertise("2001:db8:0:11::/64", deprecated="2001:db8:0:1::/64")
            wait_until(
                lambda: any(each.startswith("2001:db8:0:11:") for each in sources(router, 6)),
                what="the other prefix",
                deadline_s=20,
            )
            assert not any(each.startswith("2001:db8:0:1:") for each in sources(router, 6))
            # The former one is deprecated, and still ours.
            assert now(long) == before
            ends = [event for event in long.stop() if event.event == "end"]
            assert not any(event.broken or event.longest_gap_ms > 1000 for event in ends), ends
        assert not any("Traceback" in line or "error" in line for line in watcher.lines)
        assert (router.foreign(), router.idle()) == (0, True)


def test_a_lan_is_followed_too(tmp_path: Path) -> None:
    text = configuration()
    with rig(tmp_path, text) as router:
        isps, lan, rest = text.partition("[[lan]]")
        router.configure(isps + lan + re.sub(r"^address = .*$", 'address = "auto"', rest, flags=re.MULTILINE))
        router.rebuild()
        followed = router.dump()
        assert router.idle()
        router.configure(text)
        router.rebuild()
        assert sorted(router.dump()) == sorted(followed)
        assert len(sources(router)) == len(sources(router, 6)) == 2


def test_a_family_that_no_isp_has_an_address_of_is_left_to_main(tmp_path: Path) -> None:
    with bare(tmp_path) as router:
        router.shell("ip address add 1.1.1.1/24 dev eth2\nip route add default via 1.1.1.2 dev eth2 metric 2\n")
        router.shell("ip -6 route add default dev lo\n")
        assert "up ISP1, down ISP2 (interface eth3 has no IPv4 address)" in router.rebuild()
        lines = router.shell("ip6tables-save -t mangle\n").splitlines()
        assert not any(line.startswith("-A LSMPY-C-") for line in lines)


def test_the_script_of_a_dry_run_is_of_this_moment(tmp_path: Path) -> None:
    with bare(tmp_path) as router:
        router.shell("ip address add 1.1.1.7/24 dev eth2\nip route add default via 1.1.1.2 dev eth2 metric 2\n")
        router.shell(router.reconfig("--dry-run").out)
        assert sources(router) == {"1.1.1.7"}
        assert router.idle()
