"""Runs programs: the only door to `sh`. An argument list in, text out, one exception for all that can go wrong."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sh

from lsmpy import LsmpyError

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
_PIECE = 1024
_PATH = os.pathsep.join(filter(None, [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"]))
# Messages and numbers are parsed and shown, so they must not depend on who runs us.
ENVIRONMENT = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}

# What the kernel says of a file that is there and executable, in words that help.
_WRONG_FILES = {
    errno.ENOEXEC: 'it is no program of this machine; the first line of a script names the interpreter, as "#!/bin/sh"',
    errno.ENOENT: "the interpreter that its first line names is not there, or its lines end as on Windows",
}


class CommandError(LsmpyError):
    """A program is missing, failed or took too long.

    Attributes:
        argv: what was run.
        status: its exit status; None when it never ran, negative for a signal.
        stdout, stderr: what it said.
    """

    def __init__(self, argv: Sequence[str], status: int | None, stderr: str, stdout: str = "") -> None:
        self.argv, self.status, self.stderr, self.stdout = tuple(argv), status, stderr.strip(), stdout
        how = "could not be run" if status is None else f"ended with status {status}"
        super().__init__(f"{' '.join(argv)} {how}: {self.stderr or 'it said nothing'}")


@dataclass(frozen=True, slots=True)
class Running:
    """A program under way."""

    argv: tuple[str, ...]
    process: sh.RunningCommand
    guard: threading.Timer | None

    def wait(self) -> str:
        """Wait for its end and return what it printed.

        Raises:
            CommandError: it failed, or took longer than its time.
        """
        try:
            self.process.wait()
        except sh.ErrorReturnCode as error:
            text = error.stderr.decode(errors="replace")
            raise CommandError(self.argv, error.exit_code, text, error.stdout.decode(errors="replace")) from None
        finally:
            if self.guard:
                self.guard.cancel()
        return bytes(self.process.stdout).decode(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return bool(self.process.is_alive())

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self.process.pid)

    def kill(self) -> None:
        """End it at once, and what it has started if it has a session of its own."""
        _kill(self.process)

    def stop(self) -> None:
        """End it with SIGTERM, then SIGKILL after five seconds; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        killer = threading.Timer(5.0, _kill, [self.process])
        killer.start()
        with contextlib.suppress(CommandError):
            self.wait()
        killer.cancel()


def which(program: str) -> str | None:
    """The path of `program`, looked for in PATH and where administrators' tools live; None if it is not installed."""
    return shutil.which(program, path=_PATH)


def find(program: str) -> str:
    """The path of `program`, which is needed.

    Raises:
        CommandError: it is not installed.
    """
    if path := which(program):
        return path
    raise CommandError([program], None, _why_not_found(program))


def _why_not_found(program: str) -> str:
    if "/" not in program:
        return "there is no such program on this machine; install it"
    if os.path.isdir(program):
        return "it is a directory, and no program"
    if os.path.exists(program):
        return f"it is not executable; if it is a program: chmod +x {program}"
    return "there is no such file"


def start(
    argv: Sequence[str],
    stdin: str = "",
    timeout_s: float | None = TIMEOUT_S,
    on_line: Callable[[str], object] | None = None,
) -> Running:
    """Start a program.

    Args:
        argv: program and arguments; no shell is involved.
        stdin: what it reads.
        timeout_s: seconds after which it is killed; None for a daemon.
        on_line: called from another thread with each line it prints, on either stream, instead of keeping it.

    Raises:
        CommandError: it is not installed or cannot be started.
    """
    log.debug("run: %s%s", " ".join(argv), f"\n{stdin}" if stdin else "")
    bufsize = 1 if on_line else 65536
    return _start(argv, timeout_s, _in=stdin or None, _out=on_line, _err=on_line, _out_bufsize=bufsize)


def start_foreign(
    argv: Sequence[str], environment: Mapping[str, str], output: Callable[[str], object] | int, timeout_s: float
) -> Running:
    """Start somebody else's program, in a session of its own, so that what it starts can be killed with it.

    Args:
        argv: its path and arguments.
        environment: the whole of it; `ENVIRONMENT` is what our own programs have.
        output: a file, or what is called from another thread with what it prints on both streams, in pieces of `_PIECE`
            bytes, because it may never end a line; once it returns true, or the program has ended, nothing more is
            read, and who goes on writing gets SIGPIPE.
        timeout_s: seconds after which it is killed.

    Raises:
        CommandError: it is not there or cannot be started.
    """
    log.debug("run: %s", " ".join(argv))
    how = {} if isinstance(output, int) else {"_out_bufsize": _PIECE}
    told = {"_in": "", "_out": output, "_err_to_out": True, "_env": dict(environment), "_new_session": True}
    return _start(argv, timeout_s, _preexec_fn=_heed_signals, **told, **how)


def _heed_signals() -> None:
    """In a child: what sh and Python ignore would stay ignored in all that it starts, and a shell could not trap it."""
    for each in (signal.SIGHUP, signal.SIGXFSZ):
        signal.signal(each, signal.SIG_DFL)


def _start(argv: Sequence[str], timeout_s: float | None, **options: Any) -> Running:
    path = find(argv[0])
    try:
        process = sh.Command(path)(
            *argv[1:],
            _in_bufsize=65536,
            _tty_out=False,
            _bg=True,
            _bg_exc=False,
            _return_cmd=True,
            _decode_errors="replace",
            _truncate_exc=False,
            **{"_env": ENVIRONMENT, **options},
        )
    except (OSError, sh.ForkException) as error:
        raise CommandError(argv, None, _why_not_started(error)) from error
    guard = None
    if timeout_s is not None:
        guard = threading.Timer(timeout_s, _kill, [process])
        guard.daemon = True
        guard.start()
    return Running(tuple(argv), process, guard)


def _why_not_started(error: Exception) -> str:
    """The reason in what may be the traceback of sh's child."""
    numbers = re.findall(r"\[Errno (\d+)\]", str(error))
    if not numbers:
        return str(error).strip().rpartition("\n")[2]
    number = int(numbers[-1])
    return _WRONG_FILES.get(number) or os.strerror(number)


def run(*argv: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        CommandError: it is not installed, failed, or took longer than `timeout_s`.
    """
    return start(argv, stdin, timeout_s).wait()


def _kill(process: sh.RunningCommand) -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            process.kill_group()
        else:
            process.kill()
