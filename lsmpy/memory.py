"""What is kept over reboots below /var/lib/lsmpy: what was there before us, and how the kernel spells users' rules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from lsmpy import LsmpyError, netfilter
from lsmpy.model import Family
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule


class KeepingError(LsmpyError):
    """What must be kept cannot be written or read."""


class Before(Struct, frozen=True):
    """What `--clear` puts back, apart from the tables: routes and rules by family, and settings."""

    routes: dict[str, list[Route]]
    rules: dict[str, list[Rule]]
    sysctls: dict[str, str]


def directory() -> Path:
    """/var/lib/lsmpy, or where systemd's StateDirectory= puts it (systemd.exec(5))."""
    return Path(os.environ.get("STATE_DIRECTORY", "/var/lib/lsmpy").split(":")[0])


def save_before(sides: Mapping[Family, Side], sysctls: Mapping[str, str]) -> None:
    """Keep what is there before the first rebuild: before.v4 and before.v6 for iptables-restore, and the rest.

    Raises:
        KeepingError: it cannot be written, and so nothing may be replaced.
    """
    for family, side in sides.items():
        _write(f"before.v{family}", netfilter.render(side.tables))
    kept = Before(
        routes={str(family): list(side.routes) for family, side in sides.items()},
        rules={str(family): list(side.rules) for family, side in sides.items()},
        sysctls=dict(sysctls),
    )
    _write("before.json", msgspec.json.format(msgspec.json.encode(kept)).decode())


def load_before(families: tuple[Family, ...]) -> tuple[dict[Family, Side], dict[str, str]] | None:
    """What was kept, None when nothing was.

    Raises:
        KeepingError: it cannot be read.
    """
    text = _read("before.json")
    if text is None:
        return None
    try:
        kept = msgspec.json.decode(text, type=Before)
    except msgspec.DecodeError as error:
        raise KeepingError(
            f"{directory() / 'before.json'} cannot be understood: {error}. Nothing was changed"
        ) from error
    sides: dict[Family, Side] = {}
    for family in families:
        tables = netfilter.parse(_read(f"before.v{family}") or "", str(directory() / f"before.v{family}"))
        routes, rules = kept.routes.get(str(family), []), kept.rules.get(str(family), [])
        sides[family] = Side(family, tuple(tables.values()), tuple(routes), tuple(rules))
    return sides, kept.sysctls


def forget_before() -> None:
    """Drop what was kept, once it has been put back."""
    for name in ("before.v4", "before.v6", "before.json", "spelling.json"):
        (directory() / name).unlink(missing_ok=True)


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
