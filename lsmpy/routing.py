"""Routes and rules of policy routing as data, and the words of `ip` that say the same (ip-route(8), ip-rule(8))."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from lsmpy.model import NOWHERE, Family

# Marks what is ours in routes and rules, as routing daemons do (rt_protos); free in iproute2's list.
PROTOCOL = 76
MAIN, REFUSED = 254, 0  # the second is no table
LOCAL_DEFAULT = PROTOCOL  # the table with the default route of what the router itself begins
LAST_METRIC = 0xFFFFFFFF
_IPV6_METRIC = 1024  # what the kernel gives an IPv6 route without a metric
UNICAST, UNREACHABLE, PROHIBIT = "1", "7", "8"  # rtm_type, rtnetlink(7)
_KINDS = {UNREACHABLE: "unreachable"}


# What `ip -json` prints of what we understand, beside what tells how it stands.
_RULE_KEYS = {"priority", "not", "src", "srclen", "dst", "dstlen", "iif", "iif_detached", "oif", "oif_detached"}
_RULE_KEYS |= {"fwmark", "fwmask", "table", "suppress_prefixlen", "protocol", "action"}
_ROUTE_KEYS = {"dst", "type", "gateway", "dev", "table", "protocol", "scope", "prefsrc", "metric", "flags", "pref"}
_ROUTE_KEYS |= {"error"}
_STATES = {"linkdown", "dead"}
_NAMES = {"target": "dst", "kind": "type", "device": "dev", "source": "prefsrc"}


class NextHop(Struct, frozen=True, rename=_NAMES):
    """One of the ways of a route, as in ip-route(8); `gateway` is None where there is none."""

    device: str | None = None
    gateway: str | None = None
    weight: int = 1

    def words(self) -> str:
        """The arguments of `ip route` that say the same."""
        via = f" via {self.gateway}" if self.gateway else ""
        return f"nexthop{via} dev {self.device} weight {self.weight}"


class Route(Struct, frozen=True, rename=_NAMES):
    """One route of one table, as `ip -N -json route show` prints it, so that a whole table is decoded at once.

    Attributes:
        target: `default` or a network; a single host without its prefix length.
        table: its table's number.
        kind: the kernel's number of its type (rtnetlink(7), rtm_type).
        gateway, device, source: as in ip-route(8), None where there is none.
        metric: 0 is IPv4's default.
        protocol: who made it.
        nexthops: its ways, if it has several; then there is neither gateway nor device.
    """

    target: str
    table: int = MAIN
    kind: str = UNICAST
    gateway: str | None = None
    device: str | None = None
    source: str | None = None
    metric: int = 0
    protocol: int = 0
    nexthops: tuple[NextHop, ...] = ()

    @property
    def ways(self) -> tuple[NextHop, ...]:
        """All the ways that it has."""
        return self.nexthops or (NextHop(self.device, self.gateway),)

    @property
    def key(self) -> tuple[int, str, int]:
        """What `ip route replace` goes by."""
        return self.table, self.target, self.metric

    def words(self) -> str:
        """The arguments of `ip route replace` and `ip route del`."""
        parts = [self.target] if self.kind == UNICAST else [_KINDS.get(self.kind, self.kind), self.target]
        given = (("via", self.gateway), ("dev", self.device if self.kind == UNICAST else None))
        parts += [word for pair in given if pair[1] for word in pair if word]
        parts += ["table", str(self.table), "proto", str(self.protocol)]
        parts += ["src", self.source] if self.source else []
        parts += ["metric", str(self.metric)] if self.metric else []
        parts += [way.words() for way in self.nexthops]
        return " ".join(parts)


class Rule(Struct, frozen=True):
    """One rule of policy routing: at `priority`, what `selector` matches is looked up in `table`.

    With `REFUSED` for a table it is not looked up, but its sender is told that it is prohibited. That there is no way
    ("unreachable") a UDP socket would not be told (icmp_err_convert in net/ipv4/icmp.c), and would wait.
    """

    priority: int
    selector: str
    table: int
    suppress_default: bool = False
    protocol: int = PROTOCOL

    def words(self) -> str:
        """The arguments of `ip rule add` and `ip rule del`."""
        action = "prohibit" if self.table == REFUSED else f"lookup {self.table}"
        parts = [f"pref {self.priority}", self.selector or "from all", action]
        parts += ["suppress_prefixlength 0"] if self.suppress_default else []
        parts += [f"protocol {self.protocol}"] if self.protocol else []
        return " ".join(parts)


class Link(Struct, frozen=True):
    """What the kernel says of one interface.

    Attributes:
        up: whether an administrator has set it up.
        carrier: whether its cable is in.
        addresses: the usable ones.
        mtu: its largest packet; 0 if that is not known.
        own: the usable addresses with their prefix lengths that are good beyond the link: first those that last, and
            of them first those that are good everywhere.
        hops: the gateways of its best default routes in main, one a family; 0.0.0.0 or :: for one without.
        leading: the families whose best default route in main goes by it, maybe by others too.
    """

    up: bool
    carrier: bool
    addresses: frozenset[str]
    mtu: int = 0
    own: tuple[str, ...] = ()
    hops: tuple[str, ...] = ()
    leading: tuple[Family, ...] = ()


def fwmark(value: int, mask: int) -> str:
    """The selector for a mark, as `ip rule` prints it."""
    return f"fwmark {value:#x}" if mask == 0xFFFFFFFF else f"fwmark {value:#x}/{mask:#x}"


def unreachable(family: int, table: int) -> Route:
    """The last route of an ISP's table, so that a lookup never falls through to another ISP (R2)."""
    device = "lo" if family == 6 else None  # as the kernel says itself
    return Route("default", table, UNREACHABLE, device=device, metric=LAST_METRIC, protocol=PROTOCOL)


def unicast(family: int, table: int, target: str, device: str, gateway: str | None, source: str | None) -> Route:
    """A route through an interface, with the metric that the kernel gives it anyway."""
    metric = _IPV6_METRIC if family == 6 else 0
    return Route(target, table, UNICAST, gateway, device, source, metric, PROTOCOL)


def read_rule(item: Mapping[str, Any]) -> Rule:
    """One rule as `ip -json -N rule show` prints it."""
    parts = ["not"] if "not" in item else []
    for word, key, length in (("from", "src", "srclen"), ("to", "dst", "dstlen")):
        if item.get(key, "all") != "all":
            parts += [word, f"{item[key]}/{item[length]}" if length in item else item[key]]
    for word in ("iif", "oif"):
        parts += [word, item[word]] if word in item else []
    if "fwmark" in item:
        parts.append(fwmark(int(item["fwmark"], 16), int(item.get("fwmask", "0xffffffff"), 16)))
    return Rule(
        priority=item["priority"],
        selector=" ".join(parts),
        table=int(item.get("table", 0)),
        suppress_default=item.get("suppress_prefixlen") == 0,
        protocol=int(item.get("protocol", 0)),
    )


def is_plain_rule(item: Mapping[str, Any]) -> bool:
    """Whether `read_rule` understands all that such a rule asks for; one by port or user, say, is somebody else's."""
    return item.keys() <= _RULE_KEYS


def is_plain_route(item: Mapping[str, Any]) -> bool:
    """Whether `Route` holds all that `ip -N -json route show` prints of a route."""
    return item.keys() <= _ROUTE_KEYS and set(item.get("flags", ())) <= _STATES


def read_link(item: Mapping[str, Any]) -> Link:
    """One interface as `ip -json address show` prints it."""
    flags = item.get("flags", [])
    usable = [a for a in item.get("addr_info", []) if "tentative" not in a and "dadfailed" not in a]
    usable = [a for a in usable if "local" in a]
    addresses = frozenset(a["local"] for a in usable)
    beyond = sorted((a for a in usable if a.get("scope") == "global"), key=_passing)
    own = tuple(f"{a['local']}/{a['prefixlen']}" for a in beyond)
    return Link("UP" in flags, "NO-CARRIER" not in flags, addresses, item.get("mtu", 0), own)


def best_hops(routes: Iterable[Route], family: Family) -> dict[str, str]:
    """The gateway of the best default route that main has by each interface; others have made them."""
    hops: dict[str, str] = {}
    for route in _defaults(routes):
        for way in route.ways:
            if way.device:
                hops.setdefault(way.device, way.gateway or str(NOWHERE[family]))
    return hops


def leading(routes: Iterable[Route]) -> set[str]:
    """The interfaces by which main's best default route goes, whichever of its ways the kernel takes."""
    defaults = _defaults(routes)
    best = [route for route in defaults if route.metric == defaults[0].metric]
    return {way.device for route in best for way in route.ways if way.device}


def _defaults(routes: Iterable[Route]) -> list[Route]:
    """Main's default routes that others have made, the best first."""
    defaults = (r for r in routes if (r.table, r.target, r.kind) == (MAIN, "default", UNICAST))
    return sorted((r for r in defaults if r.protocol != PROTOCOL), key=lambda each: each.metric)


def _passing(address: Mapping[str, Any]) -> tuple[bool, bool]:
    """Privacy addresses (RFC 8981) and deprecated ones come last, IPv6 that is local to the site (RFC 4193) before."""
    return "temporary" in address or "deprecated" in address, address["local"].startswith(("fc", "fd"))
