"""What was there before us: kept before it is replaced, and put back when we leave."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct

from lsmpy import LsmpyError, beside, changes, guard, image, iptables, kernel, memory, plan, resolve, youth
from lsmpy.changes import Changes
from lsmpy.iptables import Backend
from lsmpy.memory import KeepingError, Kept
from lsmpy.model import Family, Router
from lsmpy.plan import Plan, Side
from lsmpy.scene import RAW, Scene, among_others, others, owned, rebuilt

log = logging.getLogger(__name__)


class Left(Struct, frozen=True):
    """Something that we have built and that the configuration names no more: a family, or tables of one.

    Attributes:
        live, want: what the kernel holds, and what it held before us.
        whole: whether it is all of the family.
        beside_others: whether others' rules are to be left alone.
    """

    live: Side
    want: Side
    whole: bool
    beside_others: bool

    @property
    def name(self) -> str:
        """What is left, for the log."""
        tables = "" if self.whole else " " + ", ".join(table.name for table in self.want.tables)
        return f"IPv{self.live.family}{tables}"


# -- keeping -------------------------------------------------------------------------------------------------


def keep(scene: Scene, wanted: Plan, steps: list[Changes], replace: bool) -> list[str]:
    """Keep what is there before us, unless that was done before; returns warnings of what others lose.

    Others' rules are guarded before they are replaced for the first time: all at the first rebuild since the machine
    was started, and those of a family or a table that the configuration has just named.

    Raises:
        GuardError: there are rules that nobody gave up.
        KeepingError: something cannot be kept, and so nothing may be replaced.
    """
    kept = memory.load()
    settings = _settings(wanted, kept)
    if scene.beside_others:
        sides = {family: Side(family, (), (), ()) for family in scene.live} | (kept.sides if kept else {})
        return _write(Kept(sides, settings, True), kept, must=kept is None)
    given = {} if kept is None or kept.beside_others else kept.sides  # who kept others' rules gave none up
    known = {} if scene.first else given
    asked = {family: _without(side, known.get(family)) for family, side in scene.live.items()}
    if replace:
        guard.warn_of_lock_out(scene.live, wanted)
    else:
        guard.guard(asked, wanted, given, _in_kernel_words(scene, asked))
        guard.refuse_lossy(image.lossy_routes([f for f in asked if f not in known], owned(scene.router)))
    sides = {family: side for family, side in given.items() if family not in scene.live}
    for side in wanted.sides:
        names = [table.name for table in side.tables]
        now = others(scene.live[side.family])
        sides[side.family] = _kept(now, names, given.get(side.family), side.family in known)
    warnings = _write(Kept(sides, settings), kept, must=any(side.tables for side in asked.values()))
    touched = {family: _without(side, asked[family]) for family, side in scene.live.items()}
    return warnings + guard.removed(touched, wanted, steps)


def _in_kernel_words(scene: Scene, asked: Mapping[Family, Side]) -> dict[Family, frozenset[str]]:
    """The users' rules as the kernel would print them, where it may hold some in its own words."""
    words = {}
    for family, side in asked.items():
        users = [table for table in scene.extra.get(family, {}).values() if side.table(table.name).rules]
        if any({*table.rules} - {*side.table(table.name).rules} for table in users):
            words[family] = image.kernel_words(scene.backend, family, users)
    return words


def _settings(wanted: Plan, kept: Kept | None) -> dict[str, str]:
    """What the settings were. Those of an earlier start of the machine are not those of this one."""
    present, former = image.read_sysctls(key for key, _ in wanted.sysctls), kept.sysctls if kept else {}
    return present | former if youth.known() else former | present


def _without(side: Side, less: Side | None) -> Side:
    """The tables that `less` has not."""
    names = {table.name for table in less.tables} if less else set()
    return Side(side.family, tuple(table for table in side.tables if table.name not in names), (), ())


def _kept(now: Side, names: Iterable[str], given: Side | None, known: bool) -> Side:
    """What is to be kept of others': what was `given` up before, and what is there `now` beside it.

    After a start of the machine there may be less than was given up, because others have not put theirs in yet.
    """
    if given is None:
        return Side(now.family, tuple(now.table(name) for name in names), now.routes, now.rules)
    had = {table.name: table for table in given.tables}
    tables = [
        had[name] if name in had and (known or {*now.table(name).rules} <= {*had[name].rules}) else now.table(name)
        for name in names
    ]
    tables += [table for name, table in had.items() if name not in names]  # until they are put back
    more_routes, more_rules = ((), ()) if known else (now.routes, now.rules)
    routes, rules = dict.fromkeys((*given.routes, *more_routes)), dict.fromkeys((*given.rules, *more_rules))
    return Side(now.family, tuple(tables), tuple(routes), tuple(rules))


def _write(new: Kept, kept: Kept | None, must: bool) -> list[str]:
    """Write what is new; without it nothing may be replaced, if it `must` be kept."""
    damaged = [f"{memory.directory() / 'before.json'} was damaged: what is known of before us is kept anew"]
    warnings = damaged if kept and kept.damaged else []
    if new != kept:
        try:
            memory.keep(new)
        except KeepingError as error:
            if must:
                raise
            warnings.append(str(error))
    return warnings


# -- putting back --------------------------------------------------------------------------------------------


def left(router: Router, backend: Backend, named: Mapping[Family, Collection[str]]) -> Iterator[Left]:
    """What we have built and the configuration names no more.

    Args:
        router: the configuration.
        backend: the iptables.
        named: of each family, the tables of the [rules] files.
    """
    kept = memory.load()
    beside_others = router.options.beside_others or (kept is not None and kept.beside_others)
    for family, side in kept.sides.items() if kept else ():
        whole = family not in router.families
        stale = {table.name: table for table in side.tables if whole or not beside_others}
        for name in () if whole else rebuilt(router, family, named.get(family, ())):
            stale.pop(name, None)
        if (whole or stale) and family in image.families():
            yield _left(
                router, backend, Side(family, tuple(stale.values()), side.routes, side.rules), whole, beside_others
            )


def _left(router: Router, backend: Backend, former: Side, whole: bool, beside_others: bool) -> Left:
    names = set(plan.OWN_TABLES if whole else ()) | {table.name for table in former.tables}
    _, seen = image.read(backend, [former.family], sorted(names), owned(router) if whole else (), {RAW} - names)
    live = seen[former.family]
    if not whole:
        live = Side(live.family, live.tables, (), ())
        return Left(live, _as_it_was(Side(live.family, former.tables, (), ())), whole, beside_others)
    return Left(live, others(live) if beside_others else _as_it_was(former), whole, beside_others)


def _as_it_was(kept: Side) -> Side:
    return Side(kept.family, tuple(table.with_policies({}) for table in kept.tables), kept.routes, kept.rules)


def leave(found: Iterable[Left], backend: Backend) -> bool:
    """Put back what was before us, and forget that it was kept; returns whether there was anything."""
    for each in (everything := list(found)):
        put_back(
            backend, [changes.between(each.live, each.want)], {}, {each.live.family: each.live}, each.beside_others
        )
        memory.forget(each.live.family, None if each.whole else {table.name for table in each.want.tables})
        log.info("%s is configured no more: what was there before is back", each.name)
    return bool(everything)


def clear(router: Router) -> str:
    """Take everything of ours out and put back what was there before us; returns what was.

    Others' rules stay as they are where they were left alone, or where nothing was kept.
    """
    router, kept = resolve.on_machine(router, image.families()), memory.load()
    backend = iptables.find(router.options.iptables)
    families = [f for f in image.families() if f in router.families or (kept and f in kept.sides)]
    iptables.refuse_other(backend, families, router.options.beside_others)
    whole = kept is not None and not kept.beside_others and not router.options.beside_others
    sides = kept.sides if kept and whole else {}
    names = {*plan.OWN_TABLES, *(table.name for side in sides.values() for table in side.tables)}
    _, seen = image.read(backend, families, sorted(names), owned(router), {RAW} - names)
    wanted = {family: _as_it_was(sides[family]) if family in sides else others(seen[family]) for family in seen}
    steps = [changes.between(live, wanted[family]) for family, live in seen.items()]
    put_back(backend, steps, kept.sysctls if kept else {}, seen, beside_others=not whole)
    memory.forget_all(tables=whole)
    return _said(kept is not None, whole)


def _said(kept: bool, whole: bool) -> str:
    if whole:
        return "what was there before the first rebuild is back"
    if not kept:
        return "nothing was kept of what was there before"
    former = " and ".join(map(str, memory.saved_tables()))
    said = "others' rules are as they were, and the interfaces' settings as before the first rebuild"
    return said + (f'; what flush = "all" once replaced is still in {former}' if former else "")


def undo(scene: Scene, wanted: Plan, settings: Mapping[str, str]) -> str:
    """Put back what was there before a rebuild that failed, and say how that went, and what stands if it did not."""
    names = sorted({table.name for side in wanted.sides for table in side.tables})
    why = ""
    try:
        seen, steps = _way_back(scene, names)
        put_back(scene.backend, steps, settings, seen, scene.beside_others)
    except LsmpyError as error:
        why = f" ({error})"
    try:
        _, steps = _way_back(scene, names)
    except LsmpyError as error:
        return f"Putting the former state back failed too{why}. What stands now cannot be read: {error}"
    left = [each for step in steps for each in step.differences()]
    left += [f"{key}={now}" for key, now in image.read_sysctls(settings).items() if now != settings[key]]
    if left:
        return f"Putting the former state back failed too{why}. Otherwise than before stand: {'; '.join(left)}"
    return "What was already done has been undone: the router is as it was before"


def _way_back(scene: Scene, names: list[str]) -> tuple[dict[Family, Side], list[Changes]]:
    """What the kernel holds now, and the steps from there to what it held, in the tables of these names."""
    _, seen = image.read(scene.backend, scene.router.families, names, owned(scene.router))
    steps = []
    for family, live in scene.live.items():
        tables = tuple(live.table(name).with_policies({}) for name in names)
        if scene.beside_others:
            tables = tuple(beside.ours(table) for table in tables)
        side = Side(family, tables, live.routes, live.rules)
        steps.append(changes.between(seen[family], among_others(seen[family], side, scene.beside_others)))
    return seen, steps


def put_back(
    backend: Backend,
    steps: list[Changes],
    settings: Mapping[str, str],
    now: Mapping[Family, Side],
    beside_others: bool,
) -> None:
    """Take the steps from what the kernel holds `now`, marks before translations.

    Nothing may be marked for an ISP whose NAT is gone.
    """
    for refusal in kernel.add(steps):
        log.warning("not put back: '%s': %s", refusal.item.words(), refusal.why)
    kernel.load(backend, [_reversed(step) for step in steps], now if beside_others else None, beside_others)
    for key, value in settings.items():
        kernel.write_sysctl(key, value)
    kernel.drop(steps)


def _reversed(step: Changes) -> Changes:
    return Changes(step.family, step.routes, step.rules, step.tables[::-1], step.stale_rules, step.stale_routes)
