"""What a policy means, read plainly from the configuration, held against the rules of generated routers."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import event, given, settings

from lsmpy import plan, state
from lsmpy.model import Family, Lan, Policy, Router
from tests.conftest import isps_of, router_of
from tests.property.evaluator import UNREACHABLE, Connection, Netfilter, Packet, route
from tests.property.routers import Scene, client, networks, scenes
from tests.property.test_promises import chosen, dice, of_mark, ways

pytestmark = pytest.mark.long

SERVICES = [("udp", 53), ("tcp", 443), ("tcp", 5070), ("udp", 7777), ("tcp", 8010), ("tcp", 9000), ("icmp", 0)]


def matches(policy: Policy, lan: Lan, packet: Packet) -> bool:
    def inside(address: str, texts: tuple[str, ...]) -> bool:
        return not texts or any(ip_address(address) in ip_network(text) for text in texts)

    def serves(item: int | str) -> bool:
        first, _, last = str(item).partition("-")
        return int(first) <= packet.port <= int(last or first)

    return (
        inside(packet.target, policy.to)
        and inside(packet.source, policy.from_)
        and (not policy.lan or lan.name in policy.lan)
        and (not policy.protocol or packet.protocol.removeprefix("ipv6-") in policy.protocol)
        and (not policy.ports or any(map(serves, policy.ports)))
    )


def some_packet(lan: Lan, family: Family, chance: random.Random) -> Packet:
    protocol, port = chance.choice(SERVICES)
    target = ip_network(chance.choice(networks(family)))
    to = target[chance.randrange(min(target.num_addresses, 300))] if chance.random() < 0.9 else target[-1] + 1
    protocol = "ipv6-icmp" if (protocol, family) == ("icmp", 6) else protocol
    flags = "SYN" if protocol == "tcp" else ""
    way = lan.interface
    return Packet(client(lan, family), str(to), Connection(), into=way, protocol=protocol, port=port, flags=flags)


@settings(max_examples=60)
@given(scenes(with_policies=True), dice)
def test_the_first_policy_that_matches_sends_to_its_first_isp_that_is_up(scene: Scene, chance: random.Random) -> None:
    mask = scene.router.options.mark_mask
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        for _ in range(40):
            packet = some_packet(lan, family, chance)
            policy = next((each for each in scene.router.policies if matches(each, lan, packet)), None)
            use = [name for name in (policy.use if policy else ()) if name in scene.usable(family)]
            before = rules.counts()
            assert rules.mangle("PREROUTING", packet)
            if use:
                assert of_mark(scene.router, packet.mark).name == use[0]
                assert packet.connection
                assert packet.connection.mark == packet.mark
                assert rules.counts() == before, "it has taken somebody's turn"
                event("sent to an ISP of its own")
            elif policy and policy.otherwise == "unreachable":
                assert packet.mark & mask == scene.router.refusal
                assert packet.connection == Connection(), "it would be refused for ever"
                assert route(side, packet, scene.main(family, "wan0")) == UNREACHABLE
                event("refused")
            else:
                again = some_packet(lan, family, chance)
                again.source, again.target, again.protocol = packet.source, packet.target, packet.protocol
                again.port, again.flags = packet.port, packet.flags
                assert chosen(scene, family, rules, side, again).name in scene.allowed(family)
                event("balanced" if policy else "balanced, as no policy is about it")


@settings(max_examples=30)
@given(scenes(with_policies=True), dice)
def test_what_is_refused_by_policy_still_goes_where_main_knows_better(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        packet = some_packet(lan, family, chance)
        assert rules.mangle("PREROUTING", packet)
        assert route(side, packet, scene.main(family) | {f"{packet.target}": "tun0"}) == "tun0"


def test_hundreds_of_networks_cost_a_packet_few_rules() -> None:
    """Three policies of 233 networks each, which as plain lists would be 699 rules for whatever is in none of them."""
    text = isps_of(2, "4") + "[[lan]]\nname = 'L'\ninterface = 'lan'\naddress = '192.168.0.1/24'\n"
    many = [
        f"[[policy]]\nname = 'P{n}'\nuse = 'I1'\nto = {[f'{n}.{m}.0.0/17' for m in range(233)]}\n" for n in (20, 21, 22)
    ]

    def met(router: Router, target: str) -> int:
        (side,) = plan.build(router, {isp.name: state.judge(None) for isp in router.isps}, None).sides
        rules = Netfilter(side)
        rules.mangle("PREROUTING", Packet("192.168.0.9", target, Connection(), into="lan"))
        return rules.met

    plain = met(router_of(text), "203.0.113.1")
    router = router_of("".join([text, *many]))
    costs = [met(router, to) - plain for to in ("20.0.0.1", "22.232.127.255", "22.232.128.0", "203.0.113.1")]
    assert costs[0] < 15
    assert max(costs) < 55
