"""NPT: what each network of the LANs is called outside, in each ISP's `prefix`, and the rules that translate it.

The first bits of a network are replaced by the ISP's prefix, and the rest, subnet and host, stays as it is: behind
2001:db8:5:100::/56, fd00:a:0:7::/64 is 2001:db8:5:107::/64. With several prefixes a network takes the first in which it
finds its place free. A network inside a prefix stays what it is.

`npt` translates connections (NETMAP), and they keep their ISP. `npt-stateless` translates packets (RFC 6296, SNPT and
DNPT) that conntrack does not see; there the host's bits change too, so that checksums stay right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv6Network

from msgspec import Struct

from lsmpy import choice, netfilter
from lsmpy.model import Isp, Lan, Network, Router
from lsmpy.netfilter import CHOOSE, IN, PREFIX, Chain, Table

STATEFUL, STATELESS = "npt", "npt-stateless"
_PRE, _OUT, _POST = (f"{PREFIX}{hook}" for hook in ("PREROUTING", "OUTPUT", "POSTROUTING"))
_INWARD = f"{PREFIX}INWARD"


class Pair(Struct, frozen=True):
    """A network of the LANs, and what it is called outside."""

    inside: Network
    outside: Network


def networks(lans: Iterable[Lan]) -> list[Network]:
    """The LANs' IPv6 networks that are good beyond their link, in the order of the file."""
    every = dict.fromkeys(each.network for lan in lans for each in lan.addresses(6))
    return [net for net in every if not net.is_link_local]


@lru_cache(maxsize=1024)
def pairs(isp: Isp, lans: tuple[Lan, ...]) -> tuple[Pair, ...]:
    """The LANs' networks that have a place in the prefixes of an ISP which translates, with that place."""
    if isp.nat.ipv6 not in (STATEFUL, STATELESS):
        return ()
    prefixes, every = isp.prefixes(6), networks(lans)
    own = [each.network for each in isp.addresses(6)]
    # The link to the ISP is taken if it lies in a prefix, but not if it is all that there is (RFC 7278).
    taken = [net for net in own if any(net != prefix and _inside(net, prefix) for prefix in prefixes)]
    places = {net: net for net in every if any(_inside(net, prefix) for prefix in prefixes)}
    taken += places
    for net in every:
        wanted = (_moved(net, prefix) for prefix in prefixes if prefix.prefixlen <= net.prefixlen)
        if net not in places and (free := next((w for w in wanted if not any(map(w.overlaps, taken))), None)):
            places[net] = free
            taken.append(free)
    return tuple(Pair(net, places[net]) for net in every if net in places)


def homeless(isp: Isp, lans: tuple[Lan, ...]) -> list[Network]:
    """The LANs' networks that an ISP which translates has no place for."""
    settled = {pair.inside for pair in pairs(isp, lans)}
    translates = isp.nat.ipv6 in (STATEFUL, STATELESS)
    return [net for net in networks(lans) if translates and net not in settled]


def _moved(net: Network, prefix: Network) -> Network:
    rest = int(net.network_address) & int(prefix.hostmask)
    return IPv6Network((int(prefix.network_address) | rest, net.prefixlen))


def _inside(net: Network, prefix: Network) -> bool:
    return net.version == prefix.version and net.subnet_of(prefix)  # type: ignore[arg-type]


# -- connections ---------------------------------------------------------------------------------------------


def inward(isps: Iterable[Isp], lans: tuple[Lan, ...]) -> Table:
    """The part of nat that leads what comes in for an ISP's prefix to the hosts of the LANs."""
    rules = []
    for isp in (isp for isp in isps if isp.nat.ipv6 == STATEFUL):
        found = pairs(isp, lans)
        rules += _keep_own(isp, found, _PRE)
        rules += [f"-A {_PRE} -d {p.outside} -i {isp.interface} -j NETMAP --to {p.inside}" for p in found]
    if not rules:
        return netfilter.table("nat")
    return netfilter.table(
        "nat", [Chain("PREROUTING", None, (f"-A PREROUTING -j {_PRE}",)), Chain(_PRE, None, (*rules,))]
    )


def outward(isp: Isp, lans: tuple[Lan, ...], chain: str) -> list[str]:
    """The rules of nat for what leaves by an ISP; the ISP's own addresses stay."""
    ways = f"-o {isp.interface} -j NETMAP --to"
    keep = [f"-A {chain} -s {each.ip}/128 -o {isp.interface} -j RETURN" for each in isp.addresses(6)]
    return [*keep, *(f"-A {chain} -s {p.inside} {ways} {p.outside}" for p in pairs(isp, lans))]


def admit(isp: Isp, lans: tuple[Lan, ...], chain: str) -> list[str]:
    """The rules of mangle that let pass what has an address of the ISP, or is about to get one, and drop all else.

    That is the LANs' new connections, those that were translated, and the answers of those that came in; to the ISP's
    own address too, should the user's rules translate to it.
    """
    # Who asks whether an address is free has none yet (RFC 4862, 5.4.2).
    rules = [f"-A {chain} -s {each}/128 -j RETURN" for each in ("::", *(each.ip for each in isp.addresses(6)))]
    if isp.nat.ipv6 == STATELESS:
        return [*rules, *_stateless(isp, lans, chain)]
    for net in (*isp.prefixes(6), *(f"{each.ip}" for each in isp.addresses(6))):
        rules.append(f"-A {chain} -m conntrack --ctrepldst {net} --ctstatus CONFIRMED --ctdir ORIGINAL -j RETURN")
        rules.append(f"-A {chain} -m conntrack --ctorigdst {net} --ctdir REPLY -j RETURN")
    new = "-m conntrack ! --ctstatus CONFIRMED --ctdir ORIGINAL -j RETURN"  # not our errors about what came in
    return [*rules, *(f"-A {chain} -s {p.inside} {new}" for p in pairs(isp, lans)), f"-A {chain} -j DROP"]


def _keep_own(isp: Isp, found: Collection[Pair], chain: str) -> list[str]:
    """What is for the router's own address in a network that hosts have is not theirs."""
    own = [each.ip for each in isp.addresses(6) if any(each.ip in pair.outside for pair in found)]
    return [f"-A {chain} -d {each}/128 -i {isp.interface} -j RETURN" for each in own]


# -- packets -------------------------------------------------------------------------------------------------


def stateless(isps: Iterable[Isp]) -> bool:
    """Whether packets are translated and not connections; it is so for all ISPs or for none."""
    return any(isp.nat.ipv6 == STATELESS for isp in isps)


def untracked(isps: Sequence[Isp], lans: tuple[Lan, ...]) -> Table:
    """The table that keeps conntrack from what is translated packet by packet: what comes in for an ISP's prefix, and
    what goes from a LAN to anywhere but the LANs and the router.
    """
    if not stateless(isps):
        return netfilter.table("raw")
    every = networks(lans)
    before = [rule for isp in isps for rule in _keep_own(isp, pairs(isp, lans), _PRE)]
    before += [f"-A {_PRE} -d {p.outside} -i {isp.interface} -j NOTRACK" for isp in isps for p in pairs(isp, lans)]
    before += [f"-A {_PRE} -d {net} -j RETURN" for net in every]
    before += [f"-A {_PRE} -m addrtype --dst-type {kind} -j RETURN" for kind in ("LOCAL", "MULTICAST")]
    before += [f"-A {_PRE} -s {net} -i {lan.interface} -j NOTRACK" for lan in lans for net in networks([lan])]
    own = [f"-A {_OUT} -s {net} -o {isp.interface} -j NOTRACK" for isp in isps for net in every]
    chains = [Chain(hook, None, (f"-A {hook} -j {PREFIX}{hook}",)) for hook in ("PREROUTING", "OUTPUT")]
    return netfilter.table("raw", [*chains, Chain(_PRE, None, tuple(before)), Chain(_OUT, None, tuple(own))])


def arrivals(router: Router, isps: Sequence[Isp], chosen: Sequence[Isp], chain: str) -> tuple[list[str], list[Chain]]:
    """The rules of mangle for packets that conntrack does not see, and the chains to which they lead.

    Nobody remembers by which ISP a packet has come. So one that has come by an ISP by which its answer would not leave
    keeps its address, for which there is no way: its sender is told and tries another (RFC 8305).

    Args:
        router: the configuration.
        isps: those that carry IPv6.
        chosen: those of them that are used now.
        chain: where the rules stand.
    """
    if not stateless(isps):
        return [], []
    lans, by_hash, inward = router.lans, not choice.by_rule(list(isps)), []
    for isp in isps if by_hash or not chosen else chosen:
        inward += _keep_own(isp, pairs(isp, lans), _INWARD)
        inward += [
            f"-A {_INWARD} -d {p.outside} -i {isp.interface} {_dnpt(p.outside, p.inside)}" for p in pairs(isp, lans)
        ]
    rules, chains = [f"-A {chain} -j {_INWARD}"], [Chain(_INWARD, None, tuple(inward))]
    if by_hash and chosen:
        name = f"{PREFIX}UNTRACKED"
        rules.append(f"-A {chain} -m conntrack --ctstate UNTRACKED -g {name}")
        hashed = [f"-A {name} -i {isp.interface} -g {IN}{isp.name}" for isp in isps]
        hashed += [f"-A {name} -i {lan.interface} -g {CHOOSE}{lan.name}" for lan in lans if 6 in lan.families]
        chains += [Chain(name, None, tuple(hashed)), *(_answerable(router, isp) for isp in isps)]
    return rules, chains


def answers(isps: Sequence[Isp], lans: tuple[Lan, ...], chosen: Sequence[Isp], chain: str) -> list[str]:
    """The rules of mangle by which what the router itself sends from a LAN's address is hashed as well."""
    if not stateless(isps) or not chosen or choice.by_rule(list(isps)):
        return []
    ways = [f"-s {net} -o {isp.interface}" for isp in isps for net in networks(lans)]
    return [f"-A {chain} {way} -m conntrack --ctstate UNTRACKED -g {choice.BY_HASH}" for way in ways]


def _answerable(router: Router, isp: Isp) -> Chain:
    """What has come by an ISP is hashed as its answer will be, and put back if that is another ISP's.

    Of errors from whoever is on the way HMARK hashes the packet inside (xt_HMARK.c), which DNPT has translated too.
    """
    name = f"{IN}{isp.name}"
    mark = netfilter.bits(router.mark_value(isp), router.options.mark_mask)
    rules = [f"-A {name} -j {choice.BY_HASH}", f"-A {name} -m mark --mark {mark} -j RETURN"]
    rules += [f"-A {name} -d {p.inside} {_dnpt(p.inside, p.outside)}" for p in pairs(isp, router.lans)]
    return Chain(name, None, tuple(rules))


def _dnpt(before: Network, after: Network) -> str:
    return f"-j DNPT --src-pfx {before} --dst-pfx {after}"


def _stateless(isp: Isp, lans: tuple[Lan, ...], chain: str) -> list[str]:
    moving = [p for p in pairs(isp, lans) if p.inside != p.outside]
    rules = [f"-A {chain} -s {p.inside} -j SNPT --src-pfx {p.inside} --dst-pfx {p.outside}" for p in moving]
    rules += [f"-A {chain} -s {net} -j RETURN" for net in isp.prefixes(6)]
    return [*rules, f"-A {chain} -j DROP"]
