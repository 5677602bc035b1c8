"""A laboratory's router under test: its configuration and state files, lsmpy-reconfig run on it, and what it holds."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lsmpy import command, config, flows, sandbox, state, youth
from lsmpy.lab import PORT, ROUTER, Lab, isp_node, lan_node, wait_until
from lsmpy.model import Family
from tests.lab import quick

LAN = "dev"
_TUN = Path(__file__).with_name("tun.py")


def configuration(
    weights: Sequence[int] = (1, 1),
    ipv6: str = "snat",
    backend: str = "auto",
    router: str = "",
    more: str = "",
    prefix: str = "",
    lans: Sequence[str] = (),
) -> str:
    """A router with an ISP for each weight (eth2, eth3, …), two LANs and both families.

    Args:
        weights: of the ISPs.
        ipv6: what NAT does to IPv6.
        backend: the iptables.
        router: more lines of the [router] table.
        more: more tables.
        prefix: what each ISP routes to the router, with {} for its number; something, if NPT needs it.
        lans: the router's IPv6 addresses in each LAN, with {} for its number. If left out they are provider
            independent without NAT, and with NAT nobody's outside.
    """
    prefix = prefix or ("2001:db8:10{}::/48" if ipv6.startswith("npt") else "")
    lans = lans or ["2001:db8:a:{}::1/64" if ipv6 == "none" else "fd00:a:0:{}::1/64"]
    tables = [f'[router]\niptables = "{backend}"\n{router}\n[nat]\nipv6 = "{ipv6}"\n']
    for number, weight in enumerate(weights, 1):
        tables.append(
            f'[[isp]]\nname = "ISP{number}"\ninterface = "eth{number + 1}"\nweight = {weight}\n'
            f'address = ["{number}.{number}.{number}.1/24", "2001:db8:0:{number}::1/64"]\n'
            f'gateway = ["{number}.{number}.{number}.2", "2001:db8:0:{number}::2"]\n'
            f'check = ["203.0.113.{number}"]\nprefix = {[prefix.format(number)] if prefix else []}\n'
        )
    for number, name in enumerate((LAN, "rnd"), 1):
        addresses = [f"192.168.{number}.254/24", *(each.format(number) for each in lans)]
        tables.append(f'[[lan]]\nname = "{name}"\ninterface = "eth{number - 1}"\naddress = {addresses}\n')
    return "\n".join([*tables, more])


def source(isp: str, family: Family) -> str:
    """The address that NAT gives to what leaves by an ISP of `configuration`."""
    number = isp.removeprefix("ISP")
    return ".".join([number] * 3 + ["1"]) if family == 4 else f"2001:db8:0:{number}::1"


class Talk(msgspec.Struct, frozen=True):
    """One question to a server, and what the socket is bound to."""

    to: str
    proto: flows.Proto
    address: str = ""
    device: str = ""
    port: int = PORT


_TALK = """
import json, socket, sys
for ask in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in ask["to"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if ask["proto"] == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        try:
            if ask["device"]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ask["device"].encode())
            if ask["address"]:
                sock.bind((ask["address"], 0))
            sock.connect((ask["to"], ask["port"]))
            sock.send(b"once\\n")
            print(sock.recv(200).decode().strip())
        except OSError as error:
            print(error)
"""
_LISTEN = """
import socket, sys
with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    while True:
        peer, address = server.accept()
        with peer:
            peer.recv(100)
            peer.sendall(address[0].removeprefix("::ffff:").encode() + b"\\n")
"""


@dataclass(frozen=True)
class Result:
    """How a program ended and what it said."""

    status: int
    out: str
    err: str


@dataclass
class Watcher:
    """`lsmpy-reconfig --watch` under way."""

    running: command.Running
    lines: list[str] = field(default_factory=list)

    @property
    def rebuilds(self) -> list[str]:
        """The lines that tell of rebuilds which changed something."""
        return [line for line in list(self.lines) if line.startswith("rebuilt in")]

    def await_line(self, part: str, *, after: int = 0, deadline_s: float = 10.0) -> int:
        """Wait for a line with `part` in it among those from number `after` on; returns the number behind it."""

        def found() -> int:
            return next((n for n, line in enumerate(list(self.lines)) if n >= after and part in line), -1) + 1

        wait_until(found, what=f"{part!r} in {self.lines[after:]}", deadline_s=deadline_s)
        return found()


class Rig:
    """A laboratory, a configuration file, state files and a place for what is kept, for one test."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab = lab
        self.config = place / "lsmpy.toml"
        self.states = place / "states"
        self.kept = place / "kept"

    # -- lsmpy-reconfig ----------------------------------------------------------------------------------------------

    def argv(self, *options: str) -> list[str]:
        """The command line of lsmpy-reconfig."""
        program = ["env", f"STATE_DIRECTORY={self.kept}", sys.executable, "-m", "lsmpy.reconfig"]
        return [*program, "-c", str(self.config), "--state-dir", str(self.states), *options]

    def reconfig(self, *options: str) -> Result:
        """Run it to its end, whatever that is."""
        return self.anyhow(*self.argv(*options))

    def rebuild(self, *options: str) -> str:
        """Run it; it must succeed. Returns what it logged."""
        result = self.reconfig(*options)
        assert result.status == 0, result.err
        return result.err

    def idle(self) -> bool:
        """Whether a rebuild finds nothing to do, and --diff finds no difference."""
        says = self.rebuild("-v")
        diff = self.reconfig("--diff")
        assert ("nothing to do" in says) == (diff.status == 0) == (diff.out == ""), (says, diff)
        return diff.status == 0

    @contextmanager
    def watching(self, *options: str) -> Iterator[Watcher]:
        """The daemon, after its first rebuild."""
        lines: list[str] = []
        watcher = Watcher(self.lab.start(ROUTER, self.argv("--watch", "-v", *options), lines.append), lines)
        try:
            wait_until(
                lambda: (
                    any("nothing to do" in line or line.startswith("rebuilt") for line in list(lines))
                    or not watcher.running.alive
                ),
                what="the first rebuild",
            )
            assert watcher.running.alive, lines
            yield watcher
        finally:
            watcher.running.stop()

    def anyhow(self, *argv: str, node: str = ROUTER) -> Result:
        """Run a program in a namespace to its end, whatever that is."""
        inside = ["nsenter", f"--net={sandbox.NETNS / node}", *argv]
        done = subprocess.run(inside, capture_output=True, text=True, env=command.ENVIRONMENT, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    # -- the router's world ------------------------------------------------------------------------------------------

    def shell(self, script: str) -> str:
        """Run a shell script in the router."""
        return self.lab.shell(ROUTER, script)

    def configure(self, text: str) -> None:
        """Write the configuration."""
        self.config.write_text(text)

    def settle(self, age_s: float = 1000) -> None:
        """Let the first rebuild be so long ago that connections must be known."""
        youth.PATH.write_text(f"{time.clock_gettime(time.CLOCK_BOOTTIME) - age_s}\n")

    def say(self, isp: str, text: str) -> None:
        """Write a state file, whole."""
        state.write(state.state_path(self.states, isp), text)

    # -- what is there -----------------------------------------------------------------------------------------------

    def dump(self) -> list[str]:
        """The router's tables, rules, routes and settings, without counters, in an order that means something."""
        saves = [f"{tool}{kind}-save" for kind in self._kinds() for tool in ("iptables", "ip6tables")]
        lines = [line for save in saves for line in tables(self.shell(f"{save}\n"))]
        for family in (4, 6):
            lines += sorted(self.shell(f"ip -N -{family} rule show\n").splitlines())
            lines += sorted(routes(self.shell(f"ip -N -{family} route show table all\n")))
        keys = ("ipv4/conf/*/rp_filter", "ipv4/conf/*/src_valid_mark", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect")
        return lines + self.shell(f"grep -H . {' '.join(f'/proc/sys/net/{key}' for key in keys)}\n").split()

    def _kinds(self) -> list[str]:
        """Both iptables, but not the legacy one where it was never used: asking would make its tables."""
        used = self.shell("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>&1 || true\n")
        return ["-nft", "-legacy"] if re.search(r"^(filter|nat|mangle)$", used, re.MULTILINE) else ["-nft"]

    def connections(self, family: Family = 4) -> dict[str, str]:
        """What the router's conntrack knows: by each entry's number, what it is, without what changes by itself."""
        lines = self.shell(f"conntrack -L -f ipv{family} -o id 2>/dev/null\n").splitlines()
        parts = [re.search(r"^(\w+) .*?(src=.*) id=(\d+)", line) for line in lines]
        return {part[3]: f"{part[1]} {part[2]}" for part in parts if part}

    def foreign(self) -> int:
        """Packets with somebody else's source, at all ISPs, ever."""
        return sum(self.lab.foreign_packets(isp.name) for isp in self.lab.router.isps)

    def arrived(self, isp: str, match: str, family: Family = 4) -> Callable[[], int]:
        """Begin to count what matches in an ISP's namespace, coming from the router; returns what tells the count."""
        return self.seen(isp_node(isp), match, family)

    def seen(self, node: str, match: str, family: Family = 4) -> Callable[[], int]:
        """The same in any namespace but the router's own."""
        tool = "iptables" if family == 4 else "ip6tables"
        note = f"seen-{abs(hash((node, match, family)))}"
        self.lab.shell(node, f"{tool} -w -t mangle -I PREROUTING -i router {match} -m comment --comment {note}\n")

        def count() -> int:
            listing = self.lab.run(node, f"{tool}-save", "-c", "-t", "mangle")
            return int(next(line for line in listing.splitlines() if note in line)[1:].split(":")[0])

        return count

    def send(
        self,
        count: int,
        protos: Sequence[flows.Proto] = ("udp",),
        families: Sequence[Family] = (4,),
        lan: str = LAN,
    ) -> list[flows.Flow]:
        """New flows to the internet's server, one after another, taking turns."""
        return self.ask(lan_node(lan), [str(self.lab.server[family]) for family in families], protos, count)

    def ask(self, node: str, to: Sequence[str], protos: Sequence[flows.Proto], count: int) -> list[flows.Flow]:
        """New flows from any node to any servers, one after another, taking turns."""
        ways = [*(f"--to={each}" for each in to), *(f"--proto={each}" for each in protos)]
        argv = [sys.executable, "-m", "lsmpy.traffic", "sequence", *ways, f"--port={PORT}", f"--count={count}"]
        lines = self.lab.run(node, *argv, timeout_s=30 + count).splitlines()
        return [msgspec.json.decode(line, type=flows.Flow) for line in lines[:-1]]

    def talk(self, node: str, talks: Sequence[Talk]) -> list[str]:
        """Ask each server once, from a bound socket; returns what they said, or what went wrong."""
        text = msgspec.json.encode(talks).decode()
        return self.lab.run(node, sys.executable, "-c", _TALK, text, timeout_s=30 + 3 * len(talks)).splitlines()

    def listen(self, node: str, port: int = PORT) -> None:
        """Start a TCP server there that is bound to nothing and says who called."""
        said: list[str] = []
        self.lab.start(node, [sys.executable, "-c", _LISTEN, str(port)], said.append)
        wait_until(lambda: said, what="a server")
        assert said == ["ready\n"]


@contextmanager
def rig(place: Path, text: str, main_default: str | None = None, server: bool = True) -> Iterator[Rig]:
    """Build a laboratory for the configuration `text` and have everything ready for a first rebuild."""
    router = config.parse(text.encode(), "test", {})
    with quick.Lab(
        msgspec.structs.replace(router, policies=()), main_default
    ) as lab:  # which would avoid their networks
        made = Rig(lab, place)
        made.states.mkdir()
        made.configure(text)
        if server:
            lab.start_server()
        yield made


@contextmanager
def tunnel(lab: Lab, node: str, name: str, *options: str) -> Iterator[list[str]]:
    """A tun device in a namespace (options as in tun.py); the lines about its packets, complete when it is gone."""
    said: list[str] = []
    running = lab.start(node, [sys.executable, str(_TUN), f"--name={name}", *options], said.append)
    try:
        wait_until(lambda: said or not running.alive, what=f"{name} to be up")
        assert said[0] == "ready\n", f"there is no {name}: {''.join(said)}"
        yield said
    finally:
        running.stop()


def tables(saved: str) -> list[str]:
    """What iptables-save printed, without comments and counters, its tables and chains in the order of their names."""
    found: list[tuple[str, list[str]]] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            found.append((line, []))
        elif found and line[:1] in ":-":
            found[-1][1].append(re.sub(r" \[\d+:\d+\]$", "", line))
    ordered = []
    for name, lines in sorted(found):
        empty = all(line.startswith(":") and line.endswith(" ACCEPT") for line in lines)  # as good as not there
        chains = sorted(line for line in lines if line.startswith(":"))
        rules = [line for line in lines if line.startswith("-")]
        ordered += [] if empty else [name, *chains, *sorted(rules, key=lambda rule: rule.split()[1])]
    return ordered


def routes(listing: str) -> Iterator[str]:
    """What `ip route` printed, without what the kernel changes by itself."""
    for line in listing.splitlines():
        if " proto 2 " not in f"{line} " or "table 255" not in line:
            yield re.sub(r" (linkdown|dead|expires \S+|error \S+)(?= |$)", "", line).strip()
