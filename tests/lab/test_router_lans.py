"""Traffic between LANs: several networks on one interface, one behind another router, dots in names, hairpins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lsmpy import command, flows
from lsmpy.lab import ROUTER, lan_node
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import Rig, Talk, configuration, rig, source

DEV, RND = lan_node("dev"), lan_node("rnd")
NEIGHBOUR = "neighbour"  # a second host of LAN dev, in the other network of its interface
ISPS = {"ISP1", "ISP2"}
PROTOS: tuple[flows.Proto, ...] = ("tcp", "udp")
NETWORKS = ["192.168.1.254/24", "fd00:a:0:1::1/64", "10.1.0.254/24", "fd00:a:0:11::1/64"]
HOSTS = {
    DEV: ("192.168.1.1", "fd00:a:0:1::2"),
    NEIGHBOUR: ("10.1.0.9", "fd00:a:0:11::9"),
    RND: ("192.168.2.1", "fd00:a:0:2::2"),
}
BEHIND = ("10.77.0.1", "fd00:77::1")  # an address in a network that is reached over LAN dev's host


def several_networks(backend: str, more: str = "", router: str = "") -> str:
    """LAN dev has two networks of each family on one interface; names have dots, as those of VLANs have."""
    text = configuration(backend=backend, more=more, router=router)
    old = str(NETWORKS[:2])
    assert old in text
    text = text.replace(old, str(NETWORKS))
    return text.replace('"eth0"', '"eth0.10"').replace('"eth3"', '"eth3.7"')


@contextmanager
def neighbour(router: Rig) -> Iterator[None]:
    """The second host of LAN dev, a macvlan on the first one's cable; what it says to that one goes over the router.

    It must not be told that there is a shorter way (ICMP redirect): a macvlan has none to the owner of its cable.
    """
    command.run("ip", "netns", "add", NEIGHBOUR)
    try:
        link = "ip link add link router name port netns neighbour type macvlan mode bridge\n"
        router.lab.shell(DEV, f"ip addr del 10.1.0.1/24 dev router\nip addr del fd00:a:0:11::2/64 dev router\n{link}")
        v4, v6 = HOSTS[NEIGHBOUR]
        router.lab.shell(
            NEIGHBOUR,
            "cd /proc/sys/net/ipv6/conf/port\necho 0 > accept_dad\necho 0 > accept_redirects\n"
            "ip link set lo up\nip link set port name router up\n"
            f"ip addr add {v4}/24 dev router\nip addr add {v6}/64 dev router nodad\n"
            "ip route add default via 10.1.0.254\nip route add default via fd00:a:0:11::1\n",
        )
        yield
    finally:
        command.run("ip", "netns", "delete", NEIGHBOUR)


def calls(router: Rig, node: str, to: Sequence[str], port: int = 7000) -> list[str]:
    """As whom a host is seen by servers."""
    return router.talk(node, [Talk(each, "tcp", port=port) for each in to])


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_networks_on_one_interface_and_behind_another_router(tmp_path: Path, backend: str) -> None:
    with rig(tmp_path, several_networks(backend), "ISP1") as router, neighbour(router):
        hops = {"10.77.0.0/16": HOSTS[DEV][0], "fd00:77::/64": HOSTS[DEV][1]}
        router.lab.shell(DEV, "".join(f"ip addr add {each} dev lo\n" for each in BEHIND))
        router.shell("".join(f"ip route add {net} via {hop}\n" for net, hop in hops.items()))
        router.rebuild()
        for node in HOSTS:
            router.listen(node, 7000)
        strayed = [router.arrived(isp, f"-d {to}", f) for isp in ISPS for f, to in zip(FAMILIES, BEHIND, strict=True)]
        for down in ("", "ISP1"):
            router.say("ISP1", "down" if down else "up")
            router.rebuild()
            for node, me in HOSTS.items():
                for other, there in HOSTS.items():
                    if other != node:
                        assert calls(router, node, there) == list(me), (node, other)
                if node != DEV:
                    assert calls(router, node, BEHIND) == list(me)
                sent = router.ask(node, [str(router.lab.server[family]) for family in FAMILIES], PROTOS, 8)
                assert {flow.isp for flow in sent} == ISPS - {down}, node
            asks = [
                Talk(str(router.lab.server[family]), proto, address)
                for family, address in zip(FAMILIES, BEHIND, strict=True)
                for proto in PROTOS
            ]
            answers = router.talk(DEV, asks * 4)
            seen = {source(isp, family) for isp in ISPS - {down} for family in FAMILIES}
            assert {answer.split()[-1] for answer in answers} == seen
        assert [count() for count in strayed] == [0, 0, 0, 0]
        assert router.foreign() == 0
        assert router.idle()


def test_the_script_knows_names_with_dots(tmp_path: Path) -> None:
    with rig(tmp_path, several_networks("auto")) as router:
        (tmp_path / "script").write_text(router.reconfig("--dry-run").out)
        router.shell(f"sh {tmp_path}/script\n")
        assert router.shell("cat /proc/sys/net/ipv4/conf/eth3.7/src_valid_mark\n") == "1\n"
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == ISPS
        assert router.reconfig("--diff").out == ""


def hairpin_rules(place: Path, family: Family) -> str:
    """What an administrator writes for a server behind the router that everybody calls by the public addresses."""
    server = HOSTS[DEV][0 if family == 4 else 1]
    inside = "192.168.1.0/24" if family == 4 else "fd00:a:0:1::/64"
    target = f"{server}:7000" if family == 4 else f"[{server}]:7000"
    path = place / f"rules.v{family}"
    path.write_text(
        "*nat\n"
        f"-A PREROUTING -p tcp -m tcp --dport 7001 -m addrtype --dst-type LOCAL -j DNAT --to-destination {target}\n"
        f"-A POSTROUTING -s {inside} -d {server} -p tcp -m tcp --dport 7000 -j MASQUERADE\n"
        "COMMIT\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("backend", "options"), [("nft", ""), ("legacy", 'balance = "hash"\nmark_mask = 0xff00'), ("nft", "tiers")]
)
def test_hairpins_to_the_own_public_address(tmp_path: Path, backend: str, options: str) -> None:
    """From the server's own LAN, itself included, from another LAN, to the addresses of ISPs that are up or down."""
    v4, v6 = (hairpin_rules(tmp_path, family) for family in FAMILIES)
    more = f'[rules]\nipv4 = ["{v4}"]\nipv6 = ["{v6}"]\n'
    text = several_networks(backend, more, "" if options == "tiers" else options)
    if options == "tiers":
        text = text.replace('name = "ISP2"\n', 'name = "ISP2"\ntier = 2\n')
    routers_own = ["192.168.1.254", "fd00:a:0:1::1"]
    with rig(tmp_path, text) as router, neighbour(router):
        router.rebuild()
        for node in (DEV, ROUTER):
            router.listen(node, 7000)
        for down in ("", "ISP2"):
            router.say("ISP2", "down" if down else "up")
            router.rebuild()
            for isp in ISPS:
                public = [source(isp, family) for family in FAMILIES]
                for node in (RND, NEIGHBOUR):
                    assert calls(router, node, public, 7001) == list(HOSTS[node]), (node, isp)
                    assert calls(router, node, public, 7000) == list(HOSTS[node]), "the router's own service"
                assert calls(router, DEV, public, 7001) == routers_own
                assert calls(router, DEV, public, 7000) == list(HOSTS[DEV])
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == {"ISP1"}
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stays_inside_takes_no_turn(tmp_path: Path, family: Family) -> None:
    """One connection inside after each one to the internet: if it took a turn, all of these would go by one ISP."""
    place = FAMILIES.index(family)
    with rig(tmp_path, several_networks("nft")) as router:
        router.rebuild()
        for node in (ROUTER, DEV):
            router.listen(node, 7000)
        for inside in (HOSTS[DEV][place], NETWORKS[2 + place].split("/")[0], source("ISP1", family)):
            isps = []
            for _ in range(4):
                isps += [flow.isp for flow in router.send(1, ("udp",), [family], "rnd")]
                assert calls(router, RND, [inside]) == [HOSTS[RND][place]]
            assert sorted(isps) == ["ISP1"] * 2 + ["ISP2"] * 2, inside
