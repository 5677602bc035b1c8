"""Which of the two iptables is the one to use, and what its programs are called."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from lsmpy import LsmpyError, command, netfilter
from lsmpy.model import Family

_TOOLS: Mapping[Family, str] = {4: "iptables", 6: "ip6tables"}
_OTHER = {"nft": "legacy", "legacy": "nft"}


class IptablesError(LsmpyError):
    """The iptables that is to be used is not there, or the other one is in its way."""


class Backend(Struct, frozen=True):
    """Which of the two iptables is used: `nft` or `legacy`, and what its programs are called."""

    kind: str
    infix: str

    def restore(self, family: Family) -> str:
        """The program that loads tables."""
        return f"{_TOOLS[family]}{self.infix}-restore"

    def save(self, family: Family) -> str:
        """The program that prints them."""
        return f"{_TOOLS[family]}{self.infix}-save"


def find(choice: str) -> Backend:
    """The iptables to use: the one that is asked for, or, with `auto`, what `iptables` itself is here.

    Raises:
        IptablesError: it is not installed.
    """
    found = command.which("iptables-restore")
    if found is None and not any(command.which(f"iptables-{kind}-restore") for kind in _OTHER):
        raise IptablesError(
            "iptables is not installed: there is no iptables-restore in PATH or /usr/sbin. Nothing was changed. "
            "Install it (Debian: apt-get install iptables)"
        )
    default = _kind_of(found) if found else None
    kind = choice if choice != "auto" else default or ("nft" if command.which("iptables-nft-restore") else "legacy")
    if default == kind:
        return Backend(kind, "")
    if command.which(f"iptables-{kind}-restore"):
        return Backend(kind, f"-{kind}")
    raise IptablesError(
        f'iptables = "{kind}" is asked for, but there is no iptables-{kind}-restore. Nothing was changed'
    )


def refuse_other(backend: Backend, families: Iterable[Family], beside_others: bool = False) -> None:
    """Two iptables that both mark or translate would undo each other's work.

    Args:
        backend: the one that is used.
        families: which families to look at.
        beside_others: only rules of our own count, as others' are to be left alone wherever they are.

    Raises:
        IptablesError: the backend that is not used holds rules in nat or mangle.
    """
    other = Backend(_OTHER[backend.kind], f"-{_OTHER[backend.kind]}")
    for family in families:
        if not command.which(other.save(family)) or (
            other.kind == "legacy" and not _legacy_names(family) & {"nat", "mangle"}
        ):
            continue
        tables = netfilter.parse(command.run(other.save(family)), other.save(family))
        known = {name: tables[name].rules for name in ("nat", "mangle") if name in tables}
        if beside_others:
            known = {name: tuple(rule for rule in rules if netfilter.PREFIX in rule) for name, rules in known.items()}
        if held := {name: rules for name, rules in known.items() if rules}:
            name, rules = next(iter(held.items()))
            flush = f"{_TOOLS[family]}{other.infix} -t {name} -F"
            remedy = f'lsmpy-reconfig --clear while iptables = "{other.kind}"' if beside_others else flush
            raise IptablesError(
                f"iptables is {backend.kind} here, but {_TOOLS[family]}{other.infix} holds {len(rules)} rules "
                f"in {name}, the first is '{rules[0]}'. Both would mark or translate the same packets. "
                "Nothing was changed. "
                f'Remove them ({remedy}) or choose iptables = "{other.kind}"'
            )


def _kind_of(path: str) -> str:
    """Whether a program is iptables-nft or iptables-legacy: by the file it is, else by what it says."""
    real = os.path.basename(os.path.realpath(path))
    for kind in _OTHER:
        if kind in real:
            return kind
    return "nft" if "nf_tables" in command.run(path, "--version") else "legacy"


def _legacy_names(family: Family) -> set[str]:
    """The tables that legacy iptables has made in this namespace; asking the kernel makes none."""
    path = Path("/proc/net", {4: "ip_tables_names", 6: "ip6_tables_names"}[family])
    try:
        return set(path.read_text().split())
    except OSError:
        return set()
