"""What an ISP's interface offers at the moment: source address and next hop of each family, or why there is none."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from lsmpy.links import Link, Network, Snapshot
from lsmpy.model import AUTO, NONE, Address, Family, Isp

_ARPHRD_ETHER = 1


class Path(Struct, frozen=True):
    """How packets of one family leave by an ISP.

    Attributes:
        hop: the next one; None where they go straight into the interface, or to whoever is on the link.
        ttl: how many hops they may make; 0 for as many as usual.
        own: whether they go no further than this machine itself.
        networks: whose hosts are neighbours.
    """

    link: Link
    source: Address
    hop: Address | None
    ttl: int = 0
    own: bool = False
    networks: tuple[Network, ...] = ()

    @property
    def needs_mac(self) -> bool:
        """Whether frames are addressed to the hardware of the hop, or without one to that of everybody himself."""
        return self.link.arp and self.link.kind == _ARPHRD_ETHER

    @property
    def mac(self) -> bytes:
        """Whom frames are addressed to where nobody is asked for: on Ethernet ourselves, as the kernel does."""
        return self.link.mac if self.link.kind == _ARPHRD_ETHER else b""

    def is_neighbour(self, address: Address) -> bool:
        """Whether no gateway need be on the way to an address: its host is on the link, or there is no gateway."""
        return self.hop in (None, address) or any(address in each for each in self.networks)


class Fault(Struct, frozen=True):
    """Why nothing of one family can leave by an ISP, for a person."""

    reason: str


class Unrouted(Fault, frozen=True):
    """Nothing but a route is missing: probes that cannot be sent for that are lost; the link is not down at once."""


Find = Callable[[Isp, Family, Snapshot], Path | Fault]


def find(isp: Isp, family: Family, snapshot: Snapshot) -> Path | Fault:
    """The path of a family by an ISP, as the kernel has it."""
    link = usable(isp.interface, snapshot)
    if isinstance(link, Fault):
        return link
    source = _source(isp, family, snapshot.addresses.get(link.index, ()))
    if isinstance(source, Fault):
        return source
    networks = tuple(each for each in snapshot.networks.get(link.index, ()) if each.version == family)
    if NONE in isp.gateway:
        if link.kind == _ARPHRD_ETHER and link.arp:
            return Fault(f'{link.name} is Ethernet, where gateway = "none" leads nowhere')
        return Path(link, source, None)
    if AUTO in isp.gateway:
        if (link.index, family) not in snapshot.hops:
            return Fault(f"{link.name} has no IPv{family} default route in the main table")
        return Path(link, source, snapshot.hops[link.index, family], networks=networks)
    hop = isp.next_hop(family)
    return Path(link, source, hop, networks=networks) if hop else Fault(f"{isp.name} has no IPv{family} gateway")


def usable(name: str, snapshot: Snapshot) -> Link | Fault:
    """The interface of this name, if it can carry packets."""
    link = snapshot.links.get(name)
    if link is None:
        return Fault(f"{name} does not exist")
    if not link.up:
        return Fault(f"{name} is down")
    return link if link.running else Fault(f"{name} has no carrier")


def _source(isp: Isp, family: Family, present: tuple[Address, ...]) -> Address | Fault:
    if AUTO in isp.address:
        usable = (each for each in present if each.version == family and not each.is_link_local)
        return min(usable, key=_site_local, default=None) or Fault(f"{isp.interface} has no IPv{family} address")
    configured = isp.addresses(family)[0].ip
    return configured if configured in present else Fault(f"{isp.interface} lacks the address {configured}")


def _site_local(address: Address) -> bool:
    """Whether nobody beyond the site could answer it (RFC 4193), though another may be there."""
    return address.version == 6 and address.packed[0] & 0xFE == 0xFC
