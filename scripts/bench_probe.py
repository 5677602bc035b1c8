"""Measures lsmpy-probe beside Debian's lsm, fping and dpinger's method, on the real kernel.

Everything happens in a sandbox: a router in one network namespace and at the other end of each of its links a provider
in another. What is compared runs on the same links, at the same time where only time is measured, in turn where it
would take the CPU from each other.

  detect  an upstream that dies silently, and a cable that is pulled: how long until the state file says down; lsm has
          the same thresholds and writes its file by an event script of one line. In full also how long until a link
          that is whole again is up by LSM's default thresholds
  rtt     the round trip time that a user gets to see (lsmpy-probe: probe.json) against the kernel's time stamps of the
          packets on the same interface (AF_PACKET, as tcpdump has them), while the far end takes 5 ms to answer
  cost    CPU time and memory, and the time from start to the first probe
  flood   forged answers by the hundred thousand a second on a dead link, while another ISP must stay up

lsm's max_successive_pkts_lost needs one unanswered probe more than it says, because lsm does not count its newest one.
dpinger's method is a raw ICMP socket and a clock that is read before sending and after receiving, here in Python.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import ctypes
import fcntl
import heapq
import itertools
import json
import os
import platform
import random
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Self, TypeVar

from lsmpy import LsmpyError, command, sandbox, standing, state

PLACE = Path("/run/lsmpy-bench")
PROBE = str(Path(sys.executable).with_name("lsmpy-probe"))
SEED = 20
PATIENCE_S = 60.0
_MS, _S = 1_000_000, 1_000_000_000  # nanoseconds, of CLOCK_REALTIME as the kernel's stamps are
ROUTER_MAC, PROVIDER_MAC, IPV4 = bytes.fromhex("020000000001"), bytes.fromhex("020000000002"), b"\x08\0"
_OUR_LENGTH, _LSM_LENGTH = 84, 80  # of their IP packets, by which they are told apart at the far end

# <sched.h>, <sys/inotify.h>, <asm/socket.h>, <linux/if_ether.h>, <linux/sockios.h>, <linux/if.h>; Python lacks them.
_CLONE_NEWNET = 0x40000000
_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE, _ETH_P_ALL = 35, 33, 3
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

T = TypeVar("T")


class BenchError(LsmpyError):
    """Nothing can be measured, or what was measured is not what it should be."""


@dataclass(frozen=True)
class Goal:
    """What was to be reached: a value of at most `limit`."""

    what: str
    value: float
    limit: float
    unit: str

    def __str__(self) -> str:
        """As the other bench prints it."""
        said = "ok    " if self.value <= self.limit else "MISSED"
        return f"  {said} {self.what}: {self.value:.4g} {self.unit}, at most {self.limit:g}"


@dataclass(frozen=True)
class Report:
    """What a part has measured."""

    lines: list[str]
    goals: list[Goal]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns as wide as they must be; fractions have three digits after the point."""
    cells = [list(head), *([f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [
        f"{name:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row, others, strict=True))
        for name, *row in cells
    ]


# -- a router and its providers --------------------------------------------------------------------------------------


def within(node: str, action: Callable[[], T]) -> T:
    """Do something in a namespace: the sockets and files it opens and the programs it starts stay there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter_and_act() -> T:
        with open(sandbox.NETNS / node) as space:
            if libc.setns(space.fileno(), _CLONE_NEWNET):
                raise BenchError(f"cannot enter {node}: {os.strerror(ctypes.get_errno())}")
        return action()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # which is in that namespace, and ends
        return thread.submit(enter_and_act).result()


def batch(node: str, *lines: str) -> None:
    """Give lines to `ip` in a namespace."""
    text = "".join(f"{line}\n" for line in lines)
    within(node, lambda: command.run("ip", "-batch", "-", stdin=text))


class Tap:
    """A socket whose packets wait in it with the kernel's time stamps, so that nobody is woken for them meanwhile."""

    def __init__(self, node: str, family: int, kind: int, protocol: int) -> None:
        """Open it in a namespace."""
        self.socket = within(node, lambda: socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 25)
        self._seen: list[tuple[int, bytes]] = []

    def seen(self) -> list[tuple[int, bytes]]:
        """Time and packet of all ICMP that has come since the beginning or `forget`."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, ancillary, _, _ = self.socket.recvmsg(2048, 64)
                seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
                if packet[:1] == b"\x45" and packet[9] == socket.IPPROTO_ICMP:
                    self._seen.append((seconds * _S + nanoseconds, packet))
        return self._seen

    def forget(self) -> None:
        """Begin anew."""
        self.seen().clear()


class Provider:
    """The far end of the router's link number `n`, who answers for all of 198.18.N.0/24.

    Attributes:
        node, interface: its namespace, and the router's end of the link.
        tap: all ICMP that comes to it.
    """

    def __init__(self, n: int) -> None:
        """Get hold of the namespace `farN`."""
        self.n, self.node, self.interface = n, f"far{n}", f"wan{n}"
        self.tap = Tap(self.node, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._control = within(self.node, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        # One write and the kernel says nothing more: no program has to start for it.
        knob = "/proc/sys/net/ipv4/icmp_echo_ignore_all"
        self._knob = within(self.node, lambda: os.open(knob, os.O_WRONLY))

    def targets(self, count: int) -> list[str]:
        """Addresses that it answers for."""
        return [f"198.18.{self.n}.{host}" for host in range(1, count + 1)]

    def answer(self, answers: bool) -> int:
        """Answer pings or be silent; returns since when."""
        os.pwrite(self._knob, b"0" if answers else b"1", 0)
        return time.time_ns()

    def plug(self, plugged: bool) -> int:
        """Put the cable in or pull it; returns when that began."""
        request = struct.pack("16sh14x", b"wan", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(self._control, _SIOCGIFFLAGS, request))
        request = struct.pack("16sh14x", b"wan", flags | _IFF_UP if plugged else flags & ~_IFF_UP)
        began = time.time_ns()
        fcntl.ioctl(self._control, _SIOCSIFFLAGS, request)
        return began

    def heard(self) -> list[tuple[int, bytes]]:
        """Time and packet of every echo request that has arrived."""
        return [each for each in self.tap.seen() if each[1][20] == 8]

    def first_after(self, at_ns: int, length: int = 0) -> int:
        """When the first echo request since then arrived, of packets of this length if one is given; 0 for none."""
        return next((at for at, packet in self.heard() if at > at_ns and length in (0, len(packet))), 0)

    def answer_after(self, delay_s: float) -> None:
        """Answer from now on, in the kernel's place, when so much time has gone by."""
        self.answer(False)
        threading.Thread(target=self._answer, args=(delay_s,), daemon=True).start()

    def _answer(self, delay_s: float) -> None:
        own = within(self.node, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        own.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        waiting: list[tuple[float, bytes]] = []
        while True:
            patience = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
            if select.select([own], [], [], patience)[0]:
                packet = own.recv(2048)
                if packet[20] == 8:
                    heapq.heappush(waiting, (time.monotonic() + delay_s, reply(packet)))
            while waiting and waiting[0][0] <= time.monotonic():
                packet = heapq.heappop(waiting)[1]
                own.sendto(packet, (str(ip_address(packet[16:20])), 0))


def checksum(data: bytes) -> int:
    """Of the Internet (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ip_packet(source: bytes, destination: bytes, message: bytes) -> bytes:
    """An IP packet with an ICMP message whose checksum is still 0."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0, source, destination)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return head + message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def reply(request: bytes, ident: bytes = b"", payload: bytes = b"") -> bytes:
    """The answer to an echo request, with another identifier or payload if they are given."""
    message = b"\0\0\0\0" + (ident or request[24:26]) + request[26:28] + (payload or request[28:])
    return ip_packet(request[16:20], request[12:16], message)


class Net:
    """The namespace `router` with the links wan1, wan2, … and a provider at the end of each."""

    def __init__(self, links: int) -> None:
        """Build it."""
        self._nodes = ["router", *(f"far{n}" for n in range(1, links + 1))]
        command.run("ip", "-batch", "-", stdin="".join(f"netns add {node}\n" for node in self._nodes))
        batch("router", "link set lo up")
        for n in range(1, links + 1):
            macs = ROUTER_MAC.hex(":"), PROVIDER_MAC.hex(":")
            # An index that is not its peer's too: else the kernel may tell of a lost carrier a second late.
            ends = f"link add wan{n} index {100 + n} address {macs[0]} type veth peer name wan address {macs[1]}"
            batch("router", f"{ends} netns far{n}", f"link set wan{n} up", f"address add 10.0.{n}.1/24 dev wan{n}")
            own = (f"address add 10.0.{n}.2/24 dev wan", f"route add local 198.18.{n}.0/24 dev lo")
            batch(f"far{n}", "link set lo up", "link set wan up", *own)
            batch("router", f"route add 198.18.{n}.0/24 via 10.0.{n}.2 dev wan{n}")
        self.providers = [Provider(n) for n in range(1, links + 1)]

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take it down."""
        command.run("ip", "-batch", "-", stdin="".join(f"netns delete {node}\n" for node in self._nodes))


class Program:
    """A program that runs in a namespace for as long as the `with` block."""

    def __init__(self, node: str, argv: Sequence[str], stdin: str = "") -> None:
        """Start it; nothing but the program itself is between us and it."""
        self.argv = list(argv)
        self._said = (PLACE / f"said-{time.monotonic_ns()}").open("w")
        path = command.find(argv[0])
        with tempfile.TemporaryFile("w+", dir=PLACE) as given:
            given.write(stdin)
            given.seek(0)
            words, said = [path, *argv[1:]], self._said
            self.began_ns = time.time_ns()
            self._process = within(node, lambda: subprocess.Popen(words, stdin=given, stdout=said, stderr=said))

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """End it, and see that it has not died before."""
        died = self._process.poll()
        if died is None:
            self._process.terminate()
            self._process.wait()
        if died and kind is None:
            raise BenchError(f"{' '.join(self.argv[:4])} … ended with status {died}: {self.said()}")
        self._said.close()

    def wait(self) -> str:
        """Wait for its own end and return what it said."""
        self._process.wait(PATIENCE_S)
        return self.said()

    def said(self) -> str:
        """All that it has printed."""
        return Path(self._said.name).read_text()

    def cpu_ns(self) -> tuple[int, int]:
        """CPU time so far, and time that it waited for a CPU (Documentation/scheduler/sched-stats.rst)."""
        used, waited, _ = Path(f"/proc/{self._process.pid}/schedstat").read_text().split()
        return int(used), int(waited)

    def resident_mb(self) -> float:
        """Its resident memory."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def lsmpy_probe(name: str, isps: dict[Provider, tuple[int, dict[str, int]]], *python: str) -> list[str]:
    """The command line of a prober whose ISPs have so many targets and these settings, and its files this name."""
    directory = PLACE / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    text = f'state_dir = "{directory}"\n'
    for provider, (targets, settings) in isps.items():
        probe = ", ".join(f"{key} = {value}" for key, value in settings.items())
        n, check = provider.n, json.dumps(provider.targets(targets))
        text += f'[[isp]]\nname = "ISP{n}"\ninterface = "wan{n}"\naddress = "10.0.{n}.1/24"\ngateway = "10.0.{n}.2"\n'
        text += f"check = {check}\nprobe = {{ {probe} }}\n"
    path = PLACE / f"{name}.toml"
    path.write_text(text)
    return [*(python or [PROBE]), "-c", str(path)]


def lsm(name: str, isps: dict[Provider, tuple[int, dict[str, int]]]) -> list[str]:
    """The command line of an lsm with the same; its event script writes state files as the simplest one would."""
    directory = PLACE / name
    directory.mkdir(parents=True, exist_ok=True)
    script, path = directory / "event", PLACE / f"{name}.conf"
    script.write_text(f'#!/bin/sh\necho "$1" >"{directory}/$2_state"\n')
    script.chmod(0o755)
    text = f"debug=0\ndefaults {{\nnotifyscript=\neventscript={script}\n}}\n"
    for provider, (targets, settings) in isps.items():
        for number, target in enumerate(provider.targets(targets)):
            label = f"ISP{provider.n}" + (f"-{number}" if number else "")
            text += f"connection {{\nname={label}\ncheckip={target}\ndevice={provider.interface}\n"
            text += "".join(f"{key}={value}\n" for key, value in settings.items()) + "}\n"
    path.write_text(text)
    return ["lsm", "-f", "-c", str(path)]


class Files:
    """Notes what is written into the files of directories, and when."""

    def __init__(self, *directories: Path) -> None:
        """Begin."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue, self._places = libc.inotify_init1(os.O_CLOEXEC), {}
        for directory in directories:
            mark = libc.inotify_add_watch(self._queue, os.fsencode(directory), _IN_CLOSE_WRITE | _IN_MOVED_TO)
            self._places[mark] = directory
        self._written: list[tuple[int, Path, str | None]] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self, path: Path, text: str, after_ns: int) -> int:
        """When `text` was written into the file for the first time since then."""
        found: list[int] = []

        def seen() -> bool:
            found.extend(at for at, *what in self._written if at >= after_ns and what == [path, text])
            return bool(found)

        with self._news:
            if not self._news.wait_for(seen, PATIENCE_S):
                raise BenchError(f"waited {PATIENCE_S:g} s in vain for {text!r} in {path}")
        return found[0]

    def texts(self, path: Path, after_ns: int) -> list[str | None]:
        """All that was written into the file since then."""
        return [text for at, where, text in list(self._written) if at >= after_ns and where == path]

    def _listen(self) -> None:
        while True:
            data = os.read(self._queue, 1 << 16)
            now, at = time.time_ns(), 0
            with self._news:
                while at < len(data):
                    mark, _, _, length = struct.unpack_from("iIII", data, at)
                    path = self._places[mark] / os.fsdecode(data[at + 16 : at + 16 + length].rstrip(b"\0"))
                    if path.name.endswith("_state"):
                        self._written.append((now, path, state.read_text(path)))
                    at += 16 + length
                self._news.notify_all()


# -- detect ----------------------------------------------------------------------------------------------------------

LOST = 3
RECOVERIES, LSM_ANSWERS = 3, 95  # of the last 100 probes, so that only min_packet_loss of them are lost
# The runs decide, not the window.
RUNS = {"max_packet_loss": 99, "min_packet_loss": 98, "max_successive_pkts_lost": LOST, "min_successive_pkts_rcvd": 3}
LSM_DEFAULTS = {
    "max_packet_loss": 15,
    "min_packet_loss": 5,
    "max_successive_pkts_lost": 7,
    "min_successive_pkts_rcvd": 10,
}


@dataclass
class Times:
    """Seconds at one link by one program: from each cut, from the first probe that it cost, and from each mending."""

    down: list[float] = field(default_factory=list)
    down_from_probe: list[float] = field(default_factory=list)
    up: list[float] = field(default_factory=list)


@dataclass
class Trial:
    """What one link goes through."""

    what: str
    provider: Provider
    settings: dict[str, int]
    count: int
    cable: bool = False
    ours: Times = field(default_factory=Times)
    lsm: Times = field(default_factory=Times)

    @property
    def interval_s(self) -> float:
        """Between its probes."""
        return self.settings["interval_ms"] / 1000


def detect(quick: bool, tell: Callable[[str], None]) -> Report:
    """See the file's beginning."""
    intervals = (20, 100) if quick else (20, 100, 200, 1000)
    count = 1 if quick else 10
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(Net(len(intervals) + 2))
        *silent, cable, slow = net.providers
        trials = [
            Trial(f"silent, every {ms} ms", provider, _timing(ms) | RUNS, count)
            for provider, ms in zip(silent, intervals, strict=True)
        ]
        trials.append(Trial("cable pulled, every 100 ms", cable, _timing(100) | RUNS, count, cable=True))
        if not quick:
            trials.append(Trial("LSM's defaults, every 100 ms", slow, _timing(100) | LSM_DEFAULTS, RECOVERIES))
        isps = {each.provider: (1, each.settings) for each in trials}
        # One program for each link, so that what one waits for is no business of another's.
        argvs = [lsmpy_probe(f"ours{each.n}", {each: isp}) for each, isp in isps.items()]
        argvs += [lsm(f"lsm{each.n}", {each: isp}) for each, isp in isps.items()]
        files = Files(*(PLACE / f"{whose}{each.n}" for whose in ("ours", "lsm") for each in isps))
        for argv in argvs:
            stack.enter_context(Program("router", argv))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for job in [pool.submit(_try, each, files, tell) for each in trials]:
                job.result()
    return _detected(trials[: len(intervals)], trials[len(intervals)], trials[len(intervals) + 1 :])


def _timing(interval_ms: int) -> dict[str, int]:
    return {"interval_ms": interval_ms, "timeout_ms": interval_ms}


def _try(trial: Trial, files: Files, tell: Callable[[str], None]) -> None:
    """Cut and mend the link."""
    provider, chance = trial.provider, random.Random(SEED + trial.provider.n)
    work = provider.plug if trial.cable else provider.answer
    n, name = provider.n, f"ISP{provider.n}_state"
    both = (trial.ours, PLACE / f"ours{n}" / name, _OUR_LENGTH), (trial.lsm, PLACE / f"lsm{n}" / name, _LSM_LENGTH)
    for _, path, _ in both:
        files.wait(path, "up", 0)
    for number in range(trial.count):
        tell(f"{trial.what}: {number} of {trial.count}")
        time.sleep(1 + chance.uniform(0, max(1, trial.interval_s)))  # any phase of probes, and of lsm's second
        at = work(False)
        for times, path, length in both:
            down = files.wait(path, "down", at)
            times.down.append((down - at) / _S)
            times.down_from_probe.append((down - provider.first_after(at, length)) / _S)
        at = work(True)
        for times, path, _ in both:
            times.up.append((files.wait(path, "up", at) - at) / _S)


def _detected(silent: Sequence[Trial], cable: Trial, slow: Sequence[Trial]) -> Report:
    lines = [f"Seconds from the cut to the state file; {LOST} lost in a row, timeouts of one interval:", ""]
    lines += _beside([(each.what, each.ours.down, each.lsm.down) for each in (*silent, cable)])
    lines += ["", "Beside arithmetic: (lost - 1/2) × interval + timeout from the cut, on the average; lost × interval"]
    lines += ["from the first probe that was lost, in which the phase of the cut has no part:", ""]
    rows: list[list[object]] = []
    goals = []
    for each in silent:
        best, least = (LOST + 0.5) * each.interval_s, LOST * each.interval_s
        ratio, (mean, _, most) = statistics.mean(each.ours.down) / best, _three(each.ours.down_from_probe)
        rows.append([each.what, best, ratio, least, mean, most, min(each.lsm.down_from_probe)])
        later = _later(each.ours.down_from_probe, each.lsm.down_from_probe)
        goals.append(Goal(f"mean / optimum, {each.what}", ratio, 1.1, "×"))
        goals.append(Goal(f"later than lsm after the first lost probe, {each.what}", later, 0, "cuts"))
    head = ["", "optimum", "mean / optimum", "from the first lost: optimum", "mean", "most", "lsm: least"]
    lines += table(head, rows)
    goals.append(Goal(f"{cable.what}, the longest", max(cable.ours.down) * 1000, 50, "ms"))
    goals.append(Goal(f"later than lsm, {cable.what}", _later(cable.ours.down, cable.lsm.down), 0, "cuts"))
    lines += ["", "Seconds from mending to the state file that says up:", ""]
    lines += _beside([(each.what, each.ours.up, each.lsm.up) for each in (*silent, cable, *slow)])
    for each in slow:
        best = (LSM_ANSWERS - 0.5) * each.interval_s
        lines.append(f"LSM's defaults want {LSM_ANSWERS} answers after an outage: {best:.2f} s, on the average")
        goals.append(Goal(f"up again / arithmetic, {each.what}", statistics.mean(each.ours.up) / best, 1.1, "×"))
    return Report(lines, goals)


def _beside(rows: Sequence[tuple[str, list[float], list[float]]]) -> list[str]:
    head = ["", "lsmpy-probe: mean", "median", "most", "lsm: mean", "median", "most", "lsmpy-probe later"]
    return table(head, [[what, *_three(a), *_three(b), f"{_later(a, b)} of {len(a)}"] for what, a, b in rows])


def _three(times: Sequence[float]) -> tuple[float, float, float]:
    return statistics.mean(times), statistics.median(times), max(times)


def _later(ours: Sequence[float], theirs: Sequence[float]) -> int:
    return sum(a > b for a, b in zip(ours, theirs, strict=True))


# -- rtt -------------------------------------------------------------------------------------------------------------

ANSWER_S, RTT_TARGETS = 0.005, 50
BUSY_PROCESS = [sys.executable, "-c", "while True: pass"]
# The prober itself, beside a thread that never waits.
BUSY_PROBER = """
import sys, threading
from lsmpy.probe import main
threading.Thread(target=exec, args=("while True: pass",), daemon=True).start()
sys.exit(main())
"""


def rtt(quick: bool, tell: Callable[[str], None]) -> Report:
    """See the file's beginning."""
    seconds = 1 if quick else 8
    ways = {"lsmpy-probe": _our_errors, "fping": _fping_errors, "dpinger's method": _dpinger_errors}
    found: dict[tuple[str, str], list[float]] = {}
    with Net(1) as net:
        wire = Wire()
        net.providers[0].answer_after(ANSWER_S)
        for load, (name, errors) in itertools.product(("idle", "busy CPU", "busy thread"), ways.items()):
            if (name, load) == ("fping", "busy thread") or (quick and load != "idle" and name != "lsmpy-probe"):
                continue  # fping has no threads
            tell(f"{name}, {load}")
            with contextlib.ExitStack() as stack:
                for _ in range((os.cpu_count() or 1) if load == "busy CPU" else 0):
                    stack.enter_context(Program("router", BUSY_PROCESS))
                wire.forget()
                found[name, load] = errors(net.providers[0], wire, seconds, load == "busy thread")
                if not found[name, load]:
                    raise BenchError(f"{name} has told of no probe that was answered; is the machine very busy?")
    lines = ["Reported minus true round trip time, microseconds; true is what the kernel's stamps of the packets say"]
    lines += [f"on the prober's interface. {RTT_TARGETS} targets, once a second, who take {ANSWER_S * 1000:g} ms:", ""]
    rows: list[list[object]] = []
    for (name, load), errors_us in found.items():
        sizes = sorted(map(abs, errors_us))
        marks = statistics.mean(sizes), statistics.median(sizes), sizes[len(sizes) * 95 // 100], max(errors_us, key=abs)
        rows.append([name, load, len(sizes), *(f"{each:.1f}" for each in (statistics.mean(errors_us), *marks))])
    lines += table(["", "", "probes", "mean", "off by: mean", "median", "95 %", "most"], rows)
    goals = [Goal("lsmpy-probe, idle, off by, mean", statistics.mean(map(abs, found["lsmpy-probe", "idle"])), 30, "µs")]
    for load in ("busy CPU", "busy thread"):
        goals.append(Goal(f"lsmpy-probe, {load}, off by, most", max(map(abs, found["lsmpy-probe", load])), 1000, "µs"))
    return Report(lines, goals)


class Wire(Tap):
    """All echo requests and replies that pass the router's first interface, as tcpdump would stamp them."""

    def __init__(self) -> None:
        """Listen from now on."""
        super().__init__("router", socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self.socket.bind(("wan1", _ETH_P_ALL))

    def round_trips(self) -> dict[str, list[int | None]]:
        """Of every target, the round trip times in nanoseconds of its probes, in the order of sending."""
        sent: dict[tuple[bytes, bytes], tuple[int, list[int | None], int]] = {}
        found: dict[str, list[int | None]] = {}
        for at, packet in self.seen():
            if packet[20] == 8:
                trips = found.setdefault(str(ip_address(packet[16:20])), [])
                sent[packet[16:20], packet[24:28]] = at, trips, len(trips)
                trips.append(None)
            elif packet[20] == 0 and (packet[12:16], packet[24:28]) in sent:
                began, trips, number = sent.pop((packet[12:16], packet[24:28]))
                trips[number] = at - began
        return found


def wait_until(predicate: Callable[[], object], what: str) -> None:
    """Wait for something that comes soon."""
    end = time.monotonic() + PATIENCE_S
    while not predicate():
        if time.monotonic() > end:
            raise BenchError(f"waited {PATIENCE_S:g} s in vain for {what}")
        time.sleep(0.01)


def _our_errors(provider: Provider, wire: Wire, seconds: int, busy: bool) -> list[float]:
    """What probe.json says at each writing, of whichever probe is the last that it counts.

    Unless one was lost since the writing before, the number of samples tells which one that is, in the first window.
    """
    seen: dict[str, dict[int, float]] = {}
    lost: dict[str, int] = {}
    written = 0.0
    python = [sys.executable, "-c", BUSY_PROBER] if busy else []
    argv = lsmpy_probe("ours", {provider: (RTT_TARGETS, _timing(1000))}, *python)
    path = PLACE / "ours" / standing.FILE
    with Program("router", argv):
        wait_until(path.exists, "probe.json")
        end = time.monotonic() + seconds + 1  # what counts is told a second later at most
        while time.monotonic() < end:
            time.sleep(0.1)
            known = standing.decode(path.read_text())
            if known is None or known.written == written:
                continue
            written = known.written
            for text, target in known.isps[f"ISP{provider.n}"].targets.items():
                if target.rtt_ms and target.lost == lost.get(text, 0):
                    seen.setdefault(text, {})[target.samples - 1] = target.rtt_ms.last
                lost[text] = target.lost
    trips = wire.round_trips()
    return [
        said * 1000 - truth / 1000
        for text, samples in seen.items()
        for number, said in samples.items()
        if (truth := trips[text][number]) is not None
    ]


def _fping_errors(provider: Provider, wire: Wire, seconds: int, _: bool) -> list[float]:
    argv = ["fping", "-q", "-C", str(seconds), "-p", "1000", "-i", "10", *provider.targets(RTT_TARGETS)]
    with Program("router", argv) as fping:
        rows = [line.split(" : ") for line in fping.wait().splitlines() if line.startswith("198.18.")]
    times = {text.strip(): [None if v == "-" else float(v) * 1000 for v in values.split()] for text, values in rows}
    return _differences(times, wire)


def _dpinger_errors(provider: Provider, wire: Wire, seconds: int, busy: bool) -> list[float]:
    words = ["--dpinger", str(seconds), str(int(busy)), *provider.targets(RTT_TARGETS)]
    with Program("router", [sys.executable, __file__, *words]) as dpinger:
        times = json.loads(dpinger.wait())
    return _differences(times, wire)


def _differences(said: dict[str, list[float | None]], wire: Wire) -> list[float]:
    trips = wire.round_trips()
    pairs = [pair for target, values in said.items() for pair in zip(values, trips[target], strict=True)]
    return [value - truth / 1000 for value, truth in pairs if value is not None and truth is not None]


def dpinger(seconds: int, busy: bool, targets: Sequence[str]) -> int:
    """dpinger's method: prints the round trip times of each target in microseconds."""
    if busy:
        threading.Thread(target=exec, args=("while True: pass",), daemon=True).start()
    found: dict[str, list[float | None]] = {target: [] for target in targets}
    sent: dict[tuple[str, int], int] = {}
    pace_s, ident = 1 / len(targets), os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        began = time.monotonic()
        for number in range(seconds * len(targets)):
            target, seq = targets[number % len(targets)], number // len(targets)
            request = struct.pack("!BBHHH56x", 8, 0, 0, ident, seq)
            request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]
            found[target].append(None)
            sent[target, seq] = time.monotonic_ns()
            raw.sendto(request, (target, 0))
            last = number == seconds * len(targets) - 1
            while (patience := began + (number + 1) * pace_s + last / 4 - time.monotonic()) > 0:
                raw.settimeout(patience)
                with contextlib.suppress(TimeoutError):
                    packet, address = raw.recvfrom(2048)
                    now = time.monotonic_ns()
                    kind, _, _, its, seq = struct.unpack_from("!BBHHH", packet, 20)
                    if (kind, its) == (0, ident) and (address[0], seq) in sent:
                        found[address[0]][seq] = (now - sent.pop((address[0], seq))) / 1000
    print(json.dumps(found))
    return 0


# -- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one program needs for so many targets.

    Attributes:
        cpu_s: CPU time for one probe.
        first_s: of several starts, the time until the first probe, and how much of it was waiting for a CPU.
    """

    name: str
    targets: int
    probes_a_second: float
    cpu_s: float
    resident_mb: float
    first_s: list[tuple[float, float]]


def cost(quick: bool, tell: Callable[[str], None]) -> Report:
    """See the file's beginning."""
    sizes = (50,) if quick else (2, 50, 500)
    found: list[Cost] = []
    with Net(2) as net:
        with Program("router", _argv("lsmpy-probe", net, 2)) as program:
            _first(net, program)  # now its bytecode is there
        for size, name in itertools.product(sizes, ("lsmpy-probe", "lsm", "fping")):
            tell(f"{name}, {size} targets")
            found.append(_cost(name, net, size, quick))
    lines = ["One probe a second to each target; CPU time includes the kernel's, for the way there and back too."]
    lines += [
        "First probe: milliseconds from start, the median and the most of several; waited: for a CPU, the median:",
        "",
    ]
    head = ["", "targets", "probes/s", "CPU s / 1,000 probes", "CPU %", "MB", "first probe", "most", "waited"]
    rows = []
    for each in found:
        firsts, waits = zip(*each.first_s, strict=True)
        cpu = f"{each.cpu_s * 1000:.4f}", f"{each.cpu_s * each.probes_a_second * 100:.2f}"
        times = (f"{value * 1000:.0f}" for value in (statistics.median(firsts), max(firsts), statistics.median(waits)))
        rows.append([each.name, each.targets, f"{each.probes_a_second:.1f}", *cpu, f"{each.resident_mb:.1f}", *times])
    lines += table(head, rows)
    ours = [each for each in found if each.name == "lsmpy-probe"]
    first_s = max(statistics.median(first - waited for first, waited in each.first_s) for each in ours)
    missing = max(1 - each.probes_a_second / each.targets for each in ours if each.targets > 2)  # too few to count
    goals = [Goal(f"CPU for 1,000 probes, {each.targets} targets", each.cpu_s * 1000, 0.05, "s") for each in ours[2:]]
    goals.append(Goal("resident, most", max(each.resident_mb for each in ours), 60, "MB"))
    goals.append(Goal("start to first probe but for waiting, the longest median", first_s, 0.5, "s"))
    goals.append(Goal("probes not sent, most", max(0, missing), 0.05, "×"))
    return Report(lines, goals)


def _cost(name: str, net: Net, targets: int, quick: bool) -> Cost:
    """Start a program several times, and watch it the last time."""
    warm_s, window_s, starts = (1, 1, 1) if quick else (4, 8, 5)
    firsts = []
    for start in range(1, starts + 1):
        for each in net.providers:
            each.tap.forget()
        with Program("router", _argv(name, net, targets)) as program:
            firsts.append(_first(net, program))
            if start == starts:
                time.sleep(warm_s)
                before, cpu, began = _count(net), program.cpu_ns()[0], time.monotonic()
                time.sleep(window_s)
                probes, used, took = _count(net) - before, program.cpu_ns()[0] - cpu, time.monotonic() - began
                memory = program.resident_mb()
    return Cost(name, targets, probes / took, used / probes / _S, memory, firsts)


def _argv(name: str, net: Net, targets: int) -> list[str]:
    isps = {each: (targets // 2, _timing(1000)) for each in net.providers}
    if name == "lsmpy-probe":
        return lsmpy_probe("ours", isps)
    if name == "lsm":
        return lsm("lsm", isps)
    addresses = [address for each in net.providers for address in each.targets(targets // 2)]
    return ["fping", "-q", "-l", "-p", "1000", "-i", "1", *addresses]


def _first(net: Net, program: Program) -> tuple[float, float]:
    """Seconds from start to the first probe at the far end, and how much of that was waiting for a CPU."""
    first: list[int] = []

    def came() -> bool:
        first.extend(filter(None, (each.first_after(program.began_ns) for each in net.providers)))
        return bool(first)

    wait_until(came, f"{program.argv[0]}'s first probe")
    return (min(first) - program.began_ns) / _S, program.cpu_ns()[1] / _S


def _count(net: Net) -> int:
    return sum(len(each.heard()) for each in net.providers)


# -- flood -----------------------------------------------------------------------------------------------------------

FLOOD_MS, FLOOD_SEEN = 20, 100


def flood(quick: bool, tell: Callable[[str], None]) -> Report:
    """See the file's beginning."""
    seconds = 0.5 if quick else 4
    rows: list[list[object]] = []
    changes, missing = 0, []
    with Net(2) as net:
        dead = net.providers[0]
        with Program(
            "router", lsmpy_probe("ours", {each: (1, _timing(FLOOD_MS) | RUNS) for each in net.providers})
        ) as program:
            files, paths = Files(PLACE / "ours"), [PLACE / "ours" / f"ISP{each.n}_state" for each in net.providers]
            wait_until(lambda: len(dead.heard()) >= FLOOD_SEEN, "true probes to forge answers from")
            wait_until(lambda: [state.read_text(path) for path in paths] == ["up", "up"], "both to be up")
            files.wait(paths[0], "down", dead.answer(False))
            for what, packets in _forgeries([packet for _, packet in dead.heard()]):
                tell(what)
                frames = "".join(f"{(ROUTER_MAC + PROVIDER_MAC + IPV4 + packet).hex()}\n" for packet in packets)
                argv = [sys.executable, __file__, "--flood", str(seconds + 0.2)]
                with Program(dead.node, argv, frames) as forger:
                    wait_until(forger.said, "the forger")
                    start, before = time.time_ns(), program.cpu_ns()
                    time.sleep(seconds)
                    end, after = time.time_ns(), program.cpu_ns()
                    sent = float(forger.wait().split()[-1])
                wrong = [text for path in paths for text in files.texts(path, start)]
                paces = [_paced(each, start, end) for each in net.providers]
                cpu = ((b - a) / (end - start) * 100 for a, b in zip(before, after, strict=True))
                numbers = (sent, *itertools.chain(*paces), *cpu)
                rows.append([what, *(f"{each:.0f}" for each in numbers), len(wrong)])
                changes += len(wrong)
                missing.append(1 - min(pace for pace, _ in paces) * FLOOD_MS / 1000)
    lines = [f"Two ISPs, a probe every {FLOOD_MS} ms; the first is dead, and its far end sends forged answers."]
    lines += ["CPU: what the prober used, and waited for while others had it:", ""]
    head = ["", "forged/s", "dead: probes/s", "gap ms", "other: probes/s", "gap ms", "CPU %", "waited %", "changes"]
    goals = [Goal("changes of state", changes, 0, "files"), Goal("probes not sent, most", max(0, *missing), 0.05, "×")]
    return Report(lines + table(head, rows), goals)


def _forgeries(requests: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Each kind of lie, as far as somebody can tell it who has seen these probes but cannot break the keys."""
    chance = random.Random(SEED)
    some = requests[-FLOOD_SEEN:]
    yield "nothing", []
    yield "any identifier, any payload", [reply(each, chance.randbytes(2), chance.randbytes(56)) for each in some]
    yield "our identifier, any payload", [reply(each, payload=chance.randbytes(56)) for each in some]
    # The nonce begins the payload, the tag is at its bytes 16 to 24.
    torn = [(each[28:], chance.randbytes(8)) for each in some]
    yield (
        "our nonce, another tag",
        [reply(each, payload=old[:16] + tag + old[24:]) for each, (old, tag) in zip(some, torn, strict=True)],
    )
    yield "true answers, again", [reply(each) for each in some]
    yield (
        "unreachable, our identifier",
        [ip_packet(each[16:20], each[12:16], b"\3\1" + bytes(6) + each[:28]) for each in some],
    )


def forge(seconds: float) -> int:
    """Send the frames of standard input, again and again, as fast as possible; says `ready`, and how many a second."""
    os.nice(19)  # what comes from another machine costs ours no CPU to send
    frames = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    print("ready", flush=True)
    count, began = 0, time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("wan", 0))
        while (took := time.monotonic() - began) < seconds:
            if not frames:
                time.sleep(0.1)
            for frame in frames:
                raw.send(frame)
            count += len(frames)
    print(count / took)
    return 0


def _paced(provider: Provider, start_ns: int, end_ns: int) -> tuple[float, float]:
    """Probes a second and the longest gap in milliseconds, as they came to the far end."""
    times = [at for at, _ in provider.heard() if start_ns <= at <= end_ns]
    edges = [start_ns, *times, end_ns]
    gap = max(b - a for a, b in itertools.pairwise(edges))
    return len(times) / (end_ns - start_ns) * _S, gap / _MS


# -- what is printed -------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[bool, Callable[[str], None]], Report]] = {
    "detect": detect,
    "rtt": rtt,
    "cost": cost,
    "flood": flood,
}


def main() -> int:
    """Parse the arguments, go into a sandbox and measure there."""
    if sys.argv[1:2] == ["--dpinger"]:
        return dpinger(int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4:])
    if sys.argv[1:2] == ["--flood"]:
        return forge(float(sys.argv[2]))
    parser = argparse.ArgumentParser(
        "scripts/bench probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, rough numbers")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; all without")
    options = parser.parse_args()
    if wrong := [part for part in options.part if part not in PARTS]:
        parser.error(f"there is no part {wrong[0]!r}; there are {', '.join(PARTS)}")
    try:
        if not sandbox.inside():
            return sandbox.enter([sys.executable, __file__, *sys.argv[1:]])
        return _main(options.part or list(PARTS), options.quick)
    except LsmpyError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return error.exit_status


def _main(parts: Sequence[str], quick: bool) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # An installed program has its bytecode beside it; a checkout may lack it, and may be told not to write it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(PLACE / "bytecode")
    PLACE.mkdir()
    # lsm writes there, and to syslog.
    command.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib/lsm")
    if Path("/dev/log").exists():
        command.run("mount", "--bind", "/dev/null", "/dev/log")
    machine = {
        "kernel": platform.release(),
        "lsm": _version("lsm", "--version"),
        "fping": _version("fping", "--version"),
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 1),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    tell: Callable[[str], None] = _progress if sys.stderr.isatty() else lambda _: None
    try:
        for part in parts:
            report = PARTS[part](quick, lambda text, part=part: tell(f"{part}: {text}"))  # type: ignore[misc]
            tell("")
            print(f"\n== {part}\n\n" + "\n".join(report.lines), flush=True)
            print("\nTargets:\n" + "\n".join(map(str, report.goals)), flush=True)
    finally:
        tell("")
        shutil.rmtree(PLACE, ignore_errors=True)
    return 0


def _version(*argv: str) -> str:
    try:
        said = command.run(*argv)
    except command.CommandError as error:  # lsm ends with 2 after it has told
        said = error.stdout
    return said.split("\n")[0].split()[-1] if said else "?"


def _progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
