"""Reads what the kernel holds of what concerns us: interfaces, routes, rules, netfilter tables, settings."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from lsmpy import LsmpyError, command, netfilter, routing
from lsmpy.command import CommandError
from lsmpy.iptables import Backend
from lsmpy.model import FAMILIES, Family
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import Link, Route, Rule

_ASK_LINKS = "ip -json address show"
_ASK_ROUTING = r"route show table all\nrule show\n"
_MARK = "=="
_UNREADABLE = re.compile(r"^# Table `(\S+)' is incompatible", re.MULTILINE)
_INTERFACES = msgspec.json.Decoder(list[dict[str, Any]])
_RULES = msgspec.json.Decoder(list[dict[str, Any]])
_ROUTES = msgspec.json.Decoder(list[Route], strict=False)
_BOOT = 3  # RTPROT_BOOT, made by hand; `ip` does not print it
# Types of routes (rtnetlink(7), rtm_type) that only others put into our tables: `ip -N` prints numbers and takes names.
_KINDS = {
    "2": "local",
    "3": "broadcast",
    "4": "anycast",
    "5": "multicast",
    "6": "blackhole",
    "8": "prohibit",
    "9": "throw",
}
_Item = TypeVar("_Item", Route, Rule)


class ImageError(LsmpyError):
    """What the kernel holds cannot be read."""


def families() -> tuple[Family, ...]:
    """The families that this machine has: IPv6 may be switched off for the whole kernel (ipv6.disable=1)."""
    return FAMILIES if os.path.exists("/proc/net/if_inet6") else (4,)


def read_links() -> dict[str, Link]:
    """The interfaces of this network namespace; needs no root."""
    links = _links(command.run(*_ASK_LINKS.split()))
    for family in families():
        said = command.run(*f"ip -{family} -N -json route show table main".split())
        links = _with_hops(links, _ROUTES.decode(said or "[]"), family)
    return links


def read(
    backend: Backend,
    families: Sequence[Family],
    tables: Collection[str],
    owned: Collection[int],
    perhaps: Collection[str] = (),
) -> tuple[dict[str, Link], dict[Family, Side]]:
    """An image of the kernel, as far as it concerns us.

    Args:
        backend: the iptables to ask.
        families: which families to look at.
        tables: which netfilter tables.
        owned: the routing tables that are ours whole, whoever wrote into them.
        perhaps: further netfilter tables, passed over where iptables cannot read them.

    Raises:
        ImageError: iptables cannot read one of the `tables`.
    """
    asking = {
        family: command.start(["sh", "-c", _questions(backend, family, links=family == families[0])])
        for family in families
    }
    links: dict[str, Link] = {}
    every: dict[Family, list[Route]] = {}
    sides: dict[Family, Side] = {}
    for family, process in asking.items():
        saved, said, *said_links = process.wait().split(f"{_MARK}\n")
        _refuse_unreadable(saved, tables, backend.save(family))
        known = netfilter.parse(saved, backend.save(family))
        routes, rules = _arrays(said, 2)
        links |= _links(said_links[0]) if said_links else {}
        every[family] = _ROUTES.decode(routes)
        sides[family] = Side(
            family=family,
            tables=tuple(known[name] for name in (*tables, *perhaps) if name in known),
            routes=tuple(map(_spelled_out, _ours(every[family], owned))),
            rules=tuple(_ours(map(routing.read_rule, filter(routing.is_plain_rule, _RULES.decode(rules))), owned)),
        )
    for family, known_routes in every.items():
        links = _with_hops(links, known_routes, family)
    return links, sides


def read_sysctl(key: str) -> str | None:
    """A setting below /proc/sys, None where it does not exist."""
    try:
        with open(f"/proc/sys/{key}", "rb", buffering=0) as file:  # many are asked for at every rebuild
            return file.read().decode().strip()
    except OSError:
        return None


def read_sysctls(keys: Iterable[str]) -> dict[str, str]:
    """These settings, as far as they exist."""
    return {key: value for key in keys if (value := read_sysctl(key)) is not None}


def lossy_routes(families: Iterable[Family], owned: Collection[int]) -> list[str]:
    """Others' routes in our tables of which `Route` does not hold all: they could not be put back as they are."""
    found = []
    for family in families:
        said = command.run(*f"ip -{family} -N -json route show table all".split())
        for item in msgspec.json.decode(said or "[]", type=list[dict[str, Any]]):
            protocol, table = int(item.get("protocol", _BOOT)), int(item.get("table", routing.MAIN))
            if table in owned and protocol != routing.PROTOCOL and not routing.is_plain_route(item):
                found.append(f"{item['dst']} in table {table} of IPv{family}")
    return found


def kernel_words(backend: Backend, family: Family, tables: Iterable[Table]) -> frozenset[str]:
    """The rules of tables in the kernel's words: it is asked in a network namespace where nobody else is.

    Empty where it cannot be asked: without the rights for that, or if a rule names a set that is not there.
    """
    asking = ["unshare", "--net", "sh", "-c", f"{backend.restore(family)} -w 10 && {backend.save(family)}"]
    try:
        saved = command.run(*asking, stdin=netfilter.render(tables))
    except CommandError:
        return frozenset()
    return frozenset(rule for table in netfilter.parse(saved, backend.save(family)).values() for rule in table.rules)


def _refuse_unreadable(saved: str, tables: Collection[str], tool: str) -> None:
    """iptables-nft cannot read a table that somebody has made with nft and with what iptables does not know."""
    for name in _UNREADABLE.findall(saved):
        if name in tables:
            raise ImageError(
                f"{tool} cannot read the table {name}: somebody has put into it what only nft knows. Nothing was "
                f"changed. See nft list ruleset; whoever does that needs a table of its own, with another name"
            )


def _questions(backend: Backend, family: Family, *, links: bool) -> str:
    """What one shell asks of one family: from Python it costs several times as much to start a program."""
    asking = [backend.save(family), f"printf '{_ASK_ROUTING}' | ip -{family} -N -json -batch -"]
    asking += [_ASK_LINKS] if links else []
    return "set -e\n" + f"\necho {_MARK}\n".join(asking)


def _arrays(text: str, count: int) -> list[str]:
    """One JSON array a command; `ip` ends each with a line."""
    arrays = [line for line in text.splitlines() if line.strip()]
    if len(arrays) != count:
        raise ImageError(f"ip printed {len(arrays)} lists instead of {count}; iproute2 4.18 or newer is needed")
    return arrays


def _ours(items: Iterable[_Item], owned: Collection[int]) -> Iterable[_Item]:
    return (item for item in items if item.protocol == routing.PROTOCOL or item.table in owned)


def _spelled_out(route: Route) -> Route:
    """Somebody else's route in words that `ip` takes: a single line that it does not take ends a whole batch."""
    if route.protocol == routing.PROTOCOL:
        return route
    kind, protocol = _KINDS.get(route.kind, route.kind), route.protocol or _BOOT
    return msgspec.structs.replace(route, kind=kind, protocol=protocol)


def _links(said: str) -> dict[str, Link]:
    return {item["ifname"]: routing.read_link(item) for item in _INTERFACES.decode(said) if "ifname" in item}


def _with_hops(links: Mapping[str, Link], routes: Sequence[Route], family: Family) -> dict[str, Link]:
    hops, found = routing.best_hops(routes, family), dict(links)
    for name in hops.keys() & links.keys():
        found[name] = msgspec.structs.replace(links[name], hops=(*links[name].hops, hops[name]))
    for name in routing.leading(routes) & links.keys():
        found[name] = msgspec.structs.replace(found[name], leading=(*found[name].leading, family))
    return found
