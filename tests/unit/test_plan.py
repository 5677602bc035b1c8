"""The plan by hand: who is up and why not, who gets new connections, and what is merged into it."""

from __future__ import annotations

import msgspec
import pytest

from lsmpy import lookups, netfilter, plan, state
from lsmpy.model import Family, Router
from lsmpy.netfilter import Chain
from lsmpy.plan import Plan, Side
from lsmpy.routing import LOCAL_DEFAULT, Link
from tests.conftest import isps_of, router_of

LANS = "[[lan]]\nname = 'office'\ninterface = 'lan0'\naddress = ['192.168.1.1/24', '2001:db8:a1::1/64']\n"

REFLECTED = tuple((f"net/ipv{family}/fwmark_reflect", "1") for family in (4, 6))


def plan_of(router: Router, links: dict[str, Link] | None = None, **texts: str) -> Plan:
    """The plan when the state files say so; an ISP that is not named has none."""
    return plan.build(router, {isp.name: state.judge(texts.get(isp.name)) for isp in router.isps}, links)


def side(made: Plan, family: Family = 4) -> Side:
    return next(each for each in made.sides if each.family == family)


def chosen(made: Plan, family: Family = 4) -> list[str]:
    """The ISPs to which the LAN's new connections go, slot by slot."""
    (chain,) = (each for each in side(made, family).table("mangle").chains if each.name == "LSMPY-C-office")
    return [rule.rpartition("LSMPY-M-")[2] for rule in chain.rules]


def links_of(router: Router) -> dict[str, Link]:
    items = (*router.isps, *router.lans)
    return {
        each.interface: Link(True, True, frozenset(str(a.ip) for f in (4, 6) for a in each.addresses(f)))
        for each in items
    }


@pytest.fixture
def three() -> Router:
    return router_of(isps_of(3) + LANS)


# -- who is up -----------------------------------------------------------------------------------------------


def test_without_files_every_isp_is_up(three: Router) -> None:
    made = plan_of(three)
    assert [verdict.up for verdict in made.verdicts] == [True, True, True]
    assert made.summary == "up I1 I2 I3"


def test_the_summary_says_who_is_down_and_why(three: Router) -> None:
    states = {"I1": state.judge("up"), "I2": state.judge("long_down"), "I3": state.judge("up", "down")}
    made = plan.build(three, states, None)
    assert made.summary == "up I1, down I2 (its state file says 'long_down'), I3 (forced)"


def test_the_summary_of_a_text_with_several_lines_is_one_line(three: Router) -> None:
    assert "\n" not in plan_of(three, I1="up\nreally\n" + "x" * 500).summary


def test_with_none_up_the_summary_says_what_is_done(three: Router) -> None:
    assert plan_of(three, I1="down", I2="down", I3="down").summary.endswith(
        "none is up, so every one that is there is used"
    )


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (None, "there is no interface wan1"),
        (Link(False, False, frozenset()), "interface wan1 is not up"),
        (Link(True, False, frozenset({"10.0.1.1", "2001:db8:1::1"})), "interface wan1 has no carrier"),
        (Link(True, True, frozenset({"10.0.1.9"})), "interface wan1 does not have 10.0.1.1"),
    ],
)
def test_what_is_missing_counts_as_down_whatever_the_file_says(three: Router, link: Link | None, why: str) -> None:
    links = links_of(three)
    del links["wan1"]
    made = plan_of(three, links | ({"wan1": link} if link else {}), I1="up")
    assert (made.verdicts[0].up, made.verdicts[0].why, made.verdicts[0].broken) == (False, why, True)
    assert "I1" not in chosen(made)


def test_an_isp_that_lacks_one_family_still_serves_the_other(three: Router) -> None:
    links = links_of(three)
    links["wan1"] = Link(True, True, frozenset({"10.0.1.1"}))
    made = plan_of(three, links)
    assert made.verdicts[0].up
    assert made.verdicts[0].why == "without IPv6: interface wan1 does not have 2001:db8:1::1"
    assert (chosen(made), chosen(made, 6)) == (["I1", "I2", "I3"], ["I2", "I3"])


def test_an_isp_whose_route_the_kernel_refuses_is_not_used(three: Router) -> None:
    states = {isp.name: state.judge(None) for isp in three.isps}
    made = plan.build(three, states, None, refused={"I2": "Nexthop has invalid gateway"})
    assert made.verdicts[1] == plan.Verdict("I2", False, "Nexthop has invalid gateway", broken=True)
    assert chosen(made) == ["I1", "I3"]


# -- who gets new connections --------------------------------------------------------------------------------


def test_each_rule_takes_its_part_of_what_the_ones_before_have_left(three: Router) -> None:
    (chain,) = (each for each in side(plan_of(three)).table("mangle").chains if each.name == "LSMPY-C-office")
    assert chain.rules == (
        "-A LSMPY-C-office -m statistic --mode nth --every 3 --packet 0 -g LSMPY-M-I1",
        "-A LSMPY-C-office -m statistic --mode nth --every 2 --packet 0 -g LSMPY-M-I2",
        "-A LSMPY-C-office -g LSMPY-M-I3",
    )


def test_dice_divide_what_the_ones_before_have_left() -> None:
    router = router_of("[router]\nbalance = 'random'\n" + isps_of(3) + "weight = 2\n" + LANS)
    (chain,) = (each for each in side(plan_of(router)).table("mangle").chains if each.name == "LSMPY-C-office")
    assert chain.rules == (
        "-A LSMPY-C-office -m statistic --mode random --probability 0.25000000000 -g LSMPY-M-I1",
        "-A LSMPY-C-office -m statistic --mode random --probability 0.33333333349 -g LSMPY-M-I2",
        "-A LSMPY-C-office -g LSMPY-M-I3",
    )


def test_weights_are_slots() -> None:
    assert chosen(plan_of(router_of(isps_of(2) + "weight = 3\n" + LANS))) == ["I2", "I1", "I2", "I2"]


def test_one_isp_needs_no_choice(three: Router) -> None:
    assert chosen(plan_of(three, I1="down", I3="down")) == ["I2"]


def test_a_second_tier_waits_until_the_first_is_down() -> None:
    router = router_of(isps_of(3) + "tier = 2\n" + LANS)
    assert chosen(plan_of(router)) == ["I1", "I2"]
    assert chosen(plan_of(router, I1="down")) == ["I2"]
    assert chosen(plan_of(router, I1="down", I2="down")) == ["I3"]
    assert chosen(plan_of(router, I1="down", I2="down", I3="down")) == ["I1", "I2"]


def test_with_none_up_those_that_are_there_are_used(three: Router) -> None:
    links = links_of(three)
    del links["wan2"]
    assert chosen(plan_of(three, links, I1="down", I2="down", I3="down")) == ["I1", "I3"]


@pytest.mark.parametrize("way", ["flush", "unreachable"])
def test_with_none_up_nobody_is_chosen_if_so_wished(way: str) -> None:
    router = router_of(f"[router]\nwhen_all_down = '{way}'\n" + isps_of(2) + LANS)
    refusal = "pref 20004 iif lan0 prohibit protocol 76"
    links = links_of(router)
    links["wan1"] = Link(True, True, frozenset({"10.0.1.1"}))
    for made, four, six in (
        (plan_of(router, links, I2="down"), ["I1"], []),  # of IPv6 there is none
        (plan_of(router, I1="down", I2="down"), [], []),
        (plan_of(router, {}), [], []),
        (plan_of(router), ["I1", "I2"], ["I1", "I2"]),
    ):
        assert (chosen(made), chosen(made, 6)) == (four, six)
        for family, some in ((4, four), (6, six)):
            words = [rule.words() for rule in side(made, family).rules]  # type: ignore[arg-type]
            assert (words[-1] == refusal) == (way == "unreachable" and not some)
            assert sum(" prohibit " in each for each in words) == (words[-1] == refusal)


@pytest.mark.parametrize(
    ("way", "words"),
    [("flush", "new connections go by the main table"), ("unreachable", "new connections are refused")],
)
def test_the_summary_says_what_becomes_of_new_connections(way: str, words: str) -> None:
    made = plan_of(router_of(f"[router]\nwhen_all_down = '{way}'\n" + isps_of(1) + LANS), I1="down")
    assert made.summary == f"down I1 (its state file says 'down'); none is up, so {words}"


def test_with_none_even_there_the_rules_stand_for_their_return(three: Router) -> None:
    assert chosen(plan_of(three, {})) == ["I1", "I2", "I3"]


def test_a_router_without_lans_serves_itself() -> None:
    names = {chain.name for chain in side(plan_of(router_of(isps_of(2)))).table("mangle").chains}
    assert not any(name.startswith("LSMPY-C-") for name in names)
    assert {"LSMPY-O-I1", "LSMPY-O-I2"} <= names


# -- what it consists of -------------------------------------------------------------------------------------


def test_chain_names_of_the_longest_names_fit() -> None:
    name = "x" * 20
    router = router_of(isps_of(1).replace("I1", name) + LANS.replace("office", name))
    chains = [chain.name for made in plan_of(router).sides for table in made.tables for chain in table.chains]
    assert max(map(len, chains)) <= 28  # XT_EXTENSION_MAXNAMELEN less its end


def test_the_users_rules_come_first_and_keep_their_policies(three: Router) -> None:
    users = netfilter.table("mangle", [Chain("PREROUTING", None, ("-A PREROUTING -j MINE",)), Chain("MINE")])
    guard = netfilter.table("filter", [Chain("INPUT", "DROP", ("-A INPUT -i lo -j ACCEPT",))])
    raw = netfilter.table("raw", [Chain("OUTPUT", None, ("-A OUTPUT -j ACCEPT",))])
    extra = {4: {each.name: each for each in (users, guard, raw)}}
    states = {isp.name: state.judge(None) for isp in three.isps}
    four = side(plan.build(three, states, None, extra))  # type: ignore[arg-type]
    assert four.table("mangle").rules[:2] == ("-A PREROUTING -j MINE", "-A PREROUTING -j LSMPY-PREROUTING")
    assert four.table("filter").policies()["INPUT"] == "DROP"
    assert [each.name for each in four.tables] == ["filter", "nat", "mangle", "raw"]
    assert side(plan.build(three, states, None, extra), 6).table("raw").rules == ()  # type: ignore[arg-type]


def test_segments_are_clamped_both_ways_where_it_is_asked_for() -> None:
    router = router_of(isps_of(2) + "clamp_mss = true\n" + LANS)
    syn = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS"
    links = links_of(router) | {"wan2": msgspec.structs.replace(links_of(router)["wan2"], mtu=1492)}
    for family, mss in ((4, 1452), (6, 1432)):
        (chain,) = (c for c in side(plan_of(router, links), family).table("mangle").chains if c.name == "LSMPY-FORWARD")  # type: ignore[arg-type]
        assert chain.rules == (
            f"-A LSMPY-FORWARD -o wan2 {syn} --clamp-mss-to-pmtu",
            f"-A LSMPY-FORWARD -i wan2 {syn} --set-mss {mss}",
        )
    assert "-A LSMPY-FORWARD" not in netfilter.render(side(plan_of(router_of(isps_of(2) + LANS))).tables)


def test_a_second_address_keeps_its_source_and_gets_a_rule() -> None:
    router = router_of(isps_of(1, "4").replace("['10.0.1.1/24']", "['10.0.1.1/24', '10.0.1.9/24']"))
    four = side(plan_of(router))
    assert "-A LSMPY-POSTROUTING -s 10.0.1.9/32 -o wan1 -j RETURN" in four.table("nat").rules
    assert "from 10.0.1.9" in {rule.selector for rule in four.rules}
    assert [route.source for route in four.routes if route.target == "10.0.1.0/24"] == ["10.0.1.1"]


def test_masquerade_and_none_of_the_configuration() -> None:
    router = router_of("[nat]\nipv4 = 'masquerade'\n" + isps_of(2) + "nat = { ipv4 = 'none' }\n")
    assert side(plan_of(router)).table("nat").rules == (
        "-A POSTROUTING -j LSMPY-POSTROUTING",
        "-A LSMPY-POSTROUTING -o wan1 -j MASQUERADE",
    )


def test_ipv6_is_not_translated_unless_asked(three: Router) -> None:
    assert side(plan_of(three), 6).table("nat").rules == ()
    asked = router_of("[nat]\nipv6 = 'snat'\n" + isps_of(1))
    assert (
        "-A LSMPY-POSTROUTING -o wan1 -j SNAT --to-source 2001:db8:1::1" in side(plan_of(asked), 6).table("nat").rules
    )


def test_a_missing_interface_has_no_routes_but_an_end(three: Router) -> None:
    links = links_of(three)
    del links["wan1"]
    words = [route.words() for route in side(plan_of(three, links)).routes if route.table == 250]
    assert words == [
        "192.168.1.0/24 dev lan0 table 250 proto 76 src 192.168.1.1",
        "unreachable default table 250 proto 76 metric 4294967295",
    ]


def test_an_unplugged_cable_keeps_its_default_for_the_moment_it_is_back(three: Router) -> None:
    links = links_of(three)
    links["wan1"] = Link(True, False, links["wan1"].addresses)
    before, after = (
        {r for r in side(plan_of(three, each)).routes if r.table != LOCAL_DEFAULT} for each in (None, links)
    )
    assert before == after


@pytest.mark.parametrize("own", ["main", "balance"])
@pytest.mark.parametrize(
    ("leader", "down", "astray"),
    [("wan1", "", False), ("wan1", "I1", True), ("wan1", "I2", False), ("eth9", "I1", False), ("wan1", "all", False)],
)
def test_what_main_sends_by_an_isp_that_is_down_goes_by_one_that_is_up(
    leader: str, down: str, astray: bool, own: str
) -> None:
    """Main's own default is left alone: a rule before it leads elsewhere. With none up there is nowhere better."""
    router = router_of(f'[router]\nlocal_traffic = "{own}"\nwhen_all_down = "flush"\n' + isps_of(3) + LANS)
    links = links_of(router) | {"eth9": Link(True, True, frozenset())}
    links[leader] = msgspec.structs.replace(links[leader], leading=(4,))
    texts = {isp.name: "down" for isp in router.isps if down in (isp.name, "all")}
    made = side(plan_of(router, links, **texts))
    rules = [rule.words() for rule in made.rules if rule.priority == lookups.BEFORE_MAIN]
    assert rules == ["pref 32765 from all lookup 76 protocol 76"] * astray
    ways = [route for route in made.routes if route.table == LOCAL_DEFAULT]
    assert [way.device for way in ways] == (
        [] if down == "all" or (own == "main" and not astray) else ["wan2" if down == "I1" else "wan1"]
    )
    assert all((way.source is None) == (own == "main") for way in ways)
    six = plan_of(router_of(isps_of(2, "6") + LANS), links, **texts)
    assert lookups.BEFORE_MAIN not in {rule.priority for rule in side(six, 6).rules}


def test_a_mask_leaves_the_other_bits_of_marks_alone() -> None:
    made = side(plan_of(router_of("[router]\nmark_mask = 0xff00\n" + isps_of(1) + LANS)))
    rules = made.table("mangle").rules
    assert "-A LSMPY-M-I1 -j MARK --set-xmark 0x100/0xff00" in rules
    assert all("0xffffffff" not in rule for rule in rules)
    assert "fwmark 0x100/0xff00" in {rule.selector for rule in made.rules}


def test_settings_are_of_the_isps_interfaces_that_are_there_only(three: Router) -> None:
    links = links_of(three)
    del links["wan2"]
    assert plan_of(three, links).sysctls == (
        *REFLECTED,
        ("net/ipv4/conf/wan1/rp_filter", "2"),
        ("net/ipv4/conf/wan1/src_valid_mark", "1"),
        ("net/ipv4/conf/wan3/rp_filter", "2"),
        ("net/ipv4/conf/wan3/src_valid_mark", "1"),
    )


def test_without_ipv4_nothing_of_it_is_set() -> None:
    assert plan_of(router_of(isps_of(2, "6"))).sysctls == REFLECTED[1:]
