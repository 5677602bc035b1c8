"""By which ISPs a twin's flows may go, and that its server is asked for what most of the traffic is like."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import count

import pytest

from lsmpy import ways
from lsmpy.model import Family, Router
from lsmpy.spare import TwinError
from lsmpy.twin import Twin
from lsmpy.ways import Kind, Ways
from tests.conftest import isps_of, router_of

LAN = '[[lan]]\nname = "dev"\ninterface = "lan0"\naddress = ["192.168.9.1/24", "2001:db8:aa::1/64"]\n'
_NUMBERS = count(1)
FOURTH = """[[isp]]
name = "I4"
interface = "wan4"
address = "10.0.4.1/24"
gateway = "10.0.4.2"
check = "203.0.113.1"
"""


def router(policies: str = "", isps: str = isps_of(3)) -> Router:
    return router_of(f"{isps}{LAN}{policies}")


def policy(text: str) -> str:
    return f'[[policy]]\nname = "{next(_NUMBERS)}"\n{text}\n'


def found(given: Router, family: Family = 4, proto: str = "tcp", source: str = "") -> Ways:
    twin = Twin(given)
    host = ip_address(source) if source else twin.host(given.lans[0], family)
    assert host
    way = ways.find(given, Kind("dev", family, proto, 7777, host, twin.server[family]))
    return Ways(way.first, way.every)


def test_without_policies_the_best_tier_of_the_family_is_first() -> None:
    text = isps_of(3).replace('"I1"\n', '"I1"\ntier = 2\n')
    assert found(router(isps=text)) == Ways(("I2", "I3"), ("I1", "I2", "I3"))
    assert found(router(isps=isps_of(1) + FOURTH), 6) == Ways(("I1",), ("I1",))


def test_an_isps_own_addresses_have_no_other_way() -> None:
    text = isps_of(2).replace('"I2"\n', '"I2"\nprefix = "2001:db8:aa::/56"\n')
    assert found(router(policy('lan = "dev"\nuse = "I1"'), text), 6) == Ways(("I2",), ("I2",))


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ('lan = "dev"\nuse = ["I3", "I2"]', Ways(("I3",), ("I1", "I2", "I3"))),
        ('lan = "dev"\nuse = ["I3", "I2"]\notherwise = "unreachable"', Ways(("I3",), ("I3", "I2"))),
        (
            'from = "192.168.9.0/25"\nprotocol = "tcp"\nports = "7000-8000"\nuse = "I2"',
            Ways(("I2",), ("I1", "I2", "I3")),
        ),
    ],
)
def test_the_first_policy_that_matches_decides(text: str, way: Ways) -> None:
    others = policy('protocol = "udp"\nuse = "I1"') + policy('protocol = "tcp"\nports = 443\nuse = "I1"')
    others += policy('from = "192.168.9.128/25"\nuse = "I1"')
    assert found(router(others + policy(text) + policy('lan = "dev"\nuse = "I1"\nprotocol = "tcp"'))) == way


def test_what_no_isp_of_the_family_may_carry_has_no_way() -> None:
    given = router(policy('lan = "dev"\nuse = "I4"\notherwise = "unreachable"'), isps_of(1) + FOURTH)
    assert (found(given, 6), found(given, 4)) == (Ways((), ()), Ways(("I4",), ("I4",)))


def test_the_server_is_nobodys_special_case_if_that_can_be() -> None:
    bank = policy('to = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:ffff::/48"]\nuse = "I1"')
    server = Twin(router(bank)).server
    assert {family: str(address) for family, address in server.items()} == {
        4: "192.0.2.10",
        6: "fd6c:736d:7079:ffff::10",
    }
    everything = policy('to = ["0.0.0.0/0", "::/0"]\nuse = "I1"')
    assert Twin(router(everything)).server == Twin(router()).server


def test_a_link_without_next_hop_is_refused_and_told_why() -> None:
    text = isps_of(1, "4").replace("gateway = ['10.0.1.2']", 'gateway = "none"')
    with pytest.raises(TwinError, match=r'I1 has gateway = "none", and .* Ethernet, .*\. Nothing was built\. Rehearse'):
        Twin(router(isps=text))
