"""Answers that were on their way when their connection was freed, and what keeps them from holding it (R4).

Where hosts are reached at addresses of their own, such an answer would begin a connection from outside, and what the
host says next would be its answer, and stay with that ISP. So for a short time after an ISP's connections were freed
nothing that it brings begins one, but for what cannot be such an answer. The kernel keeps the time (xt_recent).
"""

from __future__ import annotations

from collections.abc import Iterator

from lsmpy import npt
from lsmpy.model import Family, Isp, Router
from lsmpy.netfilter import BEGINNING, PREFIX, Chain

LATE_S = 2  # how long answers may be on their way, and the hosts that they are for silent
_LATE = f"{PREFIX}LATE"
_NOBODY: dict[Family, str] = {4: "0.0.0.0", 6: "::"}  # noqa: S104
# Multicast, and in IPv6 what is for the link alone.
_NO_HOSTS: dict[Family, tuple[str, ...]] = {4: ("224.0.0.0/4",), 6: ("fe80::/10", "ff00::/8")}


def tests(router: Router, isps: list[Isp], family: Family, chain: str) -> Iterator[str]:
    """The rules that ask of new packets whether they come soon after their ISP's connections were freed."""
    for isp in _reaching(router, isps, family):
        soon = f"-m recent --rcheck --seconds {LATE_S} --name {_list(isp)} --mask {_NOBODY[family]} --rsource"
        yield f"-A {chain} -i {isp.interface} {soon} -j {_LATE}"


def chains(router: Router, isps: list[Isp], family: Family) -> list[Chain]:
    """The chain that drops those of them that may be answers.

    What begins a TCP connection is none, nor is what is for the ISP's own addresses, which no connection was given.
    """
    if not (reaching := _reaching(router, isps, family)):
        return []
    own = [f"{each.ip}/{each.max_prefixlen}" for isp in reaching for each in isp.addresses(family)]
    rules = [f"-A {_LATE} {BEGINNING} -j RETURN"]
    rules += [f"-A {_LATE} -d {each} -j RETURN" for each in (*_NO_HOSTS[family], *own)]
    return [Chain(_LATE, None, (*rules, f"-A {_LATE} -j DROP"))]


def begin(router: Router, isp: Isp, family: Family) -> list[str]:
    """How a shell says that an ISP's connections are being freed; nothing where no answer can be too late.

    In a container that may not write there, all else is done.
    """
    file = f"/proc/net/xt_recent/{_list(isp)}"
    return [f"[ ! -w {file} ] || echo +{_NOBODY[family]} >{file}"] if _reaching(router, [isp], family) else []


def _reaching(router: Router, isps: list[Isp], family: Family) -> list[Isp]:
    """The ISPs whose connections may be freed and by which hosts are reached at addresses of their own."""
    reaching = (isp for isp in isps if isp.nat.kind(family) in ("none", npt.STATEFUL))
    return list(reaching) if router.options.flush_conntrack else []


def _list(isp: Isp) -> str:
    """The name of the list in which xt_recent keeps when that was."""
    return f"{PREFIX}{isp.name}"
