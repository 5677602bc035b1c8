"""The steps from one image of the kernel to another, carried out on a model of the kernel."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lsmpy import changes, lookups, netfilter
from lsmpy.changes import Changes
from lsmpy.netfilter import Chain, Table
from lsmpy.plan import Side
from lsmpy.routing import LOCAL_DEFAULT, Route, Rule
from tests.property.routers import CHOICES, Scene, scenes, statuses

pytestmark = pytest.mark.long

routes = st.builds(
    Route,
    target=st.sampled_from(["default", "192.0.2.0/24"]),
    table=st.sampled_from([250, 249]),
    kind=st.sampled_from(["1", "7"]),
    gateway=st.sampled_from([None, "10.0.0.2", "10.0.0.3"]),
    device=st.sampled_from(["eth2", "eth3"]),
    metric=st.sampled_from([0, 5]),
    protocol=st.sampled_from([76, 3]),
)
rules = st.builds(
    Rule,
    priority=st.sampled_from([20001, 20002]),
    selector=st.sampled_from(["", "oif eth2", "fwmark 0x1"]),
    table=st.sampled_from([250, 249]),
    protocol=st.sampled_from([76, 0]),
)
texts = st.lists(st.sampled_from(["-A {} -j DROP", "-A {} -o eth2 -j ACCEPT", "-A {}"]), max_size=2)


@st.composite
def tables(draw: st.DrawFn, live: bool) -> tuple[Table, ...]:
    made = []
    for name in ("filter", "nat", "mangle"):
        if live and draw(st.booleans()):
            continue  # a kernel may have no table of that name yet
        policies = st.sampled_from(["ACCEPT", "DROP"] if live else ["ACCEPT", "DROP", None])
        chains = [
            Chain(chain, draw(policies), tuple(text.format(chain) for text in draw(texts)))
            for chain in netfilter.BUILTIN[name]
        ]
        if draw(st.booleans()):
            chains.append(Chain("MINE", None, tuple(text.format("MINE") for text in draw(texts))))
        made.append(netfilter.table(name, draw(st.permutations(chains))))
    return tuple(made)


@st.composite
def images(draw: st.DrawFn, live: bool) -> Side:
    # A kernel may hold several routes of one key (`ip route append`); a plan never does.
    some = st.lists(routes, max_size=8, unique=True) if live else st.lists(routes, max_size=8, unique_by=_key)
    return Side(4, draw(tables(live)), tuple(draw(some)), tuple(draw(st.lists(rules, max_size=6, unique=True))))


def _key(route: Route) -> tuple[int, str, int]:
    return route.key


def carried_out(live: Side, step: Changes) -> Side:
    """What the kernel holds after the steps, each as ip-route(8), ip-rule(8) and iptables-restore(8) have it."""
    held = list(live.routes)
    for route in step.routes:
        same = [place for place, each in enumerate(held) if each.key == route.key]
        if same:
            held[same[0]] = route
        else:
            held.append(route)
    rules = list(live.rules)
    for rule in step.rules:
        assert rule not in rules, "the kernel would say File exists"
        rules.append(rule)
    known = {table.name: table for table in live.tables} | {table.name: table for table in step.tables}
    for rule in step.stale_rules:
        rules.remove(rule)
    for route in step.stale_routes:
        held.remove(route)
    return Side(4, tuple(known.values()), tuple(held), tuple(rules))


def holds(live: Side, want: Side) -> bool:
    """Whether the kernel holds exactly what is wanted; a policy that is not said may be any."""
    same = (set(live.routes), set(live.rules)) == (set(want.routes), set(want.rules))
    for table in want.tables:
        present = live.table(table.name).with_policies({})
        same = same and table.with_policies(present.policies()).same_as(present)
    return same and len(live.routes) == len(set(live.routes))


@given(images(live=True), images(live=False))
def test_the_steps_lead_to_what_is_wanted(live: Side, want: Side) -> None:
    assert holds(carried_out(live, changes.between(live, want)), want)


@given(images(live=True), images(live=False))
def test_there_are_steps_exactly_when_something_differs(live: Side, want: Side) -> None:
    assert bool(changes.between(live, want)) != holds(live, want)


@given(images(live=True), images(live=False))
def test_after_the_steps_there_is_nothing_left_to_do(live: Side, want: Side) -> None:
    assert not changes.between(carried_out(live, changes.between(live, want)), want)


@given(images(live=True), images(live=False))
def test_policies_that_are_not_said_stay(live: Side, want: Side) -> None:
    after = carried_out(live, changes.between(live, want))
    for table in want.tables:
        for chain, policy in table.policies().items():
            before = live.table(table.name).policies()[chain] or "ACCEPT"
            assert (after.table(table.name).policies()[chain] or "ACCEPT") == (policy or before)


@given(images(live=True), images(live=False))
def test_what_is_right_already_is_never_touched(live: Side, want: Side) -> None:
    step = changes.between(live, want)
    assert not set(live.routes) & set(want.routes) & {*step.routes, *step.stale_routes}
    assert not set(live.rules) & set(want.rules) & {*step.rules, *step.stale_rules}


@given(images(live=True), images(live=False))
def test_a_diff_is_empty_exactly_when_nothing_differs(live: Side, want: Side) -> None:
    assert bool(changes.diff(live, want)) == bool(changes.between(live, want))


@given(images(live=True), images(live=False))
def test_a_part_leads_to_what_the_whole_table_does(live: Side, want: Side) -> None:
    for table in changes.between(live, want).tables:
        before = live.table(table.name).with_policies({})
        part = netfilter.part(before, table)
        if part.chains:
            assert netfilter.table(table.name, (*before.chains, *part.chains)).same_as(table)


@given(scenes(with_policies=True), st.data())
def test_a_change_of_state_loads_at_most_the_table_that_marks_or_one_default(scene: Scene, data: st.DataObject) -> None:
    one, two = scene.plan(), scene.plan(data.draw(statuses(scene.router)))
    for live, want in zip(one.sides, two.sides, strict=True):
        step = changes.between(live, want)
        changed = {*step.adding, *step.stale_routes, *step.stale_rules}
        assert all(
            each.priority == lookups.BY_TIER if isinstance(each, Rule) else each.table == LOCAL_DEFAULT
            for each in changed
        )
        refusing = (
            {"filter"} if live.family == 6 and any(isp.nat.ipv6 == "none" for isp in scene.isps(6)) else set[str]()
        )
        assert {table.name for table in step.tables} <= {"mangle"} | refusing
        for table in step.tables:
            part = netfilter.part(live.table(table.name).with_policies({}), table)
            # A tree of the hash may have lost a branch, and a chain that has to go takes the whole table.
            assert part.chains or scene.router.options.balance == "hash"
            assert all(chain.name.startswith(CHOICES) for chain in part.chains)


@given(scenes())
def test_the_same_plan_needs_no_step(scene: Scene) -> None:
    made = scene.plan()
    assume(made.sides)
    assert not any(changes.between(side, side) for side in made.sides)
