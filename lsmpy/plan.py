"""The port of config_router.sh: from the configuration, the states and the links to one plan of the whole router.

Pure: the same input gives the same plan. Only what is chosen for new connections depends on the states; marks, NAT,
table and rules of an ISP stay as they are while it is down, so that its connections never leave by another (R2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from lsmpy import lookups, marking, netfilter, npt, sources
from lsmpy.marking import Use
from lsmpy.model import Family, Isp, Options, Router, host
from lsmpy.netfilter import MARK, Table
from lsmpy.routing import Link, Route, Rule
from lsmpy.state import Status

# `flush = "all"` rebuilds these whole; a [rules] file may add others.
OWN_TABLES = ("filter", "nat", "mangle")
_NONE_UP = {
    "all": "every one that is there is used",
    "flush": "new connections go by the main table",
    "unreachable": "new connections are refused",
}


class Verdict(Struct, frozen=True):
    """Whether new connections may use one ISP, and why not, or what of it cannot be used.

    `broken`: the reason lies in the kernel, not in the state files.
    """

    isp: str
    up: bool
    why: str = ""
    broken: bool = False


class Side(Struct, frozen=True):
    """What the kernel holds, or shall hold, of one family.

    Attributes:
        family: 4 or 6.
        tables: netfilter tables; a policy of None is to stay as it is.
        routes: all routes of the ISPs' routing tables.
        rules: all rules of policy routing that are ours or lead to these tables.
    """

    family: Family
    tables: tuple[Table, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]

    def table(self, name: str) -> Table:
        """The netfilter table of that name, empty where the kernel has none."""
        return next((each for each in self.tables if each.name == name), netfilter.table(name))


class Plan(Struct, frozen=True):
    """The whole router: one side a family, the interfaces' settings, what was decided of each ISP, and if of none."""

    sides: tuple[Side, ...]
    sysctls: tuple[tuple[str, str], ...]
    verdicts: tuple[Verdict, ...]
    when_all_down: str = "all"

    @property
    def summary(self) -> str:
        """One line for the log: who is up, who is down and why."""
        up = " ".join(f"{v.isp} ({v.why})" if v.why else v.isp for v in self.verdicts if v.up)
        down = ", ".join(f"{v.isp} ({v.why})" for v in self.verdicts if not v.up)
        if not up:
            return f"down {down}; none is up, so {_NONE_UP[self.when_all_down]}"
        return f"up {up}, down {down}" if down else f"up {up}"


def build(
    router: Router,
    states: Mapping[str, Status],
    links: Mapping[str, Link] | None,
    extra: Mapping[Family, Mapping[str, Table]] | None = None,
    refused: Mapping[str, str] | None = None,
    waiting: Collection[str] = (),
    strays: bool = False,
) -> Plan:
    """Decide what the kernel shall hold.

    Args:
        router: the configuration.
        states: what the state files say, by ISP.
        links: the kernel's interfaces, by name; None to take all as present.
        extra: tables of the [rules] files, by family.
        refused: ISPs whose routes the kernel has just refused, and its words.
        waiting: ISPs that have not been up for long enough to be used again, if there is another.
        strays: whether TCP connections that the router does not know may go on through it.
    """
    verdicts = tuple(_verdict(router, isp, states[isp.name], links, refused or {}, waiting) for isp in router.isps)
    if waiting and not any(verdict.up for verdict in verdicts):
        return build(router, states, links, extra, refused, (), strays)
    sides = tuple(
        _side(router, family, verdicts, links, (extra or {}).get(family, {}), strays) for family in router.families
    )
    return Plan(sides, _sysctls(router, links), verdicts, router.options.when_all_down)


def missing(isp: Isp, family: Family, links: Mapping[str, Link] | None) -> str:
    """What keeps the kernel from sending by this ISP, or an empty string (contract, section 1)."""
    if links is None:
        return ""
    link = links.get(isp.interface)
    if link is None:
        return f"there is no interface {isp.interface}"
    if not link.up:
        return f"interface {isp.interface} is not up"
    if not link.carrier:
        return f"interface {isp.interface} has no carrier"
    own = isp.addresses(family)
    if not own:
        return f"interface {isp.interface} has no IPv{family} address"
    if host(own[0]) not in link.addresses:
        return f"interface {isp.interface} does not have {host(own[0])}"
    if isp.next_hop(family) is None:
        return f"interface {isp.interface} has no IPv{family} default route in the main table"
    return ""


def _verdict(
    router: Router,
    isp: Isp,
    status: Status,
    links: Mapping[str, Link] | None,
    refused: Mapping[str, str],
    waiting: Collection[str],
) -> Verdict:
    families = [family for family in router.families if isp.carries(family)]
    lacks = [missing(isp, family, links) for family in families]
    if isp.name in refused:
        return Verdict(isp.name, False, refused[isp.name], broken=True)
    if families and all(lacks):
        return Verdict(isp.name, False, lacks[0], broken=True)
    if not status.up:
        why = "forced" if status.force else f"its state file says {(status.text or '')[:20]!r}"
        return Verdict(isp.name, False, why)
    if isp.name in waiting:
        return Verdict(isp.name, False, f"up again, and used when it was so for {router.options.failback_after_s} s")
    # An ISP whose addresses are followed may well have none of a family.
    partly = [
        f"without IPv{family}: {lack}"
        for family, lack in zip(families, lacks, strict=True)
        if lack and isp.addresses(family)
    ]
    prefixes = ", ".join(isp.prefix) or "no prefix"
    partly += [f"without IPv6 of {net}: {prefixes} has no place for it" for net in npt.homeless(isp, router.lans)]
    return Verdict(isp.name, True, ", ".join(partly), broken=bool(partly))


def _side(
    router: Router,
    family: Family,
    verdicts: Iterable[Verdict],
    links: Mapping[str, Link] | None,
    extra: Mapping[str, Table],
    strays: bool,
) -> Side:
    isps = [isp for isp in router.isps if isp.carries(family)]
    present = {isp.name for isp in isps if not missing(isp, family, links)}
    verdict = {each.isp: each.up for each in verdicts}
    up = [isp for isp in isps if isp.name in present and verdict[isp.name]]
    # One that is followed and has no address of a family may never have one, so main is not kept waiting for it.
    known = [isp for isp in isps if isp.addresses(family)]
    usable = up or _with_none_up(router.options, known, present)
    use = _use(router.options, isps, up, usable, strays)
    mtus = {name: link.mtu for name, link in (links or {}).items()}
    six = isps if family == 6 else []
    own = {
        "filter": netfilter.merge(
            marking.refusals(router, family, isps), sources.refusals(isps, router.lans, family, usable)
        ),
        "nat": marking.nat(isps, family, router.lans),
        "mangle": marking.mangle(router, family, isps, use, mtus),
        **({"raw": npt.untracked(six, router.lans)} if npt.stateless(six) else {}),
    }
    names = dict.fromkeys((*OWN_TABLES, *own, *extra))
    # The user's rules come first, so that they can make exceptions; but in filter they accept what comes from a LAN,
    # and what is refused there nobody could mean.
    both = ((name, own.get(name, netfilter.table(name)), extra.get(name, netfilter.table(name))) for name in names)
    tables = [netfilter.merge(*(pair if name == "filter" else reversed(pair))) for name, *pair in both]
    routes, rules = lookups.lookups(router, family, isps, usable, use.chosen, links)
    return Side(family, tuple(tables), routes, rules)


# -- who gets new connections --------------------------------------------------------------------------------


def _with_none_up(options: Options, isps: list[Isp], present: set[str]) -> list[Isp]:
    """Who is used while none is up, by `when_all_down`: every one that is there, or none.

    With none what is new gets no mark. The article's script gives it none either ("flush"), and it goes where main
    sends it. What main sends out by an ISP still gets that ISP's address, which the article forgets.
    """
    if options.when_all_down != "all":
        return []
    return [isp for isp in isps if isp.name in present] or isps


def _use(options: Options, isps: list[Isp], up: list[Isp], usable: list[Isp], strays: bool) -> Use:
    """New connections are for the best tier that may be used. With none up none is out of service: where to go?"""
    best = min((isp.tier for isp in usable), default=1)
    return Use(
        usable=tuple(usable),
        chosen=tuple(isp for isp in usable if isp.tier == best),
        down=tuple(isp for isp in isps if up and isp not in up),
        left=tuple(isp for isp in isps if up and isp.tier > best) if options.failback == "move" else None,
        strays=strays,
    )


def used(side: Side, isps: Iterable[Isp]) -> frozenset[str]:
    """The names of the ISPs that get new connections by what a side holds, ours or the kernel's."""
    tables = {rule.table for rule in side.rules if rule.priority == lookups.BY_TIER}
    chains = [chain for chain in side.table("mangle").chains if chain.name != f"{netfilter.PREFIX}PREROUTING"]
    marks = {rule.rpartition(" -g ")[2] for chain in chains for rule in chain.rules}
    return frozenset(isp.name for isp in isps if f"{MARK}{isp.name}" in marks or int(isp.table) in tables)


# -- settings of the interfaces ------------------------------------------------------------------------------


def _sysctls(router: Router, links: Mapping[str, Link] | None) -> tuple[tuple[str, str], ...]:
    """Loose reverse path filtering that looks at marks, on the ISPs' interfaces only (ip-sysctl.rst, rp_filter).

    Strict filtering would drop what arrives by an ISP that main does not prefer; loose without the mark would
    drop everything when main has no default. And what the kernel itself says about a packet (an echo, a reset, an
    error) leaves by the ISP that the packet is of, with its address (fwmark_reflect): conntrack knows no connection
    that an error about a refused packet belongs to.
    """
    reflected = [(f"net/ipv{family}/fwmark_reflect", "1") for family in router.families]
    devices = [isp.interface for isp in router.isps if isp.carries(4) and (links is None or isp.interface in links)]
    keys = (("rp_filter", "2"), ("src_valid_mark", "1")) if 4 in router.families else ()
    return (*reflected, *((f"net/ipv4/conf/{device}/{key}", value) for device in devices for key, value in keys))
