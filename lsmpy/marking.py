"""The netfilter half of the plan: who gets a new connection, what keeps it there, and whose address it is given."""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from lsmpy import netfilter, shares
from lsmpy.model import Family, Isp, Lan, Router
from lsmpy.netfilter import Chain, Table

PREFIX = "LSMPY-"
# Two chains of mangle that nobody calls: they list the ISPs whose connections have been dealt with (`freeing`).
DOWN, LEFT = f"{PREFIX}DOWN", f"{PREFIX}LEFT"
_STRAY = f"{PREFIX}STRAY"
_MID_STREAM = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"
_RANDOM_STEPS = 0x80000000  # resolution of the statistic match's probability


def own_chains(router: Router) -> frozenset[str]:
    """The names of all our chains, in every table."""
    hooks = (f"{PREFIX}{hook}" for hook in ("PREROUTING", "FORWARD", "OUTPUT", "POSTROUTING"))
    of_isps = (f"{kind}-{isp.name}" for kind in ("MARK", "OUT") for isp in router.isps)
    of_lans = (f"CHOOSE-{lan.name}" for lan in router.lans)
    return frozenset((*hooks, _STRAY, DOWN, LEFT, *of_isps, *of_lans))


class Use(Struct, frozen=True):
    """What becomes of the connections of one family.

    Attributes:
        chosen: the ISPs that get new ones.
        down: those that are out of service while others are not.
        left: those of a worse tier than the chosen ones, if their connections are to move; None if they may stay.
        strays: whether new ones may begin in mid-stream.
    """

    chosen: tuple[Isp, ...]
    down: tuple[Isp, ...] = ()
    left: tuple[Isp, ...] | None = None
    strays: bool = False


def mangle(router: Router, family: Family, isps: list[Isp], use: Use) -> Table:
    """The table that gives each connection its ISP, and drops what would leave by an ISP with a foreign address."""
    mask = router.options.mark_mask
    masks = f"--nfmask {mask:#x} --ctmask {mask:#x}"
    unset = _unset(mask)
    lans = [lan for lan in router.lans if lan.addresses(family)]
    refusing = not use.strays and _translates(isps, family)
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
        # Marked but not its connection, so that it is refused on its way to an ISP and nowhere else (`refusals`).
        *(f"-A {pre} -i {lan.interface} {_MID_STREAM} -g {_STRAY}" for lan in lans if refusing),
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
            Chain(f"CHOOSE-{lan.name}", None, _chooser(router.options.balance, f"CHOOSE-{lan.name}", use.chosen))
        )
    if refusing:
        way = (f"-A {_STRAY} -j MARK --set-xmark {router.mark_value(isp):#x}/{mask:#x}" for isp in use.chosen[:1])
        chains.append(Chain(_STRAY, None, tuple(way)))
    for name, listed in ((DOWN, use.down), (LEFT, use.left)):
        if listed is not None:
            chains.append(Chain(name, None, tuple(f"-A {name} -j MARK-{isp.name}" for isp in listed)))
    return netfilter.table("mangle", chains)


def refusals(router: Router, family: Family, isps: list[Isp]) -> Table:
    """The table that answers a LAN's TCP packets in mid-stream with a reset, if an ISP would translate them.

    The router has forgotten their connection, or never knew it: what has another address now, the far end would not
    take for the same. Without translation it would, so that such a connection goes on by another ISP.
    """
    lans = [lan for lan in router.lans if lan.addresses(family)]
    if not lans or not _translates(isps, family):
        return netfilter.table("filter")
    chain = f"{PREFIX}FORWARD"
    stray = f"{_MID_STREAM} -m conntrack --ctstate NEW -m connmark --mark {_unset(router.options.mark_mask)}"
    found = tuple(f"-A {chain} -i {lan.interface} {stray} -g {_STRAY}" for lan in lans)
    told = tuple(f"-A {_STRAY} -o {isp.interface} -p tcp -j REJECT --reject-with tcp-reset" for isp in isps)
    chains = (Chain("FORWARD", None, (f"-A FORWARD -j {chain}",)), Chain(chain, None, found), Chain(_STRAY, None, told))
    return netfilter.table("filter", chains)


def _translates(isps: list[Isp], family: Family) -> bool:
    return any(isp.nat.kind(family) != "none" for isp in isps)


def _unset(mask: int) -> str:
    """How iptables prints a connection's mark that says of no ISP."""
    return "0x0" if mask == 0xFFFFFFFF else f"0x0/{mask:#x}"


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
    mine, unset = value if mask == 0xFFFFFFFF else f"{value}/{mask:#x}", _unset(mask)
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


def _chooser(balance: str, chain: str, candidates: tuple[Isp, ...]) -> tuple[str, ...]:
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
