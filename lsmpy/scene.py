"""Everything that one rebuild starts from: configuration, states and the live kernel, read together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from lsmpy import (
    ConfigError,
    beside,
    changes,
    freeing,
    guard,
    image,
    iptables,
    memory,
    netfilter,
    npt,
    plan,
    resolve,
    state,
    youth,
)
from lsmpy.changes import Changes
from lsmpy.iptables import Backend
from lsmpy.model import Family, Router
from lsmpy.netfilter import PREFIX, Table
from lsmpy.plan import Plan, Side
from lsmpy.routing import PROTOCOL, Link

Extra = Mapping[Family, Mapping[str, Table]]

RAW = "raw"


class Scene(Struct, frozen=True):
    """Everything that one rebuild starts from, read while the lock is held.

    Attributes:
        router: the configuration, with the addresses that were left to the kernel.
        backend: the iptables.
        named: of each family, the names of the tables in the [rules] files.
        extra: those tables, and others that are rebuilt beside ours.
        states: what the state files say.
        links: the interfaces that are there.
        live: of each family, the tables, routes and rules that are there.
        waiting: for how many seconds an ISP that is up again is not used yet.
    """

    router: Router
    backend: Backend
    named: Mapping[Family, frozenset[str]]
    extra: Extra
    states: Mapping[str, state.Status]
    links: Mapping[str, Link]
    live: Mapping[Family, Side]
    waiting: Mapping[str, float]

    @property
    def first(self) -> bool:
        """Whether nothing was built yet since the machine was started."""
        return guard.is_first(self.live)

    @property
    def beside_others(self) -> bool:
        """Whether others' chains are to be left alone."""
        return self.router.options.beside_others

    def plan(self, refused: Mapping[str, str] | None = None) -> Plan:
        """What the kernel should hold; of ISPs whose route it has `refused`, why."""
        strays = self.first or youth.left_s() > 0
        made = plan.build(self.router, self.states, self.links, self.extra, refused, self.waiting, strays)
        sides = tuple(among_others(self.live[side.family], side, self.beside_others) for side in made.sides)
        return msgspec.structs.replace(made, sides=sides)

    def steps(self, wanted: Plan) -> list[Changes]:
        """The way there, of each family."""
        return [_without_spellings(changes.between(self.live[s.family], s), self.live[s.family]) for s in wanted.sides]


def look(configured: Router, directory: Path | None, given: Extra | None = None) -> Scene:
    """Read everything.

    Args:
        configured: the configuration.
        directory: where the state files are; None if they do not matter.
        given: of each family, the tables of [rules], if not as their files are now.

    Raises:
        LsmpyError: something could not be read, or the other iptables holds rules that would meet ours.
    """
    router = resolve.on_machine(configured, image.families())
    given = all_rule_files(router) if given is None else given
    extra = {family: dict(given.get(family, {})) for family in router.families}
    named = {family: frozenset(tables) for family, tables in extra.items()}
    backend = iptables.find(router.options.iptables)
    iptables.refuse_other(backend, router.families, router.options.beside_others)
    names = frozenset[str]().union(*(rebuilt(router, family, named[family]) for family in router.families))
    # In raw there may be something of ours from before; whatever others have there is no hindrance.
    links, seen = image.read(backend, router.families, sorted(names), owned(router), {RAW} - names)
    live = {family: _with_raw_if_ours(router, side, extra[family]) for family, side in seen.items()}
    # The states last: what is written while the kernel is being read still counts.
    states = {isp.name: state.read(directory, isp.name) for isp in router.isps} if directory else {}
    known = resolve.resolve(router, links)
    waiting = _waiting(known, directory, states, live) if directory else {}
    return Scene(known, backend, named, extra, states, links, live, waiting)


def now(scene: Scene) -> Scene:
    """The same in the middle of a rebuild, with what the kernel holds by then.

    Raises:
        LsmpyError: it could not be read.
    """
    names = {table.name for side in scene.live.values() for table in side.tables}
    _, seen = image.read(scene.backend, scene.router.families, sorted(names), owned(scene.router))
    return msgspec.structs.replace(scene, live=seen)


def _with_raw_if_ours(router: Router, side: Side, extra: dict[str, Table]) -> Side:
    """Have raw rebuilt while packets are translated one by one, and once more when they are no longer."""
    wanted = side.family == 6 and npt.stateless(router.isps)
    if wanted or any(chain.name.startswith(PREFIX) for chain in side.table(RAW).chains):
        extra.setdefault(RAW, netfilter.table(RAW))
    tables = tuple(table for table in side.tables if table.name != RAW or RAW in extra)
    return Side(side.family, tables, side.routes, side.rules)


def _waiting(
    router: Router, directory: Path, states: Mapping[str, state.Status], live: Mapping[Family, Side]
) -> dict[str, float]:
    """Who was out of service, is up by its state file, and has not been so for long; with the seconds that lack."""
    lacks: dict[str, float] = {}
    for name in freeing.out_of_service(router, live) if router.options.failback_after_s else ():
        age = state.age_s(directory, name)
        if states[name].up and not states[name].force and age is not None and age < router.options.failback_after_s:
            lacks[name] = router.options.failback_after_s - age
    return lacks


def owned(router: Router) -> frozenset[int]:
    """The routing tables that are ours whole, whoever has written into them."""
    return frozenset() if router.options.beside_others else frozenset(int(isp.table) for isp in router.isps)


def among_others(live: Side, wanted: Side, beside_others: bool) -> Side:
    """What is wanted with what others have, where that is to be left alone."""
    if not beside_others:
        return wanted
    tables = tuple(beside.beside(live.table(table.name), table) for table in wanted.tables)
    return msgspec.structs.replace(wanted, tables=tables)


def others(live: Side) -> Side:
    """What the kernel holds but for ours."""
    return Side(
        live.family,
        tuple(beside.without(table) for table in live.tables),
        tuple(route for route in live.routes if route.protocol != PROTOCOL),
        tuple(rule for rule in live.rules if rule.protocol != PROTOCOL),
    )


def all_rule_files(configured: Router) -> Extra:
    """The tables of the [rules] files of each family that this machine has.

    Raises:
        ConfigError: as for `rule_files`.
    """
    router = resolve.on_machine(configured, image.families())
    return {family: rule_files(router, family) for family in router.families}


def rule_files(router: Router, family: Family) -> dict[str, Table]:
    """The tables of the [rules] files of one family, the files in their order.

    Raises:
        ConfigError: a file cannot be read, is not in iptables-save format, or uses one of our chains.
    """
    merged: dict[str, Table] = {}
    errors = []
    for path in router.rules.files(family):
        try:
            tables = netfilter.parse(path.read_text(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            errors.append(f"{path}:1: cannot be read: {error}")
            continue
        except ConfigError as error:
            errors.append(str(error))
            continue
        for name, table in tables.items():
            taken = [chain.name for chain in table.chains if chain.name.startswith(PREFIX)]
            errors += [f"{path}:1: the chain {chain} is lsmpy's; give yours another name" for chain in taken]
            merged[name] = netfilter.merge(merged.get(name, netfilter.table(name)), table)
    if errors:
        raise ConfigError("\n".join(errors) + "\nNothing was changed.")
    return merged


def rebuilt(router: Router, family: Family, named: Collection[str]) -> frozenset[str]:
    """The tables of a family that are rebuilt, if the [rules] files have the `named` ones."""
    stateless = family == 6 and npt.stateless(router.isps)
    return frozenset((*plan.OWN_TABLES, *named, *((RAW,) if stateless else ())))


def _without_spellings(step: Changes, live: Side) -> Changes:
    """Leave out tables that differ only in how the user and the kernel spell the same rules."""
    tables = tuple(t for t in step.tables if not memory.is_spelling_of(step.family, live.table(t.name), t))
    return Changes(step.family, step.routes, step.rules, tables, step.stale_rules, step.stale_routes)
