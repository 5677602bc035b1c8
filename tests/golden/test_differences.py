"""Each deliberate difference from the article, pinned by hand; README.md beside this file has the reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from lsmpy import changes, freeing, netfilter, plan, state
from lsmpy.model import Family, Router
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule

README = Path(__file__).parent / "README.md"


OWN_DEFAULT = "route replace default via {isp} table 76 proto 76 src 192.168.1.254\n"


def side(router: Router, family: Family = 4, down: Iterable[str] = ()) -> Side:
    made = plan.build(router, {i.name: state.judge("down" if i.name in down else None) for i in router.isps}, None)
    return next(each for each in made.sides if each.family == family)


def rules(made: Side, table: str, chain: str) -> list[str]:
    """The rules of one chain without `-A CHAIN`."""
    (found,) = (each for each in made.table(table).chains if each.name == chain)
    return [rule.removeprefix(f"-A {chain} ") for rule in found.rules]


def routes(made: Side, table: int) -> list[str]:
    return [route.words().replace(f" table {table} proto 76", "") for route in made.routes if route.table == table]


def test_own_chains(article: Router) -> None:
    made = side(article)
    for hook in ("PREROUTING", "OUTPUT", "POSTROUTING"):
        assert rules(made, "mangle", hook) == [f"-j LSMPY-{hook}"]
    assert rules(made, "nat", "POSTROUTING") == ["-j LSMPY-POSTROUTING"]
    assert rules(made, "mangle", "LSMPY-PREROUTING")[:2] == [
        "-s 192.168.1.0/24 -d 192.168.2.0/24 -i eth0 -j RETURN",
        "-s 192.168.2.0/24 -d 192.168.1.0/24 -i eth1 -j RETURN",
    ]


def test_mark_of_the_connection_first(article: Router) -> None:
    before = rules(side(article), "mangle", "LSMPY-PREROUTING")
    restore = before.index("-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff")
    assert before[restore + 1 : restore + 3] == [
        "-m mark ! --mark 0x0 -j RETURN",
        "-m conntrack ! --ctstate NEW -j RETURN",
    ]
    assert all(before.index(rule) > restore + 2 for rule in before if "LSMPY-M-" in rule or "LSMPY-C-" in rule)


@pytest.mark.parametrize("lan", ["dev", "rnd"])
def test_cascade(article: Router, lan: str) -> None:
    assert rules(side(article), "mangle", f"LSMPY-C-{lan}") == [
        "-m statistic --mode nth --every 2 --packet 0 -g LSMPY-M-ISP1",
        "-g LSMPY-M-ISP2",
    ]
    assert rules(side(article, down=["ISP1"]), "mangle", f"LSMPY-C-{lan}") == ["-g LSMPY-M-ISP2"]
    assert rules(side(article, down=["ISP2"]), "mangle", f"LSMPY-C-{lan}") == ["-g LSMPY-M-ISP1"]


def test_answers(article: Router) -> None:
    made = side(article)
    before = rules(made, "mangle", "LSMPY-PREROUTING")
    assert before.index("-i eth2 -g LSMPY-M-ISP1") < before.index("-i eth3 -g LSMPY-M-ISP2")
    assert rules(made, "mangle", "LSMPY-OUTPUT")[0] == (
        "-m connmark ! --mark 0x0 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
    )


def test_the_routers_own(article: Router) -> None:
    """What it begins itself takes turns of its own, by an ISP that is up, unless it is bound to one."""
    made = side(article)
    local = rules(made, "mangle", "LSMPY-LOCAL")
    assert local[:2] == ["-s 1.1.1.1/32 -j RETURN", "-s 2.2.2.1/32 -j RETURN"]
    assert local[-1] == "-g LSMPY-CHOOSE"
    assert rules(made, "mangle", "LSMPY-CHOOSE") == rules(made, "mangle", "LSMPY-C-dev")
    assert rules(side(article, down=["ISP1"]), "mangle", "LSMPY-CHOOSE") == ["-g LSMPY-M-ISP2"]
    assert OWN_DEFAULT.format(isp="1.1.1.2 dev eth2") in changes.between(Side(4, (), (), ()), made).add_text()
    assert "iif lo" in {rule.selector for rule in made.rules if rule.table == 76}


def test_to_the_router(article: Router) -> None:
    lans = ["-i eth0 -g LSMPY-C-dev", "-i eth1 -g LSMPY-C-rnd"]
    to_itself = ["-m addrtype --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN"]
    assert rules(side(article), "mangle", "LSMPY-PREROUTING")[-3:] == to_itself + lans
    separate = [f"-m addrtype --dst-type {kind} -j RETURN" for kind in ("LOCAL", "MULTICAST")]
    assert rules(side(article, family=6), "mangle", "LSMPY-PREROUTING")[-6:] == [
        *separate,
        "-s 2001:db8:0:1::/64 -g LSMPY-M-ISP1",
        "-s 2001:db8:0:2::/64 -g LSMPY-M-ISP2",
        *lans,
    ]


@pytest.mark.parametrize("down", [(), ("ISP1",), ("ISP2",), ("ISP1", "ISP2")])
def test_every_isp_keeps(article: Router, down: tuple[str, ...]) -> None:
    made = side(article, down=down)
    assert rules(made, "nat", "LSMPY-POSTROUTING") == [
        "-o eth2 -j SNAT --to-source 1.1.1.1",
        "-o eth3 -j SNAT --to-source 2.2.2.1",
    ]
    for name, mark in (("ISP1", "0x1"), ("ISP2", "0x2")):
        assert rules(made, "mangle", f"LSMPY-M-{name}") == [
            f"-j MARK --set-xmark {mark}/0xffffffff",
            "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        ]
    assert "default via 1.1.1.2 dev eth2" in routes(made, 250)
    assert "default via 2.2.2.2 dev eth3" in routes(made, 249)
    assert {"fwmark 0x1", "fwmark 0x2"} <= {rule.selector for rule in made.rules}


@pytest.mark.parametrize("family", [4, 6])
def test_unreachable(article: Router, family: Family) -> None:
    for table in (250, 249):
        assert routes(side(article, family), table)[-1] == "unreachable default metric 4294967295"


def test_main_first(article: Router) -> None:
    made = side(article)
    first = min(made.rules, key=lambda rule: rule.priority)
    assert first.words() == "pref 20000 from all lookup 254 suppress_prefixlength 0 protocol 76"
    assert not any("2.2.2." in route for route in routes(made, 250))
    assert not any("1.1.1." in route for route in routes(made, 249))
    assert rules(made, "mangle", "LSMPY-O-ISP1")[0] == (
        "-m conntrack ! --ctstatus CONFIRMED -j CONNMARK --set-xmark 0x1/0xffffffff"
    )


def test_bound_sockets(article: Router) -> None:
    made = side(article)
    assert [(rule.selector, rule.table) for rule in made.rules if rule.priority == 20001] == [
        ("from 1.1.1.1", 250),
        ("oif eth2", 250),
        ("from 2.2.2.1", 249),
        ("oif eth3", 249),
    ]
    assert {rule.priority for rule in made.rules if rule.selector.startswith("fwmark")} == {20002}


def test_never_a_foreign_source(article: Router) -> None:
    made = side(article)
    assert rules(made, "mangle", "LSMPY-POSTROUTING") == ["-o eth2 -g LSMPY-O-ISP1", "-o eth3 -g LSMPY-O-ISP2"]
    assert rules(made, "mangle", "LSMPY-O-ISP2")[1:] == [
        "-m connmark --mark 0x0 -j CONNMARK --set-xmark 0x2/0xffffffff",
        "-m connmark ! --mark 0x2 -j DROP",
        "-s 2.2.2.1/32 -j RETURN",
        "-m policy --dir out --pol ipsec -j RETURN",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack ! --ctrepldst 2.2.2.1 --ctstatus CONFIRMED --ctdir ORIGINAL -j DROP",
        "-m conntrack ! --ctstate DNAT --ctdir REPLY -g LSMPY-PRIVATE",
    ]
    assert "-s 192.168.0.0/16 -j DROP" in rules(made, "mangle", "LSMPY-PRIVATE")


def test_nothing_is_flushed(article: Router) -> None:
    one, two = side(article), side(article, down=["ISP1"])
    step = changes.between(one, two)
    assert [table.name for table in step.tables] == ["mangle"]
    assert (step.add_text(), step.drop_text()) == (OWN_DEFAULT.format(isp="2.2.2.2 dev eth3"), "")
    locked = Side(
        4, tuple(table.with_policies(dict.fromkeys(table.policies(), "DROP")) for table in one.tables), (), ()
    )
    for table in changes.between(locked, two).tables:
        assert set(table.policies().values()) == {"DROP"}
    assert "flush" not in changes.between(Side(4, (), (), ()), one).add_text()


def test_connections_are_freed(article: Router) -> None:
    """The list that a rebuild compares with the live one, and what it runs for whom is new in it."""
    assert rules(side(article), "mangle", "LSMPY-DOWN") == []
    assert rules(side(article, down=["ISP2"]), "mangle", "LSMPY-DOWN") == ["-j LSMPY-M-ISP2"]
    assert rules(side(article, down=["ISP1", "ISP2"]), "mangle", "LSMPY-DOWN") == []
    assert freeing.commands(article)[4, "ISP2"] == (
        "conntrack -D -f ipv4 --reply-dst 2.2.2.1",
        "conntrack -D -f ipv4 --mark 0x2/0xffffffff",
    )


def test_mid_stream(article: Router) -> None:
    made = side(article)
    stray = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"
    before = rules(made, "mangle", "LSMPY-PREROUTING")
    for device, lan in (("eth0", "dev"), ("eth1", "rnd")):
        assert before.index(f"-i {device} {stray} -g LSMPY-STRAY") < before.index(f"-i {device} -g LSMPY-C-{lan}")
    assert rules(made, "mangle", "LSMPY-STRAY") == ["-j MARK --set-xmark 0x1/0xffffffff"]
    assert rules(side(article, down=["ISP1"]), "mangle", "LSMPY-STRAY") == ["-j MARK --set-xmark 0x2/0xffffffff"]
    # Marked, and its connection is not: that is nothing else.
    unknown = "-m conntrack --ctstate NEW -m mark ! --mark 0x0 -m connmark --mark 0x0"
    assert rules(made, "filter", "FORWARD") == [f"{stray} {unknown} -j LSMPY-STRAY"]
    assert rules(made, "filter", "LSMPY-STRAY") == [
        f"-o {device} -p tcp -j REJECT --reject-with tcp-reset" for device in ("eth2", "eth3")
    ]
    # What is not translated goes on by another ISP.
    assert not any("STRAY" in rule for table in side(article, 6).tables for rule in table.rules)


def test_none_up(article: Router) -> None:
    assert side(article, down=["ISP1", "ISP2"]) == side(article)


def test_flush_chooses_none(article: Router) -> None:
    options = msgspec.structs.replace(article.options, when_all_down="flush")
    made = side(msgspec.structs.replace(article, options=options), down=["ISP1", "ISP2"])
    assert rules(made, "mangle", "LSMPY-C-dev") == rules(made, "mangle", "LSMPY-C-rnd") == []
    step = changes.between(made, side(article))
    assert [table.name for table in step.tables] == ["mangle"]
    assert (step.add_text(), step.drop_text()) == (OWN_DEFAULT.format(isp="1.1.1.2 dev eth2"), "")


def test_reverse_path(article: Router) -> None:
    made = plan.build(article, {isp.name: state.judge(None) for isp in article.isps}, None)
    assert {key: value for key, value in made.sysctls if "conf" in key} == {
        f"net/ipv4/conf/{device}/{key}": value
        for device in ("eth2", "eth3")
        for key, value in (("rp_filter", "2"), ("src_valid_mark", "1"))
    }


def test_errors_about_packets(article: Router) -> None:
    made = plan.build(article, {isp.name: state.judge(None) for isp in article.isps}, None)
    assert {key: value for key, value in made.sysctls if "conf" not in key} == {
        f"net/ipv{family}/fwmark_reflect": "1" for family in article.families
    }


def test_numbers(article: Router) -> None:
    made = side(article)
    assert {route.table for route in made.routes} == {250, 249, 76}
    items: list[Route | Rule] = [*made.routes, *made.rules]
    assert {each.protocol for each in items} == {76}
    assert all(re.search(r" (table|lookup) \d+", each.words()) for each in items)


def test_ipv6(article: Router) -> None:
    six = side(article, 6)
    assert six.table("nat") == netfilter.table("nat")
    assert rules(six, "mangle", "LSMPY-C-dev") == rules(side(article), "mangle", "LSMPY-C-dev")
    assert rules(six, "mangle", "LSMPY-O-ISP1") == [
        *rules(side(article), "mangle", "LSMPY-O-ISP1")[:3],
        "-g LSMPY-SOURCES",
    ]


def test_an_isps_own_sources(article: Router) -> None:
    made = side(article, 6, down=["ISP1"])
    by_source = [(rule.selector, rule.table) for rule in made.rules if rule.selector.startswith("from 2001:db8:0:")]
    assert by_source[-2:] == [("from 2001:db8:0:1::/64", 250), ("from 2001:db8:0:2::/64", 249)]
    tell, one = "-j REJECT --reject-with icmp6-policy-fail", "-s 2001:db8:0:1::/64"
    others = [f"{one} ! -o eth2", "-s 2001:db8:0:2::/64 ! -o eth3"]
    assert rules(made, "filter", "LSMPY-SOURCES") == [f"{each} {tell}" for each in others]
    assert rules(made, "mangle", "LSMPY-SOURCES") == [f"{each} -j DROP" for each in others]
    new = "-m conntrack --ctstate NEW"
    assert rules(made, "filter", "LSMPY-LEAVING") == [
        f"{one} -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN {new} -j REJECT --reject-with tcp-reset",
        f"{one} {new} {tell}",
        "-g LSMPY-SOURCES",
    ]


def test_every_difference_is_in_the_readme_and_has_its_test() -> None:
    named = set(re.findall(r"^\|[^|]+\| `(\w+)` \|", README.read_text(), re.MULTILINE))
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert named == tests - {"every_difference_is_in_the_readme_and_has_its_test"}
