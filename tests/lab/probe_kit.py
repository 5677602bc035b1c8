"""A router with two providers for lsmpy-probe alone: no lsmpy-reconfig, and whatever configuration a test wants."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lsmpy import lab, standing, state
from tests.lab import impostor, quick, server, tagged, tun

PROBE = str(Path(sys.executable).with_name("lsmpy-probe"))
TARGET4, TARGET6 = "203.0.113.1", "2001:db8:ffff::1"
HEAD = """
state_dir = "{directory}"
[probe]
interval_ms = 20
timeout_ms = 100
max_packet_loss = 100  # so that only runs decide and a link is back soon
min_packet_loss = 99
max_successive_pkts_lost = 4
min_successive_pkts_rcvd = 3
"""
ISP = """
[[isp]]
name = "ISP{n}"
interface = "wan{n}"
address = ["192.0.{n}.1/24", "2001:db8:{n}::1/64"]
gateway = ["192.0.{n}.2", "2001:db8:{n}::2"]
check = {check}
"""
numbers = itertools.count()


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 20) -> None:
    lab.wait_until(condition, what=what, deadline_s=deadline_s)


class Lab:
    """router wan1 - isp1 - inet, router wan2 - isp2 - inet; only inet has the targets."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.states = directory, directory / "state"
        self.states.mkdir()
        self.path, self.log = directory / "lsmpy.toml", directory / "log"
        tag = f"p{os.getpid()}-{next(numbers)}-"
        self.spaces = {name: tag + name for name in ("router", "isp1", "isp2", "inet")}
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.helpers: list[subprocess.Popen[str]] = []

    def ip(self, space: str, words: str) -> str:
        return quick.run("ip", "-n", self.spaces[space], *words.split())

    def exec(self, space: str, *argv: str) -> str:
        return quick.run("ip", "netns", "exec", self.spaces[space], *argv)

    def build(self) -> None:
        for name in self.spaces.values():
            quick.run("ip", "netns", "add", name)
        for name in self.spaces:
            self.exec(name, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
            self.ip(name, "link set lo up")
        self.ip("inet", f"address add {TARGET4}/32 dev lo")
        self.ip("inet", f"address add {TARGET6}/128 dev lo nodad")
        for n in (1, 2):
            self.exec(f"isp{n}", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            self.plug(n)
            self.ip(f"isp{n}", f"link add core type veth peer name isp{n} netns {self.spaces['inet']}")
            self.link(f"isp{n}", "core", f"198.51.{n}.1/24", f"2001:db8:{n}f::1/64")
            self.link("inet", f"isp{n}", f"198.51.{n}.2/24", f"2001:db8:{n}f::2/64")
            self.ip(f"isp{n}", f"route add {TARGET4} via 198.51.{n}.2")
            self.ip(f"isp{n}", f"route add {TARGET6} via 2001:db8:{n}f::2")
            self.ip("inet", f"route add 192.0.{n}.0/24 via 198.51.{n}.1")
            self.ip("inet", f"route add 2001:db8:{n}::/64 via 2001:db8:{n}f::1")

    def plug(self, n: int, words: str = "") -> None:
        self.ip("router", f"link add wan{n} {words} type veth peer name customer netns {self.spaces[f'isp{n}']}")
        self.link("router", f"wan{n}", f"192.0.{n}.1/24", f"2001:db8:{n}::1/64")
        self.link(f"isp{n}", "customer", f"192.0.{n}.2/24", f"2001:db8:{n}::2/64")

    def index(self, device: str) -> int:
        """The number of an interface of the router."""
        return int(self.ip("router", f"-o link show {device}").split(":")[0])

    def link(self, space: str, device: str, *addresses: str) -> None:
        self.ip(space, f"link set {device} up")
        for address in addresses:
            self.ip(space, f"address add {address} dev {device}" + (" nodad" if ":" in address else ""))

    def clear(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        for helper in self.helpers:
            self.end(helper)
            assert helper.stdout
            helper.stdout.close()
        for name in quick.run("ip", "netns", "list").split():
            if name in self.spaces.values():
                quick.run("ip", "netns", "delete", name)

    def configure(self, *checks: str) -> None:
        self.write("".join(ISP.format(n=n, check=check) for n, check in enumerate(checks, 1)))

    def write(self, isps: str, probe: str = "") -> None:
        """The configuration: these ISPs, and these keys of [probe] instead of the usual ones."""
        head = HEAD.format(directory=self.states)
        for line in probe.splitlines():
            key = line.split(" = ")[0]
            kept = [each for each in head.splitlines() if not each.startswith(f"{key} =")]
            head = "\n".join([*kept, line, ""])
        self.path.write_text(head + isps)

    def start(self, *words: str, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        argv = ["ip", "netns", "exec", self.spaces["router"], *wrapper, PROBE, "-c", str(self.path), *words]
        with self.log.open("ab") as log:
            self.daemons.append(subprocess.Popen(argv, stderr=log))
        return self.daemons[-1]

    def run_in(self, space: str, *argv: str) -> subprocess.Popen[str]:
        """A program in a namespace, that has printed its first line."""
        words = ["ip", "netns", "exec", self.spaces[space], *argv]
        running = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self.helpers.append(running)
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        return running

    def tunnel(self, name: str, *options: str) -> subprocess.Popen[str]:
        """A tun device in the router, behind which everybody answers."""
        return self.run_in("router", sys.executable, tun.__file__, "--name", name, "--answer", "--quiet", *options)

    def serve(self, *options: str) -> subprocess.Popen[str]:
        """TCP and DNS servers in the internet."""
        return self.run_in("inet", sys.executable, server.__file__, *options)

    def rules_by_source(self, n: int) -> None:
        """What a rebuild makes of R6: packets from an ISP's address go by its gateway."""
        for family, source, hop in ((4, f"192.0.{n}.1", f"192.0.{n}.2"), (6, f"2001:db8:{n}::1", f"2001:db8:{n}::2")):
            self.exec("router", "ip", f"-{family}", *f"route add default via {hop} dev wan{n} table 10{n}".split())
            self.exec("router", "ip", f"-{family}", *f"rule add from {source} lookup 10{n} priority 10".split())

    def impostor(self, interface: str, way: str) -> subprocess.Popen[str]:
        """Somebody at the first provider who answers in a wrong way (tests/lab/impostor.py)."""
        return self.run_in("isp1", sys.executable, impostor.__file__, interface, way)

    def tagged(self, address: str, tag: int) -> subprocess.Popen[str]:
        """Somebody on the first provider's cable who says in a VLAN that an address is his (tests/lab/tagged.py)."""
        return self.run_in("isp1", sys.executable, tagged.__file__, "customer", address, str(tag))

    def end(self, running: subprocess.Popen[str]) -> None:
        """End a program that was started here."""
        running.kill()
        running.wait()

    def probes(self, count: int) -> None:
        """Wait until so many more probes have been sent by the first ISP."""
        before = self.leaving()
        wait_until(lambda: self.leaving() >= before + count, f"{count} probes")

    def leaving(self) -> int:
        """How many packets have come to the first provider by the link."""
        said = self.exec("isp1", "cat", "/proc/net/dev")
        return int(next(line for line in said.splitlines() if "customer:" in line).split()[2])

    def standing(self, n: int) -> standing.IspStanding:
        """What the prober knows of an ISP."""
        path = self.states / standing.FILE
        wait_until(path.exists, "what the prober knows")
        found = standing.decode(path.read_text())
        assert found
        return found.isps[f"ISP{n}"]

    def says(self, n: int) -> str | None:
        return state.read_text(self.states / f"ISP{n}_state")

    def until(self, n: int, text: str) -> None:
        wait_until(lambda: self.says(n) == text, f"ISP{n} {text}; log: {self.log.read_text()}")

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines()

    def until_logged(self, part: str, times: int = 1) -> None:
        wait_until(
            lambda: self.log.read_text().count(part) >= times, f"{part!r} {times} times in {self.log.read_text()}"
        )

    def echoes(self) -> int:
        """How many echo requests of IPv4 the target has had."""
        rows = [line.split() for line in self.exec("inet", "cat", "/proc/net/snmp").splitlines() if "Icmp:" in line]
        return int(dict(zip(*rows, strict=True))["InEchos"])

    def cut(self, n: int) -> None:
        self.ip(f"isp{n}", f"route replace blackhole {TARGET4}")

    def mend(self, n: int) -> None:
        self.ip(f"isp{n}", f"route replace {TARGET4} via 198.51.{n}.2")
