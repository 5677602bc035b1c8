"""lsmpy-probe: probes every ISP through its own interface and writes the state files when a verdict changes."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

from lsmpy import LsmpyError, config, model, state, verdict, wire

log = logging.getLogger(__name__)

_S, _MS = 1_000_000_000, 1_000_000  # nanoseconds
_REFRESH_NS = 30 * _S  # how old a gateway's hardware address may be while probes are answered
_ASK_AGAIN_NS = 1 * _S  # how often it is asked for while they are not
_FILES_NS = 1 * _S  # how often an administrator's hand is looked for
_PAYLOAD = 56  # bytes, as in ping(8)


class ProbeError(LsmpyError):
    """Probing gave no result."""


@dataclass(slots=True)
class Gateway:
    """The next hop of one family and where on the link it was last heard, which holds until something newer is."""

    address: model.Address
    source: model.Address
    mac: bytes = b""
    asked_ns: int = 0
    asked_from: bytes = b""  # our hardware address, which the question also tells


@dataclass(slots=True)
class Target:
    """One address that is probed: what is on its way to it, and what came of it."""

    check: str
    address: model.Address
    gateway: Gateway
    ident: int
    payload: bytes = field(default_factory=lambda: os.urandom(_PAYLOAD))
    link: verdict.Link = field(default_factory=verdict.Link)
    flight: verdict.Flight = field(default_factory=verdict.Flight)
    seq: int = 0
    due_ns: int = 0


class Prober:
    """Probes the `targets` of one `isp`; `status` is what the probes say."""

    def __init__(self, isp: model.Isp, idents: Iterator[int], old: Prober | None = None) -> None:
        """Prepare to probe `isp`, each target with an identifier of its own and with what `old` knows of the ISP.

        Raises:
            WireError: we may not have packet sockets.
        """
        self.isp = isp
        self.status: verdict.Status = old.status if old else "unknown"
        self.port: wire.Port = old.port if old and old.isp.interface == isp.interface else wire.Port(isp.interface)
        self._problem: str = old._problem if old else ""
        macs: dict[model.Address, bytes] = {each.address: each.mac for each in old._gateways} if old else {}
        hops = [ip_address(text) for text in isp.gateway]
        sources = {hop: isp.addresses(hop.version)[0].ip for hop in hops}
        self._gateways: list[Gateway] = [Gateway(hop, sources[hop], macs.get(hop, b"")) for hop in hops]
        known = {(each.check, each.address): each for each in old.targets} if old else {}
        self.targets: list[Target] = []
        for check in isp.check:
            address = hops[0] if check == "gateway" else ip_address(check)
            gateway = next(each for each in self._gateways if each.address.version == address.version)
            target = known.get((check, address)) or Target(check, address, gateway, next(idents) & 0xFFFF)
            self.targets.append(replace(target, gateway=gateway))

    def start(self, now_ns: int, first_ns: Sequence[int]) -> None:
        """Look for the gateways now, and probe each target for the first time when `first_ns` says."""
        for target, due_ns in zip(self.targets, first_ns, strict=True):
            target.due_ns = due_ns
            self._look_for(target.gateway, now_ns, False)

    def wake_ns(self) -> int:
        """When `advance` has something to do next."""
        timeout_ns = self.isp.probe.timeout_ms * _MS
        return min(min(each.due_ns, each.flight.deadline_ns(timeout_ns) or each.due_ns) for each in self.targets)

    def receive(self) -> None:
        """Take in what has arrived. What does not fit a probe of ours in every respect is not an answer."""
        for heard in self.port.receive():
            if isinstance(heard, wire.Neighbour):
                for gateway in self._gateways:
                    if gateway.address == heard.address:
                        gateway.mac = heard.mac
                continue
            for target in self.targets:
                expected = (target.ident, target.address, target.gateway.source, target.payload)
                if expected == (heard.ident, heard.source, heard.destination, heard.payload):
                    target.flight.answered(heard.seq)

    def advance(self, now_ns: int) -> bool:
        """Judge and send what is due; returns whether the probes have come to another verdict."""
        for target in self.targets:
            for lost in target.flight.fates(now_ns, self.isp.probe.timeout_ms * _MS):
                target.link = verdict.step(target.link, lost, self.isp.probe)
            if now_ns >= target.due_ns:
                self._probe(target, now_ns)
        before, self.status = self.status, verdict.combine([each.link.status for each in self.targets], self.isp.quorum)
        if self.status in (before, "unknown"):
            return False
        links = "; ".join(f"{each.link} ({each.address})" for each in self.targets)
        log.info("%s %s: %s", self.isp.name, self.status, links)
        return True

    def _probe(self, target: Target, now_ns: int) -> None:
        interval_ns = self.isp.probe.interval_ms * _MS
        target.due_ns += ((now_ns - target.due_ns) // interval_ns + 1) * interval_ns  # what was missed stays missed
        gateway = target.gateway
        self._look_for(gateway, now_ns, target.link.lost_in_a_row > 0)
        if self.port.mac and gateway.mac:
            macs = self.port.mac, gateway.mac
            echo = wire.echo(*macs, gateway.source, target.address, target.ident, target.payload)
            self.port.send(echo.frame(target.seq))
        target.flight.sent(target.seq, now_ns)
        target.seq = (target.seq + 1) & 0xFFFF
        if self.port.problem and self.port.problem != self._problem:
            log.warning("%s: %s; its probes count as lost", self.isp.name, self.port.problem)
        elif self._problem and not self.port.problem:
            log.info("%s: probes are sent on %s again", self.isp.name, self.isp.interface)
        self._problem = self.port.problem

    def _look_for(self, gateway: Gateway, now_ns: int, unanswered: bool) -> None:
        self.port.follow()
        patience_ns = _ASK_AGAIN_NS if unanswered or not gateway.mac else _REFRESH_NS
        told = gateway.asked_from == self.port.mac  # or, without an interface, there is nothing to tell
        if told and (not self.port.mac or now_ns < gateway.asked_ns + patience_ns):
            return
        self.port.send(wire.solicitation(self.port.mac, gateway.source, gateway.address))
        if not self.port.problem:
            gateway.asked_ns, gateway.asked_from = now_ns, self.port.mac


class Daemon:
    """Probes all ISPs of a configuration and keeps their state files."""

    def __init__(self, path: Path, directory: Path | None) -> None:
        """Read the configuration at `path`; `directory`, if given, goes before the one it names.

        Raises:
            ConfigError: the configuration is wrong.
            StateError: there is no state directory.
            WireError: we may not have packet sockets.
        """
        self._path, self._given, self._directory = path, directory, Path()
        self._probers: list[Prober] = []
        self._held: dict[str, str | None] = {}
        self._files_ns = 0
        self._idents = itertools.count(os.getpid())
        self._load()

    def run(self, signals: socket.socket, once: bool) -> None:
        """Probe until a signal ends it or, with `once`, until each ISP has a verdict that is written.

        Raises:
            StateError: a state file cannot be written.
            ProbeError: `once`, and the probes of a full window leave it open whether an ISP is up.
        """
        while not (once and self._finished()):
            pause_ns = min(self._files_ns, *(each.wake_ns() for each in self._probers)) - time.monotonic_ns()
            sockets = [signals.fileno(), *(each.port.fileno() for each in self._probers)]
            ready, _, _ = select.select(sockets, [], [], max(0, pause_ns) / _S)
            # What has arrived is taken in before anything is judged: our own slowness is no fault of the link.
            for prober in self._probers:
                if prober.port.fileno() in ready:
                    prober.receive()
            self._turn(time.monotonic_ns())
            caught = signals.recv(64) if signals.fileno() in ready else b""
            if signal.SIGTERM in caught or signal.SIGINT in caught:
                return
            if signal.SIGHUP in caught:
                self._reload()

    def _turn(self, now_ns: int) -> None:
        if due := now_ns >= self._files_ns:
            self._files_ns = now_ns + _FILES_NS
        for prober in self._probers:
            if prober.advance(now_ns) or due:
                self._settle(prober)

    def _settle(self, prober: Prober) -> None:
        name = prober.isp.name
        held = settle(self._directory, name, None if prober.status == "unknown" else prober.status)
        if held is not None and held != self._held.get(name):
            log.info("%s: somebody wrote %r into its state file; it is left alone until removed or right", name, held)
        elif held is None and self._held.get(name) is not None:
            log.info("%s: its state file is written by the prober again", name)
        self._held[name] = held

    def _finished(self) -> bool:
        unknown = [each for each in self._probers if each.status == "unknown"]
        if unknown and all(target.link.samples == verdict.WINDOW for each in unknown for target in each.targets):
            names = ", ".join(each.isp.name for each in unknown)
            raise ProbeError(f"{names}: neither up nor down after {verdict.WINDOW} probes; the state file is unchanged")
        return not unknown

    def _reload(self) -> None:
        try:
            self._load()
        except LsmpyError as error:
            log.error("the configuration was not read again and the old one is kept: %s", error)
        else:
            log.info("the configuration was read again")

    def _load(self) -> None:
        router = config.load(self._path)
        directory = self._given or Path(router.state_dir)
        state.require_directory(directory)
        for warning in router.warnings:
            log.warning("%s", warning)
        old = {each.isp.name: each for each in self._probers}
        probers = [Prober(isp, self._idents, old.get(isp.name)) for isp in router.isps]
        for port in {each.port for each in self._probers} - {each.port for each in probers}:
            port.close()
        self._directory, self._probers = directory, probers
        now_ns, place, count = time.monotonic_ns(), itertools.count(1), sum(len(each.targets) for each in probers)
        for each in probers:
            step_ns = each.isp.probe.interval_ms * _MS // count  # spread over the interval, not all at once
            each.start(now_ns, [now_ns + next(place) * step_ns for _ in each.targets])


def settle(directory: Path, name: str, said: str | None) -> str | None:
    """Bring the state file of the ISP `name` in line with what the probes `said`, None for no verdict yet.

    Returns what somebody else wrote, in which case nothing is changed; None if nobody did.

    Raises:
        StateError: a file cannot be written.
    """
    path, record = state.state_path(directory, name), state.record_path(directory, name)
    file, written = state.read_text(path), state.read_text(record)
    action = verdict.decide(said, written, file)
    if action in ("adopt", "write"):
        with contextlib.suppress(OSError):  # state.write says it better
            record.parent.mkdir(exist_ok=True)
    if action == "adopt" and file is not None:
        state.write(record, file)
        action = verdict.decide(said, file, file)
    if action == "write" and said is not None:
        state.write(path, said)
        state.write(record, said)
    return file if action == "leave" else None


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """The signals for a daemon as bytes on a socket, so that they wake select and interrupt nothing."""
    ours, theirs = socket.socketpair()
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with ours, theirs:
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        before = [signal.signal(each, lambda *_: None) for each in caught]
        try:
            yield ours
        finally:
            for each, handler in zip(caught, before, strict=True):
                signal.signal(each, handler)
            signal.set_wakeup_fd(-1)


def main(argv: list[str] | None = None) -> int:
    """Run lsmpy-probe and return its exit status."""
    parser = argparse.ArgumentParser("lsmpy-probe", description=__doc__)
    parser.add_argument("-c", dest="config", metavar="FILE", type=Path, default=config.DEFAULT_PATH)
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="where the state files are")
    parser.add_argument("--once", action="store_true", help="end when each ISP has a verdict and that is written")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        with _signals() as signals:
            Daemon(options.config, options.state_dir).run(signals, options.once)
    except LsmpyError as error:
        print(f"lsmpy-probe: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
