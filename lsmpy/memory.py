"""What is kept over reboots below /var/lib/lsmpy: what was there before us, and how the kernel spells users' rules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from lsmpy import LsmpyError, netfilter
from lsmpy.model import FAMILIES, Family
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule


class KeepingError(LsmpyError):
    """What must be kept cannot be written or read."""


class Before(Struct, frozen=True):
    """What `--clear` puts back, apart from the tables: routes and rules by family, and settings.

    `beside_others`: what was built since left others' rules alone (`flush = "own"`), so they are not to be put back.
    """

    routes: dict[str, list[Route]]
    rules: dict[str, list[Rule]]
    sysctls: dict[str, str]
    beside_others: bool = False


class Kept(Struct, frozen=True):
    """The same with the tables; `sides` is empty where none were ever replaced."""

    sides: dict[Family, Side]
    sysctls: dict[str, str]
    beside_others: bool


def directory() -> Path:
    """/var/lib/lsmpy, or where systemd's StateDirectory= puts it (systemd.exec(5))."""
    return Path(os.environ.get("STATE_DIRECTORY", "/var/lib/lsmpy").split(":")[0])


def save_before(sides: Mapping[Family, Side], sysctls: Mapping[str, str]) -> None:
    """Keep what is there before the first rebuild: before.v4 and before.v6 for iptables-restore, and the rest.

    Raises:
        KeepingError: it cannot be written, and so nothing may be replaced.
    """
    for family, side in sides.items():
        _write(_tables_path(family).name, netfilter.render(side.tables))
    kept = Before(
        routes={str(family): list(side.routes) for family, side in sides.items()},
        rules={str(family): list(side.rules) for family, side in sides.items()},
        sysctls=dict(sysctls),
    )
    _write_before(kept)


def save_settings(sysctls: Mapping[str, str]) -> None:
    """Note that others' rules are left alone from now on, and keep the settings that were there before us.

    What an earlier rebuild has kept stays as it is.

    Raises:
        KeepingError: it cannot be written.
    """
    kept = _read_before() or Before({}, {}, dict(sysctls))
    if not kept.beside_others:
        _write_before(Before(kept.routes, kept.rules, kept.sysctls, beside_others=True))


def replaced_all() -> bool:
    """Whether something is kept, and tables were replaced since.

    Raises:
        KeepingError: it cannot be read.
    """
    kept = _read_before()
    return kept is not None and not kept.beside_others


def saved_tables() -> list[Path]:
    """The files with the tables that were there before they were replaced."""
    return [path for path in map(_tables_path, FAMILIES) if path.exists()]


def load_before(families: tuple[Family, ...]) -> Kept | None:
    """What was kept, None when nothing was.

    Raises:
        KeepingError: it cannot be read.
    """
    kept = _read_before()
    if kept is None:
        return None
    sides: dict[Family, Side] = {}
    for family in families:
        path = _tables_path(family)
        tables = netfilter.parse(_read(path.name) or "", str(path))
        routes, rules = kept.routes.get(str(family), []), kept.rules.get(str(family), [])
        sides[family] = Side(family, tuple(tables.values()), tuple(routes), tuple(rules))
    return Kept(sides, kept.sysctls, kept.beside_others)


def forget_before(tables: bool = True) -> None:
    """Drop what was kept, once it has been put back; `tables` tells whether the tables were, too."""
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


def _read_before() -> Before | None:
    text = _read("before.json")
    try:
        return msgspec.json.decode(text, type=Before) if text is not None else None
    except msgspec.DecodeError as error:
        raise KeepingError(
            f"{directory() / 'before.json'} cannot be understood: {error}. Nothing was changed"
        ) from error


def _write_before(kept: Before) -> None:
    _write("before.json", msgspec.json.format(msgspec.json.encode(kept)).decode())


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
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise KeepingError(f"cannot write {path}: {error.strerror}. The router is as it was") from error


def _read(name: str) -> str | None:
    path = directory() / name
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeepingError(f"cannot read {path}: {error.strerror}. The router is as it was") from error
