"""Which place each network of the LANs has in an ISP's prefixes."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec
import pytest

from lsmpy import npt, plan, state
from lsmpy.model import Isp, Lan, Nat, Router
from tests.conftest import isps_of, router_of


def isp_of(*prefixes: str, kind: str = "npt", address: str = "2001:db8:1::1/64") -> Isp:
    isp = router_of(isps_of(1, "6")).isps[0]
    nat = msgspec.convert({"ipv6": kind}, Nat)
    return msgspec.structs.replace(isp, prefix=prefixes, address=(address,), nat=nat)


def lans_of(*networks: str) -> tuple[Lan, ...]:
    return tuple(Lan(name=f"L{n}", interface=f"lan{n}", address=(each,)) for n, each in enumerate(networks))


ONE, TWO = "fd00:a:0:1::1/64", "fd00:b:0:2::1/64"


@pytest.mark.parametrize(
    ("prefixes", "networks", "outside"),
    [
        (["2001:db8:5:100::/56"], [ONE, TWO], ["2001:db8:5:101::/64", "2001:db8:5:102::/64"]),
        (["2001:db8:5::/48"], [TWO, ONE], ["2001:db8:5:2::/64", "2001:db8:5:1::/64"]),
        (["2001:db8:5:a::/64", "2001:db8:5:b::/64"], [ONE, TWO], ["2001:db8:5:a::/64", "2001:db8:5:b::/64"]),
        (["2001:db8:5:a::/64", "2001:db8:6::/48"], [ONE, TWO], ["2001:db8:5:a::/64", "2001:db8:6:2::/64"]),
        # Prefixes longer than a network, or taken, are passed over.
        (["2001:db8:5::/80", "2001:db8:6::/48"], [ONE], ["2001:db8:6:1::/64"]),
        (["2001:db8:5::/56", "2001:db8:6::/56"], [ONE, "fd00:c:0:1::1/64"], ["2001:db8:5:1::/64", "2001:db8:6:1::/64"]),
        (["2001:db8:5::/48"], ["fd00:a:0:10::1/60", "fd00:a:0:1::1/64"], ["2001:db8:5:10::/60", "2001:db8:5:1::/64"]),
        # A network inside a prefix stays what it is, and nobody else gets its place.
        (["2001:db8:5::/48"], ["2001:db8:5:7::1/64", ONE], ["2001:db8:5:7::/64", "2001:db8:5:1::/64"]),
        (
            ["2001:db8:5::/56", "2001:db8:6::/56"],
            [ONE, "2001:db8:5:1::1/64"],
            ["2001:db8:6:1::/64", "2001:db8:5:1::/64"],
        ),
        # The link to the ISP is taken, unless there is nothing else.
        (["2001:db8:1::/48", "2001:db8:6::/48"], ["fd00:a::1/64"], ["2001:db8:6::/64"]),
        (["2001:db8:1::/64"], [ONE], ["2001:db8:1::/64"]),
        (["2001:db8:5::/48"], [ONE, "fe80::1/64"], ["2001:db8:5:1::/64"]),
    ],
)
def test_places(prefixes: list[str], networks: list[str], outside: list[str]) -> None:
    isp, lans = isp_of(*prefixes), lans_of(*networks)
    assert [str(pair.outside) for pair in npt.pairs(isp, lans)] == outside
    assert [pair.inside for pair in npt.pairs(isp, lans)] == npt.networks(lans)
    assert npt.homeless(isp, lans) == []


@pytest.mark.parametrize(
    ("prefixes", "networks", "left"),
    [
        (["2001:db8:5:100::/56"], [ONE, "fd00:c:0:1::1/64"], ["fd00:c:0:1::/64"]),
        (["2001:db8:5::/64"], [ONE, TWO], ["fd00:b:0:2::/64"]),
        (["2001:db8:5::/72"], [ONE], ["fd00:a:0:1::/64"]),
        ([], [ONE], ["fd00:a:0:1::/64"]),
    ],
)
def test_no_place(prefixes: list[str], networks: list[str], left: list[str]) -> None:
    assert npt.homeless(isp_of(*prefixes), lans_of(*networks)) == [ip_network(each) for each in left]


@pytest.mark.parametrize("kind", ["none", "snat", "masquerade"])
def test_who_does_not_translate_prefixes_has_no_use_for_places(kind: str) -> None:
    isp, lans = isp_of("2001:db8:5::/48", kind=kind), lans_of(ONE)
    assert (npt.pairs(isp, lans), npt.homeless(isp, lans)) == ((), [])


def test_what_comes_up_later_and_finds_no_place_is_told() -> None:
    """A LAN whose addresses are followed: it is the router's affair, and no mistake in the file."""
    isp = isp_of("2001:db8:5::/64")
    router = Router(isps=(isp,), lans=lans_of(ONE, TWO))
    (verdict,) = plan.build(router, {isp.name: state.judge("up")}, None).verdicts
    assert (verdict.up, verdict.broken) == (True, True)
    assert verdict.why == "without IPv6 of fd00:b:0:2::/64: 2001:db8:5::/64 has no place for it"
