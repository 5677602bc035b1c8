"""`flush = "own"`: whatever others have in a table stays as it is, whenever and however often we come and go."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import beside, changes, netfilter
from lsmpy.netfilter import BUILTIN, IN, MARK, OUT, PREFIX, Chain, Table
from tests.property.routers import Scene, scenes, statuses

pytestmark = pytest.mark.long

Encounter = tuple[Table, Table]
OTHERS = ("DOCKER", "ufw-before-forward", "FWD_public", "f2b-sshd", "MARK", "LSMPY", "my-LSMPY-chain")
TAILS = (
    "-j ACCEPT",
    "-i docker0 -j DOCKER",
    '-m comment --comment "goes to -j LSMPY-PREROUTING" -j RETURN',
    '-m comment --comment "a \\" -g LSMPY-M-I0" -j ufw-before-forward',
    "-m mark --mark 0x40000/0xff0000",
    "-j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000",
)


@st.composite
def foreign(draw: st.DrawFn, name: str) -> Table:
    """Others' table: chains, rules in built-in ones and policies."""
    chains = []
    for chain in (*BUILTIN[name], *draw(st.sets(st.sampled_from(OTHERS)))):
        rules = tuple(f"-A {chain} {tail}" for tail in draw(st.lists(st.sampled_from(TAILS), max_size=3)))
        policy = draw(st.sampled_from(["ACCEPT", "DROP"])) if chain in BUILTIN[name] else None
        chains.append(Chain(chain, policy, rules))
    return netfilter.table(name, chains)


@st.composite
def mixed(draw: st.DrawFn, others: Table, ours: Table) -> Table:
    """Others' table after they have put rules before, between and behind ours, and ours twice, or lost some of ours."""
    chains = [chain for chain in others.chains if chain.name not in BUILTIN[others.name]]
    for chain in others.chains:
        if chain.name in BUILTIN[others.name]:
            rules = list(chain.rules)
            jumps = next(each.rules for each in ours.chains if each.name == chain.name)
            for jump in draw(st.lists(st.sampled_from(jumps), max_size=2)) if jumps else ():
                rules.insert(draw(st.integers(0, len(rules))), jump)
            chains.append(Chain(chain.name, chain.policy, tuple(rules)))
    for chain in ours.chains:
        if chain.name not in BUILTIN[ours.name]:
            chains.append(Chain(chain.name, None, chain.rules[: draw(st.integers(0, len(chain.rules)))]))
    return netfilter.table(others.name, chains)


def restored(live: Table, text: str) -> Table:
    """What `iptables-restore --noflush` makes of a table (iptables-restore(8)), refusing what the kernel refuses."""
    chains = {chain.name: list(chain.rules) for chain in live.chains}
    lines = text.splitlines()
    assert (lines[0], lines[-1]) == (f"*{live.name}", "COMMIT")
    for line in lines[1:-1]:
        command, name, *_ = (":", *line[1:].split()) if line.startswith(":") else line.split(" ", 2)
        rule = f"-A {line.partition(' ')[2]}"
        if command == ":":
            assert name not in BUILTIN[live.name], "this would be a policy"
            chains[name] = []
        elif command == "-A":
            chains[name].append(line)
        elif command == "-I":
            chains[name].insert(0, rule)
        elif command == "-D":
            chains[name].remove(rule)
        elif command == "-F":
            chains[name].clear()
        elif command == "-X":
            assert not chains[name], "the kernel does not delete a chain with rules"
            led_to = {each.split()[-1] for rules in chains.values() for each in rules if re.search(" -[jg] ", each)}
            assert name not in led_to, "nor one that others lead to"
            del chains[name]
        else:
            raise AssertionError(line)
    policies = live.policies()
    return netfilter.table(live.name, (Chain(name, policies.get(name), tuple(rs)) for name, rs in chains.items()))


def others_of(table: Table) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """Chains, rules and policies but for ours, told by their names alone."""
    return {
        chain.name: (chain.policy, tuple(rule for rule in chain.rules if not rule.split()[-1].startswith(PREFIX)))
        for chain in table.chains
        if not chain.name.startswith(PREFIX)
    }


@st.composite
def encounters(draw: st.DrawFn) -> Encounter:
    """A live table, in which another configuration or state has left something of us, and what we want there now."""
    now: Scene = draw(scenes())
    before = draw(st.one_of(scenes(), st.just(now)))
    want = draw(st.sampled_from([table for side in now.plan().sides for table in side.tables]))
    olds = [netfilter.table(want.name), *(side.table(want.name) for side in before.plan().sides)]
    live = draw(mixed(draw(foreign(want.name)), draw(st.sampled_from(olds))))
    return live, want


@given(encounters())
def test_the_edit_leads_to_ours_beside_theirs_and_touches_nothing_of_theirs(met: Encounter) -> None:
    live, want = met
    wanted = beside.beside(live, want)
    after = restored(live, beside.edit(live, wanted))
    assert after.same_as(wanted)
    assert others_of(after) == others_of(live)
    assert beside.ours(after).same_as(want)
    assert beside.beside(after, want).same_as(after), "the second time nothing is done"


@given(encounters())
def test_what_is_taken_out_again_leaves_theirs(met: Encounter) -> None:
    live, want = met
    there = beside.beside(live, want)
    left = beside.without(there)
    assert restored(there, beside.edit(there, left)).same_as(left)
    assert others_of(left) == others_of(live)
    assert not beside.ours(left).rules


@given(encounters())
def test_what_was_ours_comes_back_after_a_failure(met: Encounter) -> None:
    """Undone: from what the new configuration has left, to the chains of the old one, among others' as they are now."""
    live, want = met
    then = beside.beside(live, want)
    former = beside.beside(then, beside.ours(live))
    after = restored(then, beside.edit(then, former))
    assert after.same_as(former)
    assert others_of(after) == others_of(live)
    assert beside.ours(after).same_as(_once(beside.ours(live)))


def _once(table: Table) -> Table:
    """Without second copies of a jump."""
    once = (
        Chain(c.name, c.policy, tuple(dict.fromkeys(c.rules))) if c.name in BUILTIN[table.name] else c
        for c in table.chains
    )
    return netfilter.table(table.name, once)


@given(scenes(), st.data())
def test_a_change_of_state_names_nothing_but_the_chains_that_choose(scene: Scene, data: st.DataObject) -> None:
    for one, two in zip(scene.plan().sides, scene.plan(data.draw(statuses(scene.router))).sides, strict=True):
        for table in changes.between(one, two).tables:
            live = beside.beside(data.draw(foreign(table.name)), one.table(table.name))
            text = beside.edit(live, beside.beside(live, two.table(table.name)))
            named = {line.lstrip(":").split()[0 if line.startswith(":") else 1] for line in text.splitlines()[1:-1]}
            assert all(name.startswith(PREFIX) and not name.startswith((MARK, OUT, IN)) for name in named), named


@given(scenes())
def test_chains_that_we_leave_behind_are_known_without_the_configuration(scene: Scene) -> None:
    """When an ISP, a LAN or a policy has another name, or none."""
    for side in scene.plan().sides:
        for table in side.tables:
            assert beside.ours(table).same_as(table)


@given(scenes())
def test_all_that_we_put_into_others_chains_leads_to_ours(scene: Scene) -> None:
    for side in scene.plan().sides:
        for table in side.tables:
            for chain in table.chains:
                if chain.name in BUILTIN[table.name]:
                    assert all(re.search(rf" -j {PREFIX}\S+$", rule) for rule in chain.rules)
