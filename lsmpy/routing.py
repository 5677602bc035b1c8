"""Routes and rules of policy routing as data, and the words of `ip` that say the same (ip-route(8), ip-rule(8))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

# Marks what is ours in routes and rules, as routing daemons do (rt_protos); free in iproute2's list.
PROTOCOL = 76
MAIN = 254
LOCAL_DEFAULT = PROTOCOL  # the table with the default route of what the router itself begins
LAST_METRIC = 0xFFFFFFFF
_IPV6_METRIC = 1024  # what the kernel gives an IPv6 route without a metric
UNICAST, UNREACHABLE, PROHIBIT = "1", "7", "8"  # rtm_type, rtnetlink(7)
_KINDS = {UNREACHABLE: "unreachable", PROHIBIT: "prohibit"}


_NAMES = {"target": "dst", "kind": "type", "device": "dev", "source": "prefsrc"}


class Route(Struct, frozen=True, rename=_NAMES):
    """One route of one table, as `ip -N -json route show` prints it, so that a whole table is decoded at once.

    Attributes:
        target: `default` or a network; a single host without its prefix length.
        table: its table's number.
        kind: the kernel's number of its type (rtnetlink(7), rtm_type).
        gateway, device, source: as in ip-route(8), None where there is none.
        metric: 0 is IPv4's default.
        protocol: who made it.
    """

    target: str
    table: int = MAIN
    kind: str = UNICAST
    gateway: str | None = None
    device: str | None = None
    source: str | None = None
    metric: int = 0
    protocol: int = 0

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
        return " ".join(parts)


class Rule(Struct, frozen=True):
    """One rule of policy routing: at `priority`, what `selector` matches is looked up in `table`.

    `kind` is what else is done with it, as the kernel's number of a route's type; then the table is 0.
    """

    priority: int
    selector: str
    table: int
    suppress_default: bool = False
    protocol: int = PROTOCOL
    kind: str = UNICAST

    def words(self) -> str:
        """The arguments of `ip rule add` and `ip rule del`."""
        action = f"lookup {self.table}" if self.kind == UNICAST else _KINDS.get(self.kind, self.kind)
        parts = [f"pref {self.priority}", self.selector or "from all", action]
        parts += ["suppress_prefixlength 0"] if self.suppress_default else []
        parts += [f"protocol {self.protocol}"] if self.protocol else []
        return " ".join(parts)


class Link(Struct, frozen=True):
    """What the kernel says of one interface: administratively up, with a carrier, and its addresses."""

    up: bool
    carrier: bool
    addresses: frozenset[str]


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
        kind=item.get("action", UNICAST),
    )


def read_link(item: Mapping[str, Any]) -> Link:
    """One interface as `ip -json address show` prints it."""
    flags = item.get("flags", [])
    usable = [a for a in item.get("addr_info", []) if "tentative" not in a and "dadfailed" not in a]
    return Link("UP" in flags, "NO-CARRIER" not in flags, frozenset(a["local"] for a in usable if "local" in a))
