"""Addresses that a configuration leaves free, for the parts of a laboratory that it does not name."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from itertools import islice

from lsmpy import LsmpyError
from lsmpy.model import Address, Family

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The documentation ranges first, then ranges that are nobody's on the internet.
_SERVERS: dict[Family, tuple[str, ...]] = {
    4: ("198.51.100.10", "203.0.113.10", "192.0.2.10", "100.127.255.10", "198.19.255.10"),
    6: ("2001:db8:ffff::10", "fd6c:736d:7079:ffff::10", "fdff:ffff:ffff::10"),
}
_TRANSIT: dict[Family, list[tuple[Network, int, int]]] = {
    4: [
        (ipaddress.ip_network(text), 20, 30)
        for text in ("100.64.0.0/10", "10.0.0.0/8", "172.16.0.0/12", "198.18.0.0/15")
    ],
    6: [(ipaddress.ip_network(text), 48, 64) for text in ("fd6c:736d:7079::/48", "fd6c::/16", "fdff::/16")],
}


class TwinError(LsmpyError):
    """The configured router has no twin in a laboratory."""


def server(family: Family, taken: Sequence[Network], shunned: Sequence[Network] = ()) -> Address:
    """An address for the internet's server, outside the networks in use and, if there is one, the `shunned` ones.

    Raises:
        TwinError: none is left.
    """
    addresses = map(ipaddress.ip_address, _SERVERS[family])
    free = [address for address in addresses if not any(address in net for net in taken)]
    for address in free:
        if not any(address in net for net in shunned):
            return address
    if free:
        return free[0]
    raise TwinError(f"no IPv{family} address is left for the internet's server: the configured networks cover them all")


def transits(family: Family, taken: Sequence[Network]) -> list[Network]:
    """Up to 1,024 small networks between the ISPs and the internet, from the first block that overlaps none in use.

    Raises:
        TwinError: none is left.
    """
    for whole, length, small in _TRANSIT[family]:
        blocks: Iterator[Network] = whole.subnets(new_prefix=length)
        for block in islice(blocks, 4096):
            if not any(block.overlaps(net) for net in taken if net.version == block.version):
                return list(islice(block.subnets(new_prefix=small), 1024))
    raise TwinError(f"no IPv{family} networks are left between ISPs and internet: the configured ones cover them all")
