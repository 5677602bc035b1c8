"""The port of config_router.sh: from the configuration, the states and the links to one plan of the whole router.

Pure: the same input gives the same plan. Only what is chosen for new connections depends on the states; marks, NAT,
table and rules of an ISP stay as they are while it is down, so that its connections never leave by another (R2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from msgspec import Struct

from lsmpy import choice, marking, netfilter, routing
from lsmpy.model import Family, Interface, Isp, Lan, Router, host
from lsmpy.netfilter import Table
from lsmpy.routing import Link, Route, Rule
from lsmpy.state import Status

# `flush = "all"` rebuilds these whole; a [rules] file may add others.
OWN_TABLES = ("filter", "nat", "mangle")
# Priorities of our rules, before main's 32766.
FROM_MAIN, BY_SOURCE, BY_MARK, BY_TIER, LOCAL = range(20000, 20005)


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
    """The whole router: one side a family, the interfaces' settings, and what was decided of each ISP."""

    sides: tuple[Side, ...]
    sysctls: tuple[tuple[str, str], ...]
    verdicts: tuple[Verdict, ...]

    @property
    def summary(self) -> str:
        """One line for the log: who is up, who is down and why."""
        up = " ".join(f"{v.isp} ({v.why})" if v.why else v.isp for v in self.verdicts if v.up)
        down = ", ".join(f"{v.isp} ({v.why})" for v in self.verdicts if not v.up)
        if not up:
            return f"down {down}; none is up, so every one that is there is used"
        return f"up {up}, down {down}" if down else f"up {up}"


def build(
    router: Router,
    states: Mapping[str, Status],
    links: Mapping[str, Link] | None,
    extra: Mapping[Family, Mapping[str, Table]] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Plan:
    """Decide what the kernel shall hold.

    Args:
        router: the configuration.
        states: what the state files say, by ISP.
        links: the kernel's interfaces, by name; None to take all as present.
        extra: tables of the [rules] files, by family.
        refused: ISPs whose routes the kernel has just refused, and its words.
    """
    verdicts = tuple(_verdict(router, isp, states[isp.name], links, refused or {}) for isp in router.isps)
    sides = tuple(_side(router, family, verdicts, links, (extra or {}).get(family, {})) for family in router.families)
    return Plan(sides, _sysctls(router, links), verdicts)


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
    address = host(isp.addresses(family)[0])
    return "" if address in link.addresses else f"interface {isp.interface} does not have {address}"


def _verdict(
    router: Router, isp: Isp, status: Status, links: Mapping[str, Link] | None, refused: Mapping[str, str]
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
    partly = [f"without IPv{family}: {lack}" for family, lack in zip(families, lacks, strict=True) if lack]
    return Verdict(isp.name, True, ", ".join(partly), broken=bool(partly))


def _side(
    router: Router,
    family: Family,
    verdicts: Iterable[Verdict],
    links: Mapping[str, Link] | None,
    extra: Mapping[str, Table],
) -> Side:
    isps = [isp for isp in router.isps if isp.carries(family)]
    present = {isp.name for isp in isps if not missing(isp, family, links)}
    up = {verdict.isp for verdict in verdicts if verdict.up}
    usable = _usable(isps, present, up)
    candidates = [isp for isp in usable if isp.tier == min(each.tier for each in usable)]
    own = {
        "filter": netfilter.table("filter"),
        "nat": marking.nat(isps, family),
        "mangle": marking.mangle(router, family, isps, usable, candidates),
    }
    names = (*OWN_TABLES, *(name for name in extra if name not in OWN_TABLES))
    # The user's rules come first, so that they can make exceptions.
    tables = [
        netfilter.merge(extra.get(name, netfilter.table(name)), own.get(name, netfilter.table(name))) for name in names
    ]
    return Side(
        family=family,
        tables=tuple(tables),
        routes=(*_routes(router, family, isps, links), *_local_default(router, family, candidates, links)),
        rules=tuple(_rules(router, family, isps, candidates)),
    )


# -- who gets new connections --------------------------------------------------------------------------------


def _usable(isps: list[Isp], present: set[str], up: set[str]) -> list[Isp]:
    """The ISPs that are up; with none up at all, as if every one that is there were."""
    usable = [isp for isp in isps if isp.name in present & up]
    return usable or [isp for isp in isps if isp.name in present] or isps


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
        # One that has only lost its carrier keeps its default, for the moment in which the cable is back.
        if _has(isp.interface, isp.addresses(family)[0], links):
            yield routing.unicast(family, number, "default", isp.interface, host(isp.next_hop(family)), None)
        yield routing.unreachable(family, number)


def _local_default(
    router: Router, family: Family, candidates: list[Isp], links: Mapping[str, Link] | None
) -> Iterable[Route]:
    """The default of what the router itself begins: by an ISP that may be used, from an address of a LAN.

    connect() looks for a route before OUTPUT can choose, and takes its source from there. One of a LAN is no ISP's, so
    it is told from a socket that is bound to an ISP, no rule by source holds it, and NAT translates it as it does the
    LANs. Main's own default is left as it is, whoever made it: the rule to this table stands before it. There is no
    `unreachable` at the end, so that a socket bound to a device of others still finds their default in main.
    """
    if router.options.local_traffic == "main":
        return
    lans = ((lan.interface, each) for lan in router.lans for each in lan.addresses(family))
    source = next((host(each) for device, each in lans if _has(device, each, links)), None)
    for isp in candidates[:1]:
        if _has(isp.interface, isp.addresses(family)[0], links):
            hop = host(isp.next_hop(family))
            yield routing.unicast(family, routing.LOCAL_DEFAULT, "default", isp.interface, hop, source)


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
    network = address.network
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _rules(router: Router, family: Family, isps: list[Isp], candidates: list[Isp]) -> Iterable[Rule]:
    # Whatever main knows better than a default goes there: LANs, VPNs, static routes (R1).
    yield Rule(FROM_MAIN, "", routing.MAIN, suppress_default=True)
    for isp in isps:
        table = int(isp.table)
        for each in isp.addresses(family):
            yield Rule(BY_SOURCE, f"from {host(each)}", table)
        yield Rule(BY_SOURCE, f"oif {isp.interface}", table)
    for isp in isps:
        yield Rule(BY_MARK, routing.fwmark(router.mark_value(isp), router.options.mark_mask), int(isp.table))
    if router.refusal:
        # Not `unreachable`: of that a UDP socket is not told (icmp_err_convert in net/ipv4/icmp.c), and waits.
        yield Rule(BY_MARK, routing.fwmark(router.refusal, router.options.mark_mask), 0, kind=routing.PROHIBIT)
    if router.options.local_traffic == "balance":
        yield Rule(LOCAL, "iif lo", routing.LOCAL_DEFAULT)
    if candidates and choice.by_rule(isps):
        for lan in router.lans:
            if lan.addresses(family):
                yield Rule(BY_TIER, f"iif {lan.interface}", int(candidates[0].table))


# -- settings of the interfaces ------------------------------------------------------------------------------


def _sysctls(router: Router, links: Mapping[str, Link] | None) -> tuple[tuple[str, str], ...]:
    """Loose reverse path filtering that looks at marks, on the ISPs' interfaces only (ip-sysctl.rst, rp_filter).

    Strict filtering would drop what arrives by an ISP that main does not prefer; loose without the mark would
    drop everything when main has no default.
    """
    if 4 not in router.families:
        return ()
    devices = [isp.interface for isp in router.isps if isp.carries(4) and (links is None or isp.interface in links)]
    keys = (("rp_filter", "2"), ("src_valid_mark", "1"))
    return tuple((f"net/ipv4/conf/{device}/{key}", value) for device in devices for key, value in keys)
