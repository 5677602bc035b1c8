"""`lsmpy rehearse`: breaks each ISP of a twin of the configured router in every way and reports what happened."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from lsmpy import LsmpyError, command, config, flows, report, sandbox, state, ways
from lsmpy.lab import PORT, ROUTER, Lab, LabError
from lsmpy.model import FAMILIES, Family, Isp, Lan, Router
from lsmpy.report import FAULTS, FaultName, Rebuild, Report, Shares, Trial
from lsmpy.ways import Kind, Ways

_DIRECTORY = Path("/run/lsmpy-rehearsal")
_RATE = 200.0  # new flows a second in all: enough for exact shares in seconds, little enough for a small machine
_MEASURE_S = 3.0
_STILL_MS = 1000.0  # a long flow on a healthy ISP that gets no answer for so long has been hurt
_SLACK_S = 15.0  # what a loaded machine may add before something counts as not happening
_GREETING_S = 2.0
_POLL_S = 0.02
_PROTOS: tuple[flows.Proto, ...] = ("tcp", "udp")


def rehearse(path: Path, as_json: bool) -> int:
    """Rehearse the configuration in `path` in a sandbox and return the exit status: 0 if all was as promised, else 1.

    Raises:
        LsmpyError: the rehearsal could not be held.
    """
    router = config.load(path)
    if sandbox.inside():
        return _hold(router, path, as_json)
    if sandbox.hides(path):
        raise LsmpyError(f"{path} is in a directory that the sandbox hides; copy it elsewhere and rehearse the copy")
    options = ["--json"] if as_json else []
    return sandbox.enter([sys.executable, "-m", "lsmpy.cli", "rehearse", "-c", str(path.resolve()), *options])


def _hold(router: Router, path: Path, as_json: bool) -> int:
    command.find("conntrack")  # rather now than when the first flow is lost
    _DIRECTORY.mkdir(exist_ok=True)
    rehearsal = Rehearsal(router, path, _DIRECTORY, sys.stderr.write if as_json else sys.stdout.write)
    result = rehearsal.run()
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(result)).decode())
    else:
        print(f"\n{report.table(result.trials)}")
        verdict = "everything as promised" if result.ok else "NOT everything as promised"
        print(f"{verdict}: {result.flows} new flows in {result.seconds:.0f} s")
    return 0 if result.ok else 1


class LateError(LsmpyError):
    """Something that should have happened did not."""


class Rehearsal:
    """A laboratory, the real programs in it, flows from every LAN, and a trial for each ISP and fault."""

    def __init__(self, router: Router, path: Path, directory: Path, write: Callable[[str], object]) -> None:
        """Plan it.

        Args:
            router: the configuration in `path`.
            path: what the programs are given.
            directory: where the state files shall be.
            write: takes the timeline, a line at a time.
        """
        self._router, self._path, self._directory, self._write = router, path, directory, write
        self._lab = Lab(router)
        self._began = time.monotonic()
        self._rebuilds: list[Rebuild] = []
        self._daemons: dict[str, command.Running] = {}
        self._streams: dict[str, flows.Stream] = {}
        self._long: dict[str, flows.LongFlows] = {}
        self._blamed: dict[tuple[str, flows.Flow], str] = {}  # a lost flow and the ISP it was on, as far as known
        self._ways = {(k.lan, k.family, k.proto): ways.find(router, k) for k in self._kinds()}
        self._judged: dict[str, int] = {}  # how many of each stream's flows have been

    def run(self) -> Report:
        """Hold it.

        Raises:
            LsmpyError: a program died, or something in the laboratory did.
        """
        trials = []
        with self._lab, ExitStack() as stack:
            self._say("", f"a twin of the router, {len(self._router.isps)} ISPs, {len(self._router.lans)} LANs")
            self._tell_of_policies()
            self._lab.start_server()
            self._start("lsmpy-reconfig", "lsmpy.reconfig", "--watch", "--no-after")
            self._start("lsmpy-probe", "lsmpy.probe")
            self._wait(lambda: self._rebuilds, _SLACK_S, "the first rebuild")
            self._send(stack)
            patience_s = max(_return_s(isp) for isp in self._router.isps) + _SLACK_S
            known = [state.state_path(self._directory, isp.name) for isp in self._router.isps]
            self._wait(lambda: all(file.exists() for file in known), patience_s, "the prober's first verdicts")
            last = self._measure()
            for isp in self._router.isps:
                for fault in FAULTS:
                    trials.append(self._trial(isp, fault, last))
                    last = trials[-1].after
            sent = sum(stream.stop().flows for stream in self._streams.values())
        ok = not any(trial.failures for trial in trials)
        return Report(ok=ok, seconds=round(time.monotonic() - self._began, 1), flows=sent, trials=trials)

    # -- the cast --------------------------------------------------------------------------------------------------

    def _start(self, name: str, module: str, *options: str) -> None:
        def hear(line: str) -> None:
            heard = time.monotonic()
            if rebuild := Rebuild.parse(line, heard):
                self._rebuilds.append(rebuild)
            self._say(name, line.rstrip(), heard)

        argv = [sys.executable, "-m", module, *options, "-c", str(self._path), "--state-dir", str(self._directory)]
        self._daemons[name] = self._lab.start(ROUTER, argv, hear)

    def _send(self, stack: ExitStack) -> None:
        """Let every LAN's host send new flows."""
        for lan, families in self._senders():
            stream = flows.Stream(self._lab, lan.name, _RATE / len(self._router.lans), _PROTOS, families)
            self._streams[lan.name] = stack.enter_context(stream)

    def _converse(self) -> None:
        """Let it begin long flows by every ISP; those of before end, as TCP's were reset when their ISP failed."""
        for before in self._long.values():
            before.stop()
        for lan, families in self._senders():
            count = min(16, 2 * len(self._router.isps) * len(families))
            long = flows.LongFlows(self._lab, lan.name, count, _PROTOS, families)
            self._long[lan.name] = long.start()
            with suppress(LateError):  # some may find no way, if something is wrong with the rules
                self._wait(lambda: len(long.isps()) == count, _GREETING_S, "long flows")  # noqa: B023

    def _senders(self) -> Iterator[tuple[Lan, list[Family]]]:
        for lan in self._router.lans:
            families: list[Family] = [f for f in FAMILIES if f in self._lab.server and lan.addresses(f)]
            if families:
                yield lan, families

    def _kinds(self) -> Iterator[Kind]:
        """The kinds of flows that they send."""
        for lan, families in self._senders():
            for family in families:
                if host := self._lab.host(lan.name, family):
                    for proto in _PROTOS:
                        yield Kind(lan.name, family, proto, PORT, host, self._lab.server[family])

    def _ways_of(self, lan: str, flow: flows.Flow) -> Ways:
        return self._ways[lan, flow.family, flow.proto]

    def _tell_of_policies(self) -> None:
        """Say which policies are rehearsed: what the server is not asked for, nobody tries."""
        for policy in self._router.policies:
            kinds = [f"{lan} (IPv{f}, {proto})" for (lan, f, proto), w in self._ways.items() if w.policy == policy.name]
            about = f"decides for {', '.join(kinds)}" if kinds else "is not rehearsed, as no flow of the twin's is its"
            self._say("", f"policy {policy.name} {about}")

    def _say(self, who: str, text: str, when: float | None = None) -> None:
        seconds = (when or time.monotonic()) - self._began
        self._write(f"{seconds:7.2f} s  {who:<14}  {text}\n")
        sys.stdout.flush()

    # -- one trial -------------------------------------------------------------------------------------------------

    def _trial(self, isp: Isp, fault: FaultName, before: Shares) -> Trial:
        switches = self._switches(isp)
        if self._router.options.balance == "hash":  # by which the few hosts here may all have another ISP
            switches = switches and before.get(isp.name, 0) > 0
        trial = Trial(isp=isp.name, fault=fault, switches=switches, before=before, failures=[])
        foreign = self._foreign()
        self._converse()
        began = time.monotonic()
        self._say(isp.name, f"fault: {fault}")
        self._break(isp, fault)
        try:
            self._await_failover(isp, trial, began)
        except LateError as error:
            trial.failures.append(str(error))
        rebuilt = time.monotonic()
        trial.during = self._measure()
        trial.stayed = self._stayed(isp, rebuilt)
        repaired = time.monotonic()
        self._say(isp.name, f"repaired: {fault}")
        self._repair(isp, fault)
        try:
            self._await_return(isp, trial, repaired)
        except LateError as error:
            trial.failures.append(str(error))
        trial.after = self._measure()
        self._count_lost(isp, trial, began)
        trial.foreign = self._foreign() - foreign
        trial.judge()
        return trial

    def _switches(self, isp: Isp) -> bool:
        """Whether some new flows are the ISP's when all are up, and another's when it is down."""
        known = self._ways.values() or [ways.balanced(self._router, family) for family in self._router.families]
        return any(isp.name in each.first and not each.only(isp.name) for each in known)

    def _break(self, isp: Isp, fault: FaultName) -> None:
        if fault == "upstream dead":
            self._lab.kill_upstream(isp.name)
        elif fault == "cable out":
            self._lab.pull_cable(isp.name)
        else:
            state.write(state.force_path(self._directory, isp.name), "down")

    def _repair(self, isp: Isp, fault: FaultName) -> None:
        if fault == "upstream dead":
            self._lab.revive_upstream(isp.name)
        elif fault == "cable out":
            self._lab.plug_cable(isp.name)
        else:
            state.remove(state.force_path(self._directory, isp.name))

    def _await_failover(self, isp: Isp, trial: Trial, began: float) -> None:
        patience_s = _SLACK_S + (0 if trial.fault == "forced by hand" else _detection_s(isp))
        known: list[float] = []  # when the state file said so

        def gone() -> bool:
            if not known and not state.read(self._directory, isp.name).up and trial.fault != "forced by hand":
                known.append(time.monotonic())
            rebuilt = next((each for each in self._rebuilds if each.heard > began and isp.name in each.down), None)
            noticed = [*known, *([rebuilt.heard - rebuilt.took_s] if rebuilt else [])]
            trial.detected_s = round(min(noticed) - began, 3) if noticed else None
            trial.rebuilt_s = round(rebuilt.heard - began, 3) if rebuilt else None
            # Also after the router has seen a pulled cable, the prober must see it: else its verdict would come late,
            # in the midst of the repair.
            return bool((rebuilt or not trial.switches) and (known or trial.fault == "forced by hand"))

        self._wait(gone, patience_s, f"{isp.name} to be found down and the router to be rebuilt")

    def _await_return(self, isp: Isp, trial: Trial, repaired: float) -> None:
        patience_s = _SLACK_S + (0 if trial.fault == "forced by hand" else _return_s(isp))

        def returned() -> bool:
            rebuilt = self._rebuilds[-1]
            back = isp.name in rebuilt.up and (rebuilt.heard > repaired or not trial.switches)
            return back and state.read(self._directory, isp.name).up

        self._wait(returned, patience_s, f"{isp.name} to come back")
        trial.back_s = round(max(self._rebuilds[-1].heard - repaired, 0), 3) if trial.switches else None

    # -- what became of the flows ----------------------------------------------------------------------------------

    def _measure(self) -> Shares:
        """Let flows go for a while and return how they were shared."""
        start = time.monotonic()
        self._wait(lambda: time.monotonic() - start > _MEASURE_S, 2 * _MEASURE_S, "time to pass")
        return report.shares((isp.name for isp in self._router.isps), [flow.isp for _, flow in self._arrived(start)])

    def _stayed(self, isp: Isp, since: float) -> int:
        """How many new flows the ISP has got since then that another could have carried."""
        arrived = self._arrived(since)
        return sum(flow.isp == isp.name and not self._ways_of(lan, flow).only(isp.name) for lan, flow in arrived)

    def _arrived(self, since: float) -> list[tuple[str, flows.Flow]]:
        every = [(lan, flow) for lan, stream in self._streams.items() for flow in list(stream.flows)]
        return [(lan, flow) for lan, flow in every if flow.ok and flow.t > since]

    def _count_lost(self, isp: Isp, trial: Trial, began: float) -> None:
        """Tell losses that are the fault's from those that are the router's.

        The router's conntrack says on which ISP a lost flow was; a flow that it does not know never left the router.
        Excused is what was under way on the faulty ISP, or on none, between the fault and the end of the rebuild; or,
        of flows that have no other way, until it is back. What the configuration gives no way at all is not counted.
        """
        self._blame()
        excused = began + trial.rebuilt_s if trial.switches and trial.rebuilt_s is not None else time.monotonic()
        for lan, stream in self._streams.items():
            ended = list(stream.flows)
            for flow in ended[self._judged.get(lan, 0) :]:
                where = self._blamed.get((lan, flow), "")
                way = self._ways_of(lan, flow)
                if flow.ok or not way.every:
                    continue
                began_late = flow.t > excused and not way.only(isp.name)
                if where in ("", isp.name) and began <= flow.t + flow.ms / 1000 and not began_late:
                    trial.lost_here += 1
                else:
                    trial.lost_elsewhere += 1
                    self._say(isp.name, f"lost without excuse, from {lan}, on {where or 'no ISP'}: {flow}")
            self._judged[lan] = len(ended)
        for each in self._long.values():
            for event in list(each.events):
                hurt = event.event == "broken" or (event.event == "gap" and event.ms >= _STILL_MS)
                home = each.isp_at(event.flow, event.t)  # before it moved, if it has
                if hurt and event.t >= began and home not in ("", isp.name):
                    trial.hurt_elsewhere += 1
                    self._say(isp.name, f"long flow hurt on {home}: {event}")

    def _blame(self) -> None:
        """Look up lost flows in the router's conntrack before it forgets them (30 s for a datagram)."""
        lost = [(lan, flow) for lan, each in self._streams.items() for flow in list(each.flows) if not flow.ok]
        self._blamed |= flows.tracked(self._lab, [each for each in lost if each not in self._blamed])

    def _foreign(self) -> int:
        return sum(self._lab.foreign_packets(isp.name) for isp in self._router.isps)

    def _wait(self, predicate: Callable[[], object], deadline_s: float, what: str) -> None:
        """Wait for something, watching the programs and the lost flows meanwhile."""
        start = looked = time.monotonic()
        while not predicate():
            now = time.monotonic()
            for name, daemon in self._daemons.items():
                if not daemon.alive:
                    raise LabError(f"{name} has died; its last words are above")
            if now - start > deadline_s:
                raise LateError(f"waited {deadline_s:.0f} s in vain for {what}")
            if now - looked > 5:
                self._blame()
                looked = now
            time.sleep(_POLL_S)


def _detection_s(isp: Isp) -> float:
    """The longest a healthy prober takes to find a dead line."""
    probes = min(isp.probe.max_successive_pkts_lost, max(isp.probe.max_packet_loss, 1))
    return (probes * isp.probe.interval_ms + isp.probe.timeout_ms) / 1000


def _return_s(isp: Isp) -> float:
    """The longest it takes to trust it again: until all losses have left its window of 100."""
    return ((100 + isp.probe.min_successive_pkts_rcvd) * isp.probe.interval_ms + isp.probe.timeout_ms) / 1000
