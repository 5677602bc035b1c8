"""What an ISP's interface offers at the moment: source address and next hop of each family, or why there is none."""

from __future__ import annotations

from msgspec import Struct

from lsmpy.links import Link, Snapshot
from lsmpy.model import AUTO, NONE, Address, Family, Isp

_ARPHRD_ETHER = 1


class Path(Struct, frozen=True):
    """How packets of one family leave by an ISP; `hop` is None where they go straight into the interface."""

    link: Link
    source: Address
    hop: Address | None

    @property
    def needs_mac(self) -> bool:
        """Whether frames are addressed to the hop's hardware."""
        return self.hop is not None and self.link.arp and self.link.kind == _ARPHRD_ETHER


class Fault(Struct, frozen=True):
    """Why nothing of one family can leave by an ISP, for a person."""

    reason: str


def find(isp: Isp, family: Family, snapshot: Snapshot) -> Path | Fault:
    """The path of a family by an ISP, as the kernel has it."""
    link = snapshot.links.get(isp.interface)
    if link is None:
        return Fault(f"{isp.interface} does not exist")
    if not link.up:
        return Fault(f"{isp.interface} is down")
    if not link.running:
        return Fault(f"{isp.interface} has no carrier")
    source = _source(isp, family, snapshot.addresses.get(link.index, ()))
    if isinstance(source, Fault):
        return source
    if NONE in isp.gateway:
        if link.kind == _ARPHRD_ETHER and link.arp:
            return Fault(f'{link.name} is Ethernet, where gateway = "none" leads nowhere')
        return Path(link, source, None)
    if AUTO in isp.gateway:
        if (link.index, family) not in snapshot.hops:
            return Fault(f"{link.name} has no IPv{family} default route in the main table")
        return Path(link, source, snapshot.hops[link.index, family])
    hop = isp.next_hop(family)
    return Path(link, source, hop) if hop else Fault(f"{isp.name} has no IPv{family} gateway")


def _source(isp: Isp, family: Family, present: tuple[Address, ...]) -> Address | Fault:
    if AUTO in isp.address:
        usable = (each for each in present if each.version == family and not each.is_link_local)
        return min(usable, key=_site_local, default=None) or Fault(f"{isp.interface} has no IPv{family} address")
    configured = isp.addresses(family)[0].ip
    return configured if configured in present else Fault(f"{isp.interface} lacks the address {configured}")


def _site_local(address: Address) -> bool:
    """Whether nobody beyond the site could answer it (RFC 4193), though another may be there."""
    return address.version == 6 and address.packed[0] & 0xFE == 0xFC
