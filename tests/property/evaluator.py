"""What the rules mean: a second, plain reading of mangle, nat and policy routing, to hold plans against.

The semantics are those of net/netfilter/x_tables: xt_statistic.c, xt_connmark.c, xt_mark.c, xt_conntrack.c,
xt_HMARK.c (with another hash), ip_tables.c, and of net/core/fib_rules.c. A word that this reader does not know is an
error, never a match.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address as _ip_address
from ipaddress import ip_network as _ip_network
from typing import Literal

from lsmpy.late import LATE_S
from lsmpy.netfilter import BUILTIN, Table
from lsmpy.plan import Side
from lsmpy.routing import REFUSED
from lsmpy.tree import DEEPEST

ip_address = lru_cache(maxsize=None)(_ip_address)
ip_network = lru_cache(maxsize=None)(_ip_network)
State = Literal["NEW", "ESTABLISHED", "RELATED", "INVALID"]
UNREACHABLE = "unreachable"


@dataclass
class Connection:
    """What conntrack knows of a flow: its mark, and its reply direction's destination once that is decided.

    `asked` is whom the client called, where that was not one of ours.
    """

    mark: int = 0
    confirmed: bool = False
    reply_to: str = ""
    translated: bool = False
    asked: str = ""


@dataclass
class Packet:
    """One packet on its way; `connection` is None for what conntrack calls INVALID."""

    source: str
    target: str
    connection: Connection | None
    state: State = "NEW"
    into: str = ""
    out: str = ""
    mark: int = 0
    reply: bool = False
    protocol: str = "udp"
    flags: str = ""  # of TCP
    port: int = 7777  # of the target
    secured: bool = False  # by IPsec
    sets: list[int] = field(default_factory=list)  # every ISP's mark that it was given


@dataclass
class _Nth:
    """The state of one `statistic --mode nth` rule."""

    every: int
    packet: int
    count: int

    def hit(self) -> bool:
        self.count = 0 if self.count == self.every - 1 else self.count + 1
        return self.count == 0


@lru_cache(maxsize=64)
def _depth(table: Table, chain: str) -> int:
    """How many chains there are on the longest way from this one on."""
    rules = next(each.rules for each in table.chains if each.name == chain)
    targets = {_split(rule)[2] for rule in rules}
    return 1 + max((_depth(table, target) for target in targets if table.has(target)), default=0)


class Netfilter:
    """The tables of one family, with counters of their own."""

    def __init__(self, side: Side, own: Iterable[str] = (), dice: random.Random | None = None) -> None:
        """`own` are the router's addresses; with `dice` the counters begin anywhere, else as freshly loaded."""
        self.tables = {table.name: table for table in side.tables}
        for table in side.tables:
            assert all(_depth(table, name) <= DEEPEST for name in BUILTIN[table.name])
        self.own = {ip_address(each) for each in own}
        self.dice = dice or random.Random(0)
        self.counters: dict[str, _Nth] = {}
        self.met = 0  # rules that were tried
        self.recent: set[str] = set()  # the lists of xt_recent that were just written to
        for rule in self.tables["mangle"].rules:
            if found := re.search(r"--every (\d+) --packet (\d+)", rule):
                every, packet = int(found[1]), int(found[2])
                assert packet < every, rule
                assert rule not in self.counters, f"two rules share this test's counter: {rule}"
                start = self.dice.randrange(every) if dice else every - 1 - packet
                self.counters[rule] = _Nth(every, packet, start)

    def mangle(self, hook: str, packet: Packet) -> bool:
        """Whether the packet survives the hook's chain."""
        return self._walk(self.tables["mangle"], hook, packet) != "DROP"

    def passes(self, packet: Packet, hook: str = "FORWARD") -> bool:
        """Whether the packet survives a chain of filter."""
        return self._walk(self.tables["filter"], hook, packet) not in ("DROP", "REJECT")

    def leave(self, packet: Packet) -> bool:
        """POSTROUTING of mangle and of nat, and conntrack's confirmation; whether the packet leaves."""
        if not self.mangle("POSTROUTING", packet):
            return False
        connection = packet.connection
        if connection and not connection.confirmed:
            self._walk(self.tables["nat"], "POSTROUTING", packet)
            connection.confirmed = True
            connection.reply_to = connection.reply_to or packet.source
        if connection and connection.translated and not packet.reply:
            packet.source = connection.reply_to
        if connection and connection.asked and packet.reply:
            packet.source = connection.asked
        return True

    def enter(self, packet: Packet) -> bool:
        """PREROUTING of mangle, and of nat for the first packet of a connection from outside."""
        connection = packet.connection
        if connection and not connection.confirmed:
            connection.asked = packet.target
        survives = self.mangle("PREROUTING", packet)
        if connection and not connection.confirmed:
            self._walk(self.tables["nat"], "PREROUTING", packet)
        return survives

    def counts(self) -> list[int]:
        return [each.count for each in self.counters.values()]

    def _walk(self, table: Table, chain: str, packet: Packet) -> str:
        """The verdict of a chain; RETURN at its end."""
        for rule in next(each for each in table.chains if each.name == chain).rules:
            self.met += 1
            tests, verb, target, values = _split(rule)
            if not all(self._matches(rule, test, packet) for test in tests):
                continue
            if target in ("ACCEPT", "DROP", "RETURN", "REJECT"):
                return target
            if table.has(target):
                verdict = self._walk(table, target, packet)
                if verdict != "RETURN" or verb == "-g":
                    return verdict
            elif self._act(chain, target, values, packet):
                return "ACCEPT"
        return "RETURN"

    def _act(self, chain: str, target: str, values: Mapping[str, str], packet: Packet) -> bool:
        """Carry out a target; whether it ends the walk."""
        connection = packet.connection
        if target == "MARK":
            value, mask = _pair(values["--set-xmark"])
            packet.mark = packet.mark & ~mask ^ value
            packet.sets += [value] if chain.startswith("LSMPY-M-") else []
            return False
        if target == "HMARK":
            pair = sorted((int(ip_address(packet.source)), int(ip_address(packet.target))))
            digest = zlib.crc32(repr((pair, values["--hmark-rnd"])).encode())
            packet.mark = digest % int(values["--hmark-mod"]) + int(values["--hmark-offset"])
            return False
        if target == "CONNMARK":
            if connection is None:
                return False
            if "--set-xmark" in values:
                value, mask = _pair(values["--set-xmark"])
                connection.mark = connection.mark & ~mask ^ value
                return False
            here, there = int(values["--nfmask"], 16), int(values["--ctmask"], 16)
            if "--save-mark" in values:
                connection.mark = connection.mark & ~there ^ packet.mark & here
            else:
                assert "--restore-mark" in values
                packet.mark = packet.mark & ~here ^ connection.mark & there
            return False
        assert connection is not None, "nat never sees what conntrack calls INVALID"
        if target == "NETMAP":
            if packet.out:
                connection.translated, connection.reply_to = True, _moved(packet.source, values["--to"])
            else:
                packet.target = _moved(packet.target, values["--to"])
            return True
        assert target in ("SNAT", "MASQUERADE"), target
        connection.translated = True
        connection.reply_to = values.get("--to-source", f"address of {packet.out}")
        return True

    def _matches(self, rule: str, test: tuple[str, bool, str], packet: Packet) -> bool:
        name, inverted, value = test
        connection = packet.connection
        if name == "--every":
            return self.counters[rule].hit()
        if name == "--probability":
            return self.dice.random() < float(value)
        if name == "--mark connmark":
            if connection is None:
                return False
            return (connection.mark & _pair(value)[1] == _pair(value)[0]) != inverted
        if name in ("--ctrepldst", "--ctorigdst", "--ctstatus", "--ctdir") and connection is None:
            return False
        return self._plain(rule, name, value, packet) != inverted

    def _plain(self, rule: str, name: str, value: str, packet: Packet) -> bool:
        connection = packet.connection
        match name:
            case "-i":
                return packet.into == value
            case "-o":
                return packet.out == value
            case "-p":
                return packet.protocol == value
            case "--dports":
                ranges = [part.split(":") for part in value.split(",")]
                assert sum(map(len, ranges)) <= 15, f"too many ports: {rule}"
                return any(int(each[0]) <= packet.port <= int(each[-1]) for each in ranges)
            case "-s":
                return ip_address(packet.source) in ip_network(value)
            case "--tcp-flags":
                assert value == "FIN,SYN,RST,ACK SYN"
                return set(packet.flags.split(",")) & {"FIN", "SYN", "RST", "ACK"} == {"SYN"}
            case "-d":
                return ip_address(packet.target) in ip_network(value)
            case "--name":
                return value in self.recent
            case "--mark mark":
                return packet.mark & _pair(value)[1] == _pair(value)[0]
            case "--ctstate":
                known: set[str] = {packet.state}
                if connection:
                    known |= {"SNAT"} if connection.translated else set()
                    known |= {"DNAT"} if packet.reply and connection.asked not in ("", packet.source) else set()
                return bool(known & set(value.split(",")))
            case "--ctrepldst":
                assert connection
                return ip_address(connection.reply_to or packet.source) in ip_network(value)
            case "--ctorigdst":
                assert connection
                return bool(connection.asked) and ip_address(connection.asked) in ip_network(value)
            case "--ctstatus":
                assert connection
                assert value == "CONFIRMED"
                return connection.confirmed
            case "--dir":
                return value == "out"
            case "--pol":
                assert value == "ipsec"
                return packet.secured
            case "--ctdir":
                return value == ("REPLY" if packet.reply else "ORIGINAL")
            case "--dst-type":
                target = ip_address(packet.target)
                kind = "LOCAL" if target in self.own else "MULTICAST" if target.is_multicast else "UNICAST"
                kinds = value.split(",")  # of which an IPv6 target has to be all (xt_addrtype.c)
                return kind in kinds and (target.version == 4 or len(kinds) == 1)
        raise AssertionError(f"the tests do not know the match {name} {value}")


_ONE = {
    *("-i", "-o", "-s", "-d", "-p", "--dports", "--mark", "--name"),
    *("--ctstate", "--ctrepldst", "--ctorigdst", "--ctstatus", "--ctdir", "--dst-type", "--dir", "--pol"),
}
_NUMBERS = {"--every", "--probability"}
_Split = tuple[list[tuple[str, bool, str]], str, str, dict[str, str]]


def _split(rule: str, known: dict[str, _Split] = {}) -> _Split:  # noqa: B006  the same few rules again and again
    """Tests, `-j` or `-g`, target and its values."""
    if rule in known:
        return known[rule]
    words = rule.split()[2:]
    tests: list[tuple[str, bool, str]] = []
    module, inverted = "", False
    while words[0] not in ("-j", "-g"):
        word = words.pop(0)
        if word == "!":
            inverted = True
        elif word == "-m":
            module = words.pop(0)
        elif word == "--tcp-flags":
            tests.append((word, inverted, f"{words.pop(0)} {words.pop(0)}"))
            inverted = False
        elif module == "recent" and word != "--name":
            assert word in ("--rcheck", "--rsource") or words.pop(0) in (str(LATE_S), "::", "0.0.0.0"), rule
        elif word in _ONE | _NUMBERS:
            tests.append((f"{word} {module}" if word == "--mark" else word, inverted, words.pop(0)))
            inverted = False
        else:
            assert (word, words.pop(0)) in {("--mode", "nth"), ("--mode", "random"), ("--packet", "0")}, rule
    verb, target, *rest = words
    values: dict[str, str] = {}
    while rest:
        word = rest.pop(0)
        values[word] = rest.pop(0) if rest and not rest[0].startswith("--") else ""
    # A counter moves only for a packet that has passed every other test of its rule.
    tests.sort(key=lambda test: test[0] in _NUMBERS)
    known[rule] = (tests, verb, target, values)
    return known[rule]


def _moved(address: str, network: str) -> str:
    """The address with its first bits replaced by the network's (NETMAP)."""
    to = ip_network(network)
    return str(to[int(ip_address(address)) & int(to.hostmask)])


def _pair(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 16), int(mask or "0xffffffff", 16)


Main = Mapping[str, str]


def route(side: Side, packet: Packet, main: Main) -> str:
    """The interface by which the packet goes on, `unreachable`, or an empty string without any route.

    `main` is the main table: interfaces by network.
    """
    rules = [*side.rules]
    tables: dict[int, list[tuple[str, int, str]]] = {254: [(to, 0, device) for to, device in main.items()]}
    for each in side.routes:
        device = UNREACHABLE if each.kind == "7" else each.device or ""
        tables.setdefault(each.table, []).append((each.target, each.metric, device))
    for rule in sorted(rules, key=lambda each: each.priority):
        if _selects(rule.selector, packet):
            if rule.table == REFUSED:
                return UNREACHABLE
            length, device = _lookup(tables.get(rule.table, []), packet)
            if device and not (rule.suppress_default and length == 0):
                return device
    return _lookup(tables[254], packet)[1]


def _selects(selector: str, packet: Packet) -> bool:
    words = selector.split()
    return all(_selects_by(kind, value, packet) for kind, value in zip(words[::2], words[1::2], strict=True))


def _selects_by(kind: str, value: str, packet: Packet) -> bool:
    match kind:
        case "to":
            return ip_address(packet.target) in ip_network(value)
        case "from":
            return ip_address(packet.source) in ip_network(value)
        case "oif":
            return packet.out == value
        case "iif":
            return packet.into == value
        case "fwmark":
            return packet.mark & _pair(value)[1] == _pair(value)[0]
    raise AssertionError(f"the tests do not know the selector {kind}")


def _lookup(routes: Iterable[tuple[str, int, str]], packet: Packet) -> tuple[int, str]:
    """Prefix length and device of the best route: the longest prefix, then the lowest metric."""
    target = ip_address(packet.target)
    every = "0.0.0.0/0" if target.version == 4 else "::/0"
    found = [
        (-network.prefixlen, metric, device)
        for to, metric, device in routes
        if target in (network := ip_network(every if to == "default" else to))
    ]
    if not found:
        return 0, ""
    length, _, device = min(found)
    return -length, device
