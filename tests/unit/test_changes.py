"""The steps between two images of the kernel, by hand."""

from __future__ import annotations

from lsmpy import changes, netfilter
from lsmpy.netfilter import Chain
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule

OLD, NEW = (
    Route("default", 250, gateway="1.1.1.2", device="eth2"),
    Route("default", 250, gateway="1.1.1.3", device="eth2"),
)
RULE = Rule(20002, "fwmark 0x1", 250)
DROPS = netfilter.table("filter", [Chain("INPUT", "DROP", ("-A INPUT -j DROP",))])
EMPTY = netfilter.table("filter")


def side(*items: Route | Rule | netfilter.Table) -> Side:
    return Side(
        4,
        tuple(each for each in items if isinstance(each, netfilter.Table)),
        tuple(each for each in items if isinstance(each, Route)),
        tuple(each for each in items if isinstance(each, Rule)),
    )


def test_nothing_to_do_is_false() -> None:
    assert not changes.between(side(OLD, RULE, DROPS), side(OLD, RULE, DROPS))


def test_a_replaced_route_is_not_deleted_as_well() -> None:
    step = changes.between(side(OLD), side(NEW))
    assert step.add_text() == "route replace default via 1.1.1.3 dev eth2 table 250 proto 0\n"
    assert step.drop_text() == ""


def test_the_double_of_a_route_that_stays_is_deleted() -> None:
    step = changes.between(side(OLD, NEW), side(OLD))
    assert step.add_text() == ""
    assert step.drop_text() == "route del default via 1.1.1.3 dev eth2 table 250 proto 0\n"


def test_routes_come_before_rules_and_go_after_them() -> None:
    step = changes.between(side(), side(OLD, RULE))
    assert [line.split()[0] for line in step.add_text().splitlines()] == ["route", "rule"]
    step = changes.between(side(OLD, RULE), side())
    assert [line.split()[0] for line in step.drop_text().splitlines()] == ["rule", "route"]


def test_the_lines_of_the_first_step_are_known_by_their_numbers() -> None:
    step = changes.between(side(), side(OLD, RULE))
    for item, line in zip(step.adding, step.add_text().splitlines(), strict=True):
        assert line.endswith(item.words())


def test_translation_is_loaded_before_marks() -> None:
    want = side(*(netfilter.table(name, [Chain("OUTPUT", "DROP")]) for name in ("filter", "nat", "mangle")))
    assert [each.name for each in changes.between(side(), want).tables] == ["filter", "nat", "mangle"]


def test_only_tables_that_differ_are_loaded() -> None:
    mangle = netfilter.table("mangle", [Chain("OUTPUT", None, ("-A OUTPUT -j ACCEPT",))])
    step = changes.between(side(DROPS), side(DROPS, mangle))
    assert [each.name for each in step.tables] == ["mangle"]


def test_only_chains_that_differ_are_loaded_where_that_is_enough() -> None:
    jump, old = Chain("INPUT", "ACCEPT", ("-A INPUT -j MINE",)), Chain("MINE", None, ("-A MINE -j DROP",))
    live = side(netfilter.table("filter", [jump, old, Chain("SAME")]).with_policies({}))
    want = side(netfilter.table("filter", [jump, Chain("MINE"), Chain("SAME")]))
    assert changes.between(live, want).part_text(live) == "*filter\n:MINE - [0:0]\nCOMMIT\n"
    step = changes.between(live, side(*want.tables, netfilter.table("nat", [Chain("OUTPUT", "DROP")])))
    assert step.part_text(live) == ""
    assert [each.name for each in step.tables] == ["filter", "nat"]


def test_a_table_that_the_kernel_does_not_have_and_nobody_needs_is_not_made() -> None:
    assert not changes.between(side(), side(EMPTY))


def test_a_policy_that_is_not_said_stays_when_rules_go() -> None:
    (loaded,) = changes.between(side(DROPS), side(EMPTY)).tables
    assert loaded.policies()["INPUT"] == "DROP"
    assert loaded.rules == ()


def test_a_table_that_is_not_named_is_left_alone() -> None:
    raw = netfilter.table("raw", [Chain("OUTPUT", None, ("-A OUTPUT -j ACCEPT",))])
    assert not changes.between(side(raw), side())


def test_a_diff_goes_from_the_kernel_to_the_rebuild() -> None:
    text = changes.diff(side(OLD, RULE, DROPS), side(NEW, RULE, EMPTY))
    assert "--- IPv4 routes (kernel)\n+++ IPv4 routes (rebuild)\n" in text
    assert "-default via 1.1.1.2 dev eth2 table 250 proto 0\n+default via 1.1.1.3 dev eth2 table 250 proto 0\n" in text
    assert "\n--A INPUT -j DROP\n" in text
    assert "rules" not in text


def test_a_diff_of_nothing_is_empty() -> None:
    assert changes.diff(side(OLD, DROPS), side(OLD, DROPS)) == ""
