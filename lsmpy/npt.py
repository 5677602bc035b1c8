"""NPT: what each network of the LANs is called outside, in each ISP's `prefix`, and the rules that translate it.

The first bits of a network are replaced by the ISP's prefix, and the rest, subnet and host, stay as they are: behind
2001:db8:5:100::/56, fd00:a:0:7::/64 is 2001:db8:5:107::/64. With several prefixes a network takes the first in which it
finds its place free. A network inside a prefix stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Network

from msgspec import Struct

from lsmpy import netfilter
from lsmpy.model import Interface, Isp, Lan, Network
from lsmpy.netfilter import PREFIX, Chain, Table

STATEFUL, STATELESS = "npt", "npt-stateless"


class Pair(Struct, frozen=True):
    """A network of the LANs, and what it is called outside."""

    inside: Network
    outside: Network


def networks(lans: Iterable[Lan]) -> list[Network]:
    """The LANs' IPv6 networks that are good beyond their link, in the order of the file."""
    every = dict.fromkeys(each.network for lan in lans for each in lan.addresses(6))
    return [net for net in every if not net.is_link_local]


@lru_cache(maxsize=1024)
def pairs(isp: Isp, lans: tuple[Lan, ...]) -> tuple[Pair, ...]:
    """The LANs' networks that have a place in the ISP's prefixes, in the order of the file, with that place."""
    prefixes, every = isp.prefixes(6), networks(lans)
    own = [each.network for each in isp.addresses(6)]
    # A link to the ISP that lies in a prefix is taken, unless that is all there is (RFC 7278).
    taken = [net for net in own if any(net != prefix and _inside(net, prefix) for prefix in prefixes)]
    places = {net: net for net in every if any(_inside(net, prefix) for prefix in prefixes)}
    taken += places
    for net in every:
        wanted = (_moved(net, prefix) for prefix in prefixes if prefix.prefixlen <= net.prefixlen)
        if net not in places and (free := next((w for w in wanted if not any(map(w.overlaps, taken))), None)):
            places[net] = free
            taken.append(free)
    return tuple(Pair(net, places[net]) for net in every if net in places)


def homeless(isp: Isp, lans: tuple[Lan, ...]) -> list[Network]:
    """The LANs' networks that have none."""
    settled = {pair.inside for pair in pairs(isp, lans)}
    return [net for net in networks(lans) if net not in settled]


def _moved(net: Network, prefix: Network) -> Network:
    rest = int(net.network_address) & int(prefix.hostmask)
    return IPv6Network((int(prefix.network_address) | rest, net.prefixlen))


def _inside(net: Network, prefix: Network) -> bool:
    return net.version == prefix.version and net.subnet_of(prefix)  # type: ignore[arg-type]
