"""iptables-save's format and the tables that it says are two spellings of one thing."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import ConfigError, netfilter
from lsmpy.netfilter import BUILTIN, Chain, Table
from tests.property.routers import Scene, scenes

pytestmark = pytest.mark.long

words = st.text(string.ascii_letters + string.digits + "-_./:!,=+\"'#*[]", min_size=1, max_size=12)
own_names = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=28)


@st.composite
def tables(draw: st.DrawFn, name: str | None = None) -> Table:
    name = name or draw(st.sampled_from(sorted(BUILTIN)))
    chains = []
    for chain in (
        *BUILTIN[name],
        *draw(st.sets(own_names.filter(lambda each: each not in BUILTIN["mangle"]), max_size=3)),
    ):
        rules = draw(st.lists(st.lists(words, max_size=4).map(lambda each: " ".join(["-A", chain, *each])), max_size=3))  # noqa: B023
        policy = draw(st.sampled_from(["ACCEPT", "DROP"])) if chain in BUILTIN[name] else None
        chains.append(Chain(chain, policy, tuple(rules)))
    return netfilter.table(name, chains)


@given(tables())
def test_what_is_rendered_is_read_again(table: Table) -> None:
    read = netfilter.parse(netfilter.render([table]), "test")
    assert read[table.name].same_as(table)
    assert netfilter.render(read.values()) == netfilter.render([table])


@given(scenes(with_policies=True))
def test_every_plan_is_read_again(scene: Scene) -> None:
    for side in scene.plan().sides:
        read = netfilter.parse(netfilter.render(side.tables), "test")
        for table in side.tables:
            assert read[table.name].with_policies({}).same_as(table.with_policies({}))


@given(tables("mangle"), tables("mangle"), tables("mangle"))
def test_merging_is_associative_and_loses_no_rule(one: Table, two: Table, three: Table) -> None:
    left = netfilter.merge(netfilter.merge(one, two), three)
    assert left.same_as(netfilter.merge(one, netfilter.merge(two, three)))
    assert sorted(left.rules) == sorted([*one.rules, *two.rules, *three.rules])


@given(tables("filter"), tables("filter"))
def test_the_first_tables_rules_and_policies_come_first(one: Table, two: Table) -> None:
    merged = {chain.name: chain for chain in netfilter.merge(one, two).chains}
    for chain in one.chains:
        assert merged[chain.name].rules[: len(chain.rules)] == chain.rules
        assert merged[chain.name].policy == chain.policy


@given(st.text(max_size=200))
def test_whatever_is_read_gives_tables_or_messages_with_lines(text: str) -> None:
    said = ""
    try:
        netfilter.parse(text, "some.file")
    except ConfigError as error:
        said = str(error)
    assert all(re.match(r"some\.file:\d+: \S", line) for line in said.splitlines())
