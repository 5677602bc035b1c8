"""lsmpy-probe as a service: its units' users and rights, poor systems, a process that is stopped, and a soak."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from lsmpy import command, sandbox, standing, state
from tests.lab import as_unit
from tests.lab import recorder as recording
from tests.lab.probe_kit import ISP, TARGET4, TARGET6, Lab, wait_until

pytestmark = pytest.mark.lab

UNITS = as_unit.ROOT / "scripts" / "systemd"
STATE_DIRS = {"lsmpy-probe": Path("/var/run"), "lsmpy-probe-rootless": Path("/run/lsmpy")}
PROGRAMS = Path(sys.executable).parent
NET_RAW = 1 << 13
TCP, DNS, DNS6 = f"tcp://{TARGET4}:443", f"dns://{TARGET4}/example.org", f"dns://[{TARGET6}]/a.example"
LAN = """
[[lan]]
name = "dev"
interface = "lan0"
address = ["192.168.1.254/24", "fd00:a::1/64"]
"""
EVERYTHING = (TARGET4, TARGET6, "arp", TCP, DNS, DNS6)


def checks(*targets: str, quorum: int | None = None) -> str:
    """For `Lab.configure`: all of them must answer, or so many."""
    return f"{json.dumps(targets)}\nquorum = {quorum or len(targets)}"


def wrapper(unit: str, *options: str) -> tuple[str, ...]:
    """What runs a program as systemd would."""
    return (sys.executable, as_unit.__file__, *options, str(UNITS / f"{unit}.service"))


def status_of(process: subprocess.Popen[bytes]) -> Mapping[str, str]:
    """What the kernel tells of a process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# -- the units -----------------------------------------------------------------------------------------------


def has_other_user() -> bool:
    """Whether there is more than one user here; in an unprivileged user namespace there is not."""
    spans = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= as_unit.OTHER_USER < first + count for first, _, count in spans)


class Service(Lab):
    """A laboratory whose prober runs as one of the units says, on the state directory that the unit is for."""

    def __init__(self, directory: Path, unit: str) -> None:
        super().__init__(directory)
        self.use(unit)

    def use(self, unit: str) -> None:
        """Be the other unit."""
        self.unit, self.states = unit, STATE_DIRS[unit]
        self.user = as_unit.OTHER_USER if unit == "lsmpy-probe-rootless" else 0

    def begin(self) -> subprocess.Popen[bytes]:
        """The unit is started."""
        return self.start(wrapper=wrapper(self.unit))

    def stop(self, daemon: subprocess.Popen[bytes]) -> None:
        """And stopped."""
        daemon.terminate()
        assert daemon.wait(5) == 0

    def lsmpy(self, daemon: subprocess.Popen[bytes], user: int, *words: str) -> subprocess.CompletedProcess[str]:
        """The command for people, run by a user where the prober runs."""
        who = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
        argv = ("nsenter", "-t", str(daemon.pid), "-m", *who, str(PROGRAMS / "lsmpy"), *words, "-c", str(self.path))
        return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter, as pytest's own are not; and no state files of others in /run."""
    assert sandbox.inside()
    made = Path(tempfile.mkdtemp(prefix="lab-", dir="/run"))
    made.chmod(0o755)
    yield made
    for path in (made, Path("/run/lsmpy")):
        shutil.rmtree(path, ignore_errors=True)
    for path in Path("/run").glob("ISP?_*"):
        path.unlink()


@pytest.fixture(params=STATE_DIRS)
def service(place: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    made = Service(place, request.param)
    if made.user and not has_other_user():
        pytest.skip("there is only one user in this user namespace; run it as root")
    try:
        made.build()
        yield made
    finally:
        made.clear()


def test_a_unit_has_the_rights_it_needs_for_every_kind_of_check_and_no_others(service: Service) -> None:
    service.configure(checks(*EVERYTHING), checks("gateway", TARGET6))
    service.rules_by_source(1)
    service.serve()
    daemon = service.begin()
    service.until(1, "up")
    service.until(2, "up")
    known = status_of(daemon)
    assert known["Uid"].split() == [str(service.user)] * 4
    assert {int(known[key], 16) for key in ("CapEff", "CapPrm", "CapBnd")} == {NET_RAW}
    assert known["NoNewPrivs"] == "1"
    wait_until(
        lambda: all(each.state == "up" and each.rtt_ms for each in service.standing(1).targets.values()),
        "round trips of all",
    )
    assert set(service.standing(1).targets) == set(EVERYTHING)
    made = [service.states / name for name in ("ISP1_state", "lsmpy/ISP1_written", standing.FILE)]
    assert {(path.stat().st_uid, path.stat().st_mode & 0o777) for path in made} == {(service.user, 0o644)}
    for _ in range(2):
        service.cut(1)
        service.until(1, "down")
        service.mend(1)
        service.until(1, "up")
    assert service.says(2) == "up"


def test_a_unit_reads_its_configuration_again(service: Service) -> None:
    service.configure(checks(TARGET4))
    daemon = service.begin()
    service.until(1, "up")
    service.configure(checks(TARGET4, "arp"), checks(TARGET4, DNS))
    service.rules_by_source(2)
    service.serve()
    daemon.send_signal(signal.SIGHUP)
    service.until(2, "up")
    service.cut(2)
    service.until(2, "down")
    service.path.write_text("state_dir = 1\n")
    daemon.send_signal(signal.SIGHUP)
    service.until_logged("the old one is kept: ")
    service.mend(2)
    service.until(2, "up")


def test_roots_hand_holds_and_is_given_back(service: Service) -> None:
    service.configure(checks(TARGET4))
    daemon = service.begin()
    service.until(1, "up")
    path = service.states / "ISP1_state"
    state.write(path, "down")  # a file of root's in its place, as from a script
    service.until_logged("ISP1: somebody wrote 'down' into its state file")
    service.stop(daemon)
    daemon = service.begin()
    service.until_logged("ISP1: somebody wrote 'down' into its state file", 2)
    service.until_logged("ISP1 up", 2)
    assert (service.says(1), path.stat().st_uid) == ("down", 0)
    service.cut(1)
    service.until_logged("ISP1: its state file is written by the prober again")
    service.mend(1)
    service.until(1, "up")
    assert path.stat().st_uid == service.user

    path.write_text("down\n")  # into its file, as by echo
    service.until_logged("ISP1: somebody wrote 'down' into its state file", 3)
    if service.user:
        state.write(path, "down")
        path.chmod(0o600)  # root's umask was 077
        service.until_logged("ISP1: somebody wrote 'unreadable: Permission denied' into its state file")
    path.unlink()
    service.until(1, "up")
    assert path.stat().st_uid == service.user


def test_root_forces_and_both_see_the_status(service: Service) -> None:
    service.configure(checks(TARGET4), checks(TARGET6))
    daemon = service.begin()
    service.until(1, "up")
    service.until(2, "up")
    wait_until(lambda: service.standing(2).state == "up", "what the prober knows")
    assert service.lsmpy(daemon, 0, "force", "ISP1", "down").returncode == 0
    for user in (0, service.user):
        shown = service.lsmpy(daemon, user, "status", "--json")
        assert (shown.returncode, shown.stderr) == (1, "")
        isps = {isp["name"]: isp for isp in json.loads(shown.stdout)["isps"]}
        assert [(isps[name]["state"], isps[name]["forced"]) for name in ("ISP1", "ISP2")] == [
            ("down", "down"),
            ("up", None),
        ]
        assert isps["ISP2"]["targets"][TARGET6]["state"] == "up"
    assert service.says(1) == "up"
    assert service.lsmpy(daemon, 0, "force", "ISP1", "auto").returncode == 0
    assert service.lsmpy(daemon, service.user, "status").returncode == 0
    assert daemon.poll() is None


def test_the_routers_unit_follows_what_the_probers_unit_writes(service: Service, tmp_path: Path) -> None:
    service.configure(checks(TARGET4), checks(TARGET6) + LAN)
    log = tmp_path / "reconfig"

    def router() -> subprocess.Popen[bytes]:
        unit = as_unit.parse(UNITS / "lsmpy-reconfig.service")
        started, *words = unit["Service"]["ExecStart"].split()
        argv = [*wrapper("lsmpy-reconfig"), str(PROGRAMS / started), *words, "-c", str(service.path), "--replace"]
        with log.open("ab") as file:
            service.daemons.append(
                subprocess.Popen(["ip", "netns", "exec", service.spaces["router"], *argv], stderr=file)
            )
        return service.daemons[-1]

    if service.user:  # before the directory is there: the reason for the order of the units
        assert router().wait(20) == 1
        assert "the state directory /run/lsmpy does not exist" in log.read_text()
    service.begin()
    service.until(1, "up")
    service.until(2, "up")
    daemon = router()
    wait_until(lambda: "up ISP1 ISP2" in log.read_text(), "a first rebuild")
    service.cut(1)
    wait_until(lambda: "up ISP2, down ISP1" in log.read_text(), "ISP1 to go")
    service.mend(1)
    wait_until(lambda: log.read_text().count("up ISP1 ISP2") == 2, "ISP1 to come back")
    assert daemon.poll() is None


def test_the_units_can_take_each_others_place(service: Service) -> None:
    if not service.user:
        other = "lsmpy-probe-rootless"
        if not has_other_user():
            pytest.skip("there is only one user in this user namespace; run it as root")
    else:
        other = "lsmpy-probe"
    first = service.unit
    for unit in (first, other, first):
        service.use(unit)
        service.configure(checks(TARGET4))
        daemon = service.begin()
        service.until(1, "up")
        service.cut(1)
        service.until(1, "down")
        service.stop(daemon)
        service.mend(1)
    assert "error" not in service.log.read_text()


# -- poor systems --------------------------------------------------------------------------------------------


def plenty(lab: Lab) -> tuple[str, ...]:
    """A hundred pairs of interfaces more, with addresses."""
    lines = ""
    for n in range(100):
        lines += f"link add left{n} type veth peer name right{n}\nlink set left{n} up\nlink set right{n} up\n"
        lines += f"address add 10.9.{n}.1/24 dev left{n}\naddress add fd09:{n}::1/64 dev left{n} nodad\n"
    command.run("ip", "-n", lab.spaces["router"], "-batch", "-", stdin=lines)
    return ()


def no_libpcap(_: Lab) -> tuple[str, ...]:
    """Every libpcap that the loader knows is an empty file."""
    known = re.findall(r"libpcap\S* .*=> (\S+)", command.run("ldconfig", "-p"))
    hide = "".join(f"mount --bind /dev/null {Path(path).resolve()}; " for path in known)
    return ("sh", "-ec", f'{hide} exec "$@"', "sh")


def no_home(lab: Lab) -> tuple[str, ...]:
    """No home, nothing of the environment, and a cache that cannot be written."""
    cache = lab.directory / "cache"
    cache.mkdir()
    kept = 'PATH="$PATH" STATE_DIRECTORY="$STATE_DIRECTORY"'  # the sandbox's own
    prepare = f'mount -t tmpfs -o ro tmpfs {cache}; exec env -i {kept} XDG_CACHE_HOME={cache} "$@"'
    return ("sh", "-ec", prepare, "sh")


def ipv6_off(lab: Lab) -> tuple[str, ...]:
    """No interface may have IPv6."""
    for scope in ("all", "default"):
        lab.exec("router", "sysctl", "-qw", f"net.ipv6.conf.{scope}.disable_ipv6=1")
    return ()


def no_ipv6(lab: Lab) -> tuple[str, ...]:
    """A kernel that knows no IPv6, as far as that can be played: no addresses, settings and sockets."""
    ipv6_off(lab)
    hide = 'mount -t tmpfs tmpfs /proc/sys/net/ipv6; exec "$@"'
    return ("sh", "-ec", hide, "sh", *wrapper("PROGRAM", "--without-ipv6"))


def said_by(lab: Lab, how: tuple[str, ...], program: str, *words: str) -> tuple[str, list[str]]:
    """What a program that must succeed prints, and what it logs."""
    unit = "lsmpy-reconfig" if program == "lsmpy-reconfig" else "lsmpy-probe"
    around = [word.replace("PROGRAM", unit) for word in how]
    argv = ["ip", "netns", "exec", lab.spaces["router"], *around, str(PROGRAMS / program), *words, "-c", str(lab.path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return done.stdout, done.stderr.splitlines()


def plain(line: str) -> str:
    """A line of the log without what was measured."""
    return re.sub(r"\d+ ms|(ISP\d (up|down)): .*", r"\1", line)


@pytest.fixture
def poor(place: Path) -> Iterator[Lab]:
    """A laboratory whose router forwards, as one should."""
    made = Lab(place)
    try:
        made.build()
        made.configure(checks(TARGET4), checks(TARGET4))
        made.exec("router", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield made
    finally:
        made.clear()
        shutil.rmtree(sandbox.SAVED)
        sandbox.SAVED.mkdir()


@pytest.mark.parametrize("poverty", [plenty, no_libpcap, no_home, ipv6_off, no_ipv6], ids=lambda way: way.__name__)
def test_all_programs_work_on_a_poor_system_and_say_only_what_is_theirs(
    poor: Lab, poverty: Callable[[Lab], tuple[str, ...]]
) -> None:
    text = "".join(ISP.format(n=n, check=checks(TARGET4)) for n in (1, 2)) + LAN
    if "ipv6" in poverty.__name__:
        text = re.sub(r', "[0-9a-f:]+(/64)?"', "", text)
    poor.write(text)
    how = poverty(poor)
    printed, logged = said_by(poor, how, "lsmpy-probe", "--once")
    said = [plain(line) for line in logged if not line.startswith(TARGET4)]  # a busy machine may be late at first
    assert (printed, sorted(said)) == ("", ["ISP1 up", "ISP2 up"])
    assert (poor.says(1), poor.says(2)) == ("up", "up")
    assert said_by(poor, how, "lsmpy", "status")[1] == []
    script, logged = said_by(poor, how, "lsmpy-reconfig", "--dry-run")
    assert (script.splitlines()[0], logged) == ("#!/bin/sh", [])
    _, logged = said_by(poor, how, "lsmpy-reconfig", "--replace")
    assert list(map(plain, logged)) == ["rebuilt in : up ISP1 ISP2"]
    assert said_by(poor, how, "lsmpy-reconfig", "--diff") == ("", [])
    poor.cut(1)
    _, logged = said_by(poor, how, "lsmpy-probe", "--once")
    assert sorted(map(plain, logged)) == ["ISP1 down", "ISP2 up"]
    _, logged = said_by(poor, how, "lsmpy-reconfig")
    rebuilt = "rebuilt in : up ISP2, down ISP1 (its state file says 'down')"
    assert list(map(plain, logged)) == ["0 connections of ISP1 freed", rebuilt]


def test_a_prober_uses_no_libpcap(poor: Lab) -> None:
    daemon = poor.start()
    poor.until(1, "up")
    assert "pcap" not in Path(f"/proc/{daemon.pid}/maps").read_text()


def test_without_ipv6_what_has_ipv4_is_up_and_what_has_not_says_why(poor: Lab) -> None:
    how = tuple(word.replace("PROGRAM", "lsmpy-probe") for word in no_ipv6(poor))
    auto = ISP.format(n=2, check=checks(TARGET4))
    auto = auto.replace('["192.0.2.1/24", "2001:db8:2::1/64"]', '"auto"')
    auto = auto.replace('["192.0.2.2", "2001:db8:2::2"]', '"auto"')
    poor.ip("router", "route add default via 192.0.2.2 dev wan2")
    for words in ("route add default via 192.0.1.2 dev wan1 table 101", "rule add from 192.0.1.1 lookup 101"):
        poor.ip("router", words)
    poor.serve()
    poor.write(ISP.format(n=1, check=checks(TARGET4, TARGET6, "arp", TCP, DNS, DNS6, quorum=4)) + auto)
    daemon = poor.start(wrapper=how)
    poor.until(1, "up")
    poor.until(2, "up")
    reason = "wan1 lacks the address 2001:db8:1::1"
    wait_until(lambda: poor.standing(1).targets[TARGET6].why == reason, "the reason")
    assert poor.standing(1).targets[DNS6].why == reason
    poor.cut(1)
    poor.until(1, "down")
    assert daemon.poll() is None
    assert [plain(line) for line in poor.logged()] == ["ISP1 up", "ISP2 up", "ISP1 down"]


# -- time ----------------------------------------------------------------------------------------------------

FAR = """
[[isp]]
name = "ISP3"
interface = "tun0"
address = ["10.98.0.1/24", "2001:db8:98::1/64"]
gateway = "none"
check = ["198.51.100.9", "2001:db8:99::9", "tcp://198.51.100.9:443"]
quorum = 3
probe = { timeout_ms = 600, max_successive_pkts_lost = 3 }
"""


def test_a_process_that_is_stopped_for_a_while_counts_no_loss_and_goes_on_at_its_rate(lab: Lab) -> None:
    """Far away enough that several probes are under way whenever it is stopped."""
    for n in (1, 2):
        lab.rules_by_source(n)
    lab.serve()
    lab.tunnel("tun0", "--delay-ms", "150")
    lab.link("router", "tun0", "10.98.0.1/24", "2001:db8:98::1/64")
    lab.ip("router", "route add default dev tun0 table 103")
    lab.ip("router", "rule add from 10.98.0.1 lookup 103 priority 10")
    near = ISP.format(n=1, check=checks(TARGET4, TARGET6, "arp", TCP)) + "probe = { max_successive_pkts_lost = 2 }\n"
    lab.write(near + ISP.format(n=2, check=checks(DNS, DNS6)) + FAR)
    daemon = lab.start()
    for n in (1, 2, 3):
        lab.until(n, "up")
    for seconds in (0.2, 0.9, 1.3, 3.0):
        daemon.send_signal(signal.SIGSTOP)
        wait_until(lambda: status_of(daemon)["State"].startswith("T"), "it to stop")
        time.sleep(seconds)  # this is what is done to it
        began, went_on, before = time.monotonic(), time.time(), lab.echoes()
        daemon.send_signal(signal.SIGCONT)
        wait_until(lambda: lab.echoes() >= before + 50, "probes at their rate")  # noqa: B023
        assert lab.echoes() - before <= (time.monotonic() - began) / 0.020 + 2  # and nothing is made up for
        # What was under way has been judged by then, and the window holds all of it.
        wait_until(lambda: (lab.states / standing.FILE).stat().st_mtime > went_on + 0.7, "what came of it")  # noqa: B023
        found = [lab.standing(n).targets for n in (1, 2, 3)]
        assert {text: each.lost for targets in found for text, each in targets.items() if each.lost} == {}
    assert sorted(map(plain, lab.logged())) == ["ISP1 up", "ISP2 up", "ISP3 up"]
    assert all(each.rtt_ms and each.rtt_ms.p99 < 600 for each in lab.standing(3).targets.values())


# -- a soak --------------------------------------------------------------------------------------------------

INTERVAL_S = 0.05
GROWTH_KB = 1024  # of the memory, once everything has happened
LINES = (
    r"ISP[12] up: .*",
    r"ISP2 down: (wan2 has no carrier|.* 4 in a row.*)",
    r"the configuration was read again",
)


@dataclass(frozen=True)
class Burden:
    """What a process holds: descriptors between two calls, threads, kilobytes of its own memory."""

    descriptors: int
    threads: int
    memory_kb: int

    @classmethod
    def of(cls, process: subprocess.Popen[bytes]) -> Burden:
        """What it holds now; a call under way has a descriptor, so many looks are taken."""
        looks = []
        for _ in range(100):
            looks.append(len(os.listdir(f"/proc/{process.pid}/fd")))
            time.sleep(0.003)
        known = status_of(process)
        return cls(min(looks), int(known["Threads"]), int(known["RssAnon"].split()[0]))


def drift_s(times: list[float]) -> float:
    """How far probes have come off their beat: the first of each fifty counts, as they may be late but never early."""
    off = [(each - times[0] + INTERVAL_S / 2) % INTERVAL_S - INTERVAL_S / 2 for each in times]
    firsts = [min(off[at : at + 50]) for at in range(0, len(off) - 49, 50)]
    return max(firsts, default=0) - min(firsts, default=0)


@pytest.mark.long
def test_a_prober_at_work_for_long_neither_drifts_nor_grows(lab: Lab, long: bool) -> None:
    """ISP1 is well all the time and every probe of it is recorded; ISP2's cable and upstream fail now and then."""
    seconds, pause_s = (600, 8.0) if long else (60, 1.0)
    lab.exec("isp2", "sysctl", "-qw", "net.ipv6.conf.customer.keep_addr_on_down=1")
    for n in (1, 2):
        lab.rules_by_source(n)
    lab.serve()
    probe = f"interval_ms = {INTERVAL_S * 1000:.0f}\ntimeout_ms = 200"
    lab.write("".join(ISP.format(n=n, check=checks(*EVERYTHING)) for n in (1, 2)), probe)
    daemon = lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    recorder = lab.run_in("isp1", sys.executable, recording.__file__, "customer")
    began, hangups = time.time(), [time.time()]

    def pause() -> None:
        end = time.monotonic() + pause_s
        wait_until(lambda: time.monotonic() >= end, "the next mishap")

    def mishap(fails: Callable[[], object], heals: Callable[[], object]) -> None:
        log = lab.log.read_text()
        fails()
        lab.until_logged("ISP2 down", log.count("ISP2 down") + 1)
        heals()
        lab.until_logged("ISP2 up", log.count("ISP2 up") + 1)
        pause()

    def everything() -> None:
        """Happens once."""
        cable = "link set customer"
        mishap(lambda: lab.ip("isp2", f"{cable} down"), lambda: lab.ip("isp2", f"{cable} up"))
        mishap(lambda: lab.cut(2), lambda: lab.mend(2))
        times = lab.log.read_text().count("read again")
        daemon.send_signal(signal.SIGHUP)
        lab.until_logged("read again", times + 1)
        hangups.append(time.time())
        pause()

    everything()
    wait_until(
        lambda: all(each.samples == 100 for n in (1, 2) for each in lab.standing(n).targets.values()), "full windows"
    )
    before = Burden.of(daemon)
    while time.time() < began + seconds:
        everything()
    assert daemon.poll() is None
    after, ended = Burden.of(daemon), time.time()
    recorder.terminate()
    assert recorder.stdout
    recorded = json.loads(recorder.stdout.readline())
    print(f"\n{ended - began:.0f} s, {len(hangups) - 1} times everything\nbefore: {before}\nafter:  {after}")
    assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
    assert after.memory_kb <= before.memory_kb + GROWTH_KB
    assert [line for line in lab.logged() if not any(re.fullmatch(form, line) for form in LINES)] == []
    assert set(recorded) == {"echo4", "echo6", "arp", "tcp4", "dns4", "dns6"}
    due = (ended - began) / INTERVAL_S
    for kind, found in recorded.items():
        times = [each for each in found if began <= each < ended]
        beats = [[each for each in times if a <= each < b] for a, b in itertools.pairwise([*hangups, ended])]
        drift = max(drift_s(beat) for beat in beats if beat)
        print(f"{kind}: {len(times)} probes of {due:.0f}, {drift * 1e3:.1f} ms drift at most")
        # Each hang-up begins a new beat; and a probe is left out if this machine is busy for a whole interval.
        assert 0.9 * due - len(hangups) <= len(times) <= due + 1 + len(hangups)
        assert drift < 0.4 * INTERVAL_S  # more comes of a real one than of a machine that is busy
