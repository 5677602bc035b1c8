"""lsm and lsmpy-probe in one router, with one configuration, by one link, and what each tells its scripts."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from lsmpy import command
from tests.lab import quick
from tests.lab.probe_kit import PROBE, wait_until

LSM, OURS = "lsm", "ours"
BOTH = (LSM, OURS)
NEIGHBOUR, NEIGHBOUR6 = "192.0.2.2", "2001:db8:1::2"
OUTSIDE = "203.0.113.1"
# How their echo requests look, by which the far end tells them apart: the length of the packet, and where in
# it the sequence number is, which lsm puts there in the order of its own processor (below 256: in the first byte).
_LENGTH = {LSM: 80, OURS: 84}
_SEQUENCE = {LSM: "24>>8&0xFF", OURS: "24&0xFFFF"}
Values = dict[str, object]
# Down after three, up after three, whatever was before.
QUICK: Values = {
    "interval_ms": 100,
    "timeout_ms": 100,
    "max_successive_pkts_lost": 3,
    "min_successive_pkts_rcvd": 3,
    "max_packet_loss": 100,
    "min_packet_loss": 99,
}
_RECORD = """#!/bin/sh
line="$$|$0"
for word in "$@"; do line="$line|$word"; done
printf '%s\\n' "$line" >>"{place}/told.$TERM"
"""
numbers = itertools.count()


class Told(Struct, frozen=True):
    """One call of a script: its process, the script's name, and its arguments from the first."""

    process: int
    script: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of whom."""
        return self.words[1]

    @property
    def event(self) -> tuple[str, str]:
        """From what to what."""
        return self.words[14], self.words[0]

    @property
    def sent(self) -> int:
        """How many probes had been sent, as long as that is not more than 100."""
        return int(self.words[5]) + int(self.words[6])


class Beside:
    """A router `r` and a neighbour `p`, with the two programs in the router."""

    def __init__(self, place: Path) -> None:
        """Take a directory for all files; the link is built by `build`."""
        self.place, self.path = place, place / "lsm.conf"
        place.mkdir(parents=True)
        tag = f"l{os.getpid()}-{next(numbers)}-"
        self.states = Path("/run", f"{tag}states")  # in memory, as on a router: a busy disk holds everybody up
        self.states.mkdir()
        self.spaces = {"r": tag + "r", "p": tag + "p"}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def build(self) -> None:
        """Make the namespaces and the link."""
        r, p = self.spaces["r"], self.spaces["p"]
        quick.run("ip", "-batch", "-", stdin=f"netns add {r}\nnetns add {p}\n")
        for space in self.spaces:  # or it depends on the moment which of its own addresses the kernel takes
            self.run(space, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        link = "link add wan type veth peer name customer"
        self.ip("r", f"link set lo up\n{link} netns {p}\n")
        self.ip("p", "link set lo up\nlink set customer up\n")
        lines = ["link set wan up", "address add 192.0.2.1/24 dev wan", "address add 2001:db8:1::1/64 dev wan nodad"]
        self.ip("r", "".join(f"{line}\n" for line in (*lines, f"route add default via {NEIGHBOUR}")))
        lines = [f"address add {NEIGHBOUR}/24 dev customer", f"address add {NEIGHBOUR6}/64 dev customer nodad"]
        self.ip("p", "".join(f"{line}\n" for line in (*lines, f"address add {OUTSIDE}/32 dev lo")))
        # A link that is new drops what is sent, for up to a second, until the kernel has noticed its carrier.
        for target in (NEIGHBOUR, NEIGHBOUR6):
            wait_until(lambda target=target: self.reaches(target), f"a link to {target}")  # type: ignore[misc]

    def clear(self) -> None:
        """End the programs, and the namespaces."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()
        gone = "".join(f"netns delete {name}\n" for name in self.spaces.values())
        with suppress(command.CommandError):
            quick.run("ip", "-batch", "-", stdin=gone)

    def ip(self, space: str, lines: str) -> None:
        quick.run("ip", "-n", self.spaces[space], "-batch", "-", stdin=lines)

    def run(self, space: str, *argv: str) -> str:
        return quick.run("ip", "netns", "exec", self.spaces[space], *argv)

    def reaches(self, target: str) -> bool:
        """Whether a ping is answered."""
        with suppress(command.CommandError):
            return bool(self.run("r", "ping", "-c1", "-W0.2", target))
        return False

    # -- what the link does ----------------------------------------------------------------------------------------

    def lose(self, who: str, runs: Iterable[tuple[int, int]]) -> None:
        """The far end does not get these of its probes, from and to these numbers."""
        head = f"-A INPUT -p icmp -m length --length {_LENGTH[who]} -m u32 --u32"
        rules = "".join(f'{head} "{_SEQUENCE[who]}={first}:{last}" -j DROP\n' for first, last in runs)
        argv = ("ip", "netns", "exec", self.spaces["p"], "iptables-restore", "--noflush")
        quick.run(*argv, stdin=f"*filter\n{rules}COMMIT\n")

    def silence(self, target: str, silent: bool) -> None:
        """The far end gets nothing for this address any more, or again."""
        tables = "ip6tables" if ":" in target else "iptables"
        self.run("p", tables, "-I" if silent else "-D", "INPUT", "-d", target, "-j", "DROP")

    def plug(self, up: bool) -> None:
        """Pull the cable, or plug it in."""
        self.ip("p", f"link set customer {'up' if up else 'down'}\n")

    # -- the programs ----------------------------------------------------------------------------------------------

    def recorder(self, name: str) -> str:
        """A script that notes how it was called."""
        path = self.place / name
        path.write_text(_RECORD.format(place=self.place))
        path.chmod(0o755)
        return str(path)

    def start(self, who: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start one of them; scripts know by TERM whose they are."""
        ours = [PROBE, "-c", str(self.path), "--state-dir", str(self.states)]
        argv = ["lsm", "-f", "-c", str(self.path)] if who == LSM else ours
        as_init = ["env", "--default-signal"]  # whatever those who started the tests ignore
        inside = ["ip", "netns", "exec", self.spaces["r"], *as_init, *argv, *words]
        with (self.place / f"log.{who}").open("ab") as log:
            told = {**os.environ, "TERM": who, "LANG": "C.UTF-8", **environment}
            self.running[who] = subprocess.Popen(inside, stdout=log, stderr=log, env=told, cwd=self.place)
        return self.running[who]

    def start_both(self, **environment: str) -> None:
        """Start them, ours first, which takes longer to begin."""
        for who in (OURS, LSM):
            self.start(who, **environment)

    def stop(self, who: str) -> None:
        """End one of them."""
        process = self.running.pop(who)
        process.terminate()
        process.wait()

    def logged(self, who: str = OURS) -> list[str]:
        return (self.place / f"log.{who}").read_text().splitlines()

    def told(self, who: str, script: str = "") -> list[Told]:
        """How the scripts, or this one, were called until now."""
        path = self.place / f"told.{who}"
        lines = path.read_text().splitlines() if path.exists() else []
        split = [line.split("|") for line in lines]
        calls = [Told(int(process), Path(called).name, tuple(words)) for process, called, *words in split]
        return [each for each in calls if script in ("", each.script)]

    def begun(self, who: str) -> list[Told]:
        """All calls in the order in which they began; LSM's run at the same time, and the last may write first."""
        first, most = self.running[who].pid, int(Path("/proc/sys/kernel/pid_max").read_text())
        return sorted(self.told(who), key=lambda told: (told.process - first) % most)

    def until(self, count: int, script: str) -> None:
        """Wait until the script was called so often by each."""
        self.wait(lambda who: len(self.told(who, script)) >= count, f"{count} of {script}")

    def wait(self, condition: Callable[[str], bool], what: str, whose: Sequence[str] = BOTH) -> None:
        """Wait until something is so of each."""
        for who in whose:
            try:
                wait_until(functools.partial(condition, who), f"{who}: {what}", 30)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self}") from None

    def __str__(self) -> str:
        """What there is, for a failure."""
        lines = [f"{who}: {each.script} {' '.join(each.words)}" for who in BOTH for each in self.told(who)]
        return "\n".join([*lines, *self.logged()])


def silence_lsm() -> None:
    """Let lsm write its own files where nobody else sees them."""
    quick.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib/lsm")


def configuration(defaults: Values, *blocks: tuple[str, Values]) -> str:
    """An lsm.conf; a value that is a list makes a line each."""
    text = ""
    for kind, values in (("defaults", defaults), *blocks):
        lines = [f" {key}={each}\n" for key, value in values.items() for each in _each(value)]
        text += f"{kind} {{\n{''.join(lines)}}}\n"
    return text


def _each(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
