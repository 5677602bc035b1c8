"""Routes and rules of policy routing as data, and the words of `ip` that say the same (ip-route(8), ip-rule(8))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Marks what is ours in routes and rules, as routing daemons do (rt_protos); free in iproute2's list.
PROTOCOL = 76
MAIN = 254
LAST_METRIC = 0xFFFFFFFF
_IPV6_METRIC = 1024  # what the kernel gives an IPv6 route without a metric
_UNICAST, _UNREACHABLE = "1", "7"  # rtm_type, rtnetlink(7)


@dataclass(frozen=True, slots=True)
class Route:
    """One route of one table.

    Attributes:
        table: its table's number.
        target: `default` or a network; a single host without its prefix length, as `ip` prints it.
        kind: `unicast`, `unreachable`, or the kernel's number of another type.
        gateway, device, source: as in ip-route(8), None where there is none.
        metric: 0 is IPv4's default.
        protocol: who made it.
    """

    table: int
    target: str
    kind: str = "unicast"
    gateway: str | None = None
    device: str | None = None
    source: str | None = None
    metric: int = 0
    protocol: int = PROTOCOL

    @property
    def key(self) -> tuple[int, str, int]:
        """What `ip route replace` goes by."""
        return self.table, self.target, self.metric

    def words(self) -> str:
        """The arguments of `ip route replace` and `ip route del`."""
        parts = [self.target] if self.kind == "unicast" else [self.kind, self.target]
        for word, value in (("via", self.gateway), ("dev", self.device)):
            parts += [word, value] if value else []
        parts += ["table", str(self.table), "proto", str(self.protocol)]
        parts += ["src", self.source] if self.source else []
        parts += ["metric", str(self.metric)] if self.metric else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of policy routing: at `priority`, what `selector` matches is looked up in `table`."""

    priority: int
    selector: str
    table: int
    suppress_default: bool = False
    protocol: int = PROTOCOL

    def words(self) -> str:
        """The arguments of `ip rule add` and `ip rule del`."""
        parts = [f"pref {self.priority}", self.selector or "from all", f"lookup {self.table}"]
        parts += ["suppress_prefixlength 0"] if self.suppress_default else []
        parts += [f"protocol {self.protocol}"] if self.protocol else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of one interface: administratively up, with a carrier, and its addresses."""

    up: bool
    carrier: bool
    addresses: frozenset[str]


def fwmark(value: int, mask: int) -> str:
    """The selector for a mark, as `ip rule` prints it."""
    return f"fwmark {value:#x}" if mask == 0xFFFFFFFF else f"fwmark {value:#x}/{mask:#x}"


def unreachable(table: int) -> Route:
    """The last route of an ISP's table, so that a lookup never falls through to another ISP (R2)."""
    return Route(table, "default", "unreachable", metric=LAST_METRIC)


def unicast(family: int, table: int, target: str, device: str, gateway: str | None, source: str | None) -> Route:
    """A route through an interface, with the metric that the kernel gives it anyway."""
    metric = _IPV6_METRIC if family == 6 else 0
    return Route(table, target, gateway=gateway, device=device, source=source, metric=metric)


def read_route(item: Mapping[str, Any]) -> Route:
    """One route as `ip -json -N route show table all` prints it."""
    kind = item.get("type", _UNICAST)
    ours = kind in (_UNICAST, _UNREACHABLE)
    reachable = kind == _UNICAST
    return Route(
        table=int(item.get("table", MAIN)),
        target=item["dst"],
        kind={_UNICAST: "unicast", _UNREACHABLE: "unreachable"}[kind] if ours else kind,
        gateway=item.get("gateway") or ("several" if "nexthops" in item else None),
        device=item.get("dev") if reachable else None,  # IPv6 shows `lo` for an unreachable one
        source=item.get("prefsrc"),
        metric=item.get("metric", 0),
        protocol=int(item.get("protocol", 0)),
    )


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


def read_link(item: Mapping[str, Any]) -> Link:
    """One interface as `ip -json address show` prints it."""
    flags = item.get("flags", [])
    usable = [a for a in item.get("addr_info", []) if "tentative" not in a and "dadfailed" not in a]
    return Link("UP" in flags, "NO-CARRIER" not in flags, frozenset(a["local"] for a in usable if "local" in a))
