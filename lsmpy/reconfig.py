"""`lsmpy-reconfig`: one rebuild of the router, or one after every change."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from lsmpy import (
    LsmpyError,
    __version__,
    after,
    apply,
    config,
    freeing,
    image,
    iptables,
    output,
    plan,
    resolve,
    scene,
    script,
    state,
    youth,
)
from lsmpy.apply import Outcome
from lsmpy.model import Router
from lsmpy.netlink import Interest

log = logging.getLogger("lsmpy")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status (contract, section 3)."""
    options = None
    try:
        with output.whole():
            options = _arguments(argv)
            _log_to_stderr(options.verbose)
            return _run(options)
    except LsmpyError as error:
        print(f"lsmpy-reconfig: error: {error}", file=sys.stderr)
        return 2 if options and options.diff else error.exit_status  # 1 would mean that they differ, as for diff(1)


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
        log.info("cleared: %s", apply.clear(router))
        return 0
    for warning in router.warnings:
        log.warning("%s", warning)
    if options.watch:
        return _watch(options, router)
    outcome = _rebuild(router, directory, options.replace)
    if outcome.changed and not options.no_after:
        programs = after.Programs()
        programs.tell(router.rules.after, _news(options, outcome))
        programs.wait()
    return 0


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


def _rebuild(router: Router, directory: Path, replace: bool, told: Collection[str] | None = None) -> Outcome:
    """One rebuild, and a line in the log.

    Args:
        router, directory, replace: as for `apply.rebuild`.
        told: the daemon's last warnings, which are not repeated; nor does it say when there was nothing to do.
    """
    began = time.monotonic()
    outcome = apply.rebuild(router, directory, replace)
    for warning in outcome.warnings:
        if warning not in (told or ()):
            log.warning("%s", warning)
    took_ms = (time.monotonic() - began) * 1000
    if outcome.changed:
        log.info("rebuilt in %.0f ms: %s", took_ms, outcome.plan.summary)
    else:
        log.log(logging.INFO if told is None else logging.DEBUG, "nothing to do: %s", outcome.plan.summary)
    return outcome


def _watch(options: argparse.Namespace, router: Router) -> int:
    """The daemon: the first rebuild must succeed, a later one that fails is told and tried again."""
    from lsmpy.watch import Watch  # only the daemon needs watchdog

    directory = options.state_dir or Path(router.state_dir)
    state.require_directory(directory)
    watch = Watch(directory, *_interest(router))
    hangups: list[int] = []

    def on_hangup(number: int, _: object) -> None:
        hangups.append(number)
        watch.wake()

    signal.signal(signal.SIGHUP, on_hangup)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watch.stop())
    told: Collection[str] | None = None
    with contextlib.closing(after.Programs()) as programs:
        for _ in watch.wakes():
            if hangups:
                hangups.clear()
                router = _reload(options.config, router)
                watch.aim(options.state_dir or Path(router.state_dir), *_interest(router))
            try:
                outcome = _rebuild(router, watch.directory, options.replace, told)
            except LsmpyError as error:
                if told is None:
                    raise
                log.error("error: %s", error)
                continue
            if (outcome.changed or told is None) and not options.no_after:
                programs.tell(router.rules.after, _news(options, outcome))
            told = outcome.warnings
            watch.wake_in(outcome.again_s)
    return 0


def _interest(router: Router) -> tuple[list[str], Interest]:
    """The files, and the interfaces and tables, whose changes concern this router."""
    files = [path(Path(), isp.name).name for isp in router.isps for path in (state.state_path, state.force_path)]
    interfaces = frozenset(item.interface for item in (*router.isps, *router.lans))
    tables = frozenset(int(isp.table) for isp in router.isps)
    return files, Interest(interfaces, tables, chains=router.options.beside_others)


def _reload(path: Path, old: Router) -> Router:
    try:
        router = config.load(path)
    except LsmpyError as error:
        log.error("error: the new configuration is refused and the old one kept:\n%s", error)
        return old
    log.info("configuration read again")
    return router


if __name__ == "__main__":
    sys.exit(main())
