"""Routes, rules and links: the words for `ip`, and what `ip -json` says."""

from __future__ import annotations

import msgspec
import pytest

from lsmpy import routing
from lsmpy.routing import REFUSED, Link, Route, Rule


def test_a_default_in_words() -> None:
    made = routing.unicast(4, 250, "default", "eth2", "1.1.1.2", None)
    assert made.words() == "default via 1.1.1.2 dev eth2 table 250 proto 76"


def test_a_network_in_words_with_its_source() -> None:
    made = routing.unicast(4, 250, "1.1.1.0/24", "eth2", None, "1.1.1.1")
    assert made.words() == "1.1.1.0/24 dev eth2 table 250 proto 76 src 1.1.1.1"


def test_a_route_of_ipv6_has_the_metric_that_the_kernel_gives_it() -> None:
    made = routing.unicast(6, 250, "default", "eth2", "fe80::1", None)
    assert made.words() == "default via fe80::1 dev eth2 table 250 proto 76 metric 1024"


@pytest.mark.parametrize("family", [4, 6])
def test_the_end_of_a_table_is_unreachable_and_last(family: int) -> None:
    made = routing.unreachable(family, 250)
    assert made.words() == "unreachable default table 250 proto 76 metric 4294967295"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            Rule(20000, "", 254, suppress_default=True),
            "pref 20000 from all lookup 254 suppress_prefixlength 0 protocol 76",
        ),
        (Rule(20001, "from 1.1.1.1", 250), "pref 20001 from 1.1.1.1 lookup 250 protocol 76"),
        (Rule(20001, "oif eth2", 250), "pref 20001 oif eth2 lookup 250 protocol 76"),
        (Rule(20002, routing.fwmark(1, 0xFFFFFFFF), 250), "pref 20002 fwmark 0x1 lookup 250 protocol 76"),
        (Rule(20002, routing.fwmark(0x100, 0xFF00), 250), "pref 20002 fwmark 0x100/0xff00 lookup 250 protocol 76"),
        (Rule(32766, "", 254, protocol=0), "pref 32766 from all lookup 254"),
    ],
)
def test_rules_in_words(rule: Rule, words: str) -> None:
    assert rule.words() == words


@pytest.mark.parametrize(
    ("item", "rule"),
    [
        (
            {"priority": 20000, "src": "all", "table": "254", "suppress_prefixlen": 0, "protocol": "76"},
            Rule(20000, "", 254, suppress_default=True),
        ),
        ({"priority": 20001, "src": "1.1.1.1", "table": "250", "protocol": "76"}, Rule(20001, "from 1.1.1.1", 250)),
        (
            {"priority": 7, "src": "10.0.0.0", "srclen": 8, "dst": "192.0.2.1", "table": "250", "protocol": "3"},
            Rule(7, "from 10.0.0.0/8 to 192.0.2.1", 250, protocol=3),
        ),
        (
            {"priority": 20001, "src": "all", "oif": "eth2", "table": "250", "protocol": "76"},
            Rule(20001, "oif eth2", 250),
        ),
        (
            {"priority": 20002, "src": "all", "fwmark": "0x1", "table": "250"},
            Rule(20002, "fwmark 0x1", 250, protocol=0),
        ),
        (
            {"priority": 20002, "src": "all", "fwmark": "0x100", "fwmask": "0xff00", "table": "250", "protocol": "76"},
            Rule(20002, "fwmark 0x100/0xff00", 250),
        ),
        (
            {"priority": 5, "not": None, "src": "10.0.0.1", "table": "250"},
            Rule(5, "not from 10.0.0.1", 250, protocol=0),
        ),
        ({"priority": 9, "src": "all", "action": "8"}, Rule(9, "", 0, protocol=0)),
    ],
)
def test_rules_as_ip_prints_them(item: dict[str, object], rule: Rule) -> None:
    assert routing.read_rule(item) == rule


def test_a_link_as_ip_prints_it() -> None:
    item = {
        "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
        "addr_info": [{"local": "1.1.1.1"}, {"local": "2001:db8::1", "tentative": True}, {"local": "fe80::1"}],
    }
    assert routing.read_link(item) == Link(True, True, frozenset({"1.1.1.1", "fe80::1"}))


def test_a_link_without_carrier_or_down() -> None:
    assert routing.read_link({"flags": ["NO-CARRIER", "UP"]}) == Link(True, False, frozenset())
    assert not routing.read_link({"flags": ["BROADCAST"]}).up


def test_an_address_that_another_host_has_is_not_ours() -> None:
    assert not routing.read_link(
        {"flags": ["UP"], "addr_info": [{"local": "2001:db8::1", "dadfailed": True}]}
    ).addresses


def test_addresses_that_last_come_first_and_those_of_the_link_not_at_all() -> None:
    def item(local: str, scope: str = "global", **flags: bool) -> dict[str, object]:
        return {"local": local, "prefixlen": 64 if ":" in local else 24, "scope": scope, **flags}

    found = [
        item("2001:db8::9", temporary=True),
        item("fd00::1"),
        item("2001:db8::8", deprecated=True),
        item("2001:db8::7", tentative=True),
        item("2001:db8::1", mngtmpaddr=True),
        item("fe80::1", "link"),
        item("192.0.2.1"),
        item("169.254.7.7", "link"),
    ]
    own = routing.read_link({"flags": ["UP"], "addr_info": found}).own
    assert own == (
        *("2001:db8::1/64", "192.0.2.1/24", "fd00::1/64"),
        *("2001:db8::9/64", "2001:db8::8/64"),
    )


def test_the_best_default_route_of_main_by_each_interface_is_its_hop() -> None:
    routes = [
        Route("default", gateway="1.1.1.9", device="eth2", metric=100),
        Route("default", gateway="1.1.1.2", device="eth2", metric=5),
        Route("default", gateway="1.1.1.3", device="eth2", protocol=routing.PROTOCOL),  # ours is no news
        Route("default", gateway="1.1.1.4", device="eth2", table=250),
        Route("default", kind=routing.UNREACHABLE, device="lo"),
        Route("10.0.0.0/8", gateway="1.1.1.5", device="eth4"),
        Route("default", device="ppp0", metric=7),
    ]
    assert routing.best_hops(routes, 4) == {"eth2": "1.1.1.2", "ppp0": "0.0.0.0"}
    assert routing.leading(routes) == {"eth2"}
    assert routing.best_hops([Route("default", device="ppp0")], 6) == {"ppp0": "::"}


def test_a_default_of_several_ways_is_each_interfaces_own() -> None:
    """As `ip -N -json route show` prints it, with RTA_MULTIPATH in the kernel or with next hops as objects."""
    said = """[{"type":"1","dst":"default","nhid":10,"table":"254","protocol":"3","metric":5,"flags":[],"nexthops":[
        {"gateway":"1.1.1.2","dev":"eth2","weight":1,"flags":[]},{"dev":"ppp0","weight":3,"flags":["linkdown"]}]},
        {"type":"1","dst":"default","gateway":"1.1.1.9","dev":"eth2","table":"254","metric":7,"flags":[]},
        {"type":"1","dst":"default","gateway":"3.3.3.2","dev":"eth4","table":"254","metric":7,"flags":[]}]"""
    routes = msgspec.json.decode(said, type=list[Route], strict=False)
    assert routing.best_hops(routes, 4) == {"eth2": "1.1.1.2", "ppp0": "0.0.0.0", "eth4": "3.3.3.2"}
    assert routing.leading(routes) == {"eth2", "ppp0"}
    ways = "nexthop via 1.1.1.2 dev eth2 weight 1 nexthop dev ppp0 weight 3"
    assert routes[0].words() == f"default table 254 proto 3 metric 5 {ways}"


def test_where_main_has_no_default_nobody_leads() -> None:
    assert routing.leading([Route("10.0.0.0/8", device="eth4")]) == set()


def test_defaults_of_equal_metric_lead_together() -> None:
    """IPv6 keeps those that two routers have advertised as routes of their own."""
    routes = [Route("default", gateway=f"fe80::{n}", device=f"eth{n}", metric=1024 + n // 4) for n in (4, 2, 3)]
    assert routing.leading(routes) == {"eth2", "eth3"}


def test_an_interface_has_an_mtu() -> None:
    assert routing.read_link({"flags": ["UP"], "mtu": 1492}).mtu == 1492


def test_a_rule_that_refuses_is_read_as_it_was_made() -> None:
    item = {"priority": 20003, "src": "all", "iif": "eth0", "action": "8", "protocol": "76"}  # as ip -N prints it
    rule = Rule(20003, "iif eth0", REFUSED)
    assert routing.read_rule(item) == rule
    assert rule.words() == "pref 20003 iif eth0 prohibit protocol 76"


def test_a_route_is_replaced_by_table_target_and_metric() -> None:
    one, two = Route("default", 250, gateway="1.1.1.2"), Route("default", 250, gateway="1.1.1.3", device="eth9")
    assert one.key == two.key
    assert one.key != Route("default", 250, metric=5).key
