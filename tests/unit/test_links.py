"""What the kernel tells of interfaces, addresses and routes, in the bytes of rtnetlink(7), built here."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from lsmpy import links
from lsmpy.links import Link, NetlinkError, Snapshot

ETHER, PPP, LOOPBACK = 1, 512, 772
UP, RUNNING, NOARP = 0x1, 0x40, 0x80
TEMPORARY, DADFAILED, DEPRECATED, TENTATIVE, PERMANENT = 0x01, 0x08, 0x20, 0x40, 0x80
NEW_LINK, GET_LINK, NEW_ADDRESS, GET_ADDRESS, NEW_ROUTE, GET_ROUTE, DONE, ERROR = 16, 18, 20, 22, 24, 26, 3, 2
UNICAST, UNREACHABLE = 1, 7
MAC = b"\x02\0\0\0\0\x01"
WAN1 = Link("wan1", 3, ETHER, True, True, True, MAC)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=LHHLL", 16 + len(body), kind, 2, 1, 4711) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link(index: int, name: str, kind: int = ETHER, flags: int = UP | RUNNING, mac: bytes = MAC) -> bytes:
    """struct ifinfomsg, IFLA_MTU, IFLA_IFNAME, IFLA_ADDRESS and a nested one."""
    header = struct.pack("=BxHiII", 0, kind, index, flags, 0)
    named = attribute(4, struct.pack("=I", 1500)) + attribute(3, name.encode() + b"\0")
    nested = attribute(0x8000 | 18, attribute(1, b"veth\0"))
    return message(NEW_LINK, header + named + (attribute(1, mac) if mac else b"") + nested)


def address(index: int, text: str, flags: int = PERMANENT, peer: str = "", wide: bool = True) -> bytes:
    """struct ifaddrmsg; IFA_ADDRESS, which is the peer's where there is one, IFA_LOCAL, IFA_FLAGS."""
    own = ip_address(text)
    family = socket.AF_INET if own.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, 24, flags & 0xFF, 0, index)
    body += attribute(1, ip_address(peer).packed if peer else own.packed)
    if own.version == 4 or peer:
        body += attribute(2, own.packed)
    return message(NEW_ADDRESS, body + (attribute(8, struct.pack("=I", flags)) if wide else b""))


def route(
    index: int,
    gateway: str | None,
    metric: int | None = None,
    family: int = socket.AF_INET,
    length: int = 0,
    table: int = 254,
    kind: int = UNICAST,
) -> bytes:
    """struct rtmsg, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY."""
    body = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, 4, 0, kind, 0)
    body += attribute(4, struct.pack("=I", index)) if index else b""
    body += attribute(5, ip_address(gateway).packed) if gateway else b""
    return message(NEW_ROUTE, body + (attribute(6, struct.pack("=I", metric)) if metric is not None else b""))


def several(*ways: tuple[int, str | None], metric: int = 0, family: int = socket.AF_INET) -> bytes:
    """A default route by several interfaces: RTA_MULTIPATH of struct rtnexthop and RTA_GATEWAY each."""
    hops = b""
    for index, gateway in ways:
        body = attribute(5, ip_address(gateway).packed) if gateway else b""
        hops += struct.pack("=HBBi", 8 + len(body), 0, 0, index) + body
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 4, 0, UNICAST, 0)
    return message(NEW_ROUTE, body + attribute(6, struct.pack("=I", metric)) + attribute(9, hops))


def done() -> bytes:
    return message(DONE, struct.pack("=i", 0))


def error(number: int) -> bytes:
    return message(ERROR, struct.pack("=i", -number) + bytes(16))


class Kernel:
    """Answers each kind of request with the datagrams that it was given, as often as it is asked."""

    def __init__(self, **answers: list[bytes] | Exception) -> None:
        self.answers = {GET_LINK: answers["links"], GET_ADDRESS: answers["addresses"], GET_ROUTE: answers["routes"]}
        self.requests: list[bytes] = []
        self._waiting: Iterator[bytes] = iter(())

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, request: bytes) -> None:
        length, kind, _, _, _ = struct.unpack_from("=LHHLL", request)
        assert length == len(request)
        self.requests.append(request)
        answer = self.answers[kind]
        if isinstance(answer, Exception):
            raise answer
        self._waiting = iter(answer)

    def recv(self, _: int) -> bytes:
        return next(self._waiting)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> type[Kernel]:
    """Let the kernel answer."""

    class Asked(Kernel):
        def __init__(self, **answers: list[bytes] | Exception) -> None:
            super().__init__(**{"links": [done()], "addresses": [done()], "routes": [done()]} | answers)
            monkeypatch.setattr(links, "_open", lambda: self)

    return Asked


def test_interfaces_are_read(answer: type[Kernel]) -> None:
    answer(
        links=[
            link(1, "lo", LOOPBACK, mac=bytes(6)) + link(3, "wan1"),
            link(4, "wan2", flags=UP) + link(5, "wan3", flags=0),
            link(6, "ppp0", PPP, UP | RUNNING | NOARP, b"") + done(),
        ]
    )
    assert links.look(False).links == {
        "lo": Link("lo", 1, LOOPBACK, True, True, True, bytes(6)),
        "wan1": WAN1,
        "wan2": Link("wan2", 4, ETHER, True, False, True, MAC),
        "wan3": Link("wan3", 5, ETHER, False, False, True, MAC),
        "ppp0": Link("ppp0", 6, PPP, True, True, False, b""),
    }


def test_an_end_in_a_datagram_of_its_own_is_waited_for(answer: type[Kernel]) -> None:
    answer(links=[link(3, "wan1"), done()])
    assert links.look(False) == Snapshot({"wan1": WAN1}, {}, {})


def test_addresses_are_read_by_interface(answer: type[Kernel]) -> None:
    answer(
        addresses=[
            address(3, "192.0.2.1") + address(3, "192.0.2.9") + address(4, "198.51.100.1"),
            address(3, "2001:db8::1") + address(3, "fe80::1") + done(),
        ]
    )
    assert links.look(False).addresses == {
        3: tuple(map(ip_address, ("192.0.2.1", "192.0.2.9", "2001:db8::1", "fe80::1"))),
        4: (ip_address("198.51.100.1"),),
    }


def test_the_own_address_of_a_link_to_a_peer_is_the_local_one(answer: type[Kernel]) -> None:
    answer(
        addresses=[address(6, "192.0.2.1", peer="192.0.2.254") + address(6, "2001:db8::1", peer="2001:db8::2") + done()]
    )
    assert links.look(False).addresses == {6: (ip_address("192.0.2.1"), ip_address("2001:db8::1"))}


def test_whom_an_address_makes_a_neighbour_is_read(answer: type[Kernel]) -> None:
    """Of a link to a peer that is the peer's side."""
    several = address(3, "192.0.2.1") + address(3, "192.0.2.2", TENTATIVE) + address(3, "2001:db8::1")
    answer(addresses=[several + address(6, "10.9.9.1", peer="198.51.100.7"), done()])
    found = links.look(False).networks
    assert {index: [str(each) for each in networks] for index, networks in found.items()} == {
        3: ["192.0.2.0/24", "2001:d00::/24"],
        6: ["198.51.100.0/24"],
    }


def test_what_may_not_be_used_yet_or_any_more_is_no_address(answer: type[Kernel]) -> None:
    answer(addresses=[address(3, "2001:db8::1", TENTATIVE) + address(3, "2001:db8::2", DADFAILED) + done()])
    assert links.look(False).addresses == {}


def test_an_address_of_a_family_that_is_not_ours_is_none(answer: type[Kernel]) -> None:
    """A dump without a family has those of MCTP and Phonet too, whose addresses are one byte."""
    foreign = message(NEW_ADDRESS, struct.pack("=BBBBI", 45, 8, 0, 0, 3) + attribute(2, b"\x08"))
    answer(addresses=[address(3, "192.0.2.1") + foreign + done()])
    assert links.look(False).addresses == {3: (ip_address("192.0.2.1"),)}


@pytest.mark.parametrize("wide", [True, False])
def test_lasting_addresses_come_first_and_keep_their_order(answer: type[Kernel], wide: bool) -> None:
    flags = [("::1", TEMPORARY), ("::2", PERMANENT), ("::3", DEPRECATED | PERMANENT), ("::4", 0)]
    answer(addresses=[b"".join(address(3, "2001:db8" + end, flag, wide=wide) for end, flag in flags) + done()])
    assert [str(each)[-1] for each in links.look(False).addresses[3]] == ["2", "4", "1", "3"]


def test_flags_that_do_not_fit_into_the_old_field_are_read_from_the_new(answer: type[Kernel]) -> None:
    answer(addresses=[address(3, "2001:db8::1", 0x100 | TENTATIVE) + address(3, "2001:db8::2", 0x100) + done()])
    assert links.look(False).addresses == {3: (ip_address("2001:db8::2"),)}


def test_routes_are_not_asked_for_where_nothing_follows_them(answer: type[Kernel]) -> None:
    kernel = answer(routes=[route(3, "192.0.2.2") + done()])
    assert links.look(False).hops == {}
    assert len(kernel.requests) == 2


def test_the_best_default_route_of_each_interface_and_family_has_its_gateway(answer: type[Kernel]) -> None:
    kernel = answer(
        routes=[
            route(3, "192.0.2.9", 200) + route(3, "192.0.2.2", 100) + route(3, "192.0.2.8", 300),
            route(4, "198.51.100.2") + route(4, "198.51.100.9", 1),
            route(5, "203.0.113.9", 0, length=24) + route(5, "203.0.113.9", table=250),
            route(5, "203.0.113.9", kind=UNREACHABLE) + route(0, "203.0.113.9"),
            route(6, None) + done(),
        ]
    )
    hops = links.look(True).hops
    # The same answer to the question for IPv6, as a kernel without it gives, says nothing of IPv6.
    assert hops == {
        (3, 4): ip_address("192.0.2.2"),
        (4, 4): ip_address("198.51.100.2"),
        (6, 4): None,
    }
    assert [request[16] for request in kernel.requests[2:]] == [socket.AF_INET, socket.AF_INET6]


def test_a_gateway_of_ipv6_is_its_own(answer: type[Kernel]) -> None:
    answer(routes=[route(3, "fe80::1", 1024, socket.AF_INET6) + done()])
    assert links.look(True).hops[3, 6] == ip_address("fe80::1")


def test_a_default_route_by_several_interfaces_is_each_ones(answer: type[Kernel]) -> None:
    routes = several((3, "192.0.2.2"), (4, None), (5, "203.0.113.2"), metric=5)
    six = several((3, "fe80::3"), (4, "fe80::4"), family=socket.AF_INET6)
    answer(routes=[routes + route(5, "203.0.113.1") + route(3, "192.0.2.9", 7) + done()])
    gateways = {(3, 4): ip_address("192.0.2.2"), (4, 4): None, (5, 4): ip_address("203.0.113.1")}
    assert links.look(True).hops == gateways
    answer(routes=[six + done()])
    assert links.look(True).hops == {(3, 6): ip_address("fe80::3"), (4, 6): ip_address("fe80::4")}


@pytest.mark.parametrize("length", range(9))
def test_ways_that_are_cut_off_end_them(answer: type[Kernel], length: int) -> None:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 0, UNICAST, 0)
    hops = struct.pack("=HBBi", min(length, 7), 0, 0, 3)[:length]
    answer(routes=[message(NEW_ROUTE, body + attribute(9, hops)) + done()])
    assert links.look(True).hops == {}


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOENT])
def test_a_kernel_without_a_family_or_a_table_has_no_routes(answer: type[Kernel], number: int) -> None:
    answer(links=[link(3, "wan1") + done()], routes=[error(number)])
    assert links.look(True) == Snapshot({"wan1": WAN1}, {}, {})


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ([error(errno.EPERM)], "the kernel does not tell its interfaces: Operation not permitted"),
        (TimeoutError("timed out"), "the kernel does not tell its interfaces: timed out"),
        (OSError(errno.ENOBUFS, "No buffer space available"), "No buffer space available"),
    ],
)
def test_a_kernel_that_does_not_answer_is_told(
    answer: type[Kernel], trouble: list[bytes] | Exception, words: str
) -> None:
    answer(links=trouble)
    with pytest.raises(NetlinkError, match=words):
        links.look(False)


# -- the way to an address -------------------------------------------------------------------------


def way(source: str = "192.0.2.1", target: str = "203.0.113.1") -> tuple[int, str | None] | None:
    found = links.way(ip_address(source), ip_address(target), WAN1)
    return found and (found[0], str(found[1]) if found[1] else None)


def test_the_way_to_an_address_is_that_of_the_kernel(answer: type[Kernel]) -> None:
    answer(routes=[route(3, "192.0.2.2", length=32)])
    assert way() == (3, "192.0.2.2")
    answer(routes=[route(4, None, length=32)])
    assert way() == (4, None)
    answer(routes=[route(3, "fe80::2", family=socket.AF_INET6, length=128)])
    assert way("2001:db8::1", "2001:db8:ffff::1") == (3, "fe80::2")


def test_where_the_kernel_would_not_send_there_is_no_way(answer: type[Kernel]) -> None:
    answer(routes=[error(errno.ENETUNREACH)])
    assert way() is None
    answer(routes=[route(3, None, kind=UNREACHABLE)])
    assert way() is None


@pytest.mark.parametrize(
    ("source", "target", "family", "size"),
    [("192.0.2.1", "203.0.113.1", socket.AF_INET, 32), ("2001:db8::1", "2001:db8:f::1", socket.AF_INET6, 128)],
)
def test_the_way_is_asked_for_with_source_and_interface(
    answer: type[Kernel], source: str, target: str, family: int, size: int
) -> None:
    kernel = answer(routes=[error(errno.ENETUNREACH)])
    way(source, target)
    (request,) = kernel.requests
    assert struct.unpack_from("=HH", request, 4) == (GET_ROUTE, 1)  # NLM_F_REQUEST, and no dump
    assert struct.unpack_from("=BBB", request, 16) == (family, size, size)
    assert links._attributes(request, 12) == {
        1: ip_address(target).packed,
        2: ip_address(source).packed,
        4: struct.pack("=I", 3),
    }


# -- attributes ------------------------------------------------------------------------------------


def attributes(data: bytes) -> dict[int, bytes]:
    return links._attributes(bytes(16 + 8) + data, 8)


def test_attributes_are_padded_and_may_be_nested_or_of_network_order() -> None:
    data = attribute(1, b"a") + attribute(0x8002, b"bc") + attribute(0x4003, b"") + attribute(4, b"defg")
    assert attributes(data) == {1: b"a", 2: b"bc", 3: b"", 4: b"defg"}


@pytest.mark.parametrize("length", range(5))
def test_an_attribute_that_is_cut_off_or_shorter_than_its_head_ends_them(length: int) -> None:
    assert attributes(attribute(1, b"a") + struct.pack("=HH", length, 2)[:length]) == {1: b"a"} | (
        {2: b""} if length == 4 else {}
    )
    assert attributes(struct.pack("=HH", min(length, 3), 1) + attribute(2, b"abc")) == {}


# -- on the real kernel, whatever it has -----------------------------------------------------------


def test_this_machine_has_its_loopback() -> None:
    snapshot = links.look(True)
    loopback = snapshot.links["lo"]
    assert (loopback.index, loopback.kind) == (socket.if_nametoindex("lo"), LOOPBACK)
    assert {name: each.index for name, each in snapshot.links.items()} == {
        name: index for index, name in socket.if_nameindex()
    }
