"""Runs a program as systemd would for one of our units, where there is no systemd: `as_unit.py UNIT PROGRAM ARGUMENT…`.

That is with the unit's user, capabilities, limits, directories, environment and families of sockets, and with nothing
writable but what the unit names. `--without-ipv6` before UNIT takes AF_INET6 from the families. It changes the mounts
around itself: run it by `ip netns exec`, which makes a mount namespace. What the program is made of may lie where the
unit's user must not look, as a checkout in root's home does; it is put within reach at the same path.
"""

from __future__ import annotations

import argparse
import configparser
import ctypes
import os
import platform
import resource
import socket
import stat
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
OTHER_USER = 65534  # who has no other right
_PLACES = {"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "CacheDirectory": "/var/cache"}
_API = ("/proc", "/sys", "/dev")
_MADE_OF = (ROOT / "lsmpy", Path(sys.prefix), Path(sys.base_prefix))
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# <linux/mount.h>, <linux/prctl.h>, <linux/seccomp.h>, <linux/bpf_common.h>, <asm/unistd.h>
_MS_BIND, _MS_REC = 0x1000, 0x4000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR, _EAFNOSUPPORT = 0x7FFF0000, 0x00050000, 97
_SOCKET = {"x86_64": 41, "aarch64": 198}
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """See the file's beginning."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--without-ipv6", action="store_true")
    parser.add_argument("unit", type=Path)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    service = parse(options.unit)["Service"]
    user = 0 if service["User"] == "root" else OTHER_USER
    families = set(service["RestrictAddressFamilies"].split()) - ({"AF_INET6"} if options.without_ipv6 else set())
    environment = {"PATH": _PATH, "HOME": "/root" if user == 0 else "/nonexistent"}
    environment |= dict(each.split("=", 1) for each in service.get("Environment", "").split())
    os.umask(int(service["UMask"], 8))
    most = int(service.get("LimitNOFILE", "1024"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    writable = service.get("ReadWritePaths", "").split()
    for key, place in _PLACES.items():
        names = service.get(key, "").split()
        if names and place != "/run":  # outside of a sandbox's own files
            mount("tmpfs", place, "tmpfs")
        for name in names:
            mode = int(service.get(f"{key}Mode", "0755"), 8)
            writable.append(str(own(Path(place, name), user, mode)))
            environment[f"{key.removesuffix('Directory').upper()}_DIRECTORY"] = writable[-1]
    if user:
        put_within_reach(_MADE_OF)
    protect(writable)
    restrict(families)
    os.execvpe("setpriv", [*identity(user, service), "--", *options.program], environment)


def parse(path: Path) -> configparser.ConfigParser:
    """One unit; a key that stands twice is an error."""
    parser = configparser.ConfigParser(delimiters="=", comment_prefixes="#", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


def identity(user: int, service: configparser.SectionProxy) -> list[str]:
    """The setpriv that takes a unit's user and capabilities, and no others."""

    def only(key: str) -> str:
        return ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in service[key].split())])

    assert service["NoNewPrivileges"] == "yes"
    ambient, bounding = only("AmbientCapabilities"), only("CapabilityBoundingSet")
    who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
    return [*who, f"--inh-caps={ambient}", f"--ambient-caps={ambient}", f"--bounding-set={bounding}"]


def own(path: Path, user: int, mode: int) -> Path:
    """A directory for the unit; one that was somebody else's is taken over with all that is in it (systemd.exec(5))."""
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_uid != user:
        for each in (path, *path.rglob("*")):
            os.chown(each, user, user, follow_symlinks=False)
    path.chmod(mode)
    return path


def protect(writable: Sequence[str]) -> None:
    """ProtectSystem=strict: only these directories can be written."""
    for path in writable:
        mount(path, path, flags=_MS_BIND | _MS_REC)
    set_read_only("/", True)
    for path in (*_API, *writable):
        set_read_only(path, False)


def put_within_reach(paths: Sequence[Path]) -> None:
    """Make files readable at their paths for a user who must not enter a directory above them."""
    closed = {path: top for path in paths if (top := next(filter(_is_closed, reversed(path.parents)), None))}
    held = {path: os.open(path, os.O_PATH) for path in closed}
    for top in set(closed.values()):
        mount("tmpfs", str(top), "tmpfs", options="mode=755")
    for path, number in held.items():
        path.mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{number}", str(path), flags=_MS_BIND | _MS_REC)
        os.close(number)


def _is_closed(path: Path) -> bool:
    return not path.stat().st_mode & stat.S_IXOTH


def restrict(families: set[str]) -> None:
    """RestrictAddressFamilies: sockets of other families are refused as if the kernel knew none (seccomp(2))."""
    if platform.machine() not in _SOCKET:
        sys.exit(f"as_unit.py: the number of socket(2) on {platform.machine()} is not known; put it into _SOCKET")
    numbers = [int(getattr(socket, name)) for name in sorted(families)]
    program = [(_LOAD, 0, 0, 0), (_IF_EQUAL, 0, len(numbers) + 2, _SOCKET[platform.machine()]), (_LOAD, 0, 0, 16)]
    program += [(_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(_RETURN, 0, 0, _ERROR | _EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    filtering = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    check("prctl", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    check("prctl", _libc.prctl(_SECCOMP, _FILTER, filtering, 0, 0))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    words = [word.encode() or None for word in (source, target, kind)]
    check(f"mount {target}", _libc.mount(*words, flags, options.encode() or None))


def set_read_only(path: str, read_only: bool) -> None:
    """mount_setattr(2), for a mount and all below it."""
    attributes = struct.pack("=QQQQ", read_only * _READ_ONLY, (not read_only) * _READ_ONLY, 0, 0)
    code = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE, attributes, len(attributes))
    check(f"mount_setattr {path}", code)


def check(what: str, code: int) -> None:
    """Raise what a system call says."""
    if code < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
