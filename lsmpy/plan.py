"""The port of config_router.sh: from the configuration, the states and the links to one plan of the whole router.

Pure: the same input gives the same plan. Only what is chosen for new connections depends on the states; marks, NAT,
table and rules of an ISP stay as they are while it is down, so that its connections never leave by another (R2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct

from lsmpy import choice, marking, netfilter, npt, routing, sources
from lsmpy.marking import Use
from lsmpy.model import Family, Interface, Isp, Lan, Network, Options, Router, host
from lsmpy.netfilter import Table
from lsmpy.routing import Link, Route, Rule
from lsmpy.state import Status

# `flush = "all"` rebuilds these whole; a [rules] file may add others.
OWN_TABLES = ("filter", "nat", "mangle")
# Priorities of our rules, before main's 32766.
FROM_MAIN, BY_SOURCE, BY_MARK, BY_TIER, BY_NONE, LOCAL = range(20000, 20006)
BEFORE_MAIN = 32765
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
    refusing = bool(known) and not use.chosen and router.options.when_all_down == "unreachable"
    astray = bool(use.chosen) and any(family in _leading(isp, links) for isp in isps if isp not in usable)
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
    return Side(
        family=family,
        tables=tuple(tables),
        routes=(
            *_routes(router, family, isps, links),
            *(_local_default(router, family, isps, use.chosen, links) if astray or _balances_own(router) else ()),
        ),
        rules=(
            *_rules(router, family, isps, use.chosen, links),
            *(_refusals(router.lans) if refusing else ()),
            *([Rule(BEFORE_MAIN, "", routing.LOCAL_DEFAULT)] if astray else ()),
        ),
    )


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
    tables = {rule.table for rule in side.rules if rule.priority == BY_TIER}
    chains = [chain for chain in side.table("mangle").chains if chain.name != f"{netfilter.PREFIX}PREROUTING"]
    marks = {rule.rpartition(" -g ")[2] for chain in chains for rule in chain.rules}
    return frozenset(isp.name for isp in isps if f"MARK-{isp.name}" in marks or int(isp.table) in tables)


# -- routing -------------------------------------------------------------------------------------------------


def _routes(router: Router, family: Family, isps: list[Isp], links: Mapping[str, Link] | None) -> Iterable[Route]:
    """One table an ISP: its own network and the LANs', its default, and an end that is never passed (R2).

    The article has the other ISPs' networks in each table as well. `lookup main` comes first here and knows them, and
    with 64 ISPs they would be 8,000 routes to compare at every rebuild.
    """
    lans = _local(router.lans, family, links)
    for isp in isps:
        number, own = int(isp.table), _local((isp,), family, links)
        for target, (device, source) in (own | {net: way for net, way in lans.items() if net not in own}).items():
            yield routing.unicast(family, number, target, device, None, source)
        yield from _default(isp, family, number, links)
        yield routing.unreachable(family, number)


def _leads(isp: Isp, family: Family, links: Mapping[str, Link] | None) -> bool:
    """Whether there is a way out by an ISP."""
    first = isp.addresses(family)[:1]
    return isp.next_hop(family) is not None and any(_has(isp.interface, each, links) for each in first)


def _default(
    isp: Isp, family: Family, table: int, links: Mapping[str, Link] | None, source: str | None = None
) -> Iterable[Route]:
    """The way out by an ISP. One that has only lost its carrier keeps it, for the moment in which the cable is back."""
    hop = isp.next_hop(family)
    if hop is not None and _leads(isp, family, links):
        via = None if hop.is_unspecified else host(hop)
        yield routing.unicast(family, table, "default", isp.interface, via, source)


def _leading(isp: Isp, links: Mapping[str, Link] | None) -> tuple[Family, ...]:
    """The families whose default route in main goes by an ISP."""
    return links[isp.interface].leading if links and isp.interface in links else ()


def _balances_own(router: Router) -> bool:
    return router.options.local_traffic == "balance"


def _local_default(
    router: Router, family: Family, isps: list[Isp], candidates: Sequence[Isp], links: Mapping[str, Link] | None
) -> Iterable[Route]:
    """The default of what the router itself begins: by an ISP that may be used, from an address of a LAN if balanced.

    connect() looks for a route before OUTPUT can choose, and takes its source from there. One of a LAN is no ISP's, so
    it is told from a socket that is bound to an ISP, no rule by source holds it, and NAT translates it as it does the
    LANs. (It is that ISP's own where the LANs have addresses of ISPs alone, and where packets are translated one by
    one: of a router's error SNPT would translate the address inside too.) Main's own default is left as it is, whoever
    made it: the rule to this table stands before it, and while main's is by an ISP that may not be used, for whatever
    would go there. There is no `unreachable` at the end, so that a socket bound to a device of others still finds their
    default in main.
    """
    held = [net for isp in isps for net in sources.owned(isp, family)]
    mine = _balances_own(router) and not (family == 6 and npt.stateless(isps))
    lans = ((lan.interface, each) for lan in router.lans for each in lan.addresses(family) if mine)
    free = ((device, each) for device, each in lans if not any(each.ip in net for net in held))
    source = next((host(each) for device, each in free if _has(device, each, links)), None)
    for isp in candidates[:1]:
        yield from _default(isp, family, routing.LOCAL_DEFAULT, links, source)


def _local(
    items: Iterable[Isp | Lan], family: Family, links: Mapping[str, Link] | None
) -> dict[str, tuple[str, str | None]]:
    """The networks on interfaces that are there, each with its interface and source."""
    networks: dict[str, tuple[str, str | None]] = {}
    for item in items:
        for each in item.addresses(family):
            if _has(item.interface, each, links):
                # Of several addresses in a network the first is the source, as it is for NAT. IPv6 picks the source
                # itself, and refuses one that is still being checked for duplicates.
                networks.setdefault(_target(each), (item.interface, host(each) if family == 4 else None))
    return networks


def _has(device: str, address: Interface, links: Mapping[str, Link] | None) -> bool:
    if links is None:
        return True
    link = links.get(device)
    return link is not None and link.up and host(address) in link.addresses


@lru_cache(maxsize=1024)
def _target(address: Interface) -> str:
    return _spelled(address.network)


def _spelled(network: Network) -> str:
    """A network as `ip` prints it."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _rules(
    router: Router, family: Family, isps: list[Isp], candidates: Sequence[Isp], links: Mapping[str, Link] | None
) -> Iterable[Rule]:
    # Whatever main knows better than a default goes there: LANs, VPNs, static routes (R1).
    yield Rule(FROM_MAIN, "", routing.MAIN, suppress_default=True)
    for isp in isps:
        table = int(isp.table)
        for each in isp.addresses(family):
            yield Rule(BY_SOURCE, f"from {host(each)}", table)
        yield Rule(BY_SOURCE, f"oif {isp.interface}", table)
    yield from _by_network(isps, family, links)
    for isp in isps:
        yield Rule(BY_MARK, routing.fwmark(router.mark_value(isp), router.options.mark_mask), int(isp.table))
    if router.refusal:
        yield Rule(BY_MARK, routing.fwmark(router.refusal, router.options.mark_mask), routing.REFUSED)
    if _balances_own(router):
        yield Rule(LOCAL, "iif lo", routing.LOCAL_DEFAULT)
    if candidates and choice.by_rule(isps):
        ways = [f"iif {lan.interface}" for lan in router.lans if family in lan.families]
        if family == 6 and npt.stateless(isps):  # what a LAN's address of the router answers
            ways += [f"from {_spelled(net)} iif lo" for net in npt.networks(router.lans)]
        yield from (Rule(BY_TIER, way, int(candidates[0].table)) for way in ways)


def _by_network(isps: list[Isp], family: Family, links: Mapping[str, Link] | None) -> Iterable[Rule]:
    """What an ISP routes to us goes by it, or, if its table has no way, to where the sender is told why (R9).

    Only what is about to leave by some interface meets the rule of filter that tells; routing alone would say no more
    than that there is no route.
    """
    leading = [isp for isp in isps if _leads(isp, family, links)]
    for isp in isps:
        way = isp if isp in leading else next(iter(leading), isp)
        for net in sources.owned(isp, family):
            yield Rule(BY_SOURCE, f"from {_spelled(net)}", int(way.table))
        for net in isp.prefixes(family):
            # What is in none of the LANs would go to and fro between the ISP and us (RFC 7084, WPD-5).
            yield Rule(BY_SOURCE, f"to {_spelled(net)} iif {isp.interface}", routing.REFUSED)


def _refusals(lans: Iterable[Lan]) -> Iterable[Rule]:
    """What comes from a LAN, has no ISP's mark and no better route in main than a default is refused at once."""
    return (Rule(BY_NONE, f"iif {lan.interface}", routing.REFUSED) for lan in lans)


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
