"""What the prober goes by: lsmpy.toml, or an lsm.conf, of which each connection becomes an ISP with one target."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from msgspec import Struct

from lsmpy import config, lsmconf, netlink, routed, state, uplink
from lsmpy.lsmmodel import Connection, Settings
from lsmpy.model import AUTO, Isp, Probe, Router

_SILENT = -1  # the prober has its own words for what its ISPs do


class Source(Struct, frozen=True):
    """All that a configuration says to the prober.

    Attributes:
        router: whom to probe, and where state files are.
        settings: who is told of changes, in LSM's terms.
        find: how ISPs are reached.
        lsm: whether it is LSM's, who judges each connection by itself alone.
    """

    router: Router
    settings: Settings
    find: uplink.Find
    lsm: bool

    @property
    def follows(self) -> bool:
        """Whether default routes matter. An lsm.conf's ways are asked for one by one."""
        return not self.lsm and any(isp.follows for isp in self.router.isps)

    @property
    def groups(self) -> int:
        """What changes of the kernel matter; routes only if they must, for a router may have a million."""
        groups = netlink.LINKS | netlink.ADDRESSES
        if self.lsm:
            return groups | netlink.ROUTES | netlink.RULES
        return groups | (netlink.ROUTES if self.follows else 0)


def read(path: Path) -> bytes | None:
    """What is in a configuration, which may be a pipe and then gives it once; None if it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def flavour(path: Path) -> str:
    """`foolsm` or `lsm`: the name by which `scripts/lsm` was called, or else by the configuration's path."""
    return lsmconf.flavour(os.environ.get("LSMPY_LSM", str(path)))


def load(path: Path, data: bytes | None = None) -> Source:
    """Read the configuration at `path`, of either kind; `data` if that has been read already.

    Raises:
        ConfigError: with every mistake at once.
    """
    data = read(path) if data is None else data
    if lsmconf.is_lsm(path, data):
        return _of_lsm(lsmconf.load(path, data, flavour(path)))
    return _of_router(config.load(path, True, data))


def _of_router(router: Router) -> Source:
    scripts = router.events.script
    told = tuple(_connection(isp, scripts) for isp in router.isps) if scripts else ()
    return Source(router, Settings("foolsm", _SILENT, told, (), ()), uplink.find, False)


def _connection(isp: Isp, scripts: tuple[str, ...]) -> Connection:
    """An ISP as its scripts see it: they are told of its first target."""
    address = isp.checks[0].address or next((isp.next_hop(family) for family in isp.families), None)
    return Connection(
        name=isp.name, checkip=str(address or ""), device=isp.interface, eventscript=scripts, warn_email=""
    )


def _of_lsm(settings: Settings) -> Source:
    nameless = tuple(
        f'{each.line}: "{each.name}" gets no state file: its name has more than letters, digits, ".", "_" and "-"'
        for each in settings.everybody
        if not state.can_name(each.name)
    )
    isps = tuple(map(isp_of, settings.connections))
    router = Router(isps=isps, lans=(), warnings=(*settings.warnings, *nameless))
    return Source(router, settings, routed.Ways(settings.connections).find, True)


def isp_of(connection: Connection) -> Isp:
    """The ISP that is probed for a connection."""
    limits = {key: getattr(connection, key) for key in Probe.__struct_fields__ if hasattr(connection, key)}
    return Isp(
        name=connection.name,
        interface=connection.interface,
        address=(AUTO,),
        gateway=(AUTO,),
        check=("arp" if connection.check_arp else str(connection.target),),
        probe=Probe(**limits),
    )
