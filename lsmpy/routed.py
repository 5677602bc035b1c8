"""The way to a target of which nothing but its address need be known: the way that the kernel's routes say."""

from __future__ import annotations

from collections.abc import Sequence

from lsmpy import links, uplink
from lsmpy.links import Snapshot
from lsmpy.lsmmodel import Connection
from lsmpy.model import Family, Isp
from lsmpy.uplink import Fault, Path, Unrouted


class Ways:
    """The ways of LSM's connections: by `device` and from `sourceip` if they have these."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = {each.name: each for each in connections}

    def find(self, isp: Isp, family: Family, snapshot: Snapshot) -> Path | Fault:
        """The way of a family to the target of the connection that `isp` stands for; in the place of `uplink.find`.

        Scripts that LSM runs at a change renew routes. Were the moment without one a change, they would run for ever.
        """
        connection = self._connections[isp.name]
        target = connection.target
        if target.version != family:
            return Fault(f"{target} is IPv{target.version}")
        link = uplink.usable(connection.interface, snapshot) if connection.interface else None
        if isinstance(link, Fault):
            return link
        source = connection.source
        if source and not any(source in each for each in snapshot.addresses.values()):
            return Fault(f"this machine lacks the address {source}")
        try:
            route = links.route(target, source, link)
        except links.NetlinkError as error:
            return Fault(str(error))
        by = f" by {link.name}" if link else ""
        if route is None or route.source is None:
            return Unrouted(f"there is no route to {target}{by}")
        name = next((each.name for each in snapshot.links.values() if each.index == route.index), "")
        out = uplink.usable(name, snapshot)
        if isinstance(out, Fault):
            return out
        hop = target if connection.check_arp else route.hop or target
        path = Path(out, route.source, hop, connection.ttl, route.own)
        if connection.check_arp and not path.needs_mac:
            return Fault(f'Interface "{out.name}" is not ARPable')
        return path
