"""lsmpy-probe on the real kernel: router, two providers and an internet, in namespaces of their own."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lsmpy import command, state

pytestmark = pytest.mark.lab

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
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.005)


class Lab:
    """router wan1 - isp1 - inet, router wan2 - isp2 - inet; only inet has the targets."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.states = directory, directory / "state"
        self.states.mkdir()
        self.path, self.log = directory / "lsmpy.toml", directory / "log"
        tag = f"p{os.getpid()}-{next(numbers)}-"
        self.spaces = {name: tag + name for name in ("router", "isp1", "isp2", "inet")}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def ip(self, space: str, words: str) -> str:
        return command.run("ip", "-n", self.spaces[space], *words.split())

    def exec(self, space: str, *argv: str) -> str:
        return command.run("ip", "netns", "exec", self.spaces[space], *argv)

    def build(self) -> None:
        for name in self.spaces.values():
            command.run("ip", "netns", "add", name)
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

    def plug(self, n: int) -> None:
        self.ip("router", f"link add wan{n} type veth peer name customer netns {self.spaces[f'isp{n}']}")
        self.link("router", f"wan{n}", f"192.0.{n}.1/24", f"2001:db8:{n}::1/64")
        self.link(f"isp{n}", "customer", f"192.0.{n}.2/24", f"2001:db8:{n}::2/64")

    def link(self, space: str, device: str, *addresses: str) -> None:
        self.ip(space, f"link set {device} up")
        for address in addresses:
            self.ip(space, f"address add {address} dev {device}" + (" nodad" if ":" in address else ""))

    def clear(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        for name in command.run("ip", "netns", "list").split():
            if name in self.spaces.values():
                command.run("ip", "netns", "delete", name)

    def configure(self, *checks: str) -> None:
        isps = (ISP.format(n=n, check=check) for n, check in enumerate(checks, 1))
        self.path.write_text(HEAD.format(directory=self.states) + "".join(isps))

    def start(self, *words: str, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        argv = ["ip", "netns", "exec", self.spaces["router"], *wrapper, PROBE, "-c", str(self.path), *words]
        with self.log.open("ab") as log:
            self.daemons.append(subprocess.Popen(argv, stderr=log))
        return self.daemons[-1]

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


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    try:
        lab.build()
        lab.configure(f'["{TARGET4}"]', f'["{TARGET4}"]')
        yield lab
    finally:
        lab.clear()


def test_a_dead_upstream_is_down_and_a_revived_one_up(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    cut = time.monotonic()
    lab.cut(1)
    lab.until(1, "down")
    assert time.monotonic() - cut < 2
    assert lab.says(2) == "up"
    lab.mend(1)
    lab.until(1, "up")
    first, last = [line for line in lab.logged() if line.startswith("ISP1")][:2]
    assert first.startswith(f"ISP1 up: {TARGET4}: 0 of the last 3 probes lost, 3 answered in a row, round trip ")
    assert last.startswith(f"ISP1 down: {TARGET4}: 4 of the last ")
    assert " probes lost, 4 in a row, round trip " in last


def test_routes_marks_and_the_firewall_do_not_decide(lab: Lab) -> None:
    lab.ip("router", f"route add unreachable {TARGET4}")
    lab.ip("router", f"route add {TARGET4} via 192.0.2.2 table 250")
    lab.ip("router", "rule add fwmark 0/0 table 250 priority 10")
    for chain in ("OUTPUT", "INPUT"):
        lab.exec("router", "iptables", "-w", "-P", chain, "DROP")
    lab.exec("router", "iptables", "-w", "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "2")
    lab.cut(2)
    lab.start()
    lab.until(1, "up")
    lab.until(2, "down")
    lab.cut(1)
    lab.mend(2)
    lab.until(1, "down")
    lab.until(2, "up")


def test_a_cable_out_at_the_far_end_is_down(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", "link set customer down")
    lab.until(1, "down")
    lab.ip("isp1", "link set customer up")
    lab.until(1, "up")


def test_an_interface_that_is_down_is_reported_once(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("router", "link set wan1 down")
    lab.until(1, "down")
    lab.ip("router", "link set wan1 up")
    lab.until(1, "up")
    assert lab.log.read_text().count("ISP1 down: wan1 is down\n") == 1


def test_an_interface_that_was_deleted_comes_back_up(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    for times in (1, 2):
        lab.ip("router", "link delete wan1")
        lab.until(1, "down")
        lab.plug(1)
        lab.until(1, "up")
        lab.until_logged("ISP1 down: wan1 does not exist", times)
    assert lab.says(2) == "up"


def test_an_interface_that_is_missing_at_start_is_down_until_it_comes(lab: Lab) -> None:
    lab.ip("router", "link delete wan1")
    lab.start()
    lab.until(1, "down")
    lab.until(2, "up")
    lab.plug(1)
    lab.until(1, "up")


def test_a_gateway_replaced_by_another_machine_is_found(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", "link set customer address 02:00:00:00:00:99")
    lab.ip("isp1", "link set customer down")
    lab.until(1, "down")
    lab.ip("isp1", "link set customer up")
    lab.until(1, "up")


def test_a_new_hardware_address_of_ours(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("router", "link set wan1 address 02:00:00:00:00:98")
    before = lab.echoes()
    wait_until(lambda: lab.echoes() > before + 40, "probes after the change")
    assert lab.says(1) == "up"
    assert "down" not in lab.log.read_text()


def test_ipv6_targets(lab: Lab) -> None:
    lab.configure(f'["{TARGET6}"]', '["gateway"]')
    for chain in ("OUTPUT", "INPUT"):
        lab.exec(
            "router", "ip6tables", "-w", "-A", chain, "-p", "icmpv6", "--icmpv6-type", "echo-request", "-j", "DROP"
        )
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.ip("isp1", f"route replace blackhole {TARGET6}")
    lab.until(1, "down")
    lab.ip("isp1", f"route replace {TARGET6} via 2001:db8:1f::2")
    lab.until(1, "up")


def test_a_quorum_of_both_families(lab: Lab) -> None:
    lab.configure(f'["{TARGET4}", "{TARGET6}"]\nquorum = 2')
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", f"route replace blackhole {TARGET6}")
    lab.until(1, "down")


def test_what_an_administrator_writes_holds(lab: Lab) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    path = lab.states / "ISP1_state"
    path.write_text("down\n")
    lab.until_logged("ISP1: somebody wrote 'down' into its state file")
    daemon.terminate()
    assert daemon.wait(5) == 0
    lab.start()
    lab.until_logged("ISP1: somebody wrote 'down' into its state file", 2)
    lab.until_logged("ISP1 up", 2)
    before = lab.echoes()
    wait_until(lambda: lab.echoes() > before + 150, "more than a second of probes")
    assert lab.says(1) == "down"
    path.unlink()
    lab.until(1, "up")


def test_a_hand_is_given_back_when_the_link_says_the_same(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    (lab.states / "ISP1_state").write_text("down\n")
    lab.until_logged("ISP1: somebody wrote 'down' into its state file")
    lab.cut(1)
    lab.until_logged("ISP1: its state file is written by the prober again")
    lab.mend(1)
    lab.until(1, "up")


def test_a_hand_that_says_neither_up_nor_down_holds_across_flaps(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    path = lab.states / "ISP1_state"
    path.write_text("maintenance\n")
    lab.until_logged("ISP1: somebody wrote 'maintenance'")
    for times in (1, 2):
        lab.cut(1)
        lab.until_logged("ISP1 down", times)
        lab.mend(1)
        lab.until_logged("ISP1 up", times + 1)
    assert lab.says(1) == "maintenance"
    assert lab.log.read_text().count("somebody wrote") == 1
    path.write_text("up\n")
    lab.until_logged("ISP1: its state file is written by the prober again")
    lab.cut(1)
    lab.until(1, "down")


def test_a_steady_link_writes_nothing(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    before = (lab.states / "ISP1_state").stat()
    echoes = lab.echoes()
    wait_until(lambda: lab.echoes() > echoes + 200, "probes")
    after = (lab.states / "ISP1_state").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(each.name for each in lab.states.iterdir()) == ["ISP1_state", "ISP2_state", "lsmpy"]


def test_a_busy_router_does_not_wake_it(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    sockets = lab.exec("router", "ss", "--packet", "--bpf")
    assert (sockets.count("*:wan1"), sockets.count("*:wan2"), sockets.count("bpf filter (")) == (1, 1, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_0(lab: Lab, number: signal.Signals) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    daemon.send_signal(number)
    assert daemon.wait(1) == 0


def test_a_bad_configuration_is_refused_and_the_old_one_kept(lab: Lab) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    good = lab.path.read_text()
    lab.path.write_text(good.replace("interval_ms = 20", "interval_ms = 0"))
    daemon.send_signal(signal.SIGHUP)
    lab.until_logged("the configuration was not read again and the old one is kept: ")
    assert f"{lab.path}:4: probe.interval_ms: expected milliseconds" in lab.log.read_text()
    lab.cut(1)
    lab.until(1, "down")


def test_a_new_configuration_keeps_what_is_known_by_name(lab: Lab) -> None:
    lab.configure(f'["{TARGET4}"]')
    daemon = lab.start()
    lab.until(1, "up")
    lab.configure(f'["{TARGET4}"]', f'["{TARGET4}"]')
    daemon.send_signal(signal.SIGHUP)
    lab.until(2, "up")
    assert sum(line.startswith("ISP1") for line in lab.logged()) == 1
    lab.configure(f'["{TARGET6}"]')
    daemon.send_signal(signal.SIGHUP)
    lab.until_logged("the configuration was read again", 2)
    lab.cut(1)
    lab.ip("isp1", f"route replace blackhole {TARGET6}")
    lab.until(1, "down")
    assert lab.logged()[-1].startswith(f"ISP1 down: {TARGET6}: ")


def test_once_writes_each_verdict_and_ends(lab: Lab) -> None:
    lab.cut(2)
    assert lab.start("--once").wait(20) == 0
    assert (lab.says(1), lab.says(2)) == ("up", "down")


def test_the_state_directory_of_the_command_line(lab: Lab) -> None:
    other = lab.directory / "other"
    other.mkdir()
    assert lab.start("--once", "--state-dir", str(other)).wait(20) == 0
    assert (other / "ISP1_state").read_text() == "up\n"
    assert lab.says(1) is None


def test_a_state_directory_that_vanishes_ends_it_with_1(lab: Lab) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.states.rename(lab.directory / "gone")
    assert daemon.wait(5) == 1
    assert "lsmpy-probe: error: cannot write" in lab.logged()[-1]


def test_without_the_right_to_packet_sockets_it_says_what_to_do(lab: Lab) -> None:
    assert lab.start(wrapper=("setpriv", "--bounding-set", "-net_raw")).wait(20) == 1
    assert "run it as root or with CAP_NET_RAW" in lab.logged()[-1]
