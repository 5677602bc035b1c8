"""Measures rebuilds: lsmpy's, beside the article's script and beside the bare tools that are fed with the same text.

Every variant has a router of its own in a network namespace, and all take turns, so that a load on the machine falls on
all alike; ratios are medians of the rounds' ratios. Every rebuild is a real change: before each, ISP2's state changes,
and after each the kernel is asked whether it has followed. Processes are started from a small process inside the
namespace, so that nothing but the program itself is measured.

  article   config_router.sh from the article, read at run time ($LSMPY_SEED or ../shared/seed/), for as many ISPs; its
            tables by number, for both families its second half once more for IPv6
  one-shot  python -m lsmpy.reconfig, as it is installed for users: without the packages that only its development needs
  warm      lsmpy.apply.rebuild in a process that runs already, as the watcher calls it
  whole     the floor: a shell that calls ip -batch and iptables-restore once a family, for everything of --dry-run, and
            then, when ISP2 goes down, conntrack as --dry-run does
  changed   the same tools with only what differs
  watch     from the end of a state file's change (rename done) to the commit in the kernel, with --watch running
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import logging
import os
import platform
import queue
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import lsmpy
from lsmpy import LsmpyError, apply, changes, command, config, freeing, iptables, netfilter, plan, sandbox, state, twin
from lsmpy.model import FAMILIES, Family, Router

SEED = Path(__file__).resolve().parents[2] / "shared/seed/policy-routing-multihoming.txt"
PLACE = Path("/run/lsmpy-bench")
INSTALLED = PLACE / "installed"
TOOLS = {4: "iptables", 6: "ip6tables"}
ROUNDS = {2: 31, 4: 11, 16: 7, 64: 15}
QUICK_ROUNDS = {2: 2, 4: 2}
ARTICLE_ROUNDS = {64: 1}  # it starts ten thousand programs there
PAUSE_S = 0.25  # longer than the watcher lets a burst settle: every change measured is the first of its burst
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7  # <linux/netlink.h>, <linux/netfilter/nfnetlink.h>
_POLL_S, _PATIENCE_S = 0.005, 20.0


class BenchError(LsmpyError):
    """Nothing can be measured, or what was measured was no rebuild."""


# -- what is measured ------------------------------------------------------------------------------------------------


def configuration(isps: int, families: Sequence[Family]) -> str:
    """The article's router with more ISPs."""
    tables = ['[nat]\nipv6 = "snat"\n']
    for kind, number, interface, addresses, more in [
        *(
            ("isp", n, n + 1, (f"10.{n}.0.1/24", f"2001:db8:{n:x}::1/64"), (f"10.{n}.0.2", f"2001:db8:{n:x}::2"))
            for n in range(1, isps + 1)
        ),
        *(("lan", n, n - 1, (f"192.168.{n}.254/24", f"fd00:a:0:{n}::1/64"), ()) for n in (1, 2)),
    ]:
        chosen = [text for text in addresses if ipaddress.ip_interface(text).version in families]
        hops = [text for text in more if ipaddress.ip_address(text).version in families]
        tables.append(
            f'[[{kind}]]\nname = "{kind.upper()}{number}"\ninterface = "eth{interface}"\n'
            + f"address = {json.dumps(chosen)}\n"
            + (f'gateway = {json.dumps(hops)}\ncheck = ["203.0.113.{number}"]\n' if hops else "")
        )
    return "\n".join(tables)


def article(seed: str, router: Router, directory: Path) -> str:
    """The article's second script, for this router.

    Raises:
        BenchError: it is not in the text.
    """
    match = re.search(r"^#!/bin/bash\n\n# using associative arrays.*?(?=^This is just a skeleton)", seed, re.M | re.S)
    head, found, body = (match[0] if match else "").partition("# IPv4\n")
    routes = re.compile(r'( *ip route add table "\$i" [0-9].*\n)+')
    if not found or not routes.search(body):
        raise BenchError("the text does not hold the article's script as it is known here")
    kept = [line for line in head.splitlines() if not re.match(r"(isp|iface|ip|localip|mark|statedir)(=|\[)", line)]
    last = kept.index("upcount=0")
    given = [f"isp=( {' '.join(isp.name for isp in router.isps)} )", "declare -A table", f"statedir={directory}"]
    for isp in router.isps:
        given += [f'{key}["{isp.name}"]="{getattr(isp, key)}"' for key in ("mark", "table")]
        given.append(f'iface["{isp.name}"]="{isp.interface}"')
    parts = ["\n".join([*kept[:last], *given, *kept[last:]]) + "\n"]
    lans = {lan: lan.addresses(4)[0].network for lan in router.lans}
    for family in router.families:
        for isp in router.isps:
            parts.append(f'ip["{isp.name}"]="{isp.next_hop(family)}"\n')
            parts.append(f'localip["{isp.name}"]="{isp.addresses(family)[0].ip}"\n')
        # The article's own IPv6 routes have no source.
        local = [
            f'    ip route add table "$i" {each.network} dev {item.interface}'
            + (f" src {each.ip}\n" if family == 4 else "\n")
            for item in (*router.isps, *router.lans)
            for each in item.addresses(family)
        ]
        text = routes.sub(lambda _, local=local: "".join(local), body)  # type: ignore[misc]
        text = text.replace('table "$i"', 'table "${table[$i]}"')
        if family == 6:
            text = re.sub(r"\bip (?=route|rule)", "ip -6 ", text).replace("iptables", "ip6tables")
            for lan, network in lans.items():
                text = text.replace(str(network), str(lan.addresses(6)[0].network))
        parts.append(text)
    return "".join(parts)


def floors(router: Router, place: Path) -> None:
    """Write the texts that lsmpy would give to the tools, and the shell scripts that give them.

    Raises:
        BenchError: a change of state does not change what it is expected to.
    """
    frees = freeing.commands(router)
    backend = iptables.find(router.options.iptables)
    sides = {}
    for text in state.FORCES:
        states = {isp.name: state.judge(text if isp.name == "ISP2" else None) for isp in router.isps}
        sides[text] = plan.build(router, states, None).sides
    for text, other in (("up", "down"), ("down", "up")):
        here = place / text
        here.mkdir()
        whole: list[str] = []
        changed: list[str] = []
        for side, before in zip(sides[text], sides[other], strict=True):
            # Rules that are there already are refused, once a line, and the others added: --dry-run does it so too.
            (here / f"ip{side.family}").write_text(changes.add_text(side.routes, side.rules))
            (here / f"whole{side.family}").write_text(netfilter.render(side.tables))
            step = changes.between(before, side)
            if step.stale_rules or step.stale_routes:
                raise BenchError("a change of state is expected to leave nothing stale")
            (here / f"changed{side.family}").write_text(step.load_text())
            (here / f"ip-changed{side.family}").write_text(step.add_text())
            whole.append(f"ip -{side.family} -force -batch {here}/ip{side.family} 2>/dev/null || true\n")
            changed.append(f"ip -{side.family} -batch {here}/ip-changed{side.family}\n")
            for name, lines in (("whole", whole), ("changed", changed)):
                lines.append(f"{backend.restore(side.family)} -w <{here}/{name}{side.family}\n")
                if text == "down":
                    lines += [f"{each} >/dev/null 2>&1 || true\n" for each in frees[side.family, "ISP2"]]
        for name, lines in (("whole", whole), ("changed", changed)):
            (here / name).write_text("set -e\n" + "".join(lines))


# -- one router each, and a process inside it that measures ----------------------------------------------------------


class Station:
    """A router in a namespace of its own, on which one variant is measured."""

    def __init__(self, node: str, isps: int, families: Sequence[Family]) -> None:
        """Build it and start the measuring process.

        Raises:
            CommandError: the kernel refused something.
        """
        self.node, self.place = node, PLACE / node
        self.directory, self.config = self.place / "state", self.place / "lsmpy.toml"
        self.directory.mkdir(parents=True)
        self.config.write_text(configuration(isps, families))
        self.router = config.load(self.config)
        self._watcher: subprocess.Popen[bytes] | None = None
        ports = [item.interface for item in (*self.router.isps, *self.router.lans)]
        # All cables end in one other namespace: what is not the router's must not be in what it looks at.
        lines = [f"netns add {node}", f"netns add {node}-far"]
        lines += [f"link add {port} netns {node} type veth peer name {port} netns {node}-far" for port in ports]
        command.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))
        ups = "".join(f"link set {port} up\n" for port in ports)
        command.run("nsenter", f"--net={sandbox.NETNS / node}-far", "ip", "-batch", "-", stdin=ups)
        command.run(*self._inside, "sh", "-e", "-s", stdin=twin.Twin(self.router).router_script(None))
        argv = [*self._inside, sys.executable, __file__, "--worker", str(self.place)]
        self._worker = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", f"--net={sandbox.NETNS / self.node}"]

    def watch(self) -> None:
        """Start `lsmpy-reconfig --watch`."""
        argv = [*self._inside, *one_shot(self), "--watch"]
        with open(self.place / "watch.log", "wb") as log:
            self._watcher = subprocess.Popen(argv, stdout=log, stderr=log)

    def ask(self, how: str, text: str, *argv: str) -> float:
        """Change ISP2's state to `text`, let `how` rebuild, and return the milliseconds.

        Raises:
            BenchError: the kernel has not followed.
        """
        if not self._worker.stdin or not self._worker.stdout:
            raise BenchError("the measuring process has no pipes")
        self._worker.stdin.write(json.dumps([how, text, argv]) + "\n")
        self._worker.stdin.flush()
        line = self._worker.stdout.readline()
        answer = json.loads(line) if line else {"error": "the measuring process has died"}
        if "error" in answer:
            log = self.place / "watch.log"
            raise BenchError(f"{self.node}: {answer['error']}\n{log.read_text() if log.exists() else ''}")
        return float(answer["ms"])

    def close(self) -> None:
        """End its processes and take the router down."""
        if self._watcher:
            self._watcher.terminate()
            self._watcher.wait()
        self._worker.communicate()
        command.run("ip", "-batch", "-", stdin=f"netns delete {self.node}\nnetns delete {self.node}-far\n")
        shutil.rmtree(self.place)

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def one_shot(station: Station) -> list[str]:
    """The command line of one rebuild."""
    argv = [str(INSTALLED / "bin/python"), "-m", "lsmpy.reconfig", "-c", str(station.config), "--state-dir"]
    return [*argv, str(station.directory)]


def install() -> None:
    """Make an environment of lsmpy and what it requires, no more: what is imported from there costs what users pay."""
    venv.create(INSTALLED)
    (packages,) = INSTALLED.glob("lib/python*/site-packages")
    (packages / "lsmpy").symlink_to(Path(lsmpy.__file__).parent)
    names = [re.split(r"\W", each)[0] for each in metadata.requires("lsmpy") or () if "extra" not in each]
    for found in map(metadata.distribution, names):
        for part in {file.parts[0] for file in found.files or ()} - {".."}:
            (packages / part).symlink_to(str(found.locate_file(part)))


class Worker:
    """The measuring process: reads `[HOW, STATE, ARGV]`, changes ISP2's state, and answers with milliseconds."""

    def __init__(self, place: Path) -> None:
        """Read the configuration in `place`."""
        self.place, self.directory = place, place / "state"
        self.router = config.load(place / "lsmpy.toml")
        self.commits: queue.Queue[float] | None = None

    def serve(self) -> int:
        """Answer until there is nothing more to read."""
        ways: dict[str, Callable[[str, list[str]], float]] = {
            "spawn": self._spawn,
            "warm": self._warm,
            "watch": self._watch,
        }
        for line in sys.stdin:
            how, text, argv = json.loads(line)
            try:
                milliseconds = ways[how](text, argv) * 1000
                if not self._shows(text):
                    raise BenchError(f"ISP2 should be {text} now, and the kernel does not show it")
                answer: dict[str, object] = {"ms": milliseconds}
            except (LsmpyError, OSError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
        return 0

    def _write(self, text: str) -> None:
        state.write(state.state_path(self.directory, "ISP2"), text)

    def _spawn(self, text: str, argv: list[str]) -> float:
        self._write(text)
        said = self.place / "said"
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        program = command.find(argv[0])
        began = time.perf_counter()
        child = os.posix_spawn(program, argv, os.environ, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        took = time.perf_counter() - began
        if status:
            raise BenchError(f"{' '.join(argv)} ended with status {status}: {said.read_text(errors='replace')}")
        return took

    def _warm(self, text: str, _: list[str]) -> float:
        self._write(text)
        began = time.perf_counter()
        outcome = apply.rebuild(self.router, self.directory)
        took = time.perf_counter() - began
        if not outcome.changed:
            raise BenchError("the rebuild found nothing to change")
        return took

    def _watch(self, text: str, _: list[str]) -> float:
        nft = iptables.find(self.router.options.iptables).kind == "nft"
        if self.commits is None:
            self.commits = queue.Queue()
            if nft:
                threading.Thread(target=_listen, args=(_nftables(), self.commits), daemon=True).start()
        while not self.commits.empty():
            self.commits.get()
        self._write(text)
        began = time.perf_counter()
        while True:
            try:
                at = self.commits.get(timeout=_PATIENCE_S if nft else _POLL_S)
            except queue.Empty:
                at = time.perf_counter()
            if self._shows(text):
                while not self.commits.empty():
                    at = self.commits.get()  # the other family's commit, while we were looking
                return at - began
            if time.perf_counter() - began > _PATIENCE_S:
                raise BenchError(f"waited {_PATIENCE_S:g} s in vain for the watcher")

    def _shows(self, text: str) -> bool:
        """Whether new connections of the first LAN may go to ISP2, in every family, as `text` says."""
        pattern = re.compile(r"^-A (LSMPY-C-LAN1|PREROUTING -i eth0) .*-[gj] (LSMPY-M|MARK)-ISP2$", re.M)
        listings = [command.run(TOOLS[family], "-t", "mangle", "-S") for family in self.router.families]
        return all(bool(pattern.search(listing)) == (text == "up") for listing in listings)


def _nftables() -> socket.socket:
    """A socket on which the kernel tells of every commit to nftables."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    opened.bind((0, 1 << _NFNLGRP_NFTABLES - 1))
    return opened


def _listen(opened: socket.socket, commits: queue.Queue[float]) -> None:
    while True:
        with contextlib.suppress(OSError):  # ENOBUFS: messages were lost, so there were some
            opened.recv(1 << 16)
        commits.put(time.perf_counter())


# -- rounds ----------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was measured for one number of ISPs: milliseconds a round for each variant, None where it sat out."""

    isps: int
    families: str
    rounds: dict[str, list[float | None]] = field(default_factory=dict)

    def values(self, variant: str) -> list[float]:
        """All rounds in which it took part."""
        return [value for value in self.rounds.get(variant, []) if value is not None]

    def median(self, variant: str) -> float | None:
        """In milliseconds."""
        return statistics.median(values) if (values := self.values(variant)) else None

    def high(self, variant: str) -> float | None:
        """The 95th percentile, by nearest rank."""
        values = sorted(self.values(variant))
        return values[max(0, -(-95 * len(values) // 100) - 1)] if values else None

    def ratio(self, variant: str, other: str) -> float | None:
        """The median of the rounds' ratios."""
        pairs = zip(self.rounds.get(variant, []), self.rounds.get(other, []), strict=False)
        ratios = [a / b for a, b in pairs if a is not None and b is not None]
        return statistics.median(ratios) if ratios else None

    def more(self, variant: str, other: str) -> float | None:
        """By how many milliseconds the medians differ."""
        a, b = self.median(variant), self.median(other)
        return None if a is None or b is None else a - b


VARIANTS = ("article", "one-shot", "warm", "whole", "changed", "watch")
REFERENCE = "warm at 2"


def measure(plan_of_rounds: dict[int, int], seed: str | None, tell: Callable[[str], None]) -> list[Result]:
    """All sizes, IPv4 alone and both families."""
    results = []
    for families in (FAMILIES[:1], FAMILIES):
        with contextlib.ExitStack() as references:
            reference: Station | None = None
            for isps, rounds in plan_of_rounds.items():
                result = Result(isps, "IPv4" if len(families) == 1 else "both")
                with contextlib.ExitStack() as stack:
                    stations = dict(_stations(stack if reference else references, isps, families, seed))
                    if reference:
                        stations[REFERENCE] = reference
                    for number in range(-1, rounds):
                        tell(f"{isps} ISPs, {result.families}: round {max(number, 0)} of {rounds}")
                        _round(result, stations, number)
                    reference = reference or stations["warm"]
                results.append(result)
    return results


def _stations(
    stack: contextlib.ExitStack, isps: int, families: Sequence[Family], seed: str | None
) -> Iterator[tuple[str, Station]]:
    for variant in VARIANTS:
        if variant == "article" and seed is None:
            continue
        station = stack.enter_context(Station(f"{variant}-{isps}-{len(families)}", isps, families))
        if variant == "article" and seed is not None:
            (station.place / "config_router.sh").write_text(article(seed, station.router, station.directory))
        elif variant in ("whole", "changed"):
            floors(station.router, station.place)
        yield variant, station


def _round(result: Result, stations: dict[str, Station], number: int) -> None:
    """Every variant once, each round beginning with another; the round before the first is not counted."""
    text = "down" if number % 2 == 0 else "up"
    names = list(stations)
    start = number % len(names)
    for name in names[start:] + names[:start]:
        station, value = stations[name], None
        if number < 0:
            _prepare(name, station, text)
        elif name != "article" or number < ARTICLE_ROUNDS.get(result.isps, number + 1):
            how = {"warm": "warm", REFERENCE: "warm", "watch": "watch"}.get(name, "spawn")
            value = station.ask(how, text, *_argv(name, station, text))
        if number >= 0:
            result.rounds.setdefault(name, []).append(value)
        if name == "watch":
            time.sleep(PAUSE_S)


def _prepare(name: str, station: Station, text: str) -> None:
    """The first rebuild, which has everything to do."""
    if name == "changed":
        station.ask("spawn", text, "sh", str(station.place / text / "whole"))
    elif name in ("one-shot", "warm", "watch"):
        station.ask("spawn", text, *one_shot(station))
        if name == "watch":
            station.watch()
            # One change, so that it is known to be awake.
            station.ask("watch", "down")
            time.sleep(PAUSE_S)
            station.ask("watch", text)
    elif name == REFERENCE:
        station.ask("spawn", text, *one_shot(station))
    else:
        station.ask("spawn", text, *_argv(name, station, text))


def _argv(name: str, station: Station, text: str) -> list[str]:
    if name == "article":
        return ["bash", str(station.place / "config_router.sh")]
    if name in ("whole", "changed"):
        return ["sh", str(station.place / text / name)]
    return one_shot(station) if name == "one-shot" else []


# -- what is printed -------------------------------------------------------------------------------------------------


def targets(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What was to be reached, what was, and whether that is enough; only what was measured."""
    found: list[dict[str, Any]] = []

    def add(what: str, value: float | None, limit: float, unit: str, least: bool = False) -> None:
        if value is not None:
            ok = value >= limit if least else value <= limit
            found.append({"what": what, "value": value, "limit": limit, "unit": unit, "least": least, "ok": ok})

    for result in results:
        title = f"{result.isps} ISPs, {result.families}"
        add(f"warm / whole, {title}", result.ratio("warm", "whole"), 1.25, "×")
        if result.isps == 2:
            add(f"watch - whole, {title}", result.more("watch", "whole"), 30, "ms")
        if result.isps == 2 and result.families == "both":
            add(f"one-shot / article, {title}", result.ratio("one-shot", "article"), 1.25, "×")
        if result.isps == 16 and result.families == "both":
            add(f"article / one-shot, {title}", result.ratio("article", "one-shot"), 6, "×", least=True)
        if result.isps == 64:
            add(f"warm / warm at 2 ISPs, {title}", result.ratio("warm", REFERENCE), 2, "×")
    return found


def report(results: Sequence[Result], machine: dict[str, Any]) -> Iterator[str]:
    """The lines for people."""
    yield ", ".join(f"{key} {value}" for key, value in machine.items())
    yield ""
    yield "Milliseconds, median (minimum):"
    heads = "".join(f"{name:>16}" for name in VARIANTS)
    yield f"{'ISPs':>4} {'families':8} {'rounds':>6}{heads}{'watch p95':>11}"
    for each in results:
        row = "".join(f"{_cell(each, name):>16}" for name in VARIANTS)
        yield (f"{each.isps:4} {each.families:8} {len(each.rounds['warm']):6}{row}{_number(each.high('watch'), 0):>11}")
    yield ""
    pairs = [("one-shot", "article"), ("article", "one-shot"), ("warm", "whole"), ("warm", "changed")]
    yield "Ratios, median of the rounds':"
    titles = [*(f"{a} / {b}" for a, b in pairs), f"warm / {REFERENCE}", "watch - whole", "watch - changed"]
    yield f"{'ISPs':>4} {'families':8}" + "".join(f"{title:>20}" for title in titles)
    for each in results:
        cells = (
            *(_number(each.ratio(a, b), 2) for a, b in (*pairs, ("warm", REFERENCE))),
            *(_number(each.more("watch", floor), 0, " ms") for floor in ("whole", "changed")),
        )
        yield f"{each.isps:4} {each.families:8}" + "".join(f"{cell:>20}" for cell in cells)
    yield ""
    yield "Targets:"
    for target in targets(results):
        bound = "at least" if target["least"] else "at most"
        digits = 0 if target["unit"] == "ms" else 2
        said = f"{_number(target['value'], digits)} {target['unit']}, {bound} {target['limit']:g}"
        yield f"  {'ok    ' if target['ok'] else 'MISSED'} {target['what']}: {said}"


def _cell(result: Result, name: str) -> str:
    values = result.values(name)
    return f"{result.median(name):.0f} ({min(values):.0f})" if values else "-"


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def as_json(results: Sequence[Result], machine: dict[str, Any]) -> str:
    """The same for programs."""
    rows = [
        {
            "isps": each.isps,
            "families": each.families,
            "variants": {
                name: {"median_ms": each.median(name), "min_ms": min(values), "p95_ms": each.high(name), "ms": values}
                for name in each.rounds
                if (values := each.values(name))
            },
        }
        for each in results
    ]
    return json.dumps({"machine": machine, "results": rows, "targets": targets(results)}, indent=1)


def main() -> int:
    """Parse the arguments, go into a sandbox and measure there."""
    if sys.argv[1:2] == ["--worker"]:
        logging.disable()
        return Worker(Path(sys.argv[2])).serve()
    parser = argparse.ArgumentParser(
        "scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 and 4 ISPs, few rounds, rough numbers")
    parser.add_argument("--json", action="store_true", help="print JSON, and the table on standard error")
    options = parser.parse_args()
    try:
        if not sandbox.inside():
            return sandbox.enter([sys.executable, __file__, *sys.argv[1:]])
        return _main(options)
    except LsmpyError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return error.exit_status


def _main(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # An installed program has its bytecode beside it; a checkout may lack it, and may be told not to write it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(PLACE / "bytecode")
    path = Path(os.environ.get("LSMPY_SEED", SEED))
    seed = path.read_text().replace("\xa0", "") if path.is_file() else None
    if seed is None:
        print(f"bench: the article is not at {path}, so its column stays empty; set LSMPY_SEED", file=sys.stderr)
    backend = iptables.find("auto").kind
    machine = {
        "kernel": platform.release(),
        "iptables": command.run("iptables", "--version").strip().removeprefix("iptables "),
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 1),
        "watch's resolution": "none lost, the kernel tells of its commits" if backend == "nft" else f"{_POLL_S:g} s",
    }
    tell = _progress if sys.stderr.isatty() else lambda _: None
    try:
        install()
        results = measure(QUICK_ROUNDS if options.quick else ROUNDS, seed, tell)
    finally:
        tell("")
        shutil.rmtree(PLACE, ignore_errors=True)
    print("\n".join(report(results, machine)), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(as_json(results, machine))
    return 0


def _progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
