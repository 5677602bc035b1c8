"""Whose connections a rebuild forgets, and when (R4): those of an ISP that goes out of service, an address or a
mark.

Who was in service stands in the kernel: two chains of mangle list the ISPs that are not, and whose connections have
been forgotten. So they are written last of all: a rebuild that is killed before has not written them, and the next one
forgets what this one has not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec
from msgspec import Struct

from lsmpy import beside, late, marking, netfilter
from lsmpy.changes import Changes
from lsmpy.marking import DOWN, LEFT
from lsmpy.model import Family, Isp, Router
from lsmpy.netfilter import MARK, Chain, Table
from lsmpy.plan import Side

Commands = Mapping[tuple[Family, str], tuple[str, ...]]  # for each family and ISP


class Parting(Struct, frozen=True):
    """The steps of one family, parted where connections are to be forgotten.

    Attributes:
        gone: whose connections are, the names of ISPs and the addresses and marks that are ours no more, and the
            commands for it.
        early: all steps, but these ISPs are not listed yet, and what we translated until now still is translated: the
            marks, which come after it, may still lead there.
        late: what lists them, and translates no more than it shall.
    """

    gone: Mapping[str, tuple[str, ...]]
    early: Changes
    late: Changes


def part(router: Router, live: Side, step: Changes, present: Collection[str] = ()) -> Parting:
    """Part the steps that lead away from `live`.

    Args:
        router: the configuration.
        live: what the kernel holds.
        step: the way from there.
        present: the addresses that the machine has, of whatever interface.
    """
    tables = {table.name: table for table in step.tables}
    known, wanted = commands(router), tables.get("mangle", netfilter.table("mangle"))
    isps = frozenset(isp for isp in _gone(live.table("mangle"), wanted) if (step.family, isp) in known)
    gone = {isp: known[step.family, isp] for isp in sorted(isps)}
    if known and "mangle" in tables:
        for isp, command in _remarked(step.family, live.table("mangle"), wanted).items():
            gone[isp] = (*gone.get(isp, ()), command)
    if known and "nat" in tables:
        # What has such an address would be dropped on its way out for as long as anybody tries. (Masquerading forgets
        # by itself.)
        given = marking.given(live.table("nat")) - marking.given(tables["nat"])
        gone |= {each: (_of_address(step.family, each),) for each in sorted(given.difference(present))}
        gone |= _renamed(router, live.table("nat"), tables["nat"])
    early = dict(tables)
    if isps:
        early["mangle"] = _unlisted(wanted, isps)
    if "nat" in tables:
        early["nat"] = _with_former(live.table("nat"), tables["nat"])
    late = tuple(table for name, table in tables.items() if early[name] != table)
    nothing = Changes(step.family, (), (), (), (), ())
    return Parting(
        gone,
        msgspec.structs.replace(step, tables=tuple(early.values())),
        msgspec.structs.replace(nothing, tables=late),
    )


def commands(router: Router) -> Commands:
    """How conntrack(8) forgets the connections of each ISP; nothing where that is not wanted.

    Those that are older than our marks by its address, and then by mark: not before, as a packet that was on its way
    through the old rules may have made a connection meanwhile.
    """
    if not router.options.flush_conntrack:
        return {}
    made = {}
    for family, isp in ((family, isp) for family in router.families for isp in router.isps if isp.carries(family)):
        now = late.begin(router, isp, family)
        addresses = (_of_address(family, str(each.ip)) for each in isp.addresses(family))
        made[family, isp.name] = (*now, *addresses, _of_mark(family, _mark(router, isp)))
    return made


def _remarked(family: Family, live: Table, want: Table) -> dict[str, str]:
    """What frees those of ISPs that have another mark from now on, or none: nobody would know them by the old one."""
    old, new = _marks(live), _marks(want)
    return {isp: _of_mark(family, mark) for isp, mark in old.items() if new.get(isp) != mark}


def _renamed(router: Router, live: Table, want: Table) -> dict[str, tuple[str, ...]]:
    """What frees the connections of networks that have another prefix outside from now on, both ways."""
    by_interface = {isp.interface: isp for isp in router.isps}
    gone: dict[str, tuple[str, ...]] = {}
    for inside, interface, outside in sorted(marking.mapped(live) - marking.mapped(want)):
        if isp := by_interface.get(interface):  # else they are freed by their mark
            begun = f"conntrack -D -f ipv6 --orig-src {inside} --mark {_mark(router, isp)}"
            gone[outside] = (begun, f"conntrack -D -f ipv6 --orig-dst {outside}")
    return gone


def _marks(table: Table) -> dict[str, str]:
    """The mark of each ISP, with its mask, by the chains that make it."""
    chains = (chain for chain in table.chains if chain.name.startswith(MARK) and chain.rules)
    return {chain.name.removeprefix(MARK): chain.rules[0].rpartition(" ")[2] for chain in chains}


def _mark(router: Router, isp: Isp) -> str:
    return f"{router.mark_value(isp):#x}/{router.options.mark_mask:#x}"


def _of_mark(family: Family, mark: str) -> str:
    return f"conntrack -D -f ipv{family} --mark {mark}"


def _of_address(family: Family, address: str) -> str:
    return f"conntrack -D -f ipv{family} --reply-dst {address}"


def listed(table: Table, name: str) -> frozenset[str]:
    """The ISPs that one of the two chains lists."""
    rules: Iterable[str] = next((chain.rules for chain in table.chains if chain.name == name), ())
    return frozenset(map(_isp, rules))


def out_of_service(router: Router, live: Mapping[Family, Side]) -> set[str]:
    """The ISPs that the kernel's lists say are down, in every family that they have an address of."""
    down = {family: listed(side.table("mangle"), DOWN) for family, side in live.items()}
    return {isp.name for isp in router.isps if all(isp.name in down[f] for f in down if isp.addresses(f))}


def _isp(rule: str) -> str:
    return rule.split()[-1].removeprefix(MARK)


def _gone(live: Table, want: Table) -> frozenset[str]:
    """Who is listed from now on; nobody where there was no such list, and so nothing is known of before."""
    were, are = listed(live, DOWN), listed(want, DOWN)
    fallen = are - were if live.has(DOWN) else frozenset[str]()
    # What is down already, or falls in this moment, has nothing more to move.
    moving = listed(want, LEFT) - listed(live, LEFT) - were if live.has(LEFT) else frozenset[str]()
    return fallen | moving


def _with_former(live: Table, want: Table) -> Table:
    """The table and, behind it, what only the live one has of ours for what leaves.

    What comes in is not led by what was: it would begin connections that nobody frees.
    """
    wanted = {chain.name: chain.rules for chain in want.chains}
    former = [
        Chain(chain.name, None, rules)
        for chain in beside.ours(live).chains
        if chain.name.endswith("POSTROUTING")
        and (rules := tuple(rule for rule in chain.rules if rule not in wanted.get(chain.name, ())))
    ]
    return netfilter.merge(want, netfilter.table(want.name, former)) if former else want


def _unlisted(table: Table, isps: frozenset[str]) -> Table:
    """The table without these ISPs in its two lists."""

    def stays(chain: Chain, rule: str) -> bool:
        return chain.name not in (DOWN, LEFT) or _isp(rule) not in isps

    chains = (Chain(c.name, c.policy, tuple(rule for rule in c.rules if stays(c, rule))) for c in table.chains)
    return Table(table.name, tuple(chains))
