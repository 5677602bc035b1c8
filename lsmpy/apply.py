"""Makes the kernel what the plan says: one at a time, guarded, in an order that never breaks it, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec import Struct

from lsmpy import (
    LsmpyError,
    changes,
    former,
    freeing,
    image,
    kernel,
    locks,
    memory,
    netfilter,
    plan,
    state,
    youth,
)
from lsmpy.changes import Changes
from lsmpy.freeing import Parting
from lsmpy.kernel import KernelError, Refusal, RefusedError
from lsmpy.memory import KeepingError
from lsmpy.model import Family, Router
from lsmpy.plan import Plan, Side
from lsmpy.routing import LOCAL_DEFAULT, Route
from lsmpy.scene import Extra, Scene, look, now

log = logging.getLogger(__name__)

LOCK_PATH = Path("/run/lsmpy.lock")
_FORWARDING: Mapping[Family, str] = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


class Outcome(Struct, frozen=True):
    """What one rebuild did.

    Attributes:
        plan: what the kernel now holds.
        changed: whether anything had to be changed.
        warnings: what the administrator should know, a line each.
        switched: the ISPs that get new connections now and did not before, or the other way round.
        again_s: after how many seconds another one has something to do, though nothing else changes; None for never.
    """

    plan: Plan
    changed: bool
    warnings: tuple[str, ...]
    switched: tuple[str, ...] = ()
    again_s: float | None = None


def rebuild(
    router: Router,
    directory: Path,
    replace: bool = False,
    extra: Extra | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """One rebuild from the state files.

    Args:
        router: the configuration.
        directory: where the state files are.
        replace: give up rules that are neither ours nor in [rules], if this is the first rebuild.
        extra: the tables of [rules], if not as their files are now.
        stopped: whether to give up waiting for another rebuild to end.

    Raises:
        LsmpyError: it could not be done; the message says in what state the router is.
        locks.Stopped: it was given up, and nothing was changed.
    """
    kernel.require_privilege()
    state.require_directory(directory)
    with _lock(stopped):
        scene = look(router, directory, extra)
        wanted = scene.plan()
        steps = scene.steps(wanted)
        _check_new_rules(scene, steps)
        warnings = [f"{name}: {status.warning}" for name, status in scene.states.items() if status.warning]
        warnings += former.keep(scene, wanted, steps, replace)
        if scene.first:
            youth.begin()
        done, changed = _carry_out(scene, wanted, steps, warnings)
        left = former.leave(former.left(scene.router, scene.backend, scene.named), scene.backend)
        warnings += [f"{v.isp}: {v.why}: not used, whatever its state file says" for v in done.verdicts if v.broken]
        warnings += [f"{v.isp}: {v.why}" for v in done.verdicts if v.isp in scene.waiting and not v.up]
        warnings += _not_ready(scene.router)
        again_s = min(filter(None, (*scene.waiting.values(), youth.left_s())), default=None)
        return Outcome(done, changed or left, tuple(warnings), _switched(scene, done), again_s)


def difference(router: Router, directory: Path) -> str:
    """The live kernel against what a rebuild would make, as a unified diff; empty when they are the same.

    Raises:
        LsmpyError: the kernel could not be read.
    """
    kernel.require_privilege()
    state.require_directory(directory)
    scene = look(router, directory)
    wanted = scene.plan()
    text = "".join(
        changes.diff(scene.live[side.family], side)
        for side, step in zip(wanted.sides, scene.steps(wanted), strict=True)
        if step
    )
    text += "".join(
        changes.diff(each.live, each.want) for each in former.left(scene.router, scene.backend, scene.named)
    )
    settings = [f"-{key}={image.read_sysctl(key)}\n+{key}={value}\n" for key, value in _to_set(wanted)]
    return text + ("--- settings (kernel)\n+++ settings (rebuild)\n" if settings else "") + "".join(settings)


def clear(router: Router) -> str:
    """Take everything of lsmpy's out again and put back what was there before the first rebuild.

    Others' rules stay as they are where they were left alone, or where nothing was kept. Returns what was put back.

    Raises:
        LsmpyError: it could not be done.
    """
    kernel.require_privilege()
    with _lock():
        return former.clear(router)


# -- looking -------------------------------------------------------------------------------------------------


def _lock(stopped: Callable[[], bool] = lambda: False) -> AbstractContextManager[None]:
    """One rebuild at a time."""
    return locks.held(LOCK_PATH, stopped=stopped)


def _switched(scene: Scene, done: Plan) -> tuple[str, ...]:
    """Whose use has changed, by the tables that were there before."""
    isps = scene.router.isps
    names = {n for s in done.sides for n in plan.used(scene.live[s.family], isps) ^ plan.used(s, isps)}
    return tuple(isp.name for isp in isps if isp.name in names)


def _to_set(wanted: Plan) -> list[tuple[str, str]]:
    return [(key, value) for key, value in wanted.sysctls if image.read_sysctl(key) not in (value, None)]


def _not_ready(router: Router) -> list[str]:
    warnings = [
        f"{_FORWARDING[family].replace('/', '.')} is 0: nothing of IPv{family} is forwarded; set it to 1 with sysctl"
        for family in router.families
        if any(isp.addresses(family) for isp in router.isps) and image.read_sysctl(_FORWARDING[family]) == "0"
    ]
    if router.options.flush_conntrack and not kernel.can_forget():
        warnings.append(
            "conntrack is not installed: the connections of an ISP that goes down stay with it until they end. "
            "Install it (Debian: apt-get install conntrack) or set flush_conntrack = false"
        )
    return warnings


def _check_new_rules(scene: Scene, steps: list[Changes]) -> None:
    """Have iptables read the users' rules that were never loaded, before anything is touched."""
    for step in steps:
        users, live = scene.extra.get(step.family, {}), scene.live[step.family]
        named = [users[table.name] for table in step.tables if table.name in users]
        new = [t for t in named if {*t.rules} - {*live.table(t.name).rules} - memory.loaded_rules(step.family, t)]
        if new:
            try:
                kernel.check(scene.backend, step.family, new)
            except RefusedError as error:
                raise KernelError(f"{_places(scene.router, error)}{error}. Nothing was changed") from error


def _places(router: Router, error: LsmpyError) -> str:
    """`FILE:LINE: ` of the user's rule that was refused, or of each that may be meant; empty for our own."""
    rules = error.rules if isinstance(error, RefusedError) else ()
    found = [
        f"{path}:{line}"
        for family, table, rule in rules
        for path in router.rules.files(family)
        if (line := netfilter.find(path.read_text(errors="replace") if path.is_file() else "", table, rule))
    ]
    return f"{'one of ' if len(found) > 1 else ''}{', '.join(found)}: " if found else ""


# -- acting --------------------------------------------------------------------------------------------------


def _carry_out(scene: Scene, wanted: Plan, steps: list[Changes], warnings: list[str]) -> tuple[Plan, bool]:
    """Routing, then NAT, then marks, then what is stale, then connections; undone as a whole when a step fails."""
    settings = _to_set(wanted)
    if not any(steps) and not settings:
        return wanted, False
    old_settings = image.read_sysctls(key for key, _ in settings) if settings else {}
    before, refused = scene, dict[str, str]()
    try:
        while more := _refused_isps(scene.router, kernel.add(steps), refused, warnings):
            refused |= more
            scene = now(before)
            wanted = scene.plan(refused)
            steps = scene.steps(wanted)
        present = frozenset[str]().union(*(link.addresses for link in scene.links.values()))
        parts = [freeing.part(scene.router, scene.live[step.family], step, present) for step in steps]
        for key, value in settings:  # without which nobody who is marked gets an answer
            kernel.write_sysctl(key, value)
        kernel.load(scene.backend, [part.early for part in parts], scene.live, scene.beside_others)
        kernel.drop(steps)
        freed = _forget(parts, warnings)
        loaded = {part.early.family: Side(part.early.family, part.early.tables, (), ()) for part in parts}
        if freed:  # else they are not listed, and the next rebuild tries again
            kernel.load(scene.backend, [part.late for part in parts], loaded, scene.beside_others)
        _learn_spellings(scene, steps, warnings)
    except LsmpyError as error:
        raise KernelError(
            f"{_places(scene.router, error)}{error}. {former.undo(before, wanted, old_settings)}"
        ) from error
    return wanted, True


def _forget(parts: list[Parting], warnings: list[str]) -> bool:
    """Free the connections of the ISPs and addresses that have gone, so that they begin again by another.

    Returns whether that is done with: it may be tried again, but not without conntrack.
    """
    gone = {who: None for part in parts for who in part.gone}
    if not gone:
        return True
    names = ", ".join(gone)
    try:
        count = kernel.forget(commands for part in parts for commands in part.gone.values())
    except LsmpyError as error:
        warnings.append(f"the connections of {names} could not be freed, they stay until they end: {error}")
        return not kernel.can_forget()
    log.info("%d connections of %s freed", count, names)
    return True


def _refused_isps(
    router: Router, refusals: list[Refusal], known: Mapping[str, str], warnings: list[str]
) -> dict[str, str]:
    """The ISPs, but for those that are `known`, whose own route the kernel did not take.

    What it says of one never stops another's.
    """
    refused: dict[str, str] = {}
    for refusal in refusals:
        if not isinstance(refusal.item, Route):
            raise KernelError(f"the kernel refuses the rule '{refusal.item.words()}': {refusal.why}")
        warning = f"the kernel refuses the route '{refusal.item.words()}': {refusal.why}"
        warnings += [warning] if warning not in warnings else []
        for isp in router.isps:
            if refusal.item.device == isp.interface and refusal.item.table != LOCAL_DEFAULT and isp.name not in known:
                refused[isp.name] = f"the kernel refuses its route: {refusal.why}"
    return refused


def _learn_spellings(scene: Scene, steps: list[Changes], warnings: list[str]) -> None:
    """See how the kernel prints tables with users' rules, so that the next rebuild knows them again."""
    for step in steps:
        loaded = [table for table in step.tables if table.name in scene.extra.get(step.family, {})]
        if not loaded:
            continue
        _, seen = image.read(scene.backend, [step.family], [table.name for table in loaded], ())
        for table in loaded:
            live = seen[step.family].table(table.name)
            if not table.same_as(live.with_policies({})):
                try:
                    memory.learn_spelling(step.family, live, table)
                except KeepingError as error:  # a full disk is no reason to undo all this
                    warnings.append(f"{error}; the table {table.name} will be loaded again each time")
