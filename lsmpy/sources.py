"""Whose source addresses may leave by which ISP: what tells the senders of others, and what stops these at the last.

Without translation a source inside an ISP's network leaves by that ISP and no other (R9), which the rules of policy
routing by source see to. Here is the rest: no other ISP is chosen for it, and where main has a better route by another
ISP, or its own is down, the sender is told (RFC 4443, code 5: "source address failed ingress/egress policy").
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from ipaddress import collapse_addresses

from lsmpy import netfilter, npt
from lsmpy.model import Family, Isp, Lan, Network
from lsmpy.netfilter import MARK, MID_STREAM, OUT, PREFIX, Chain, Table

CHAIN, _LEAVING = f"{PREFIX}SOURCES", f"{PREFIX}LEAVING"
_LINK_LOCAL = "fe80::/10"
# The kernel's own answers of policy routing have other codes: `prohibit` says 1, `unreachable` 0, which no datagram's
# sender hears of.
TELL = "-j REJECT --reject-with icmp6-policy-fail"


@lru_cache(maxsize=1024)
def owned(isp: Isp, family: Family) -> tuple[Network, ...]:
    """The networks whose addresses only this ISP carries; none where it translates."""
    if family == 4 or isp.nat.kind(family) != "none":
        return ()
    networks = (each for each in isp.networks(family) if not each.is_link_local)
    return tuple(collapse_addresses(networks))  # type: ignore[type-var]  # all of one family


def choices(isps: Iterable[Isp], family: Family, chain: str) -> list[str]:
    """Rules that choose the ISP of whose networks a source is, for new connections."""
    return [f"-A {chain} -s {net} -g {MARK}{isp.name}" for isp in isps for net in owned(isp, family)]


def refusals(isps: Collection[Isp], lans: tuple[Lan, ...], family: Family, usable: Collection[Isp]) -> Table:
    """The table that tells the senders of sources that must not leave by that ISP, or, of what is new, not now.

    TCP in mid-stream, whose connection was freed (R4), hears of a reset alone: another message it takes for a mishap.
    The router's own sockets may use an ISP that is down if they are bound to it, as those that test it are (R6).

    Args:
        isps: those that carry the family.
        lans: all LANs.
        family: 4 or 6.
        usable: those of the ISPs that may be used now.
    """
    owners = [(isp, net) for isp in isps for net in owned(isp, family)]
    translating = [isp for isp in isps if family == 6 and isp.nat.ipv6 in (npt.STATEFUL, npt.STATELESS)]
    if not owners and not translating:
        return netfilter.table("filter")
    ways: dict[str, list[str]] = {hook: [] for hook in ("FORWARD", "OUTPUT")}
    for hook, to in (("FORWARD", _LEAVING), ("OUTPUT", CHAIN)):
        ways[hook] += [f"-o {isp.interface} -j {to}" for isp in isps if owners]
        ways[hook] += [f"-o {isp.interface} -g {OUT}{isp.name}" for isp in translating]
    chains = []
    for hook, found in ways.items():
        own = f"{PREFIX}{hook}"
        chains.append(Chain(hook, None, (f"-A {hook} -j {own}",)))
        chains.append(Chain(own, None, tuple(f"-A {own} {way}" for way in found)))
    down = [net for isp, net in owners if isp not in usable]
    chains += [_not_now(down), _others(owners, TELL)] if owners else []
    return netfilter.table("filter", [*chains, *(_of_lans(isp, lans) for isp in translating)])


def stops(isps: Iterable[Isp], family: Family) -> list[Chain]:
    """The chain that drops other ISPs' sources where an ISP does not translate, whoever has let them come so far."""
    owners = [(isp, net) for isp in isps for net in owned(isp, family)]
    return [_others(owners, "-j DROP")] if owners else []


def stop(isp: Isp, family: Family, chain: str) -> list[str]:
    """The rule that leads what leaves by an ISP to that chain."""
    return [f"-A {chain} -g {CHAIN}"] if owned(isp, family) else []


def _others(owners: Iterable[tuple[Isp, Network]], action: str) -> Chain:
    return Chain(CHAIN, None, tuple(f"-A {CHAIN} -s {net} ! -o {isp.interface} {action}" for isp, net in owners))


def _not_now(networks: Iterable[Network]) -> Chain:
    new, rules = "-m conntrack --ctstate NEW", []
    for net in networks:
        rules.append(f"-A {_LEAVING} -s {net} {MID_STREAM} {new} -j REJECT --reject-with tcp-reset")
        rules.append(f"-A {_LEAVING} -s {net} {new} {TELL}")
    return Chain(_LEAVING, None, (*rules, f"-A {_LEAVING} -g {CHAIN}"))


def _of_lans(isp: Isp, lans: tuple[Lan, ...]) -> Chain:
    """By an ISP that translates prefixes, what is new leaves from the networks that have a place in them alone."""
    chain = f"{OUT}{isp.name}"
    known = (
        [f"{each.ip}/128" for each in isp.addresses(6)]
        + ["::/128", _LINK_LOCAL]
        + [p.inside for p in npt.pairs(isp, lans)]
    )
    rules = [f"-A {chain} -s {each} -j RETURN" for each in known]
    return Chain(chain, None, (*rules, f"-A {chain} -m conntrack --ctstate NEW,UNTRACKED {TELL}"))
