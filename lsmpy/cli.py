"""`lsmpy`: the commands for people."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lsmpy import LsmpyError, __version__, config, output, state


class UnknownIspError(LsmpyError):
    """A command names an ISP that is not configured."""

    exit_status = 2


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status (contract, section 3)."""
    try:
        with output.whole():
            options = _arguments(argv)
            return int(options.run(options))
    except LsmpyError as error:
        print(f"lsmpy: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("lsmpy: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lsmpy", description="Failover and load balancing over two or more ISPs.")
    parser.add_argument("--version", action="version", version=f"lsmpy {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-c", "--config", type=Path, default=config.DEFAULT_PATH, metavar="FILE", help="default: %(default)s"
    )

    def command(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        added = commands.add_parser(name, parents=[common], help=text, description=description)
        added.set_defaults(run=run)
        return added

    text = "take an ISP out of use or into it by hand, or give it back to its state file (auto)"
    force = command("force", text, _force)
    force.add_argument("name", metavar="NAME", help="the ISP")
    force.add_argument("to", choices=[*state.FORCES, "auto"])
    force.add_argument("--state-dir", type=Path, metavar="DIR", help="where the state files are, instead of state_dir")

    text = "show how every ISP is and why; exit status 0 with all up, 1 with some, 2 with none"
    status = command("status", text, _status)
    status.add_argument("--state-dir", type=Path, metavar="DIR", help="where the state files are, instead of state_dir")
    status.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")
    status.add_argument("--json", action="store_true", help="print JSON, one object a line")

    text = "print an lsm.conf as lsmpy.toml, as far as it tells of ISPs"
    description = f"{text[0].upper()}{text[1:]}."
    importing = commands.add_parser("import", help=text, description=description)
    importing.add_argument("file", metavar="FILE", type=Path, help="an lsm.conf or foolsm.conf")
    importing.set_defaults(run=_import)

    text = "break every ISP of a twin of this router, in namespaces, and report what happens"
    rehearse = command("rehearse", text, _rehearse)
    rehearse.add_argument(
        "--json", action="store_true", help="print the facts as JSON, and the timeline on standard error"
    )

    return parser.parse_args(argv)


def _force(options: argparse.Namespace) -> int:
    from lsmpy import source  # what it rests on no other command needs

    router = source.load(options.config).router
    names = [isp.name for isp in router.isps if state.can_name(isp.name)]
    if options.name not in names:
        raise UnknownIspError(f"there is no ISP {options.name}; known are {', '.join(names)}. Nothing was changed")
    directory = options.state_dir or Path(router.state_dir)
    state.require_directory(directory)
    path = state.force_path(directory, options.name)
    if options.to == "auto":
        state.remove(path)
        now = "up" if state.read(directory, options.name).up else "down"
        print(f"{options.name} follows its state file again and is {now} ({path} is gone)")
    else:
        state.write(path, options.to)
        print(f"{options.name} is forced {options.to} ({path}); to undo this: lsmpy force {options.name} auto")
    return 0


def _status(options: argparse.Namespace) -> int:
    from lsmpy import lsmmodel, source, status  # what they rest on no other command needs

    loaded = source.load(options.config)
    groups = [name for name, each in loaded.settings.named.items() if isinstance(each, lsmmodel.Group)]
    names = [name for name in (*(isp.name for isp in loaded.router.isps), *groups) if state.can_name(name)]
    return status.show(names, options.state_dir or Path(loaded.router.state_dir), options.watch, options.json)


def _import(options: argparse.Namespace) -> int:
    from lsmpy import lsmconf, moving  # what no other command needs

    settings = lsmconf.load(options.file)
    for warning in settings.warnings:
        print(f"lsmpy: {warning}", file=sys.stderr)
    print(moving.toml(settings, str(options.file)), end="")
    return 0


def _rehearse(options: argparse.Namespace) -> int:
    from lsmpy.rehearse import rehearse  # what it imports takes a while, and no other command needs it

    return rehearse(options.config, options.json)


if __name__ == "__main__":
    sys.exit(main())
