"""Netfilter tables as data, and the text of iptables-save that says the same (iptables-save(8))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from msgspec import Struct

from lsmpy import ConfigError

# The chains that the kernel itself calls, in the order in which iptables-save prints them.
BUILTIN: Mapping[str, tuple[str, ...]] = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}


PREFIX = "LSMPY-"  # of all our chains, and of nobody else's
# Of those for one ISP, LAN or policy, whose name follows: 28 characters have to do (XT_EXTENSION_MAXNAMELEN).
MARK, OUT, IN, CHOOSE, POLICY = (f"{PREFIX}{letter}-" for letter in "MOICP")
BEGINNING = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"  # what begins a TCP connection
MID_STREAM = BEGINNING.replace("--", "! --")  # what does not


class Chain(Struct, frozen=True):
    """One chain: the policy of a built-in one (None: keep what it has), and its rules as iptables-save prints them."""

    name: str
    policy: str | None = None
    rules: tuple[str, ...] = ()


class Table(Struct, frozen=True):
    """One table, its built-in chains first."""

    name: str
    chains: tuple[Chain, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of all chains."""
        return tuple(rule for chain in self.chains for rule in chain.rules)

    def has(self, chain: str) -> bool:
        """Whether there is a chain of that name."""
        return any(each.name == chain for each in self.chains)

    def policies(self) -> dict[str, str | None]:
        """The policy of each built-in chain."""
        return {chain.name: chain.policy for chain in self.chains if chain.name in BUILTIN[self.name]}

    def with_policies(self, present: Mapping[str, str | None]) -> Table:
        """The same table, where a policy that is not said is the present one."""
        chains = [
            Chain(c.name, c.policy or present.get(c.name) or "ACCEPT", c.rules) if c.name in BUILTIN[self.name] else c
            for c in self.chains
        ]
        return Table(self.name, tuple(chains))

    def same_as(self, other: Table) -> bool:
        """Whether both mean the same; the order of the chains means nothing."""
        return sorted(self.chains, key=_chain_name) == sorted(other.chains, key=_chain_name)


def table(name: str, chains: Iterable[Chain] = ()) -> Table:
    """A table with these chains and, empty, whatever built-in chain is not among them."""
    given = {chain.name: chain for chain in chains}
    builtin = [given.pop(each, Chain(each)) for each in BUILTIN[name]]
    return Table(name, (*builtin, *given.values()))


def merge(first: Table, second: Table) -> Table:
    """Both tables in one: the rules of `first` come first in a chain that both have."""
    chains = {chain.name: chain for chain in first.chains}
    for chain in second.chains:
        before = chains.get(chain.name, Chain(chain.name))
        chains[chain.name] = Chain(chain.name, before.policy or chain.policy, before.rules + chain.rules)
    return table(first.name, chains.values())


def part(live: Table, want: Table) -> Table:
    """Only the chains of `want` that differ from `live`'s, or none if a built-in one does or some chain has to go."""
    before = {chain.name: chain for chain in live.chains}
    differing = tuple(chain for chain in want.chains if before.pop(chain.name, None) != chain)
    enough = not before and not any(chain.name in BUILTIN[want.name] for chain in differing)
    return Table(want.name, differing if enough else ())


def render(tables: Iterable[Table]) -> str:
    """The text for iptables-restore, which replaces each of these tables whole, in one commit each."""
    lines = []
    for each in tables:
        lines.append(f"*{each.name}")
        for chain in each.chains:
            policy = (chain.policy or "ACCEPT") if chain.name in BUILTIN[each.name] else "-"
            lines.append(f":{chain.name} {policy} [0:0]")
        lines += [*each.rules, "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def bits(value: int, mask: int) -> str:
    """A mark and the bits of it that count, as iptables-save prints them in a match."""
    return f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"


def parse(text: str, source: str) -> dict[str, Table]:
    """Read what iptables-save prints, or a file in its format.

    Args:
        text: the whole text.
        source: what messages call it.

    Raises:
        ConfigError: with every line that is not of that format.
    """
    drafts: dict[str, _Draft] = {}
    errors: list[str] = []
    current: _Draft | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = _without_counters(raw.strip())
        if not line or line.startswith("#") or line == "COMMIT":
            continue
        problem = ""
        if line.startswith("*"):
            name = line[1:].strip()
            current = drafts.setdefault(name, _Draft(name, {}, {})) if name in BUILTIN else None
            problem = "" if current else f"there is no table {name!r}; there are {', '.join(BUILTIN)}"
        elif current is None:
            problem = "stands before any *table line"
        elif line.startswith(":"):
            problem = current.declare(line)
        elif line.startswith("-A "):
            problem = current.append(line)
        else:
            problem = (
                f"{line.split()[0]!r} is not of iptables-save's format; only *table, :CHAIN, -A and COMMIT lines are"
            )
        if problem:
            errors.append(f"{source}:{number}: {problem}")
    if errors:
        raise ConfigError("\n".join(errors))
    return {name: draft.table() for name, draft in drafts.items()}


def find(text: str, table: str, rule: str) -> int:
    """The number of the line of a file that `parse` read as this rule of a table; 0 if there is none."""
    current = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = _without_counters(raw.strip())
        current = line[1:].strip() if line.startswith("*") else current
        if (current, line) == (table, rule):
            return number
    return 0


def _without_counters(line: str) -> str:
    """A line of iptables-save -c as without -c."""
    return re.sub(r"^\[\d+:\d+\] ", "", line) if line.startswith("[") else line


class _Draft(Struct, frozen=True):
    """A table that is being read; its methods return what is wrong with a line, or an empty string."""

    name: str
    policies: dict[str, str | None]
    rules: dict[str, list[str]]

    def declare(self, line: str) -> str:
        words = line[1:].split()
        if not words:
            return "a chain needs a name"
        chain, policy = words[0], words[1] if len(words) > 1 else "-"
        self.rules.setdefault(chain, [])
        if chain in BUILTIN[self.name] and policy != "-":
            if policy not in ("ACCEPT", "DROP"):
                return f"the policy of {chain} must be ACCEPT, DROP or - (as it is), not {policy!r}"
            self.policies[chain] = policy
        return ""

    def append(self, line: str) -> str:
        chain = line.split(None, 2)[1]
        if chain not in self.rules and chain not in BUILTIN[self.name]:
            return f"the chain {chain} is not declared; put a line ':{chain} -' before it"
        self.rules.setdefault(chain, []).append(line)
        return ""

    def table(self) -> Table:
        return table(self.name, (Chain(c, self.policies.get(c), tuple(rules)) for c, rules in self.rules.items()))


def _chain_name(chain: Chain) -> str:
    return chain.name
