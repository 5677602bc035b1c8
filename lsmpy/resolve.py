"""What "auto" means at the moment: the configured router with the addresses and gateways that the kernel has now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from lsmpy.model import AUTO, FAMILIES, Family, Isp, Lan, Router
from lsmpy.routing import Link

_Item = TypeVar("_Item", Isp, Lan)


def resolve(router: Router, links: Mapping[str, Link]) -> Router:
    """The same router, where before each "auto" stands what its interface has.

    An "auto" stays, for what may come: an ISP without an address keeps its rules and its table, in which every way ends
    (R2). What an address or a gateway of the file says is not touched.
    """
    isps = tuple(_with_gateway(_with_addresses(isp, links), links) for isp in router.isps)
    return msgspec.structs.replace(router, isps=isps, lans=tuple(_with_addresses(lan, links) for lan in router.lans))


def on_machine(router: Router, families: tuple[Family, ...]) -> Router:
    """The same router without the families that only an "auto" might bring and the machine has not."""
    named = {f for f in FAMILIES if router.rules.files(f) or any(isp.addresses(f) for isp in router.isps)}
    without = tuple(family for family in FAMILIES if family not in {*families, *named})
    return msgspec.structs.replace(router, without=without) if without else router


def _with_addresses(item: _Item, links: Mapping[str, Link]) -> _Item:
    if AUTO not in item.address:
        return item
    own: tuple[str, ...] = links[item.interface].own if item.interface in links else ()
    return msgspec.structs.replace(item, address=(*own, AUTO))


def _with_gateway(isp: Isp, links: Mapping[str, Link]) -> Isp:
    if AUTO not in isp.gateway:
        return isp
    hops = links[isp.interface].hops if isp.interface in links else ()
    return msgspec.structs.replace(isp, gateway=(*hops, AUTO))
