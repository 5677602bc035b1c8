"""The port of config_router.sh: from the configuration, the states and the links to one plan of the whole router.

Pure: the same input gives the same plan. Only what is chosen for new connections depends on the states; marks, NAT,
tables and rules of an ISP stay as they are while it is down, so that its connections never leave by another (R2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from lsmpy import netfilter, routing, shares
from lsmpy.config import Family, Interface, Isp, Lan, Router
from lsmpy.netfilter import Chain, Table
from lsmpy.routing import Link, Route, Rule
from lsmpy.state import Status

# `flush = "all"` rebuilds these whole; a [rules] file may add others.
OWN_TABLES = ("filter", "nat", "mangle")
FROM_MAIN, BY_SOURCE, BY_MARK = 20000, 20001, 20002  # priorities of our rules, before main's 32766
PREFIX = "LSMPY-"
_RANDOM_STEPS = 0x80000000  # resolution of the statistic match's probability


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether new connections may use one ISP, and why not, or what of it cannot be used.

    `broken`: the reason lies in the kernel, not in the state files.
    """

    isp: str
    up: bool
    why: str = ""
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Side:
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


@dataclass(frozen=True, slots=True)
class Plan:
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
    address = isp.addresses(family)[0].ip
    return "" if str(address) in link.addresses else f"interface {isp.interface} does not have {address}"


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
    own = {
        "filter": netfilter.table("filter"),
        "nat": _nat(isps, family),
        "mangle": _mangle(router, family, isps, _candidates(isps, present, up)),
    }
    names = (*OWN_TABLES, *(name for name in extra if name not in OWN_TABLES))
    # The user's rules come first, so that they can make exceptions.
    tables = [
        netfilter.merge(extra.get(name, netfilter.table(name)), own.get(name, netfilter.table(name))) for name in names
    ]
    return Side(
        family=family,
        tables=tuple(tables),
        routes=tuple(_routes(router, family, isps, links)),
        rules=tuple(_rules(router, family, isps)),
    )


# -- who gets new connections --------------------------------------------------------------------------------


def _candidates(isps: list[Isp], present: set[str], up: set[str]) -> list[Isp]:
    """The ISPs of the best tier that has one up; with none up at all, as if every one that is there were up."""
    usable = [isp for isp in isps if isp.name in present & up]
    usable = usable or [isp for isp in isps if isp.name in present] or isps
    best = min((isp.tier for isp in usable), default=1)
    return [isp for isp in usable if isp.tier == best]


def _chooser(balance: str, chain: str, candidates: list[Isp]) -> tuple[str, ...]:
    """Rules that send each packet to exactly one MARK chain, whatever the state of any counter (R1).

    A cascade: each rule deals with what the ones before have left, and the last takes the rest, so that no packet can
    match none or two, even when the counters are out of step.
    """
    if not candidates:
        return ()
    weights = tuple(isp.weight for isp in candidates)
    tests = _random(weights) if balance == "random" else _nth(weights)
    return tuple(f"-A {chain} {test}-g MARK-{candidates[place].name}" for place, test in tests)


@lru_cache
def _nth(weights: tuple[int, ...]) -> tuple[tuple[int, str], ...]:
    order = shares.slots(weights)
    left = range(len(order), 0, -1)
    return tuple(
        (place, f"-m statistic --mode nth --every {every} --packet 0 " if every > 1 else "")
        for place, every in zip(order, left, strict=True)
    )


def _random(weights: tuple[int, ...]) -> list[tuple[int, str]]:
    tests, left = [], sum(weights)
    for place, weight in enumerate(weights):
        probability = round(_RANDOM_STEPS * weight / left) / _RANDOM_STEPS
        tests.append((place, f"-m statistic --mode random --probability {probability:.11f} " if weight < left else ""))
        left -= weight
    return tests


# -- netfilter -----------------------------------------------------------------------------------------------


def _mangle(router: Router, family: Family, isps: list[Isp], candidates: list[Isp]) -> Table:
    mask = router.options.mark_mask
    masks = f"--nfmask {mask:#x} --ctmask {mask:#x}"
    unset = "0x0" if mask == 0xFFFFFFFF else f"0x0/{mask:#x}"
    lans = [lan for lan in router.lans if lan.addresses(family)]
    pre, out, post = (f"{PREFIX}{hook}" for hook in ("PREROUTING", "OUTPUT", "POSTROUTING"))
    # Broadcasts exist in IPv4 only, and the match refuses to look for them elsewhere.
    ours = "LOCAL,BROADCAST,MULTICAST" if family == 4 else "LOCAL,MULTICAST"
    before = [
        *_between_lans(pre, family, lans),
        # The mark of the connection first: a retransmitted SYN or a second datagram is NEW again (R2).
        f"-A {pre} -j CONNMARK --restore-mark {masks}",
        f"-A {pre} -m mark ! --mark {unset} -j RETURN",
        # What conntrack calls INVALID takes no slot.
        f"-A {pre} -m conntrack ! --ctstate NEW -j RETURN",
        *(f"-A {pre} -i {isp.interface} -g MARK-{isp.name}" for isp in isps),
        f"-A {pre} -m addrtype --dst-type {ours} -j RETURN",
        *(f"-A {pre} -i {lan.interface} -g CHOOSE-{lan.name}" for lan in lans),
    ]
    chains = [
        Chain("PREROUTING", None, (f"-A PREROUTING -j {pre}",)),
        Chain("OUTPUT", None, (f"-A OUTPUT -j {out}",)),
        Chain("POSTROUTING", None, (f"-A POSTROUTING -j {post}",)),
        Chain(pre, None, tuple(before)),
        Chain(out, None, (f"-A {out} -m connmark ! --mark {unset} -j CONNMARK --restore-mark {masks}",)),
        Chain(post, None, tuple(f"-A {post} -o {isp.interface} -g OUT-{isp.name}" for isp in isps)),
    ]
    for isp in isps:
        chains += _mark_chains(isp, family, f"{router.mark_value(isp):#x}", mask)
    for lan in lans:
        chains.append(
            Chain(f"CHOOSE-{lan.name}", None, _chooser(router.options.balance, f"CHOOSE-{lan.name}", candidates))
        )
    return netfilter.table("mangle", chains)


def _between_lans(chain: str, family: Family, lans: list[Lan]) -> list[str]:
    """What goes from LAN to LAN is left alone (the article, "do not touch inter-LAN traffic")."""
    networks = [(lan, each.network) for lan in lans for each in lan.addresses(family)]
    return [
        f"-A {chain} -s {source} -d {target} -i {lan.interface} -j RETURN"
        for lan, source in networks
        for _, target in networks
        if target != source
    ]


def _mark_chains(isp: Isp, family: Family, value: str, mask: int) -> list[Chain]:
    mark, out = f"MARK-{isp.name}", f"OUT-{isp.name}"
    full = mask == 0xFFFFFFFF
    mine, unset = (value, "0x0") if full else (f"{value}/{mask:#x}", f"0x0/{mask:#x}")
    marking = (
        f"-A {mark} -j MARK --set-xmark {value}/{mask:#x}",
        f"-A {mark} -j CONNMARK --save-mark --nfmask {mask:#x} --ctmask {mask:#x}",
    )
    leaving = [
        # A connection whose first packet main sends here (to this ISP's own network, by a static route) is this ISP's,
        # whichever was chosen (R1).
        f"-A {out} -m conntrack ! --ctstatus CONFIRMED -j CONNMARK --set-xmark {value}/{mask:#x}",
        # Whoever leaves by this ISP without having been chosen (the router itself, a VPN) stays with it from now on.
        f"-A {out} -m connmark --mark {unset} -j CONNMARK --set-xmark {value}/{mask:#x}",
        f"-A {out} -m connmark ! --mark {mine} -j DROP",
    ]
    return [Chain(mark, None, marking), Chain(out, None, (*leaving, *_refuse_untranslated(isp, family, out)))]


def _refuse_untranslated(isp: Isp, family: Family, chain: str) -> list[str]:
    """Drop what NAT can no longer give this ISP's address: INVALID packets, connections older than our NAT (R2)."""
    kind = isp.nat.kind(family)
    if kind == "none":
        return []
    translated = f"! --ctrepldst {isp.addresses(family)[0].ip}" if kind == "snat" else "! --ctstate SNAT"
    return [
        *(f"-A {chain} -s {each.ip}/{each.max_prefixlen} -j RETURN" for each in isp.addresses(family)),
        f"-A {chain} -m conntrack --ctstate INVALID -j DROP",
        f"-A {chain} -m conntrack {translated} --ctstatus CONFIRMED --ctdir ORIGINAL -j DROP",
    ]


def _nat(isps: list[Isp], family: Family) -> Table:
    chain = f"{PREFIX}POSTROUTING"
    rules = [rule for isp in isps for rule in _translations(isp, family, chain)]
    if not rules:
        return netfilter.table("nat")
    jump = Chain("POSTROUTING", None, (f"-A POSTROUTING -j {chain}",))
    return netfilter.table("nat", [jump, Chain(chain, None, tuple(rules))])


def _translations(isp: Isp, family: Family, chain: str) -> list[str]:
    kind = isp.nat.kind(family)
    if kind == "none":
        return []
    first, *others = isp.addresses(family)
    target = f"SNAT --to-source {first.ip}" if kind == "snat" else "MASQUERADE"
    # A service that is bound to another of the ISP's addresses keeps it.
    keep = [f"-A {chain} -s {each.ip}/{each.max_prefixlen} -o {isp.interface} -j RETURN" for each in others]
    return [*keep, f"-A {chain} -o {isp.interface} -j {target}"]


# -- routing -------------------------------------------------------------------------------------------------


def _routes(router: Router, family: Family, isps: list[Isp], links: Mapping[str, Link] | None) -> Iterable[Route]:
    """One table an ISP: its own network and the LANs', its default, and an end that is never passed (R2).

    The article has the other ISPs' networks in each table as well. `lookup main` comes first here and knows them, and
    with 64 ISPs they would be 8,000 routes to compare at every rebuild.
    """
    for isp in isps:
        number = int(isp.table)
        for target, (device, source) in _local((isp, *router.lans), family, links).items():
            yield routing.unicast(family, number, target, device, None, source)
        # One that has only lost its carrier keeps its default, for the moment in which the cable is back.
        if _has(isp.interface, isp.addresses(family)[0], links):
            yield routing.unicast(family, number, "default", isp.interface, str(isp.next_hop(family)), None)
        yield routing.unreachable(family, number)


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
                networks.setdefault(_target(each), (item.interface, str(each.ip) if family == 4 else None))
    return networks


def _has(device: str, address: Interface, links: Mapping[str, Link] | None) -> bool:
    if links is None:
        return True
    link = links.get(device)
    return link is not None and link.up and str(address.ip) in link.addresses


def _target(address: Interface) -> str:
    network = address.network
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _rules(router: Router, family: Family, isps: list[Isp]) -> Iterable[Rule]:
    # Whatever main knows better than a default goes there: LANs, VPNs, static routes (R1).
    yield Rule(FROM_MAIN, "", routing.MAIN, suppress_default=True)
    for isp in isps:
        table = int(isp.table)
        for each in isp.addresses(family):
            yield Rule(BY_SOURCE, f"from {each.ip}", table)
        yield Rule(BY_SOURCE, f"oif {isp.interface}", table)
    for isp in isps:
        yield Rule(BY_MARK, routing.fwmark(router.mark_value(isp), router.options.mark_mask), int(isp.table))


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
