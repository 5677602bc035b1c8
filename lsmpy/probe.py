"""lsmpy-probe: probes every ISP through its own interface and writes the state files when a verdict changes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import heapq
import itertools
import logging
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from lsmpy import (
    LsmpyError,
    __version__,
    background,
    config,
    links,
    lsmconf,
    netlink,
    output,
    port,
    standing,
    state,
    verdict,
)
from lsmpy.blame import Blame
from lsmpy.herald import Herald
from lsmpy.neighbours import HEAD_START_NS
from lsmpy.prober import Prober, clock_ns
from lsmpy.source import Source, flavour, load, read
from lsmpy.target import Target
from lsmpy.writer import Writer

log = logging.getLogger(__name__)

_S = 1_000_000_000  # nanoseconds
_FILES_NS = 1 * _S  # how often an administrator's hand is looked for, and what is known is written
_STALL_NS = 1 * _S  # no scheduler delays anybody for so long: the machine slept, or its host did
_ROUTES_NS = _S // 10  # how often routes are looked at, which change all the time where a routing daemon runs
_NEVER_NS = 1 << 62
_MOST_SPREAD_NS = 1 * _S  # nobody waits longer for his first probe because of the others
_MANY_TARGETS = 50
_FEW_SOCKETS = 8
_MOST_SLACK_NS = 100_000_000

_T = TypeVar("_T")
_R = TypeVar("_R")


class ProbeError(LsmpyError):
    """Probing gave no result."""


class Daemon:
    """Probes all ISPs of a configuration and keeps their state files."""

    def __init__(self, path: Path, directory: Path | None, data: bytes | None = None) -> None:
        """Read the configuration at `path`, or this once the `data` that somebody has read there.

        `directory`, if given, goes before the one it names.

        Raises:
            ConfigError: the configuration is wrong.
            StateError: there is no state directory.
            PortError: we may not have packet sockets.
        """
        self._path, self._given = path, directory
        self._probers: list[Prober] = []
        self._tells = True
        self._blame = Blame()
        self._agenda: list[tuple[int, int, Prober, Target]] = []
        self._turns = itertools.count()
        self._files_ns = self._tell_ns = self._slack_ns = self._looked_ns = 0
        self._look_ns = _NEVER_NS
        self._selector = selectors.DefaultSelector()
        self._urgent = selectors.DefaultSelector()  # what cannot wait until others have arrived too
        self._caught: bytes = b""
        self._kernel: socket.socket | None = None
        self._source: Source
        self._writer: Writer
        self._herald: Herald
        self._load(data)

    def close(self) -> None:
        """Let go of every socket."""
        _at_once(Prober.close, self._probers)
        self._herald.close()
        self._selector.close()
        self._urgent.close()
        if self._kernel:
            self._kernel.close()

    def run(self, signals: socket.socket, once: bool) -> None:
        """Probe until a signal ends it or, with `once`, until each ISP has a verdict that is written.

        Raises:
            StateError: a state file cannot be written.
            CallerError: scripts cannot be run.
            ProbeError: `once`, and the probes of a full window leave it open whether an ISP is up.
        """
        for selector in (self._selector, self._urgent):
            selector.register(signals, selectors.EVENT_READ, lambda _: self._signal(signals))
        self._herald.begin(self._selector)
        while not (once and self._finished()):
            wake_ns = min(self._files_ns, self._look_ns, self._agenda[0][0])
            self._selector.select(max(0, wake_ns - clock_ns()) / _S)
            # Before looking what is there, so that nothing is judged as missing that had arrived by then.
            now_ns = clock_ns()
            stalled = now_ns > wake_ns + _STALL_NS
            for key, _ in self._selector.select(0):
                key.data(wake_ns - 1 if stalled else now_ns)  # whose time ended while we slept is nobody's loss
            if stalled:
                for prober in self._probers:
                    prober.stalled()
            self._turn(now_ns)
            if signal.SIGTERM in self._caught or signal.SIGINT in self._caught:
                return
            if signal.SIGHUP in self._caught:
                self._reload()
                self._herald.begin(self._selector)
            if signal.SIGUSR1 in self._caught:
                self._herald.dump()
            self._caught = b""
            # What arrives meanwhile is taken in together: it bears the kernel's time stamps, and waking costs most.
            self._urgent.select(self._pause_ns() / _S)
        self._tell(clock_ns())

    def _pause_ns(self) -> int:
        """For how long more may gather; what may change a status waits for nothing."""
        turning = (target.next_ns for each in self._probers for target in each.turning.values())
        first_ns = min(turning, default=None)
        return self._slack_ns if first_ns is None else max(0, min(self._slack_ns, first_ns - clock_ns()))

    def _signal(self, signals: socket.socket) -> None:
        self._caught += signals.recv(64)

    def _turn(self, now_ns: int) -> None:
        if now_ns >= self._look_ns:
            self._look_ns, self._looked_ns = _NEVER_NS, now_ns
            self._see(links.look(self._source.follows), now_ns)
        agenda = self._agenda
        while agenda[0][0] <= now_ns:
            _, _, prober, target = agenda[0]
            heapq.heapreplace(agenda, (prober.advance(target, now_ns), next(self._turns), prober, target))
        due = now_ns >= self._files_ns
        if due or any(each.changed for each in self._probers) or self._blame.blamed:
            self._judge(now_ns, due)
        if due:
            self._files_ns = now_ns + _FILES_NS
        if due and now_ns >= self._tell_ns:
            count = sum(len(each.targets) for each in self._probers)
            self._tell_ns = now_ns + round(standing.apart_s(count) * _S)
            self._tell(now_ns)

    def _judge(self, now_ns: int, all_files: bool) -> None:
        if not self._source.lsm:
            self._blame.look(self._probers)
        anything = all_files
        for prober in self._probers:
            prober.changed = False
            if (changed := prober.judge(self._blame.blamed, now_ns)) or all_files:
                self._writer.settle(prober.isp.name, prober.status)
            if changed:
                self._herald.say(prober)
            anything |= changed
        if anything:
            self._herald.tick()
            for name, word in self._herald.groups():
                self._writer.settle(name, word)

    def _tell(self, now_ns: int) -> None:
        known = {each.isp.name: each.standing(self._blame.blamed, now_ns) for each in self._probers}
        path = self._writer.directory / standing.FILE
        state.make_own_directory(path)
        try:
            state.write(path, standing.encode(standing.Standing(time.time(), known)))
            self._tells = True
        except state.StateError as error:  # which only `lsmpy status` misses
            if self._tells:
                log.error("%s", error)
            self._tells = False

    def _finished(self) -> bool:
        unknown = [each for each in self._probers if each.status == "unknown"]
        undecided = [target for each in unknown for target in each.targets]
        if unknown and all(each.cannot or each.link.samples == verdict.WINDOW for each in undecided):
            names = ", ".join(each.isp.name for each in unknown)
            why = next((str(each) for each in undecided if each.cannot), f"{verdict.WINDOW} probes leave it open")
            raise ProbeError(f"{names}: neither up nor down: {why}. The state file is unchanged")
        return not unknown and not self._writer.waits

    def _listen(self, kernel: socket.socket) -> None:
        """Hear by this socket from now on what the kernel changes."""
        for selector in (self._selector, self._urgent):
            if self._kernel:
                selector.unregister(self._kernel)
            selector.register(kernel, selectors.EVENT_READ, functools.partial(self._hear, kernel))
        if self._kernel:
            self._kernel.close()
        self._kernel = kernel

    def _hear(self, kernel: socket.socket, now_ns: int) -> None:
        """Something has changed: look at it in this turn, or soon if it is only routes that were looked at just now."""
        routes = True
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    routes &= netlink.only_routes(kernel.recv(1 << 16))
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # that much has changed
                        raise
                    routes = False
        self._look_ns = max(now_ns, self._looked_ns + _ROUTES_NS) if routes else now_ns

    def _see(self, snapshot: links.Snapshot, now_ns: int) -> None:
        for prober in self._probers:
            prober.see(snapshot, now_ns)

    def _reload(self) -> None:
        try:
            self._load()
        except LsmpyError as error:
            in_lsm_s_words = "reload config failed: " if self._source.lsm else ""
            log.error("%sthe configuration was not read again and the old one is kept: %s", in_lsm_s_words, error)
        else:
            log.info("the configuration was read again")

    def _load(self, data: bytes | None = None) -> None:
        loaded = load(self._path, data)
        router = loaded.router
        directory = self._given or Path(router.state_dir)
        state.require_directory(directory)
        old = {each.isp.name: each for each in self._probers}
        # All that can fail comes first, and what it has opened until then is closed again.
        with contextlib.ExitStack() as new:
            fresh = [isp.name for isp in router.isps if isp.name not in old]
            opened = dict(zip(fresh, _open(len(fresh), new), strict=True))
            ports = [opened[isp.name] if isp.name in opened else old[isp.name].port for isp in router.isps]
            kernel = new.enter_context(contextlib.closing(_hear_of_changes(loaded.groups)))
            snapshot = links.look(loaded.follows)
            new.pop_all()
        for warning in router.warnings:
            log.warning("%s", warning)
        before = (self._herald, self._writer) if self._probers else (None, None)
        self._source = loaded
        self._herald, self._writer = Herald(loaded, directory, before[0]), Writer(directory, before[1])
        self._probers = [
            Prober(isp, each, self._selector, old.pop(isp.name, None), loaded.find)
            for isp, each in zip(router.isps, ports, strict=True)
        ]
        _at_once(Prober.close, list(old.values()))
        self._herald.follow(self._probers)
        self._listen(kernel)
        now_ns = clock_ns()
        self._see(snapshot, now_ns)
        self._plan(now_ns)

    def _plan(self, now_ns: int) -> None:
        """Spread the targets over their intervals, not all at once; the first probe of each comes early."""
        count, places = sum(len(each.targets) for each in self._probers), itertools.count()
        self._agenda = []
        for prober in self._probers:
            for target in prober.targets:
                place, interval_ns = next(places), prober.isp.probe.interval_ms * 1_000_000
                begin_ns = now_ns + HEAD_START_NS
                target.beat_ns = begin_ns + place * interval_ns // count
                target.due_ns = target.next_ns = begin_ns + place * min(interval_ns, _MOST_SPREAD_NS) // count
                self._agenda.append((target.due_ns, next(self._turns), prober, target))
        heapq.heapify(self._agenda)
        shortest_ms = min(min(each.isp.probe.interval_ms, each.isp.probe.timeout_ms) for each in self._probers)
        # A tenth of the interval with many targets, and next to nothing with few, which have little to take together.
        self._slack_ns = min(shortest_ms * 100_000, _MOST_SLACK_NS) * min(count, _MANY_TARGETS) // _MANY_TARGETS


def _open(count: int, opened: contextlib.ExitStack) -> list[port.Port]:
    """So many ports, which `opened` closes.

    Raises:
        PortError: we may not have packet sockets.
    """

    def one(_: int) -> port.Port:
        return opened.enter_context(contextlib.closing(port.Port()))

    return _at_once(one, range(count))


def _at_once(do: Callable[[_T], _R], to: Collection[_T]) -> list[_R]:
    """Do something to each, to many at the same time.

    The kernel takes 15 ms to open a packet socket with its ring, and as long to close one; for 200 that is seconds.
    """
    if len(to) <= _FEW_SOCKETS:
        return [do(each) for each in to]
    from concurrent.futures import ThreadPoolExecutor  # few need it

    with ThreadPoolExecutor(64) as threads:
        return list(threads.map(do, to))


def _hear_of_changes(groups: int) -> socket.socket:
    """A socket that tells of changes of these groups.

    Raises:
        ProbeError: the kernel does not let us have it.
    """
    try:
        opened = netlink.open_socket(groups)
    except OSError as error:
        raise ProbeError(f"the kernel does not tell of changes of its interfaces: {error.strerror}") from error
    opened.setblocking(False)
    return opened


def main(argv: list[str] | None = None) -> int:
    """Run lsmpy-probe and return its exit status."""
    try:
        with output.whole():
            options = _arguments(argv)
        _run(options)
    except LsmpyError as error:
        log.error("lsmpy-probe: error: %s", error)
        return error.exit_status
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lsmpy-probe", description=__doc__)
    parser.add_argument("-c", "--config", metavar="FILE", type=Path, default=config.DEFAULT_PATH, help="or an lsm.conf")
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="where the state files are")
    parser.add_argument("--once", action="store_true", help="end when each ISP has a verdict and that is written")
    parser.add_argument(
        "-p", "--pidfile", metavar="FILE", type=Path, help="write the process id there, and be the only one"
    )
    parser.add_argument("--fork", action="store_true", help="go on in the background, as LSM does")
    parser.add_argument("-f", "--no-fork", action="store_true", help="as LSM: neither --fork nor --pidfile hold")
    parser.add_argument("-v", "--version", action="version", version=f"lsmpy-probe version {__version__}")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> None:
    data = read(options.config)
    ident = flavour(options.config) if lsmconf.is_lsm(options.config, data) else None
    background.log_to(ident)
    with background.signals() as signals, contextlib.closing(Daemon(options.config, options.state_dir, data)) as daemon:
        pid_file, fork = (None, False) if options.no_fork else (options.pidfile, options.fork)
        with background.running(pid_file, fork):
            daemon.run(signals, options.once)


if __name__ == "__main__":
    sys.exit(main())
