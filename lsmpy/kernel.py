"""Changes the kernel, one step at a time: routes, rules, netfilter tables, connections, settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from lsmpy import LsmpyError, command, netfilter
from lsmpy.changes import Changes
from lsmpy.command import CommandError, Running
from lsmpy.iptables import Backend
from lsmpy.model import Family
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule

_LOCK_WAIT = ("-w", "10")
_GONE = ("No such process", "No such file or directory", "Cannot find device", "FIB table does not exist")
_CAP_NET_ADMIN = 12
_DELETED = re.compile(r"conntrack v\S+ \(conntrack-tools\): (\d+) flow entries have been deleted\.")


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


class Refusal(Struct, frozen=True):
    """A route or rule that the kernel did not take, and its words."""

    item: Route | Rule
    why: str


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
    beside_others: bool = False,
) -> None:
    """Load tables, each in one commit.

    Args:
        backend: the iptables to use.
        steps: what to load.
        live: what the kernel holds, so that only the chains that differ are loaded where that is enough.
        beside_others: whether others' chains are to be left alone; then `live` is needed.

    Raises:
        RefusedError: one was refused; what was loaded before it stays.
    """
    running = []
    for step in steps:
        if step.tables:
            had = live[step.family] if live else None
            part = step.edit_text(had) if had and beside_others else step.part_text(had) if had else ""
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
    return command.which("conntrack") is not None


def forget(batches: Iterable[Sequence[str]]) -> int:
    """Make conntrack(8) forget connections and return how many those were.

    Args:
        batches: its command lines, and others that say nothing if all is well; each batch runs by itself, as every look
            at a large table takes its time.

    Raises:
        KernelError: conntrack is missing, or failed; the message says what it said.
    """
    command.find("conntrack")
    # Its status does not tell failure from nothing found. What it prints, a line a connection, may be very long.
    texts = ["".join(f"{{ {line}; }} 2>&1 >/dev/null\n" for line in batch) + ":\n" for batch in batches]
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


def _start_batch(family: Family, batch: str) -> Running:
    return command.start(["ip", f"-{family}", "-force", "-batch", "-"], batch)


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
