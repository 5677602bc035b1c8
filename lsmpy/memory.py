"""What is kept over reboots below /var/lib/lsmpy: what was there before us, and how the kernel spells users' rules."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from lsmpy import LsmpyError, netfilter
from lsmpy.model import FAMILIES, Family
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule


class KeepingError(LsmpyError):
    """What must be kept cannot be written or read."""


class Kept(Struct, frozen=True):
    """What was there before us.

    Attributes:
        sides: of each family that was ever built: the tables that were replaced, others' routes and rules. Without
            tables where others' were left alone.
        sysctls: settings.
        beside_others: whether what was built last left others' rules alone (`flush = "own"`), so that the tables are
            not to be put back.
        damaged: whether there was more that cannot be read.
    """

    sides: dict[Family, Side]
    sysctls: dict[str, str]
    beside_others: bool = False
    damaged: bool = False


class _Before(Struct, frozen=True):
    """The same in before.json, without the tables: those are in files of their own, for iptables-restore."""

    routes: dict[str, list[Route]]
    rules: dict[str, list[Rule]]
    sysctls: dict[str, str]
    beside_others: bool = False


def directory() -> Path:
    """/var/lib/lsmpy, or where systemd's StateDirectory= puts it (systemd.exec(5))."""
    return Path(os.environ.get("STATE_DIRECTORY", "/var/lib/lsmpy").split(":")[0])


def keep(kept: Kept) -> None:
    """Keep what is there before us: before.v4 and before.v6 for iptables-restore, and the rest in before.json.

    Raises:
        KeepingError: it cannot be written, and so nothing may be replaced.
    """
    for family, side in kept.sides.items():
        if side.tables:
            _write(_tables_path(family).name, netfilter.render(side.tables))
    before = _Before(
        routes={str(family): list(side.routes) for family, side in kept.sides.items()},
        rules={str(family): list(side.rules) for family, side in kept.sides.items()},
        sysctls=dict(kept.sysctls),
        beside_others=kept.beside_others,
    )
    _write("before.json", msgspec.json.format(msgspec.json.encode(before)).decode())


def load() -> Kept | None:
    """What was kept, None when nothing was.

    Raises:
        KeepingError: it cannot be read.
    """
    text, damaged = _read("before.json"), False
    if text is None:
        return None
    try:
        before = msgspec.json.decode(text, type=_Before)
    except msgspec.DecodeError:  # a disk that was full, or a power cut
        saved: dict[str, list[Any]] = {str(family): [] for family in FAMILIES if _tables_path(family).exists()}
        before, damaged = _Before(dict(saved), dict(saved), {}), True
    sides: dict[Family, Side] = {}
    for family in FAMILIES:
        if (key := str(family)) in before.routes:
            path = _tables_path(family)
            tables = netfilter.parse(_read(path.name) or "", str(path))
            sides[family] = Side(family, tuple(tables.values()), tuple(before.routes[key]), tuple(before.rules[key]))
    return Kept(sides, before.sysctls, before.beside_others, damaged)


def saved_tables() -> list[Path]:
    """The files with the tables that were there before they were replaced."""
    return [path for path in map(_tables_path, FAMILIES) if path.exists()]


def forget(family: Family, tables: Collection[str] | None = None) -> None:
    """Drop what was kept of one family, or of these tables of it, once that has been put back.

    Raises:
        KeepingError: it cannot be written.
    """
    kept = load()
    if kept is None or family not in kept.sides:
        return
    side, sides = kept.sides[family], {each: side for each, side in kept.sides.items() if each != family}
    if tables is None and not kept.beside_others:
        _tables_path(family).unlink(missing_ok=True)
    elif tables is not None:
        stay = tuple(table for table in side.tables if table.name not in tables)
        sides[family] = Side(family, stay, side.routes, side.rules)
    keep(msgspec.structs.replace(kept, sides=sides))


def forget_all(tables: bool = True) -> None:
    """Drop all that was kept, once it has been put back; `tables` tells whether the tables were, too."""
    for path in (directory() / "before.json", directory() / "spelling.json", *(saved_tables() if tables else ())):
        path.unlink(missing_ok=True)


def is_spelling_of(family: Family, live: Table, want: Table) -> bool:
    """Whether `live` is how the kernel has printed `want` before: users write rules in other words than the kernel.

    The live table is compared each time; only the translation is remembered.
    """
    known = _spellings().get(f"{family} {want.name}")
    return bool(known) and known == [netfilter.render([want]), netfilter.render([live])]


def learn_spelling(family: Family, live: Table, want: Table) -> None:
    """Remember how the kernel prints `want`, right after it was loaded."""
    known = _spellings() | {f"{family} {want.name}": [netfilter.render([want]), netfilter.render([live])]}
    _write("spelling.json", msgspec.json.encode(known).decode())


def loaded_rules(family: Family, want: Table) -> frozenset[str]:
    """The rules of a table in the words in which they were last loaded, if the kernel printed it in others."""
    given = _spellings().get(f"{family} {want.name}", [""])[0]
    return frozenset(line for line in given.splitlines() if line.startswith("-A "))


def spelled_rules(family: Family, want: Table) -> frozenset[str]:
    """The rules of a table as the kernel printed them when it was last loaded, if that differed."""
    printed = _spellings().get(f"{family} {want.name}", [""])[-1]
    return frozenset(line for line in printed.splitlines() if line.startswith("-A "))


def _tables_path(family: Family) -> Path:
    return directory() / f"before.v{family}"


def _spellings() -> dict[str, list[str]]:
    try:
        return msgspec.json.decode(_read("spelling.json") or "{}", type=dict[str, list[str]])
    except msgspec.DecodeError:
        return {}  # it is learnt anew


def _write(name: str, text: str) -> None:
    path = directory() / name
    temporary = path.with_name(f".{name}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave an empty file of that name
        os.replace(temporary, path)
    except OSError as error:
        raise KeepingError(f"cannot write {path}: {error.strerror}") from error


def _read(name: str) -> str | None:
    path = directory() / name
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeepingError(f"cannot read {path}: {error.strerror}. The router is as it was") from error
