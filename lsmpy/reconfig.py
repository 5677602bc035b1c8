"""`lsmpy-reconfig`: one rebuild of the router, or one after every change."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lsmpy import (
    LsmpyError,
    __version__,
    after,
    apply,
    config,
    freeing,
    image,
    iptables,
    kernel,
    locks,
    output,
    plan,
    resolve,
    scene,
    script,
    state,
    youth,
)
from lsmpy.apply import Outcome
from lsmpy.locks import Stopped
from lsmpy.model import Router
from lsmpy.netlink import Interest
from lsmpy.scene import Extra

if TYPE_CHECKING:
    from lsmpy.watch import Watch

log = logging.getLogger("lsmpy")

_RETRY_S = 1.0  # after a rebuild that failed, and twice as long after each further one


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status (contract, section 3)."""
    gc.freeze()  # what is imported stays: neither a collection nor the end of a short run need go through it
    options = None
    try:
        with output.whole():
            options = _arguments(argv)
            _log_to_stderr(options.verbose)
            return _run(options)
    except LsmpyError as error:
        print(f"lsmpy-reconfig: error: {error}", file=sys.stderr)
        return 2 if options and options.diff else error.exit_status  # 1 would mean that they differ, as for diff(1)
    except KeyboardInterrupt:
        print(
            "lsmpy-reconfig: interrupted. If it was in the middle of a rebuild, the next one completes it",
            file=sys.stderr,
        )
        return 130


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("sh").setLevel(logging.WARNING)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lsmpy-reconfig", description="Rebuild the router from the state files.")
    parser.add_argument(
        "-c", "--config", type=Path, default=config.DEFAULT_PATH, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where the state files are, instead of state_dir")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every command")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--replace", action="store_true", help="replace rules that are neither lsmpy's nor in [rules]")
    parser.add_argument("--no-after", action="store_true", help="run no program of [rules] after")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="rebuild now and after every change")
    what.add_argument("--dry-run", action="store_true", help="print the rebuild as a shell script; needs no root")
    what.add_argument(
        "--diff", action="store_true", help="compare the kernel with the rebuild; status 1 if they differ"
    )
    what.add_argument("--clear", action="store_true", help="take everything out and put back what was there before")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> int:
    if options.watch:
        return _watch(options)
    router = config.load(options.config)
    directory = options.state_dir or Path(router.state_dir)
    if options.dry_run:
        router, dry = _dry_plan(router, directory)
        beside_others = router.options.beside_others
        print(script.render(dry, _infix(router), freeing.commands(router), beside_others), end="")
        return 0
    if options.diff:
        text = apply.difference(router, directory)
        print(text, end="")
        return 1 if text else 0
    if options.clear:
        kernel.require_privilege()
        with locks.unwatched():
            log.info("cleared: %s", apply.clear(router))
        return 0
    _warn(router)
    outcome = _told(partial(apply.rebuild, router, directory, options.replace))
    if outcome.changed and not options.no_after:
        programs = after.Programs()
        programs.tell(router.rules.after, _news(options, outcome))
        programs.wait()
    return 0


def _warn(router: Router) -> None:
    for warning in router.warnings:
        log.warning("%s", warning)


def _dry_plan(router: Router, directory: Path) -> tuple[Router, plan.Plan]:
    state.require_directory(directory)
    router = resolve.on_machine(router, image.families())
    extra = {family: scene.rule_files(router, family) for family in router.families}
    states = {isp.name: state.read(directory, isp.name) for isp in router.isps}
    links = image.read_links()
    # On another machine than the router, which has none of its ISPs' interfaces, all are taken for granted; but not
    # what only the router itself can know.
    here = any(isp.interface in links or isp.follows for isp in router.isps)
    router, strays = resolve.resolve(router, links), youth.left_s() > 0
    return router, plan.build(router, states, links if here else None, extra, strays=strays)


def _infix(router: Router) -> str:
    """What the script calls the chosen iptables, also where it is not installed."""
    try:
        return iptables.find(router.options.iptables).infix
    except LsmpyError:
        return "" if router.options.iptables == "auto" else f"-{router.options.iptables}"


def _news(options: argparse.Namespace, outcome: Outcome) -> after.News:
    """What the programs of `[rules] after` are told."""
    verdicts = outcome.plan.verdicts
    return after.News(
        up=tuple(verdict.isp for verdict in verdicts if verdict.up),
        down=tuple(verdict.isp for verdict in verdicts if not verdict.up),
        changed=outcome.switched,
        config=options.config.absolute(),
    )


def _told(rebuild: Callable[[], Outcome], told: Collection[str] | None = None) -> Outcome:
    """One rebuild, and a line in the log.

    Args:
        rebuild: makes it.
        told: the daemon's last warnings, which are not repeated; nor does it say when there was nothing to do.
    """
    began = time.monotonic()
    outcome = rebuild()
    for warning in outcome.warnings:
        if warning not in (told or ()):
            log.warning("%s", warning)
    took_ms = (time.monotonic() - began) * 1000
    if outcome.changed:
        log.info("rebuilt in %.0f ms: %s", took_ms, outcome.plan.summary)
    else:
        log.log(logging.INFO if told is None else logging.DEBUG, "nothing to do: %s", outcome.plan.summary)
    return outcome


def _watch(options: argparse.Namespace) -> int:
    """The daemon: the first rebuild must succeed, a later one that fails is told and tried again."""
    from lsmpy.watch import TICK_S, Watch  # only the daemon needs watchdog

    watch = Watch()
    hangups = _heed_signals(watch)  # before anything that takes time: whoever has started us may send them already
    router = config.load(options.config)
    _warn(router)
    kernel.require_privilege()
    daemon = _Daemon(options, watch, router, hangups)
    state.require_directory(watch.directory)
    retry_s = _RETRY_S
    with (
        contextlib.suppress(Stopped),
        locks.held(locks.WATCH_PATH, shared=True, stopped=lambda: watch.stopped),
        contextlib.closing(after.Programs()) as programs,
    ):
        for _ in watch.wakes():
            first = daemon.told is None
            try:
                outcome = daemon.rebuild()
            except LsmpyError as error:
                if first:
                    raise
                log.error("error: %s\nIt is tried again in %.0f s, and after every change", error, retry_s)
                watch.wake_in(retry_s)
                retry_s = min(2 * retry_s, TICK_S)
                continue
            retry_s = _RETRY_S
            if (outcome.changed or first) and not options.no_after:
                programs.tell(daemon.router.rules.after, _news(options, outcome))
            watch.wake_in(outcome.again_s)
    return 0


def _heed_signals(watch: Watch) -> list[int]:
    """Have SIGTERM and SIGINT stop the watch, and SIGHUP wake it; returns where the latter leaves its number."""
    hangups: list[int] = []

    def on_hangup(number: int, _: object) -> None:
        hangups.append(number)
        watch.wake()

    signal.signal(signal.SIGHUP, on_hangup)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watch.stop())
    return hangups


class _Daemon:
    """Rebuilds again and again. What is new and cannot be built gives way to what was built last.

    Attributes:
        router: the configuration that it goes by.
        told: the last rebuild's warnings, which are not repeated; None before the first.
    """

    def __init__(self, options: argparse.Namespace, watch: Watch, router: Router, hangups: list[int]) -> None:
        """Go by the configuration `router`, and by a new one once there is something in `hangups`."""
        self._options, self._watch, self._hangups = options, watch, hangups
        self.told: Collection[str] | None = None
        self._extra: Extra | None = None  # of the last rebuild
        self._refusal = ""  # why that is not what the files of [rules] say now
        self._go_by(router)

    def rebuild(self) -> Outcome:
        """One rebuild; with the rules that were loaded last, if with [rules] as they are now there can be none.

        Raises:
            LsmpyError: it could not be done.
            locks.Stopped: the watch was told to end.
        """
        outcome = self._reload() if self._hangups else None
        return outcome or self._rebuild()

    def _rebuild(self) -> Outcome:
        extra: Extra | None = None
        try:
            extra = scene.all_rule_files(self.router)
            outcome, refusal = self._build(extra), ""
        except LsmpyError as error:
            if self._extra is None or self._extra == extra:
                raise
            outcome, refusal = self._build(self._extra), str(error)
        self._tell_of_rules(refusal)
        return outcome

    def _reload(self) -> Outcome | None:
        """Go by what the configuration says now; None if that cannot be, and nothing has changed."""
        self._hangups.clear()
        old = self.router
        try:
            self._go_by(config.load(self._options.config))
            outcome = self._build(scene.all_rule_files(self.router))
        except LsmpyError as error:
            self._go_by(old)
            log.error("error: the new configuration is refused and the old one kept:\n%s", error)
            return None
        log.info("configuration read again")
        _warn(self.router)
        self._refusal = ""
        return outcome

    def _go_by(self, router: Router) -> None:
        self.router = router
        self._watch.aim(self._options.state_dir or Path(router.state_dir), *_interest(router))

    def _build(self, extra: Extra) -> Outcome:
        directory, replace, watch = self._watch.directory, self._options.replace, self._watch
        build = partial(apply.rebuild, self.router, directory, replace, extra, lambda: watch.stopped)
        outcome = _told(build, self.told)
        self.told, self._extra = outcome.warnings, extra
        return outcome

    def _tell_of_rules(self, refusal: str) -> None:
        if refusal and refusal != self._refusal:
            log.warning("[rules] as they are now are refused and those that were loaded last kept:\n%s", refusal)
        if self._refusal and not refusal:
            log.info("[rules] as they are now are good again and loaded")
        self._refusal = refusal


def _interest(router: Router) -> tuple[list[str], Interest]:
    """The files, and the interfaces and tables, whose changes concern this router."""
    files = [path(Path(), isp.name).name for isp in router.isps for path in (state.state_path, state.force_path)]
    interfaces = frozenset(item.interface for item in (*router.isps, *router.lans))
    tables = frozenset(int(isp.table) for isp in router.isps)
    return files, Interest(interfaces, tables, chains=router.options.beside_others)


if __name__ == "__main__":
    sys.exit(main())
