"""Whose connections are freed, told from two images of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsmpy import changes, freeing, plan, state, youth
from lsmpy.model import Family, Router
from lsmpy.plan import Side
from tests.conftest import isps_of, router_of

LAN = "[[lan]]\nname = 'office'\ninterface = 'lan0'\naddress = ['192.168.1.1/24']\n"


def side(router: Router, *down: str) -> Side:
    states = {isp.name: state.judge("down" if isp.name in down else "up") for isp in router.isps}
    return plan.build(router, states, None).sides[0]


def freed(live: Side, want: Side, router: Router) -> set[str]:
    return set(freeing.part(router, live, changes.between(live, want)).gone)


def tiers(failback: str) -> Router:
    """I1 and I2, and a spare I3."""
    return router_of(f"[router]\nfailback = '{failback}'\n" + isps_of(3) + "tier = 2\n" + LAN)


def test_who_goes_out_of_service_is_freed_once() -> None:
    router = router_of(isps_of(3) + LAN)
    assert freed(side(router), side(router, "I2"), router) == {"I2"}
    assert freed(side(router, "I2"), side(router, "I2", "I3"), router) == {"I3"}
    assert freed(side(router, "I2", "I3"), side(router), router) == set()
    assert freed(side(router, "I2"), side(router, "I3"), router) == {"I3"}


def test_with_none_up_nobody_is_and_then_whoever_is_not_back() -> None:
    router = router_of(isps_of(3) + LAN)
    none_up = side(router, "I1", "I2", "I3")
    assert freed(side(router, "I2"), none_up, router) == set()
    assert freed(none_up, side(router, "I2", "I3"), router) == {"I2", "I3"}


def test_a_spare_isp_that_goes_down_is_freed_as_well() -> None:
    for failback in ("drain", "move"):
        router = tiers(failback)
        assert freed(side(router), side(router, "I3"), router) == {"I3"}


def test_a_worse_tier_is_freed_when_a_better_one_is_back_if_connections_move() -> None:
    for failback, moved in (("drain", set[str]()), ("move", {"I3"})):
        router = tiers(failback)
        spare = side(router, "I1", "I2")
        assert freed(side(router), spare, router) == {"I1", "I2"}
        assert freed(spare, side(router, "I2"), router) == moved
        assert freed(side(router, "I2"), side(router), router) == set()
        assert freed(side(router, "I3"), side(router), router) == set()


def test_asking_for_moves_moves_nothing_by_itself() -> None:
    assert freed(side(tiers("drain")), side(tiers("move")), tiers("move")) == set()


def test_who_is_taken_out_is_translated_for_as_long_as_marks_lead_there() -> None:
    before, after = router_of(isps_of(3) + LAN), router_of(isps_of(2) + LAN)
    live, want = side(before), side(after)
    parts = freeing.part(after, live, changes.between(live, want))
    translated = {line for line in live.table("nat").rules if "10.0.3.1" in line}
    assert translated
    early, late = ({table.name: table for table in step.tables} for step in (parts.early, parts.late))
    assert translated <= set(early["nat"].rules)
    assert set(want.table("nat").rules) <= set(early["nat"].rules)
    assert late["nat"].same_as(want.table("nat").with_policies(live.table("nat").policies()))


def test_a_kernel_without_our_list_frees_nothing() -> None:
    router = router_of(isps_of(2) + LAN)
    assert freed(Side(4, (), (), ()), side(router, "I2"), router) == set()


def test_names_may_look_like_our_chains() -> None:
    router = router_of(isps_of(2).replace('"I2"', '"LSMPY-M-I1"') + LAN)
    assert freeing.listed(side(router, "LSMPY-M-I1").table("mangle"), "LSMPY-DOWN") == {"LSMPY-M-I1"}


def test_connections_are_found_by_the_bits_that_are_ours_and_by_every_address() -> None:
    router = router_of(
        "[router]\nmark_mask = 0xff00\n" + isps_of(2).replace("10.0.2.1/24", "10.0.2.1/24', '10.0.2.3/24")
    )
    known = freeing.commands(router)
    assert known[4, "I2"] == (
        "conntrack -D -f ipv4 --reply-dst 10.0.2.1",
        "conntrack -D -f ipv4 --reply-dst 10.0.2.3",
        "conntrack -D -f ipv4 --mark 0x200/0xff00",
    )
    late = "/proc/net/xt_recent/LSMPY-I2"
    assert known[6, "I2"] == (
        f"[ ! -w {late} ] || echo +:: >{late}",
        "conntrack -D -f ipv6 --reply-dst 2001:db8:2::1",
        "conntrack -D -f ipv6 --mark 0x200/0xff00",
    )


@pytest.mark.parametrize("option", ["true", "false"])
def test_an_address_that_is_ours_no_more_is_freed_and_one_that_is_still_there_is_not(option: str) -> None:
    head = f"[router]\nflush_conntrack = {option}\n"
    before, after = (
        router_of(head + isps_of(2) + LAN),
        router_of(head + isps_of(2).replace("10.0.2.1", "10.0.2.9") + LAN),
    )
    live, want = side(before), side(after)
    gone = freeing.part(after, live, changes.between(live, want)).gone
    assert gone == ({"10.0.2.1": ("conntrack -D -f ipv4 --reply-dst 10.0.2.1",)} if option == "true" else {})
    assert not freeing.part(after, live, changes.between(live, want), {"10.0.2.1"}).gone


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {4: False, 6: True}),
        ("[nat]\nipv4 = 'none'\nipv6 = 'snat'\n", {4: True, 6: False}),
        ("[nat]\nipv6 = 'masquerade'\n", {4: False, 6: False}),
        ("[router]\nflush_conntrack = false\n", {4: False, 6: False}),
    ],
)
def test_answers_may_come_too_late_where_hosts_are_reached_at_their_own_addresses(
    text: str, found: dict[Family, bool]
) -> None:
    router = router_of(text + isps_of(2) + LAN)
    built = plan.build(router, {isp.name: state.judge("up") for isp in router.isps}, None)
    for each in built.sides:
        mangle = each.table("mangle")
        asked = [rule for rule in mangle.rules if "--name LSMPY-I1 " in rule]
        assert mangle.has("LSMPY-LATE") == found[each.family] == bool(asked)
        commands = freeing.commands(router).get((each.family, "I1"), ())
        assert any("xt_recent" in line for line in commands) == found[each.family]


def translating(start: str) -> Router:
    """The networks of the LANs are called something with `start` outside."""
    text = "[nat]\nipv6 = 'npt'\n" + isps_of(2)
    for number in (1, 2):
        text = text.replace(f'name = "I{number}"\n', f"name = 'I{number}'\nprefix = ['{start}{number}::/48']\n")
    return router_of(text + "[[lan]]\nname = 'office'\ninterface = 'lan0'\naddress = ['fd00:a:0:7::1/64']\n")


def test_networks_that_have_another_prefix_outside_are_freed_both_ways() -> None:
    before, after = translating("2001:db8:10"), translating("2001:db8:20")
    live, want = (
        plan.build(each, {isp.name: state.judge("up") for isp in each.isps}, None).sides[1] for each in (before, after)
    )
    parts = freeing.part(after, live, changes.between(live, want))
    gone = parts.gone
    assert gone["2001:db8:102:7::/64"] == (
        "conntrack -D -f ipv6 --orig-src fd00:a:0:7::/64 --mark 0x2/0xffffffff",
        "conntrack -D -f ipv6 --orig-dst 2001:db8:102:7::/64",
    )
    assert set(gone) == {"2001:db8:101:7::/64", "2001:db8:102:7::/64"}
    early = next(table for table in parts.early.tables if table.name == "nat")
    assert any("NETMAP --to 2001:db8:101:7::/64" in rule for rule in early.rules if "POSTROUTING" in rule)
    assert not any("2001:db8:101:7::/64" in rule for rule in early.rules if "PREROUTING" in rule)


def test_who_lacks_one_family_only_is_not_out_of_service() -> None:
    router = router_of(isps_of(2) + LAN)
    four, six = plan.build(router, {isp.name: state.judge("up") for isp in router.isps}, None).sides
    down = plan.build(router, {"I1": state.judge("up"), "I2": state.judge("down")}, None).sides
    assert freeing.out_of_service(router, {4: four, 6: down[1]}) == set()
    assert freeing.out_of_service(router, {4: down[0], 6: down[1]}) == {"I2"}
    assert freeing.out_of_service(router, {4: four, 6: six}) == set()


def test_who_is_back_waits_unless_there_is_no_other() -> None:
    router = router_of("[router]\nfailback_after_s = 60\n" + isps_of(2) + LAN)
    up = {isp.name: state.judge("up") for isp in router.isps}
    made = plan.build(router, up, None, waiting={"I2"})
    assert made.summary == "up I1, down I2 (up again, and used when it was so for 60 s)"
    alone = plan.build(router, up | {"I1": state.judge("down")}, None, waiting={"I2"})
    assert alone.summary == "up I2, down I1 (its state file says 'down')"
    assert plan.build(router, up, None, waiting={"I1", "I2"}).summary == "up I1 I2"


@pytest.mark.parametrize(
    ("text", "now", "left"),
    [
        ("100.5\n", 100.5, 60.0),
        ("100.5\n", 130.5, 30.0),
        ("100.5\n", 1000.0, 0.0),
        ("100.5\n", 5.0, 0.0),  # of before the machine was started again
        ("", 5.0, 0.0),
        (None, 5.0, 0.0),
    ],
)
def test_the_first_minute_ends(
    text: str | None, now: float, left: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(youth, "PATH", tmp_path / "first")
    monkeypatch.setattr(youth, "_now", lambda: now)
    if text is not None:
        youth.PATH.write_text(text)
    assert youth.left_s() == left
    youth.begin()
    assert youth.left_s() == 60.0


def test_a_state_file_tells_for_how_long_it_was_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.age_s(tmp_path, "ISP1") is None
    state.write(state.state_path(tmp_path, "ISP1"), "up")
    os.utime(state.state_path(tmp_path, "ISP1"), (1000, 1000))
    for now, age in ((1030.0, 30.0), (1000.0, 0.0), (999.0, None)):
        monkeypatch.setattr("time.time", lambda: now)  # noqa: B023
        assert state.age_s(tmp_path, "ISP1") == age
