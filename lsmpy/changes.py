"""What has to be done to turn one image of the kernel into another, in an order that never breaks the router (R3)."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from lsmpy import beside, netfilter
from lsmpy.model import Family
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule


class Changes(Struct, frozen=True):
    """The steps for one family, in their order: add, load, drop. All empty: there is nothing to do.

    Attributes:
        family: 4 or 6.
        routes: to be added or replaced first, so that every rule and mark finds its table filled.
        rules: to be added next.
        tables: to be loaded whole, those that translate before those that mark.
        stale_rules, stale_routes: to be removed last.
    """

    family: Family
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]
    tables: tuple[Table, ...]
    stale_rules: tuple[Rule, ...]
    stale_routes: tuple[Route, ...]

    def __bool__(self) -> bool:
        return bool(self.routes or self.rules or self.tables or self.stale_rules or self.stale_routes)

    @property
    def adding(self) -> tuple[Route | Rule, ...]:
        """What the lines of `add_text` are about, in their order."""
        return (*self.routes, *self.rules)

    def differences(self) -> list[str]:
        """What these steps would change, in words."""
        return [
            *(f"without the route '{route.words()}'" for route in self.routes),
            *(f"without the rule '{rule.words()}'" for rule in self.rules),
            *(f"the table {table.name} of IPv{self.family}" for table in self.tables),
            *(f"the rule '{rule.words()}'" for rule in self.stale_rules),
            *(f"the route '{route.words()}'" for route in self.stale_routes),
        ]

    def add_text(self) -> str:
        """For `ip -batch`: the first step."""
        return add_text(self.routes, self.rules)

    def drop_text(self) -> str:
        """For `ip -batch`: the last step."""
        lines = [f"rule del {rule.words()}" for rule in self.stale_rules]
        lines += [f"route del {route.words()}" for route in self.stale_routes]
        return "".join(f"{line}\n" for line in lines)

    def load_text(self) -> str:
        """For iptables-restore: the middle step."""
        return netfilter.render(self.tables)

    def part_text(self, live: Side) -> str:
        """The same for `iptables-restore --noflush`: only the chains that differ; empty where that is not enough."""
        parts = [netfilter.part(live.table(table.name), table) for table in self.tables]
        return netfilter.render(parts) if all(part.chains for part in parts) else ""

    def edit_text(self, live: Side) -> str:
        """The same where others' chains are to be left alone (`beside`)."""
        return "".join(beside.edit(live.table(table.name), table) for table in self.tables)


def add_text(routes: Iterable[Route], rules: Iterable[Rule]) -> str:
    """The text for `ip -batch` that adds these, routes first."""
    lines = [f"route replace {route.words()}" for route in routes]
    lines += [f"rule add {rule.words()}" for rule in rules]
    return "".join(f"{line}\n" for line in lines)


def between(live: Side, want: Side) -> Changes:
    """The steps from `live` to `want`. Tables that `want` does not name are left alone."""
    have, shall = set(live.routes), set(want.routes)
    added = tuple(route for route in want.routes if route not in have)
    replaced = {route.key for route in added}
    rules_have, rules_shall = set(live.rules), set(want.rules)
    stale = [route for route in live.routes if route not in shall]
    in_place = {route.key: route for route in reversed(stale) if route.key in replaced}
    tables = [table.with_policies(live.table(table.name).policies()) for table in want.tables]
    return Changes(
        family=want.family,
        routes=added,
        rules=tuple(rule for rule in want.rules if rule not in rules_have),
        tables=tuple(table for table in tables if not table.same_as(live.table(table.name).with_policies({}))),
        stale_rules=tuple(rule for rule in live.rules if rule not in rules_shall),
        # What `replace` overwrites is gone by then.
        stale_routes=tuple(route for route in stale if in_place.get(route.key) is not route),
    )


def diff(live: Side, want: Side) -> str:
    """The differences as a unified diff from the kernel to what a rebuild would make; empty when there are none."""
    import difflib  # a rebuild has no need of it

    changes = between(live, want)
    names = {table.name for table in changes.tables}
    lines: list[str] = []
    for name, before, after in (
        ("rules", _words(live.rules), _words(want.rules)),
        ("routes", _words(live.routes), _words(want.routes)),
        *((table.name, _text(live.table(table.name)), _text(table)) for table in changes.tables if table.name in names),
    ):
        title = f"IPv{want.family} {name}"
        lines += difflib.unified_diff(before, after, f"{title} (kernel)", f"{title} (rebuild)", lineterm="", n=1)
    return "".join(f"{line}\n" for line in lines)


def _words(items: Iterable[Route] | Iterable[Rule]) -> list[str]:
    return sorted(item.words() for item in items)


def _text(table: Table) -> list[str]:
    ordered = netfilter.table(table.name, sorted(table.chains, key=lambda chain: chain.name))
    return netfilter.render([ordered.with_policies({})]).splitlines()
