"""By which ISPs the flows of a twin's LANs may go: what the configuration promises, that a rehearsal is judged by."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from lsmpy import sources
from lsmpy.model import Address, Family, Isp, Policy, Router


class Kind(Struct, frozen=True):
    """New flows that one and the same is decided of."""

    lan: str
    family: Family
    proto: str
    port: int
    source: Address
    target: Address


class Ways(Struct, frozen=True):
    """Names of ISPs by which flows of one kind may go.

    Attributes:
        first: those that they are shared among while every ISP is up.
        every: these and those that they go by when others are down; none if no ISP at all may carry them.
        policy: the policy that says so, or an empty string.
    """

    first: tuple[str, ...]
    every: tuple[str, ...]
    policy: str = ""

    def only(self, isp: str) -> bool:
        """Whether they have no way but this ISP."""
        return self.every == (isp,)


def balanced(router: Router, family: Family) -> Ways:
    """The ways of what no policy is about."""
    isps = [isp for isp in router.isps if isp.carries(family)]
    best = min((isp.tier for isp in isps), default=1)
    return Ways(_names(isp for isp in isps if isp.tier == best), _names(isps))


def find(router: Router, kind: Kind) -> Ways:
    """The ways of one kind, in the order in which the router decides: source, policies, balance."""
    for isp in router.isps:
        if any(kind.source in net for net in sources.owned(isp, kind.family)):
            return Ways((isp.name,), (isp.name,))
    others = balanced(router, kind.family)
    policy = next((each for each in router.policies if matches(each, kind)), None)
    if policy is None:
        return others
    use = tuple(name for name in policy.use if name in others.every)
    if policy.otherwise == "unreachable":
        return Ways(use[:1], use, policy.name)
    return Ways(use[:1] or others.first, others.every, policy.name)


def matches(policy: Policy, kind: Kind) -> bool:
    """Whether a policy is about flows of this kind."""
    return (
        (not policy.lan or kind.lan in policy.lan)
        and any(kind.source in net for net in policy.sources(kind.family))
        and any(kind.target in net for net in policy.targets(kind.family))
        and (not policy.protocol or kind.proto in policy.protocol)
        and (not policy.ports or any(first <= kind.port <= last for first, last in policy.port_ranges))
    )


def _names(isps: Iterable[Isp]) -> tuple[str, ...]:
    return tuple(isp.name for isp in isps)
