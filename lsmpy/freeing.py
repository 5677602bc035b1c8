"""Whose connections a rebuild forgets, and when (R4): those of an ISP that was in service and is not any more.

Who was in service stands in the kernel: two chains of mangle list the ISPs that are not, and whose connections have
been forgotten. So they are written last of all: a rebuild that is killed before has not written them, and the next one
forgets what this one has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from lsmpy import netfilter
from lsmpy.changes import Changes
from lsmpy.marking import DOWN, LEFT
from lsmpy.model import Family, Router
from lsmpy.netfilter import Chain, Table
from lsmpy.plan import Side

Commands = Mapping[tuple[Family, str], tuple[str, ...]]  # for each family and ISP


class Parting(Struct, frozen=True):
    """The steps of one family, parted where connections are to be forgotten.

    Attributes:
        isps: the names of the ISPs whose connections are.
        early: all steps, but these ISPs are not listed yet.
        late: what lists them.
    """

    isps: frozenset[str]
    early: Changes
    late: Changes


def part(live: Side, step: Changes, known: Commands) -> Parting:
    """Part the steps that lead away from `live`, for the ISPs whose connections somebody knows how to forget."""
    later = Changes(step.family, (), (), (), (), ())
    wanted = next((table for table in step.tables if table.name == "mangle"), netfilter.table("mangle"))
    isps = frozenset(isp for isp in _gone(live.table("mangle"), wanted) if (step.family, isp) in known)
    if not isps:
        return Parting(isps, step, later)
    tables = tuple(_unlisted(table, isps) if table is wanted else table for table in step.tables)
    return Parting(isps, msgspec.structs.replace(step, tables=tables), msgspec.structs.replace(later, tables=(wanted,)))


def commands(router: Router) -> Commands:
    """How conntrack(8) forgets the connections of each ISP; nothing where that is not wanted.

    By mark, those that are older than our marks by its address, and again by mark: a packet that was on its way through
    the old rules may have made a connection meanwhile.
    """
    if not router.options.flush_conntrack:
        return {}
    made = {}
    for family, isp in ((family, isp) for family in router.families for isp in router.isps if isp.carries(family)):
        forget = f"conntrack -D -f ipv{family}"
        marked = f"{forget} --mark {router.mark_value(isp):#x}/{router.options.mark_mask:#x}"
        addresses = (f"{forget} --reply-dst {each.ip}" for each in isp.addresses(family))
        made[family, isp.name] = (marked, *addresses, marked)
    return made


def listed(table: Table, name: str) -> frozenset[str]:
    """The ISPs that one of the two chains lists."""
    rules: Iterable[str] = next((chain.rules for chain in table.chains if chain.name == name), ())
    return frozenset(map(_isp, rules))


def out_of_service(router: Router, live: Mapping[Family, Side]) -> set[str]:
    """The ISPs that the kernel's lists say are down, in every family that they carry."""
    down = {family: listed(side.table("mangle"), DOWN) for family, side in live.items()}
    return {isp.name for isp in router.isps if all(isp.name in down[f] for f in down if isp.carries(f))}


def _isp(rule: str) -> str:
    return rule.split()[-1].removeprefix("MARK-")


def _gone(live: Table, want: Table) -> frozenset[str]:
    """Who is listed from now on; nobody where there was no such list, and so nothing is known of before."""
    were, are = listed(live, DOWN), listed(want, DOWN)
    fallen = are - were if live.has(DOWN) else frozenset[str]()
    # What is down already, or falls in this moment, has nothing more to move.
    moving = listed(want, LEFT) - listed(live, LEFT) - were if live.has(LEFT) else frozenset[str]()
    return fallen | moving


def _unlisted(table: Table, isps: frozenset[str]) -> Table:
    """The table without these ISPs in its two lists."""

    def stays(chain: Chain, rule: str) -> bool:
        return chain.name not in (DOWN, LEFT) or _isp(rule) not in isps

    chains = (Chain(c.name, c.policy, tuple(rule for rule in c.rules if stays(c, rule))) for c in table.chains)
    return Table(table.name, tuple(chains))
