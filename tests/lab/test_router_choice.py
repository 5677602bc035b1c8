"""Who gets a new connection: one ISP that is up, in exact shares, or main where main knows better (R1, R5, R6, R8)."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lsmpy import flows
from lsmpy.lab import INTERNET, ROUTER, lan_node, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, Talk, configuration, rig, source, tunnel

pytestmark = pytest.mark.lab

PROTOS: tuple[flows.Proto, ...] = get_args(flows.Proto)
LANS = (LAN, "rnd")
# Weights, NAT of IPv6, iptables, whose default main has, rp_filter of everything before the first rebuild.
ROUTERS = [
    ((1, 1), "snat", "nft", None, "2"),
    ((1, 1), "none", "legacy", "ISP1", "1"),
    ((3, 1), "none", "nft", "ISP2", "1"),
    ((3, 1), "snat", "legacy", None, "1"),
    ((5, 3, 2), "snat", "nft", "ISP3", "1"),
    ((5, 3, 2), "none", "nft", None, "1"),
    ((5, 3, 2), "none", "legacy", "ISP1", "2"),
]


def strict(router: Rig, value: str) -> None:
    router.shell(f"for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} > $file; done\n")


@pytest.mark.parametrize(("weights", "ipv6", "backend", "default", "rp_filter"), ROUTERS)
def test_each_new_connection_goes_by_one_isp_that_is_up(
    tmp_path: Path, weights: tuple[int, ...], ipv6: str, backend: str, default: str | None, rp_filter: str
) -> None:
    with rig(tmp_path, configuration(weights, ipv6, backend), default) as router:
        strict(router, rp_filter)
        everyone = {f"ISP{number}" for number in range(1, len(weights) + 1)}
        for up in (everyone, everyone - {"ISP2"}, {"ISP2"}):
            for isp in everyone:
                router.say(isp, "up" if isp in up else "down")
            router.rebuild()
            for lan in LANS:
                sent = [(lan, flow) for flow in router.send(4 * sum(weights), PROTOS, FAMILIES, lan)]
                for family in FAMILIES:
                    assert {flow.isp for _, flow in sent if flow.family == family} == up, sent
                for _, flow in sent:
                    host = str(router.lab.host(lan, flow.family))
                    kept = flow.family == 6 and ipv6 == "none"
                    assert flow.source == (host if kept else source(flow.isp, flow.family))
                assert flows.tracked(router.lab, sent) == {each: each[1].isp for each in sent}
        assert router.foreign() == 0
        assert router.idle()


@pytest.mark.parametrize("lan", LANS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("weights", "backend"), [((1, 1), "nft"), ((3, 1), "legacy"), ((5, 3, 2), "nft")])
def test_shares_are_exact_in_every_window_of_a_hundred(
    tmp_path: Path, weights: tuple[int, ...], backend: str, family: Family, lan: str
) -> None:
    other = next(each for each in LANS if each != lan)
    with rig(tmp_path, configuration(weights, backend=backend)) as router:
        router.rebuild()
        # What another LAN and the other family do meanwhile takes nobody's turn.
        with flows.Stream(router.lab, other, 100, families=FAMILIES) as stream:
            wait_until(lambda: stream.flows, what="the other flows")
            sent = router.send(300, PROTOS, [family], lan)
        assert all(flow.ok for flow in sent)
        for start in range(len(sent) - 99):
            window = [flow.isp for flow in sent[start : start + 100]]
            for number, weight in enumerate(weights, 1):
                assert abs(window.count(f"ISP{number}") - 100 * weight / sum(weights)) <= 1, (start, window)


@pytest.mark.parametrize("default", [None, "ISP1", "ISP2"])
def test_what_main_knows_better_goes_there(tmp_path: Path, default: str | None) -> None:
    """A VPN: a tun device, and static routes over it. What comes out of the device is what the LANs have sent."""
    there: dict[Family, str] = {4: "10.50.0.1", 6: "fd50::1"}
    with rig(tmp_path, configuration(), default) as router:
        with tunnel(router.lab, ROUTER, "tun0", "--answer") as seen:
            router.shell(
                "ip addr add 10.99.0.1/30 dev tun0\nip addr add fd99::1/64 dev tun0 nodad\n"
                "ip route add 10.50.0.0/16 via 10.99.0.2\nip route add fd50::/16 via fd99::2\n"
            )
            strayed = [router.arrived(isp, f"-d {to}", f) for isp in ("ISP1", "ISP2") for f, to in there.items()]
            router.rebuild()
            talks = [Talk(to, proto) for to in there.values() for proto in PROTOS] * 3
            for lan in LANS:
                assert router.talk(lan_node(lan), talks) == ["once"] * len(talks)
                for to in there.values():
                    router.lab.run(lan_node(lan), "ping", "-c3", "-i0.02", "-W1", to)
                assert {flow.isp for flow in router.send(8, PROTOS, FAMILIES, lan)} == {"ISP1", "ISP2"}
        hosts = [(str(router.lab.host(lan, family)), to, family) for lan in LANS for family, to in there.items()]
        # The router itself looks for IPv6 routers and tells its groups.
        assert {line.strip() for line in seen[1:] if " ff02::" not in line} == {
            f"{host} {to} {n}" for host, to, family in hosts for n in (6, 17, 1 if family == 4 else 58)
        }
        assert [count() for count in strayed] == [0, 0, 0, 0]
        assert router.foreign() == 0


def test_lans_reach_each_other_and_the_router_itself(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), "ISP1") as router:
        router.rebuild()
        for node in (ROUTER, lan_node("rnd")):
            router.listen(node, 7000)
        me, other = ([str(router.lab.host(lan, family)) for family in FAMILIES] for lan in LANS)
        targets = ["192.168.1.254", "fd00:a:0:1::1", *other]
        assert router.talk(lan_node(LAN), [Talk(to, "tcp", port=7000) for to in targets]) == me * 2


@pytest.mark.parametrize("default", [None, "ISP1", "ISP2"])
@pytest.mark.parametrize(("ipv6", "backend"), [("snat", "nft"), ("none", "legacy")])
def test_a_socket_bound_to_an_isp_uses_it(tmp_path: Path, ipv6: str, backend: str, default: str | None) -> None:
    with rig(tmp_path, configuration((1, 1), ipv6, backend), default) as router:
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


@pytest.mark.parametrize("default", [None, "ISP1"])
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_comes_in_by_an_isp_is_answered_by_it(tmp_path: Path, backend: str, default: str | None) -> None:
    """To the router itself, and to a host behind it, as a [rules] file forwards it."""
    forward = "*nat\n-A PREROUTING -i eth+ -p tcp -m tcp --dport 7001 -j DNAT --to-destination {}\nCOMMIT\n"
    (tmp_path / "v4").write_text(forward.format("192.168.1.1:7000"))
    (tmp_path / "v6").write_text(forward.format("[fd00:a:0:1::2]:7000"))
    rules = f'[rules]\nipv4 = ["{tmp_path}/v4"]\nipv6 = ["{tmp_path}/v6"]\n'
    with rig(tmp_path, configuration(backend=backend, more=rules), default) as router:
        assert [str(router.lab.host(LAN, family)) for family in FAMILIES] == ["192.168.1.1", "fd00:a:0:1::2"]
        router.rebuild()
        for node in (ROUTER, lan_node(LAN)):
            router.listen(node, 7000)
        talks = [
            Talk(source(isp, family), "tcp", str(server), router.lab.link(isp), port)
            for isp in ("ISP1", "ISP2")
            for family, server in router.lab.server.items()
            for port in (7000, 7001)
        ]
        assert router.talk(INTERNET, talks) == [talk.address for talk in talks]
        assert router.foreign() == 0
