"""The kernel as lsmpy sees it: reads an image of it and carries out one step at a time, with ip and iptables."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from lsmpy import LsmpyError, command, netfilter, routing
from lsmpy.changes import Changes
from lsmpy.command import CommandError, Running
from lsmpy.model import FAMILIES, Family
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import Link, Route, Rule

_TOOLS: Mapping[Family, str] = {4: "iptables", 6: "ip6tables"}
_OTHER = {"nft": "legacy", "legacy": "nft"}
_LOCK_WAIT = ("-w", "10")
_GONE = ("No such process", "No such file or directory", "Cannot find device", "FIB table does not exist")
_CAP_NET_ADMIN = 12
_ASK_LINKS = "ip -json address show"
_ASK_ROUTING = r"route show table all\nrule show\n"
_MARK = "=="
_UNREADABLE = re.compile(r"^# Table `(\S+)' is incompatible", re.MULTILINE)
_DELETED = re.compile(r"conntrack v\S+ \(conntrack-tools\): (\d+) flow entries have been deleted\.")
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


class KernelError(LsmpyError):
    """The kernel or a tool refuses, and the message says which line and why."""


class RefusedError(KernelError):
    """iptables refuses a table.

    Attributes:
        rules: those that it may mean, each with its family and table.
    """

    def __init__(self, message: str, rules: Iterable[tuple[Family, str, str]]) -> None:
        super().__init__(message)
        self.rules = tuple(rules)


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


class Refusal(Struct, frozen=True):
    """A route or rule that the kernel did not take, and its words."""

    item: Route | Rule
    why: str


# -- what there is -------------------------------------------------------------------------------------------


def require_privilege() -> None:
    """Refuse to begin what cannot be done.

    Raises:
        KernelError: the process may not change the network.
    """
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    if not effective or not int(effective[1], 16) >> _CAP_NET_ADMIN & 1:
        raise KernelError(
            "changing routes and iptables needs root (CAP_NET_ADMIN). Nothing was changed. Run it with sudo"
        )


def find_backend(choice: str) -> Backend:
    """The iptables to use: the one that is asked for, or, with `auto`, what `iptables` itself is here.

    Raises:
        KernelError: it is not installed.
    """
    found = _which("iptables-restore")
    if found is None and _which("iptables-nft-restore") is None and _which("iptables-legacy-restore") is None:
        raise KernelError(
            "iptables is not installed: there is no iptables-restore in PATH or /usr/sbin. Nothing was changed. "
            "Install it (Debian: apt-get install iptables)"
        )
    default = _kind_of(found) if found else None
    kind = choice if choice != "auto" else default or ("nft" if _which("iptables-nft-restore") else "legacy")
    if default == kind:
        return Backend(kind, "")
    if _which(f"iptables-{kind}-restore"):
        return Backend(kind, f"-{kind}")
    raise KernelError(f'iptables = "{kind}" is asked for, but there is no iptables-{kind}-restore. Nothing was changed')


def refuse_other_backend(backend: Backend, families: Iterable[Family], beside_others: bool = False) -> None:
    """Two iptables that both mark or translate would undo each other's work.

    Args:
        backend: the one that is used.
        families: which families to look at.
        beside_others: only rules of our own count, as others' are to be left alone wherever they are.

    Raises:
        KernelError: the backend that is not used holds rules in nat or mangle.
    """
    other = Backend(_OTHER[backend.kind], f"-{_OTHER[backend.kind]}")
    for family in families:
        if not _which(other.save(family)) or (other.kind == "legacy" and not _legacy_names(family) & {"nat", "mangle"}):
            continue
        tables = netfilter.parse(command.run(other.save(family)), other.save(family))
        known = {name: tables[name].rules for name in ("nat", "mangle") if name in tables}
        if beside_others:
            known = {name: tuple(rule for rule in rules if netfilter.PREFIX in rule) for name, rules in known.items()}
        if held := {name: rules for name, rules in known.items() if rules}:
            name, rules = next(iter(held.items()))
            flush = f"{_TOOLS[family]}{other.infix} -t {name} -F"
            remedy = f'lsmpy-reconfig --clear while iptables = "{other.kind}"' if beside_others else flush
            raise KernelError(
                f"iptables is {backend.kind} here, but {_TOOLS[family]}{other.infix} holds {len(rules)} rules "
                f"in {name}, the first is '{rules[0]}'. Both would mark or translate the same packets. "
                "Nothing was changed. "
                f'Remove them ({remedy}) or choose iptables = "{other.kind}"'
            )


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
        KernelError: iptables cannot read one of the `tables`.
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
            rules=tuple(_ours(map(routing.read_rule, _RULES.decode(rules)), owned)),
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


def check(backend: Backend, family: Family, tables: Iterable[Table]) -> None:
    """Have iptables read these tables and change nothing. It does not find all that the kernel would refuse.

    Raises:
        RefusedError: it cannot read them.
    """
    text = netfilter.render(tables)
    try:
        command.run(backend.restore(family), *_LOCK_WAIT, "--test", stdin=text)
    except CommandError as error:
        raise RefusedError(_explain(error, text), _meant(error, text, family)) from error


# -- steps ---------------------------------------------------------------------------------------------------


def add(steps: Iterable[Changes]) -> list[Refusal]:
    """Add routes and rules, every family at once; one that is refused does not stop the others.

    Raises:
        CommandError: `ip` itself failed.
    """
    running = [(step, _start_batch(step.family, step.add_text())) for step in steps if step.adding]
    refusals = []
    for step, process in running:
        for line, why in _failures(process):
            if "File exists" not in why:
                refusals.append(Refusal(step.adding[line - 1], why))
    return refusals


def load(
    backend: Backend,
    steps: Iterable[Changes],
    live: Mapping[Family, Side] | None = None,
    own: Container[str] | None = None,
) -> None:
    """Load tables, each in one commit.

    Args:
        backend: the iptables to use.
        steps: what to load.
        live: what the kernel holds, so that only the chains that differ are loaded where that is enough.
        own: which chains are ours, if others' are to be left alone; then `live` is needed.

    Raises:
        RefusedError: one was refused; what was loaded before it stays.
    """
    running = []
    for step in steps:
        if step.tables:
            had = live[step.family] if live else None
            part = step.edit_text(had, own) if had and own else step.part_text(had) if had else ""
            text, how = (part, ["--noflush"]) if part else (step.load_text(), [])
            running.append((step.family, text, command.start([backend.restore(step.family), *_LOCK_WAIT, *how], text)))
    failures, rules = [], []
    for family, text, process in running:
        try:
            process.wait()
        except CommandError as error:
            failures.append(_explain(error, text))
            rules += _meant(error, text, family)
    if failures:
        raise RefusedError("; ".join(failures), rules)


def drop(steps: Iterable[Changes]) -> None:
    """Remove what is stale; what is gone already is no error.

    Raises:
        KernelError: something could not be removed.
    """
    running = [_start_batch(step.family, text) for step in steps if (text := step.drop_text())]
    left = [why for process in running for _, why in _failures(process) if not any(gone in why for gone in _GONE)]
    if left:
        raise KernelError(f"could not remove what is stale: {'; '.join(left)}")


def can_forget() -> bool:
    """Whether conntrack(8) is installed."""
    return _which("conntrack") is not None


def forget(batches: Iterable[Sequence[str]]) -> int:
    """Make conntrack(8) forget connections and return how many those were.

    Args:
        batches: its command lines; each batch runs by itself, as every look at a large table takes its time.

    Raises:
        KernelError: conntrack is missing, or failed; the message says what it said.
    """
    command.find("conntrack")
    # Its status does not tell failure from nothing found. What it prints, a line a connection, may be very long.
    texts = ["".join(f"{line} 2>&1 >/dev/null\n" for line in batch) + ":\n" for batch in batches]
    running = [command.start(["sh", "-s"], text) for text in texts]
    said = [line for process in running for line in process.wait().splitlines()]
    counts = [_DELETED.fullmatch(line) for line in said]
    if failures := [line for line, count in zip(said, counts, strict=True) if not count]:
        raise KernelError("; ".join(failures))
    return sum(int(count[1]) for count in counts if count)


def write_sysctl(key: str, value: str) -> None:
    """Change a setting below /proc/sys.

    Raises:
        KernelError: the kernel refuses.
    """
    try:
        Path("/proc/sys", key).write_text(value)
    except FileNotFoundError:
        return  # the interface has just gone; its return wakes the watcher
    except OSError as error:
        raise KernelError(f"cannot set {key.replace('/', '.')} to {value}: {error.strerror}") from error


# -- details -------------------------------------------------------------------------------------------------


def _refuse_unreadable(saved: str, tables: Collection[str], tool: str) -> None:
    """iptables-nft cannot read a table that somebody has made with nft and with what iptables does not know."""
    for name in _UNREADABLE.findall(saved):
        if name in tables:
            raise KernelError(
                f"{tool} cannot read the table {name}: somebody has put into it what only nft knows. Nothing was "
                f"changed. See nft list ruleset; whoever does that needs a table of its own, with another name"
            )


def _which(program: str) -> str | None:
    try:
        return command.find(program)
    except CommandError:
        return None


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


def _start_batch(family: Family, batch: str) -> Running:
    return command.start(["ip", f"-{family}", "-force", "-batch", "-"], batch)


def _questions(backend: Backend, family: Family, *, links: bool) -> str:
    """What one shell asks of one family: from Python it costs several times as much to start a program."""
    asking = [backend.save(family), f"printf '{_ASK_ROUTING}' | ip -{family} -N -json -batch -"]
    asking += [_ASK_LINKS] if links else []
    return "set -e\n" + f"\necho {_MARK}\n".join(asking)


def _arrays(text: str, count: int) -> list[str]:
    """One JSON array a command; `ip` ends each with a line."""
    arrays = [line for line in text.splitlines() if line.strip()]
    if len(arrays) != count:
        raise KernelError(f"ip printed {len(arrays)} lists instead of {count}; iproute2 4.18 or newer is needed")
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


def _with_hops(links: Mapping[str, Link], routes: Iterable[Route], family: Family) -> dict[str, Link]:
    hops, found = routing.best_hops(routes, family), dict(links)
    for name in hops.keys() & links.keys():
        found[name] = msgspec.structs.replace(links[name], hops=(*links[name].hops, hops[name]))
    if (first := next(iter(hops), "")) in found:
        found[first] = msgspec.structs.replace(found[first], leading=(*found[first].leading, family))
    return found


def _failures(process: Running) -> list[tuple[int, str]]:
    """Which lines of a batch failed, and why: `ip` prints the reason, then the line's number."""
    try:
        process.wait()
    except CommandError as error:
        failures: list[tuple[int, str]] = []
        reason: list[str] = []
        for line in error.stderr.splitlines():
            if match := re.match(r"Command failed \S*:(\d+)", line):
                failures.append((int(match[1]), " ".join(reason) or "ip gave no reason"))
                reason = []
            else:
                reason.append(line.strip())
        if not failures:
            raise
        return failures
    return []


def _explain(error: CommandError, text: str) -> str:
    """The message of iptables-restore with the line that it means."""
    *_, line = ["", *_lines_up_to(error, text)]
    said = " ".join(part for part in error.stderr.splitlines() if "--help" not in part and part.strip())
    return f"{error.argv[0]} refused{f' the line {line!r}' if line else ''}: {said or f'status {error.status}'}"


def _meant(error: CommandError, text: str, family: Family) -> list[tuple[Family, str, str]]:
    """The rule that it means. Legacy iptables names only the table's last line: then all of that table."""
    before = _lines_up_to(error, text)
    start = max((number for number, line in enumerate(before) if line.startswith("*")), default=0)
    meant = before[-1:] if before and before[-1].startswith("-A ") else before[start:]
    return [(family, before[start][1:], line) for line in meant if line.startswith("-A ")]


def _lines_up_to(error: CommandError, text: str) -> list[str]:
    """The lines of the text up to the one that iptables-restore means; none if it names none."""
    match = re.search(r"line:? (\d+)", error.stderr)
    return text.splitlines()[: int(match[1])] if match else []
