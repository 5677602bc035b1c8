"""The policy routing half of the plan: one table an ISP, who looks into which, and in what order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from lsmpy import choice, npt, routing, sources
from lsmpy.model import Family, Interface, Isp, Lan, Network, Router, host
from lsmpy.routing import Link, Route, Rule

# Priorities of our rules, before main's 32766.
FROM_MAIN, BY_SOURCE, BY_MARK, BY_TIER, BY_NONE, LOCAL = range(20000, 20006)
BEFORE_MAIN = 32765


def lookups(
    router: Router,
    family: Family,
    isps: list[Isp],
    usable: Collection[Isp],
    chosen: Sequence[Isp],
    links: Mapping[str, Link] | None,
) -> tuple[tuple[Route, ...], tuple[Rule, ...]]:
    """All routes of our tables, and all rules that lead to them.

    Args:
        router, family: what they are for.
        isps: those that carry the family.
        usable: those of them that may get new connections.
        chosen: those that get what is balanced.
        links: the kernel's interfaces, by name; None to take all as present.
    """
    astray = bool(chosen) and any(family in _leading(isp, links) for isp in isps if isp not in usable)
    refusing = not chosen and router.options.when_all_down == "unreachable" and any(i.addresses(family) for i in isps)
    routes, rules = [*_routes(router, family, isps, links)], [*_rules(router, family, isps, chosen, links)]
    if astray or _balances_own(router):
        routes += _local_default(router, family, isps, chosen, links)
    if refusing:
        rules += _refusals(router.lans)
    if astray:
        rules.append(Rule(BEFORE_MAIN, "", routing.LOCAL_DEFAULT))
    return tuple(routes), tuple(rules)


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
