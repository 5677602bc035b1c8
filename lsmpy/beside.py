"""Our chains among those of others, for `flush = "own"`: what a table shall hold then, and the edit that leads there.

Others' chains, their rules and the order of these stay as they are, and so do all policies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from itertools import pairwise

from lsmpy import netfilter
from lsmpy.netfilter import BUILTIN, PREFIX, Chain, Table

_HOOKS = "|".join(sorted({name for names in BUILTIN.values() for name in names}))
_JUMP = re.compile(rf'-A ({_HOOKS}) (.* )?-[jg] {PREFIX}[^\s"]+')  # ours outside our chains
_LAST_IN = "nat"
_QUOTED = re.compile(r'"(\\.|[^"\\])*"')


def beside(live: Table, want: Table) -> Table:
    """The table as it is, with our chains and the jumps to them as they shall be.

    A jump that is there stays in its place: others put theirs first too, and nobody gains by a fight about that. One
    that is missing comes first in its chain, so that nobody ends a packet's way before it; but in nat last, where
    others' rules are exceptions from ours, which translate all that leaves.

    Args:
        live: what the kernel holds.
        want: our chains and, in the built-in ones, our jumps.
    """
    gone = {name for name in _ours(live) if not want.has(name)}
    jumps = {chain.name: chain.rules for chain in want.chains if chain.name in BUILTIN[want.name]}
    others = []
    for chain in live.chains:
        if chain.name not in gone and (chain.name in jumps or not want.has(chain.name)):
            wanted = jumps.get(chain.name, ())
            kept = _kept(chain, wanted, gone)
            missing = [jump for jump in dict.fromkeys(wanted) if jump not in kept]
            rules = (*kept, *missing) if live.name == _LAST_IN else (*missing, *kept)
            others.append(Chain(chain.name, chain.policy, rules))
    return netfilter.table(live.name, [*others, *(chain for chain in want.chains if chain.name not in jumps)])


def without(live: Table) -> Table:
    """The table as it is but for our chains and the jumps to them."""
    return beside(live, netfilter.table(live.name))


def ours(live: Table) -> Table:
    """Our chains in a table and, in the built-in ones, our jumps: what `beside` puts back among others'."""
    names = _ours(live)
    chains = [
        Chain(chain.name, None, tuple(rule for rule in chain.rules if chain.name in names or _JUMP.fullmatch(rule)))
        for chain in live.chains
        if chain.name in names or chain.name in BUILTIN[live.name]
    ]
    return netfilter.table(live.name, chains)


def edit(live: Table, want: Table) -> str:
    """The text for `iptables-restore --noflush` that makes of `live` what `beside` has made of it, in one commit.

    It declares, and thereby empties, none but our chains; of others it names the rules alone that led to what goes.
    """
    names = _ours(live) | _ours(want)
    before = {chain.name: chain for chain in live.chains}
    filled = [chain for chain in want.chains if chain.name in names and chain != before.get(chain.name)]
    gone = [name for name in before if not want.has(name)]
    lines = [f":{chain.name} - [0:0]" for chain in filled] + [rule for chain in filled for rule in chain.rules]
    for chain in want.chains:
        if chain.name not in names:
            had = before.get(chain.name, Chain(chain.name)).rules
            # Of equal rules the first is deleted, and `beside` keeps the last.
            lines += [f"-D{rule[2:]}" for rule in (Counter(had) - Counter(chain.rules)).elements()]
            added = [rule for rule in chain.rules if rule not in had]
            lines += added if want.name == _LAST_IN else [f"-I{rule[2:]}" for rule in reversed(added)]
    lines += [f"-F {name}" for name in gone] + [f"-X {name}" for name in gone]
    return "".join(f"{line}\n" for line in (f"*{want.name}", *lines, "COMMIT"))


def _ours(table: Table) -> frozenset[str]:
    """The names of our chains in a table, those of ISPs and LANs that are configured no more among them."""
    return frozenset(chain.name for chain in table.chains if chain.name.startswith(PREFIX))


def _kept(chain: Chain, wanted: Collection[str], gone: Collection[str]) -> tuple[str, ...]:
    """The rules of a chain without those that lead to what goes, our former jumps, and earlier copies of our jumps."""
    kept: list[str] = []
    for rule in reversed(chain.rules):
        stale = _JUMP.fullmatch(rule) and (rule not in wanted or rule in kept)
        if not stale and not (gone and _target(rule) in gone):
            kept.append(rule)
    return tuple(reversed(kept))


def _target(rule: str) -> str:
    """The chain or target of a rule, empty if it has none; what stands in a comment is none."""
    words = _QUOTED.sub("", rule).split()
    return next((after for word, after in pairwise(words) if word in ("-j", "-g")), "")
