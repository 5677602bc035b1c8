"""Policies: who goes where by destination, source, LAN, protocol and port, on the real kernel (R1, R2)."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from lsmpy.lab import lan_node
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, Talk, configuration, rig
from tests.lab.test_router_shares import CLIENTS, SERVERS, choose, prepare

pytestmark = pytest.mark.lab

ELSEWHERE = [f"198.19.{n}.{m}/26" for n in range(60) for m in (0, 128, 192)] + [
    f"2001:db8:5{n:03x}::/48" for n in range(99)
]


def answers(router: Rig, lan: str, *, proto: str = "tcp", port: int = 7777, times: int = 4) -> dict[Family, set[str]]:
    """Who carries questions to the internet's server, or what the asker is told instead."""
    found: dict[Family, set[str]] = {}
    for family, server in router.lab.server.items():
        said = router.talk(lan_node(lan), [Talk(str(server), proto, port=port)] * times)  # type: ignore[arg-type]
        found[family] = {line.split()[0] if line.startswith("ISP") else line for line in said}
    return found


def everywhere(*said: str) -> dict[Family, set[str]]:
    return {family: set(said) for family in FAMILIES}


def policy(name: str, **keys: object) -> str:
    lines = [f"{key.rstrip('_')} = {value!r}" for key, value in {"name": name, **keys}.items()]
    return "\n".join(["[[policy]]", *lines, ""])


@pytest.mark.parametrize(
    ("backend", "mask", "balance"), [("nft", 0xFFFFFFFF, "nth"), ("legacy", 0xFF00, "nth"), ("nft", 0xF0, "hash")]
)
def test_the_first_of_use_that_is_up_carries_it(tmp_path: Path, backend: str, mask: int, balance: str) -> None:
    server = ["198.51.100.10", "2001:db8:ffff::/48"]
    policies = policy("others", to=ELSEWHERE, use=["ISP2"]) + policy("bank", to=server, use=["ISP3", "ISP1"])
    text = configuration((1, 1, 1), "snat", backend, f'mark_mask = {mask:#x}\nbalance = "{balance}"', policies)
    with rig(tmp_path, text, "ISP2") as router:
        for down, carrier in ((), "ISP3"), (("ISP3",), "ISP1"), (("ISP2",), "ISP3"), (("ISP1", "ISP3"), "ISP2"):
            for isp in ("ISP1", "ISP2", "ISP3"):
                router.say(isp, "down" if isp in down else "up")
            router.rebuild()
            for lan in (LAN, "rnd"):
                assert answers(router, lan) == everywhere(carrier)
                assert answers(router, lan, proto="udp") == everywhere(carrier)
        assert router.foreign() == 0
        assert router.idle()


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_policy_is_about_is_balanced_and_loses_no_turn(tmp_path: Path, backend: str, family: Family) -> None:
    """Between the connections of the policy, those of the others still take exact turns."""
    policies = policy("many", to=ELSEWHERE, use=["ISP2"]) + policy("tcp", protocol="tcp", use=["ISP1"])
    with rig(tmp_path, configuration((2, 1), "snat", backend, more=policies)) as router:
        router.rebuild()
        sent = router.send(120, ("udp", "tcp"), [family])
        assert {flow.isp for flow in sent if flow.proto == "tcp"} == {"ISP1"}
        datagrams = [flow.isp for flow in sent if flow.proto == "udp"]
        assert (datagrams.count("ISP1"), datagrams.count("ISP2")) == (40, 20)
        assert all(len(set(datagrams[start : start + 3])) == 2 for start in range(57))
        assert router.foreign() == 0


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_every_way_to_match_does_and_the_first_wins(tmp_path: Path, backend: str) -> None:
    ports = [7000, "6000-6010", *range(5000, 5040, 2), "7770-7778"]
    policies = [
        policy("ping", protocol="icmp", use="ISP2"),
        policy("no-such-port", protocol=["tcp", "udp"], ports=[7776, "7778-7800"], use="ISP3"),
        policy("guests", lan=["rnd"], use="ISP3"),
        policy("many-ports", protocol="tcp", ports=ports, use="ISP1"),
        policy("all-lans", lan=[LAN, "rnd"], from_=["192.168.1.1", "fd00:a:0:1::/64", *ELSEWHERE], use="ISP2"),
        policy("all", use="ISP3"),
    ]
    with rig(tmp_path, configuration((1, 1, 1), backend=backend, more="\n".join(policies))) as router:
        router.rebuild()
        assert router.idle()
        assert answers(router, LAN) == everywhere("ISP1")
        assert answers(router, LAN, proto="udp") == everywhere("ISP2")
        assert answers(router, "rnd") == answers(router, "rnd", proto="udp") == everywhere("ISP3")
        for family, server in router.lab.server.items():
            seen = [
                router.arrived(f"ISP{n}", f"-p {'icmp' if family == 4 else 'ipv6-icmp'} -d {server}", family)
                for n in (1, 2, 3)
            ]
            router.lab.run(lan_node(LAN), "ping", "-c3", "-i0.02", "-W1", str(server))
            assert [count() for count in seen] == [0, 3, 0]
        assert router.foreign() == 0


@pytest.mark.parametrize(
    ("backend", "mask", "tiers"), [("nft", 0xFFFFFFFF, False), ("nft", 0xFF00, True), ("legacy", 0xFF00, False)]
)
def test_what_nobody_may_carry_is_refused_and_comes_back(
    tmp_path: Path, backend: str, mask: int, *, tiers: bool
) -> None:
    """The sender is told at once; the connection is not spoilt for the moment in which the ISP is back."""
    text = configuration(
        (1, 1),
        "snat",
        backend,
        f"mark_mask = {mask:#x}",
        policy("voip", protocol="udp", use="ISP2", otherwise="unreachable"),
    )
    if tiers:
        text = text.replace('name = "ISP2"\n', 'name = "ISP2"\ntier = 2\n')
    others = everywhere("ISP1") if tiers else everywhere("ISP1", "ISP2")
    with rig(tmp_path, text, "ISP1") as router:
        before = router.dump()
        router.rebuild()
        assert answers(router, LAN, proto="udp") == everywhere("ISP2")
        assert answers(router, LAN) == others
        router.say("ISP2", "down")
        router.rebuild()
        told = answers(router, LAN, proto="udp", times=1)
        assert told == {4: {"[Errno 113] No route to host"}, 6: {"[Errno 13] Permission denied"}}
        assert answers(router, LAN) == everywhere("ISP1")
        assert router.idle()
        router.say("ISP2", "up")
        router.shell(router.reconfig("--dry-run").out)
        assert router.idle()
        assert answers(router, LAN, proto="udp") == everywhere("ISP2")
        router.say("ISP1", "down")
        router.say("ISP2", "down")
        router.rebuild()
        assert answers(router, LAN, proto="udp") == everywhere("ISP2"), "none is up, so all are used"
        assert router.foreign() == 0
        router.configure(text.partition("[[policy]]")[0])
        router.rebuild()
        assert not any("POLICY" in line or " 8 proto" in line for line in router.dump())
        router.rebuild("--clear")
        assert router.dump() == before


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_hundreds_of_networks_each_is_known(tmp_path: Path, family: Family, backend: str) -> None:
    """Every second of the servers and of the clients, one by one; what is not of both is another policy's."""
    sets = [[str(ip_address(first[family]) + n) for n in range(1, 100, 2)] for first in (SERVERS, CLIENTS)]
    policies = policy("odd", to=sets[0], from_=sets[1], use="ISP2") + policy("rest", to=sets[0], use="ISP3")
    with rig(tmp_path, configuration((1, 1, 1), backend=backend, more=policies)) as router:
        prepare(router)
        chosen = choose(router, family, 40, 40)
        for (client, server), isp in chosen.items():
            odd = [int(text[-1], 16) % 2 for text in (client, server)]
            assert isp == "ISP2" if odd == [1, 1] else isp == "ISP3" if odd[1] else True, (client, server)
        others = {isp for (_, server), isp in chosen.items() if not int(server[-1], 16) % 2}
        assert others == {"ISP1", "ISP2", "ISP3"}
        assert router.foreign() == 0
        assert router.idle()
