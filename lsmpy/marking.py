"""The netfilter half of the plan: who gets a new connection, what keeps it there, and whose address it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from msgspec import Struct

from lsmpy import choice, late, netfilter, npt, policies, sources
from lsmpy.model import Family, Isp, Lan, Router
from lsmpy.netfilter import CHOOSE, MARK, OUT, PREFIX, Chain, Table

# Two chains of mangle that nobody calls: they list the ISPs whose connections have been dealt with (`freeing`).
DOWN, LEFT = f"{PREFIX}DOWN", f"{PREFIX}LEFT"
_PRE, _OUT, _POST, _LOCAL, _STRAY = (
    f"{PREFIX}{name}" for name in ("PREROUTING", "OUTPUT", "POSTROUTING", "LOCAL", "STRAY")
)
_LINK_LOCAL = "fe80::/10"
_PRIVATE = f"{PREFIX}PRIVATE"
# RFC 1918, 6598, 3927 and 4193: what no provider carries.
_PRIVATE_NETWORKS: dict[Family, tuple[str, ...]] = {
    4: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
    6: ("fc00::/7",),
}


class Use(Struct, frozen=True):
    """What becomes of the connections of one family.

    Attributes:
        usable: the ISPs that may get new ones.
        chosen: those of them that get what is balanced, all of one tier.
        down: those that are out of service while others are not.
        left: those of a worse tier than the chosen ones, if their connections are to move; None if they may stay.
        strays: whether new ones may begin in mid-stream.
    """

    usable: tuple[Isp, ...]
    chosen: tuple[Isp, ...]
    down: tuple[Isp, ...] = ()
    left: tuple[Isp, ...] | None = None
    strays: bool = False


def mangle(router: Router, family: Family, isps: list[Isp], use: Use, mtus: Mapping[str, int] | None = None) -> Table:
    """The table that gives each connection its ISP, and drops what would leave by an ISP with a foreign address.

    Args:
        router, family: what it is for.
        isps: those that carry the family.
        use: what becomes of their connections.
        mtus: of the interfaces that are there.
    """
    lans = [lan for lan in router.lans if family in lan.families]
    inward, found = npt.arrivals(router, isps if family == 6 else [], use.chosen, _PRE)
    own = _own(router, family, isps, use)
    leaving = (f"-A {_POST} -o {isp.interface} -g {OUT}{isp.name}" for isp in isps)
    chains = [
        *(Chain(hook, None, (f"-A {hook} -j {PREFIX}{hook}",)) for hook in ("PREROUTING", "OUTPUT", "POSTROUTING")),
        Chain(_PRE, None, (*_between_lans(_PRE, family, lans), *inward, *_arriving(router, family, isps, lans, use))),
        Chain(_OUT, None, tuple(_beginning(router, family, isps, use, bool(own)))),
        *([Chain(_LOCAL, None, tuple(own))] if own else []),
        Chain(_POST, None, tuple(leaving)),
        *found,
        *sources.stops(isps, family),
        *late.chains(router, isps, family),
        *_private(isps, family),
        *policies.chains(router, family, {isp.name for isp in use.usable}),
        *_clamping(family, [isp for isp in isps if isp.clamp_mss], mtus or {}),
    ]
    mask, others = router.options.mark_mask, router.others_bits
    for isp in isps:
        chains += _mark_chains(isp, family, router.lans, f"{router.mark_value(isp):#x}", mask, others)
    if _refuses(isps, family, use):
        way = [*use.chosen, *isps][0]
        chains.append(Chain(_STRAY, None, (f"-A {_STRAY} -j MARK --set-xmark {router.mark_value(way):#x}/{mask:#x}",)))
    lists = {DOWN: use.down} | ({} if use.left is None else {LEFT: use.left})
    chains += [Chain(name, None, tuple(f"-A {name} -j {MARK}{isp.name}" for isp in of)) for name, of in lists.items()]
    return netfilter.table("mangle", [*chains, *choice.chains(router, family, lans, isps, use.chosen)])


def _arriving(router: Router, family: Family, isps: list[Isp], lans: list[Lan], use: Use) -> Iterator[str]:
    """What comes in gets its connection's mark, or if it begins one that of an ISP."""
    yield from _marked_by_others(router, _PRE)
    # The mark of the connection first: a retransmitted SYN or a second datagram is NEW again (R2).
    yield f"-A {_PRE} -j CONNMARK --restore-mark {_masks(router)}"
    yield f"-A {_PRE} {_known(router)}"
    # What conntrack calls INVALID takes no slot.
    yield f"-A {_PRE} -m conntrack ! --ctstate NEW -j RETURN"
    yield from late.tests(router, isps, family, _PRE)
    yield from (f"-A {_PRE} -i {isp.interface} -g {MARK}{isp.name}" for isp in isps)
    ways = {f"-i {lan.interface} ": f"{CHOOSE}{lan.name}" for lan in lans}
    yield from _deciding(router, family, isps, use, _PRE, ways)


def _beginning(router: Router, family: Family, isps: list[Isp], use: Use, balanced: bool) -> Iterator[str]:
    """What the router sends gets its connection's mark; what it begins goes the `balanced` way, if there is one."""
    yield from npt.answers(isps if family == 6 else [], router.lans, use.chosen, _OUT)
    yield from _marked_by_others(router, _OUT)
    unset = netfilter.bits(0, router.options.mark_mask)
    yield f"-A {_OUT} -m connmark ! --mark {unset} -j CONNMARK --restore-mark {_masks(router)}"
    if balanced:
        yield f"-A {_OUT} {_known(router)}"
        yield f"-A {_OUT} -m conntrack ! --ctstate NEW -j RETURN"
        yield from (f"-A {_OUT} -o {isp.interface} -g {_LOCAL}" for isp in isps)


def _own(router: Router, family: Family, isps: list[Isp], use: Use) -> list[str]:
    """What becomes of connections that the router begins, if they are to be balanced (R6)."""
    chosen = {"": choice.OWN} if router.options.local_traffic == "balance" else {}
    deciding = list(_deciding(router, family, isps, use, _LOCAL, chosen)) if chosen else []
    # Who is bound to an ISP's address has chosen.
    bound = [each for isp in isps for each in isp.addresses(family)] if deciding else []
    return [*(f"-A {_LOCAL} -s {each.ip}/{each.max_prefixlen} -j RETURN" for each in bound), *deciding]


def _deciding(
    router: Router, family: Family, isps: list[Isp], use: Use, chain: str, ways: Mapping[str, str]
) -> Iterator[str]:
    """What becomes of new packets that come by any of these ways, each with its chain of choices."""
    balancing = not choice.by_rule(isps)
    if _refuses(isps, family, use):
        yield from (f"-A {chain} {way}{netfilter.MID_STREAM} -g {_STRAY}" for way in ways)
    if router.policies or balancing:
        # IPv6 has no broadcasts, and there the match takes several types for one that is all of them (xt_addrtype.c).
        ours = ("LOCAL,BROADCAST,MULTICAST",) if family == 4 else ("LOCAL", "MULTICAST")
        yield from (f"-A {chain} -m addrtype --dst-type {each} -j RETURN" for each in ours)
        yield from sources.choices(isps, family, chain)
    if router.policies:
        yield from (f"-A {chain} {way}-j {policies.ENTRY}" for way in ways)
    if router.policies and balancing:
        yield f"-A {chain} {_known(router)}"
    if balancing:
        yield from (f"-A {chain} {way}-g {chosen}" for way, chosen in ways.items())


def _masks(router: Router) -> str:
    """Which bits of a mark are copied."""
    mask = router.options.mark_mask
    return f"--nfmask {mask:#x} --ctmask {mask:#x}"


def _known(router: Router) -> str:
    """What has a mark is left as it is."""
    return f"-m mark ! --mark {netfilter.bits(0, router.options.mark_mask)} -j RETURN"


def _marked_by_others(router: Router, chain: str) -> list[str]:
    """What has others' marks is theirs."""
    others = router.others_bits
    return [f"-A {chain} -m mark ! --mark {netfilter.bits(0, others)} -j RETURN"] if others else []


def _refuses(isps: list[Isp], family: Family, use: Use) -> bool:
    """Whether a TCP packet in mid-stream without a connection is told that it has none."""
    return not use.strays and _translates(isps, family)


def refusals(router: Router, family: Family, isps: list[Isp]) -> Table:
    """The table that answers TCP packets in mid-stream with a reset, if an ISP would translate them.

    The router has forgotten their connection, or never knew it: what has another address now, the far end would not
    take for the same. Without translation it would, so that such a connection goes on by another ISP. mangle gives them
    a mark and not their connections, so that they come by some ISP, and are told from all else; those that main knows a
    better way for go on.
    """
    if not _translates(isps, family):
        return netfilter.table("filter")
    unset = netfilter.bits(0, router.options.mark_mask)
    not_others = f"-m mark --mark {netfilter.bits(0, others)} " if (others := router.others_bits) else ""
    marked = f"-m mark ! --mark {unset} {not_others}-m connmark --mark {unset}"
    stray = f"{netfilter.MID_STREAM} -m conntrack --ctstate NEW {marked} -j {_STRAY}"
    hooks = ["FORWARD"] + ["OUTPUT"] * (router.options.local_traffic == "balance")
    told = tuple(f"-A {_STRAY} -o {isp.interface} -p tcp -j REJECT --reject-with tcp-reset" for isp in isps)
    found = (Chain(hook, None, (f"-A {hook} {stray}",)) for hook in hooks)
    return netfilter.table("filter", [*found, Chain(_STRAY, None, told)])


def _translates(isps: list[Isp], family: Family) -> bool:
    return any(isp.nat.kind(family) != "none" for isp in isps)


def _clamping(family: Family, isps: list[Isp], mtus: Mapping[str, int]) -> list[Chain]:
    """Both ends of a TCP connection are told to send no larger segments than the ISP's interface takes.

    What goes out tells the far end; there the kernel knows the path's MTU. What comes in tells the near one, and there
    it would ask main alone for the way back, without any mark (xt_TCPMSS.c, tcpmss_reverse_mtu), so it is told.
    """
    if not isps:
        return []
    chain, headers = f"{PREFIX}FORWARD", {4: 40, 6: 60}[family]
    syn, by_path, rules = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS", "--clamp-mss-to-pmtu", []
    for isp in isps:
        mtu = mtus.get(isp.interface)
        known = f"--set-mss {min(mtu, 0xFFFF) - headers}" if mtu else by_path
        rules += [f"-A {chain} -o {isp.interface} {syn} {by_path}", f"-A {chain} -i {isp.interface} {syn} {known}"]
    return [Chain("FORWARD", None, (f"-A FORWARD -j {chain}",)), Chain(chain, None, tuple(rules))]


def given(nat: Table) -> frozenset[str]:
    """The addresses that such a table gives to what leaves, ours or the kernel's."""
    chain = f"-A {PREFIX}POSTROUTING "
    rules = (rule for rule in nat.rules if rule.startswith(chain) and " --to-source " in rule)
    return frozenset(rule.rpartition(" ")[2] for rule in rules)


def mapped(nat: Table) -> frozenset[tuple[str, str, str]]:
    """The networks that such a table translates, each with the interface by which it leaves and its prefix there."""
    chain = f"-A {PREFIX}POSTROUTING "
    rules = (rule.split() for rule in nat.rules if rule.startswith(chain) and " -j NETMAP " in rule)
    return frozenset((words[3], words[5], words[-1]) for words in rules)


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
def _mark_chains(
    isp: Isp, family: Family, lans: tuple[Lan, ...], value: str, mask: int, others: int
) -> tuple[Chain, Chain]:
    mark, out = f"{MARK}{isp.name}", f"{OUT}{isp.name}"
    mine, unset = netfilter.bits(int(value, 16), mask), netfilter.bits(0, mask)
    marking = (
        f"-A {mark} -j MARK --set-xmark {value}/{mask:#x}",
        f"-A {mark} -j CONNMARK --save-mark --nfmask {mask:#x} --ctmask {mask:#x}",
    )
    not_others = f"-m connmark --mark {netfilter.bits(0, others)} " if others else ""
    leaving = [
        # A connection whose first packet main sends here (to this ISP's own network, by a static route) is this ISP's,
        # whichever was chosen (R1).
        f"-A {out} -m conntrack ! --ctstatus CONFIRMED {not_others}-j CONNMARK --set-xmark {value}/{mask:#x}",
        # Whoever leaves by this ISP without having been chosen (the router itself, a VPN) stays with it from now on.
        f"-A {out} -m connmark --mark {unset} -j CONNMARK --set-xmark {value}/{mask:#x}",
        f"-A {out} -m connmark ! --mark {mine} {not_others}-j DROP",
    ]
    return Chain(mark, None, marking), Chain(out, None, (*leaving, *_refuse_untranslated(isp, family, lans, out)))


def _refuse_untranslated(isp: Isp, family: Family, lans: tuple[Lan, ...], chain: str) -> list[str]:
    """Drop what NAT can no longer give this ISP's address: INVALID packets, connections older than our NAT (R2).

    Without any address that is everything, but for what asks for one (DHCP, DHCPv6). And so are the answers to who
    called a private address from outside: nothing translates those. What IPsec has taken leaves in a packet of its own.
    """
    kind = isp.nat.kind(family)
    if kind == "none":
        return sources.stop(isp, family, chain)
    asking = [f"-A {chain} -s {_LINK_LOCAL} -j RETURN"] if family == 6 else []
    if not isp.addresses(family):
        return [*(asking or [f"-A {chain} -s 0.0.0.0/32 -j RETURN"]), f"-A {chain} -j DROP"]
    if kind in (npt.STATEFUL, npt.STATELESS):
        return [*asking, *npt.admit(isp, lans, chain)]
    first, *others = isp.addresses(family)
    translated = f"! --ctrepldst {first.ip}" if kind == "snat" else "! --ctstate SNAT"
    # One that was first before still serves whom it was given to, and others' rules may give one: a server's own
    # address outside, or whichever masquerading takes.
    allowed = others if kind == "snat" else []
    return [
        *asking,
        *(f"-A {chain} -s {each.ip}/{each.max_prefixlen} -j RETURN" for each in isp.addresses(family)),
        f"-A {chain} -m policy --dir out --pol ipsec -j RETURN",
        f"-A {chain} -m conntrack --ctstate INVALID -j DROP",
        *(f"-A {chain} -m conntrack --ctrepldst {each.ip} --ctdir ORIGINAL -j RETURN" for each in allowed),
        f"-A {chain} -m conntrack {translated} --ctstatus CONFIRMED --ctdir ORIGINAL -j DROP",
        f"-A {chain} -m conntrack ! --ctstate DNAT --ctdir REPLY -g {_PRIVATE}",
    ]


def _private(isps: list[Isp], family: Family) -> list[Chain]:
    """The chain that drops private sources, if an ISP translates."""
    drops = tuple(f"-A {_PRIVATE} -s {each} -j DROP" for each in _PRIVATE_NETWORKS[family])
    return [Chain(_PRIVATE, None, drops)] if any(_hides(isp, family) for isp in isps) else []


def _hides(isp: Isp, family: Family) -> bool:
    """Whether what leaves by the ISP gets an address of its own."""
    return isp.nat.kind(family) in ("snat", "masquerade") and bool(isp.addresses(family))


def nat(isps: list[Isp], family: Family, lans: tuple[Lan, ...]) -> Table:
    """The table that translates what leaves by each ISP, up or down, and what comes in for its prefixes."""
    chain = f"{PREFIX}POSTROUTING"
    rules = [rule for isp in isps for rule in _translations(isp, family, lans, chain)]
    if not rules:
        return netfilter.table("nat")
    if family == 6:
        rules.insert(0, f"-A {chain} -s {_LINK_LOCAL} -j RETURN")  # DHCPv6 asks from such an address
    jump = Chain("POSTROUTING", None, (f"-A POSTROUTING -j {chain}",))
    leaving = netfilter.table("nat", [jump, Chain(chain, None, tuple(rules))])
    return netfilter.merge(npt.inward(isps, lans), leaving) if family == 6 else leaving


@lru_cache(maxsize=1024)
def _translations(isp: Isp, family: Family, lans: tuple[Lan, ...], chain: str) -> tuple[str, ...]:
    kind = isp.nat.kind(family)
    if kind in ("none", npt.STATELESS) or not isp.addresses(family):
        return ()
    if kind == npt.STATEFUL:
        return tuple(npt.outward(isp, lans, chain))
    first, *others = isp.addresses(family)
    target = f"SNAT --to-source {first.ip}" if kind == "snat" else "MASQUERADE"
    # A service that is bound to another of the ISP's addresses keeps it.
    keep = (f"-A {chain} -s {each.ip}/{each.max_prefixlen} -o {isp.interface} -j RETURN" for each in others)
    return *keep, f"-A {chain} -o {isp.interface} -j {target}"
