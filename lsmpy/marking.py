"""The netfilter half of the plan: who gets a new connection, what keeps it there, and whose address it is given."""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from lsmpy import choice, netfilter, policies
from lsmpy.model import Family, Isp, Lan, Router
from lsmpy.netfilter import PREFIX, Chain, Table


class OwnChains(Struct, frozen=True):
    """Tells which chains are ours, in every table: those of these names, and all that begin with `PREFIX`."""

    names: frozenset[str]

    def __contains__(self, chain: object) -> bool:
        return chain in self.names or (isinstance(chain, str) and chain.startswith(PREFIX))


def own_chains(router: Router) -> OwnChains:
    """The names of all our chains."""
    of_isps = (f"{kind}-{isp.name}" for kind in ("MARK", "OUT") for isp in router.isps)
    of_lans = (f"CHOOSE-{lan.name}" for lan in router.lans)
    return OwnChains(frozenset((*of_isps, *of_lans, *(f"POLICY-{policy.name}" for policy in router.policies))))


def mangle(router: Router, family: Family, isps: list[Isp], usable: list[Isp], candidates: list[Isp]) -> Table:
    """The table that gives each connection its ISP, and drops what would leave by an ISP with a foreign address.

    Args:
        router: the configuration.
        family: 4 or 6.
        isps: those that carry it.
        usable: those of them that may be used now.
        candidates: those of them that get what is balanced.
    """
    mask = router.options.mark_mask
    masks = f"--nfmask {mask:#x} --ctmask {mask:#x}"
    unset = netfilter.bits(0, mask)
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
    ]
    balancing, local = not choice.by_rule(isps), f"{PREFIX}LOCAL"
    chosen = f"-m mark ! --mark {unset} -j RETURN"
    if router.policies or balancing:
        before.append(f"-A {pre} -m addrtype --dst-type {ours} -j RETURN")
    if router.policies:
        before += [f"-A {pre} -i {lan.interface} -j {policies.ENTRY}" for lan in lans]
    if router.policies and balancing:
        before.append(f"-A {pre} {chosen}")
    if balancing:
        before += [f"-A {pre} -i {lan.interface} -g CHOOSE-{lan.name}" for lan in lans]
    begun = [f"-A {out} -m connmark ! --mark {unset} -j CONNMARK --restore-mark {masks}"]
    own: list[str] = []
    if router.options.local_traffic == "balance" and (router.policies or balancing):
        begun += [f"-A {out} {chosen}", f"-A {out} -m conntrack ! --ctstate NEW -j RETURN"]
        begun += [f"-A {out} -o {isp.interface} -g {local}" for isp in isps]
        # Who is bound to an ISP's address has chosen.
        bound = [each for isp in isps for each in isp.addresses(family)]
        own += [f"-A {local} -s {each.ip}/{each.max_prefixlen} -j RETURN" for each in bound]
        own.append(f"-A {local} -m addrtype --dst-type {ours} -j RETURN")
        own += [f"-A {local} -j {policies.ENTRY}", f"-A {local} {chosen}"] if router.policies else []
        own += [f"-A {local} -g {choice.OWN}"] if balancing else []
    chains = [
        Chain("PREROUTING", None, (f"-A PREROUTING -j {pre}",)),
        Chain("OUTPUT", None, (f"-A OUTPUT -j {out}",)),
        Chain("POSTROUTING", None, (f"-A POSTROUTING -j {post}",)),
        Chain(pre, None, tuple(before)),
        Chain(out, None, tuple(begun)),
        *([Chain(local, None, tuple(own))] if own else []),
        Chain(post, None, tuple(f"-A {post} -o {isp.interface} -g OUT-{isp.name}" for isp in isps)),
    ]
    for isp in isps:
        chains += _mark_chains(isp, family, f"{router.mark_value(isp):#x}", mask)
    chains += policies.chains(router, family, {isp.name for isp in usable})
    return netfilter.table("mangle", [*chains, *choice.chains(router, family, lans, isps, candidates)])


def _between_lans(chain: str, family: Family, lans: list[Lan]) -> list[str]:
    """What goes from LAN to LAN is left alone (the article, "do not touch inter-LAN traffic")."""
    networks = [(lan, each.network) for lan in lans for each in lan.addresses(family)]
    return [
        f"-A {chain} -s {source} -d {target} -i {lan.interface} -j RETURN"
        for lan, source in networks
        for _, target in networks
        if target != source
    ]


@lru_cache(maxsize=1024)
def _mark_chains(isp: Isp, family: Family, value: str, mask: int) -> tuple[Chain, Chain]:
    mark, out = f"MARK-{isp.name}", f"OUT-{isp.name}"
    mine, unset = netfilter.bits(int(value, 16), mask), netfilter.bits(0, mask)
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
    return Chain(mark, None, marking), Chain(out, None, (*leaving, *_refuse_untranslated(isp, family, out)))


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


def nat(isps: list[Isp], family: Family) -> Table:
    """The table that translates what leaves by each ISP, up or down."""
    chain = f"{PREFIX}POSTROUTING"
    rules = [rule for isp in isps for rule in _translations(isp, family, chain)]
    if not rules:
        return netfilter.table("nat")
    jump = Chain("POSTROUTING", None, (f"-A POSTROUTING -j {chain}",))
    return netfilter.table("nat", [jump, Chain(chain, None, tuple(rules))])


@lru_cache(maxsize=1024)
def _translations(isp: Isp, family: Family, chain: str) -> tuple[str, ...]:
    kind = isp.nat.kind(family)
    if kind == "none":
        return ()
    first, *others = isp.addresses(family)
    target = f"SNAT --to-source {first.ip}" if kind == "snat" else "MASQUERADE"
    # A service that is bound to another of the ISP's addresses keeps it.
    keep = (f"-A {chain} -s {each.ip}/{each.max_prefixlen} -o {isp.interface} -j RETURN" for each in others)
    return *keep, f"-A {chain} -o {isp.interface} -j {target}"
