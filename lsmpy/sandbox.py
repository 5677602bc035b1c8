"""A private world for a laboratory: own networks, processes and /run; the kernel clears it all away at the end."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lsmpy import LsmpyError, command

NETNS = Path("/run/netns")
SAVED = Path("/run/lsmpy-saved")
_MARKER = "LSMPY_SANDBOX"
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child")
_GRACE_S = 5.0


class SandboxError(LsmpyError):
    """This machine does not let us make namespaces, or we are not in them."""


def inside() -> bool:
    """Whether this process runs in a sandbox."""
    return _MARKER in os.environ


def hides(path: Path) -> bool:
    """Whether a file cannot be seen from inside, because it lies where the sandbox has its own files."""
    return any(path.resolve().is_relative_to(place) for place in _hidden())


def enter(argv: Sequence[str]) -> int:
    """Run a program in a new sandbox, with our terminal and environment, and return its exit status.

    However we end, by SIGKILL too, the sandbox ends with us, and with it all its processes, networks and files in /run.

    Raises:
        SandboxError: the system forbids namespaces; the message says what to do.
    """
    unshare = _working_unshare()
    lifeline, ours = os.pipe()  # only we hold the writing end, so its end of file is our death
    os.set_inheritable(lifeline, True)
    # Ctrl-C reaches the whole foreground group: the program decides what it means, and we wait for it.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        first = [*unshare, sys.executable, "-m", "lsmpy.sandbox", str(lifeline), *argv]
        child = os.posix_spawn(command.find(first[0]), first, os.environ)
        os.close(lifeline)
        status = os.waitpid(child, 0)[1]
    finally:
        signal.signal(signal.SIGINT, previous)
        os.close(ours)
    return os.waitstatus_to_exitcode(status)


def _working_unshare() -> list[str]:
    """The first way to unshare that this system permits: as root, else as the root of a user namespace."""
    users = [["--user", "--map-root-user"]]
    if os.geteuid() == 0:
        users.insert(0, [])
    failure = ""
    for user in users:
        # Containers that hide parts of /proc refuse a new one. The old one serves: /proc/sys/net and /proc/self follow
        # the process that looks, not the mount.
        for proc in (["--mount-proc"], []):
            argv = [*_UNSHARE, *user, *proc]
            try:
                command.run(*argv, "true")
            except command.CommandError as error:
                failure = error.stderr
            else:
                return argv
    raise SandboxError(
        f"this system does not let us make network namespaces ({failure}). Nothing was changed. Run it as root, or let "
        "users make them: of the sysctls, user.max_user_namespaces must not be 0, kernel.unprivileged_userns_clone "
        "(Debian) must be 1 and kernel.apparmor_restrict_unprivileged_userns (Ubuntu) must be 0"
    )


def _first_process(lifeline: int, argv: Sequence[str]) -> int:
    """Be process 1 of the sandbox: prepare its files, run `argv`, bury orphans, and go when it or our maker ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _private_files()
    environment = {**os.environ, _MARKER: "1", "STATE_DIRECTORY": str(SAVED)}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    program = command.find(argv[0])
    main = os.posix_spawn(program, list(argv), environment, setsigdef=[signal.SIGINT, signal.SIGCHLD])
    patience: float | None = None
    while True:
        ready = select.select([woken] if patience else [woken, lifeline], [], [], patience)[0]
        if woken in ready:
            os.read(woken, 4096)
        status = _bury(main)
        if status is not None:
            return os.waitstatus_to_exitcode(status)
        if patience and not ready:
            return 1  # asked to end and did not: the kernel kills whatever is left when we return
        if lifeline in ready:
            patience = _GRACE_S
            os.kill(main, signal.SIGTERM)


def _bury(main: int) -> int | None:
    """Collect every child that has ended; the status of `main` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == main:
            found = status


def _hidden() -> list[Path]:
    """Where a router part writes outside its networks: state files, named namespaces, locks, saved tables."""
    return sorted({Path(name).resolve() for name in ("/run", "/var/run", "/var/lib/lsmpy") if Path(name).is_dir()})


def _private_files() -> None:
    """Put empty directories over those."""
    for place in _hidden():
        command.run("mount", "-t", "tmpfs", "tmpfs", str(place))
    NETNS.mkdir(parents=True)
    SAVED.mkdir()


def main() -> int:
    """Entry of process 1: `LIFELINE COMMAND ARGUMENT…`, called by `enter` only."""
    try:
        return _first_process(int(sys.argv[1]), sys.argv[2:])
    except LsmpyError as error:
        print(f"lsmpy: error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
