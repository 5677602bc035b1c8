"""What "auto" becomes: what the interface has, and what stays while it has nothing."""

from __future__ import annotations

import msgspec
import pytest

from lsmpy import plan, resolve, state
from lsmpy.model import Family, Router
from lsmpy.plan import Plan, Side
from lsmpy.routing import Link
from tests.conftest import router_of

ISPS = """
[nat]
ipv6 = "snat"
[[isp]]
name = "DSL"
interface = "ppp0"
address = "auto"
gateway = "none"
check = "203.0.113.1"
[[isp]]
name = "CABLE"
interface = "eth3"
address = "auto"
gateway = "auto"
check = "203.0.113.1"
[[lan]]
name = "office"
interface = "lan0"
address = "auto"
"""
PPP = Link(True, True, frozenset({"10.64.0.2"}), 1492, ("10.64.0.2/32",), ("0.0.0.0",))
CABLE = Link(
    True,
    True,
    frozenset({"192.0.2.7", "2001:db8:7::7", "fe80::7"}),
    1500,
    ("192.0.2.7/24", "2001:db8:7::7/64"),
    ("192.0.2.1", "fe80::1"),
)
LAN = Link(True, True, frozenset({"10.0.0.1"}), 1500, ("10.0.0.1/24",))
ALL = {"ppp0": PPP, "eth3": CABLE, "lan0": LAN}


def plan_of(links: dict[str, Link], router: Router | None = None) -> Plan:
    router = router or router_of(ISPS)
    states = {isp.name: state.judge(None) for isp in router.isps}
    return plan.build(resolve.resolve(router, links), states, links)


def side(made: Plan, family: Family) -> Side:
    return next(each for each in made.sides if each.family == family)


def rules(made: Plan, table: str, chain: str, family: Family = 4) -> list[str]:
    (found,) = (each for each in side(made, family).table(table).chains if each.name == chain)
    return [rule.removeprefix(f"-A {chain} ") for rule in found.rules]


def ways(made: Plan, table: int, family: Family = 4) -> list[str]:
    routes = (route.words() for route in side(made, family).routes if route.table == table)
    return [words.replace(f" table {table} proto 76", "") for words in routes]


def test_each_isp_has_what_its_interface_has() -> None:
    made = plan_of(ALL)
    assert made.summary == "up DSL CABLE"
    assert not any(verdict.broken for verdict in made.verdicts)  # IPv6 is more than DSL has promised
    assert rules(made, "nat", "LSMPY-POSTROUTING") == [
        "-o ppp0 -j SNAT --to-source 10.64.0.2",
        "-o eth3 -j SNAT --to-source 192.0.2.7",
    ]
    assert ways(made, 250)[-2:] == ["default dev ppp0", "unreachable default metric 4294967295"]
    assert "default via 192.0.2.1 dev eth3" in ways(made, 249)
    assert "default via fe80::1 dev eth3 metric 1024" in ways(made, 249, 6)
    assert "10.0.0.0/24 dev lan0 src 10.0.0.1" in ways(made, 249)
    assert rules(made, "mangle", "LSMPY-C-office", 6) == ["-g LSMPY-M-CABLE"]
    assert len(rules(made, "mangle", "LSMPY-C-office")) == 2
    selectors = {rule.selector for rule in side(made, 6).rules}
    assert {"from 2001:db8:7::7", "oif eth3", "oif ppp0"} <= selectors


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (None, "there is no interface eth3"),
        (Link(True, True, frozenset()), "interface eth3 has no IPv4 address"),
        (
            Link(True, True, frozenset({"192.0.2.7"}), 0, ("192.0.2.7/24",)),
            "interface eth3 has no IPv4 default route in the main table",
        ),
    ],
)
def test_an_isp_that_has_not_all_it_needs_is_down_and_keeps_what_lets_nothing_through(
    link: Link | None, why: str
) -> None:
    links = {name: each for name, each in ALL.items() if name != "eth3"} | ({"eth3": link} if link else {})
    made = plan_of(links)
    assert made.verdicts[1] == plan.Verdict("CABLE", False, why, broken=True)
    assert rules(made, "mangle", "LSMPY-C-office") == ["-g LSMPY-M-DSL"]
    assert not any(way.startswith("default") for way in ways(made, 249))
    assert ways(made, 249)[-1] == "unreachable default metric 4294967295"
    assert {"fwmark 0x2", "oif eth3"} <= {rule.selector for rule in side(made, 4).rules}
    if not (link and link.own):
        assert rules(made, "nat", "LSMPY-POSTROUTING") == ["-o ppp0 -j SNAT --to-source 10.64.0.2"]
        assert rules(made, "mangle", "LSMPY-O-CABLE")[-2:] == ["-s 0.0.0.0/32 -j RETURN", "-j DROP"]
        assert rules(made, "mangle", "LSMPY-O-CABLE", 6)[-2:] == ["-s fe80::/10 -j RETURN", "-j DROP"]


def test_with_nothing_there_nobody_is_chosen_and_nothing_is_promised() -> None:
    made = plan_of({})
    assert rules(made, "mangle", "LSMPY-C-office") == rules(made, "mangle", "LSMPY-C-office", 6) == []
    assert [each.family for each in made.sides] == [4, 6]


def test_what_a_file_says_is_not_touched() -> None:
    router = router_of(ISPS.replace('address = "auto"\ngateway = "auto"', 'address = "1.1.1.1/24"\ngateway = "auto"'))
    resolved = resolve.resolve(router, ALL)
    assert [str(each) for each in resolved.isps[1].addresses(4)] == ["1.1.1.1/24"]
    assert not resolved.isps[1].carries(6)
    assert resolve.resolve(resolved, ALL).isps[0].name == "DSL"
    fixed = router_of(ISPS.replace('"none"', '"10.64.0.1"'))
    assert [str(each.next_hop(4)) for each in resolve.resolve(fixed, {}).isps] == ["10.64.0.1", "None"]


def test_a_machine_without_ipv6_is_asked_for_none_unless_the_file_says_so() -> None:
    router = router_of(ISPS)
    assert resolve.on_machine(router, (4, 6)) is router
    assert resolve.on_machine(router, (4,)).families == (4,)
    named = router_of(ISPS + '[rules]\nipv6 = ["/etc/lsmpy/rules.v6"]\n')
    assert resolve.on_machine(named, (4,)).families == (4, 6)


def test_connections_of_an_address_that_is_first_no_more_go_on() -> None:
    links = ALL | {"ppp0": msgspec.structs.replace(PPP, own=("10.64.0.2/32", "10.64.0.3/32"))}
    assert rules(plan_of(links), "nat", "LSMPY-POSTROUTING")[:2] == [
        "-s 10.64.0.3/32 -o ppp0 -j RETURN",
        "-o ppp0 -j SNAT --to-source 10.64.0.2",
    ]
    assert "-m conntrack --ctrepldst 10.64.0.3 --ctdir ORIGINAL -j RETURN" in rules(
        plan_of(links), "mangle", "LSMPY-O-DSL"
    )
