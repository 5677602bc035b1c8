"""By which address and to whom packets leave by an ISP, as far as the kernel has what it takes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lsmpy import config, uplink
from lsmpy.links import Link, Snapshot
from lsmpy.model import Family, Isp
from lsmpy.uplink import Fault, Path

ETHER, PPP, NONE_TYPE = 1, 512, 0xFFFE
MAC = b"\x02\0\0\0\0\x01"
LINK = Link("wan1", 3, ETHER, True, True, True, MAC)
BOTH = "192.0.2.1", "2001:db8:1::1"


def isp(
    address: str = '["192.0.2.1/24", "2001:db8:1::1/64"]',
    gateway: str = '["192.0.2.2", "2001:db8:1::2"]',
    check: str = "203.0.113.1",
) -> Isp:
    text = f'[[isp]]\nname = "ISP1"\ninterface = "wan1"\naddress = {address}\ngateway = {gateway}\ncheck = "{check}"\n'
    return config.parse(text.encode(), "test", {}, probing=True).isps[0]


def snapshot(
    link: Link | None = LINK,
    addresses: tuple[str, ...] = BOTH,
    hops: dict[int, str | None] | None = None,
) -> Snapshot:
    found = {link.name: link} if link else {}
    own = {link.index: tuple(map(ip_address, addresses))} if link else {}
    told = {(3, family): ip_address(hop) if hop else None for family, hop in (hops or {}).items()}
    return Snapshot(found, own, told)


def link(kind: int = ETHER, up: bool = True, running: bool = True, arp: bool = True) -> Link:
    return Link("wan1", 3, kind, up, running, arp, MAC if arp else b"")


def test_each_family_has_its_own_path() -> None:
    assert uplink.find(isp(), 4, snapshot()) == Path(LINK, ip_address("192.0.2.1"), ip_address("192.0.2.2"))
    assert uplink.find(isp(), 6, snapshot()) == Path(LINK, ip_address("2001:db8:1::1"), ip_address("2001:db8:1::2"))


@pytest.mark.parametrize(
    ("has", "reason"),
    [
        (snapshot(None), "wan1 does not exist"),
        (snapshot(Link("wan2", 3, ETHER, True, True, True, MAC)), "wan1 does not exist"),
        (snapshot(link(up=False, running=False)), "wan1 is down"),
        (snapshot(link(running=False)), "wan1 has no carrier"),
        (snapshot(addresses=("2001:db8:1::1",)), "wan1 lacks the address 192.0.2.1"),
        (snapshot(addresses=("192.0.2.9",)), "wan1 lacks the address 192.0.2.1"),
    ],
)
def test_what_is_missing_is_a_fault_in_words(has: Snapshot, reason: str) -> None:
    assert uplink.find(isp(), 4, has) == Fault(reason)


def test_what_another_interface_has_does_not_count() -> None:
    has = Snapshot({"wan1": LINK}, {4: (ip_address("192.0.2.1"),)}, {(4, 4): ip_address("192.0.2.2")})
    assert uplink.find(isp(), 4, has) == Fault("wan1 lacks the address 192.0.2.1")
    assert uplink.find(isp('"auto"', '"auto"'), 4, has) == Fault("wan1 has no IPv4 address")


def test_the_first_address_of_a_family_is_the_source() -> None:
    several = isp('["192.0.2.1/24", "192.0.2.7/24"]', '"192.0.2.2"')
    found = uplink.find(several, 4, snapshot(addresses=("192.0.2.7", "192.0.2.1")))
    assert isinstance(found, Path)
    assert str(found.source) == "192.0.2.1"
    assert isinstance(uplink.find(several, 4, snapshot(addresses=("192.0.2.7",))), Fault)


@pytest.mark.parametrize(("family", "source"), [(4, "192.0.2.8"), (6, "2001:db8:1::8")])
def test_an_address_that_the_kernel_tells_is_its_first_global_one(family: Family, source: str) -> None:
    has = snapshot(addresses=("fe80::1", "169.254.3.4", "192.0.2.8", "2001:db8:1::8", "192.0.2.9", "2001:db8:1::9"))
    found = uplink.find(isp('"auto"'), family, has)
    assert isinstance(found, Path)
    assert str(found.source) == source


def test_a_link_local_address_alone_is_none() -> None:
    assert uplink.find(isp('"auto"'), 6, snapshot(addresses=("fe80::1",))) == Fault("wan1 has no IPv6 address")


def test_a_gateway_that_the_kernel_tells_is_that_of_its_default_route() -> None:
    follows = isp(gateway='"auto"')
    has = snapshot(hops={4: "192.0.2.250", 6: "fe80::2"})
    assert uplink.find(follows, 4, has) == Path(LINK, ip_address("192.0.2.1"), ip_address("192.0.2.250"))
    assert uplink.find(follows, 6, has) == Path(LINK, ip_address("2001:db8:1::1"), ip_address("fe80::2"))
    assert uplink.find(follows, 4, snapshot()) == Fault("wan1 has no IPv4 default route in the main table")


def test_a_default_route_without_a_gateway_goes_straight_in() -> None:
    found = uplink.find(isp(gateway='"auto"'), 4, snapshot(link(PPP, arp=False), hops={4: None}))
    assert isinstance(found, Path)
    assert (found.hop, found.needs_mac) == (None, False)


def test_an_isp_without_a_gateway_goes_straight_in() -> None:
    found = uplink.find(isp(gateway='"none"'), 4, snapshot(link(NONE_TYPE, arp=False)))
    assert found == Path(link(NONE_TYPE, arp=False), ip_address("192.0.2.1"), None)
    assert not found.needs_mac


def test_ethernet_needs_a_gateway() -> None:
    assert uplink.find(isp(gateway='"none"'), 4, snapshot()) == Fault(
        'wan1 is Ethernet, where gateway = "none" leads nowhere'
    )
    assert isinstance(uplink.find(isp(gateway='"none"'), 4, snapshot(link(arp=False))), Path)


@pytest.mark.parametrize(
    ("kind", "arp", "needs"), [(ETHER, True, True), (ETHER, False, False), (PPP, True, False), (PPP, False, False)]
)
def test_only_ethernet_with_arp_needs_hardware_addresses(kind: int, arp: bool, needs: bool) -> None:
    found = uplink.find(isp(), 4, snapshot(link(kind, arp=arp)))
    assert isinstance(found, Path)
    assert found.needs_mac == needs


@pytest.mark.parametrize(("kind", "mac"), [(ETHER, MAC), (PPP, b"")])
def test_where_nobody_can_be_asked_for_frames_go_to_ourselves_as_the_kernels_do(kind: int, mac: bytes) -> None:
    found = uplink.find(isp(), 4, snapshot(Link("wan1", 3, kind, True, True, False, MAC)))
    assert isinstance(found, Path)
    assert (found.needs_mac, found.mac) == (False, mac)


def test_a_default_route_without_a_gateway_on_ethernet_leads_to_everybody_himself() -> None:
    found = uplink.find(isp(gateway='"auto"'), 4, snapshot(hops={4: None}))
    assert isinstance(found, Path)
    assert (found.hop, found.needs_mac) == (None, True)


def test_a_family_without_a_gateway_has_no_path_over_ethernet() -> None:
    found = uplink.find(isp('"auto"', '"192.0.2.2"'), 6, snapshot())
    assert isinstance(found, Fault)
