"""One ISP's prober without a network: links that answer as told, byte by byte, in a time that only tests move."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP
from scapy.packet import Raw

from lsmpy import config, dial, model, standing, verdict, wire
from lsmpy.links import Link, Snapshot
from lsmpy.prober import Prober
from lsmpy.target import Target
from tests.unit import prober_kit as kit
from tests.unit.prober_kit import (
    GATEWAY_MAC,
    MS,
    OUR_MAC,
    TOML,
    Address,
    FakeCall,
    FakePort,
    S,
    Selector,
    World,
    ethernet,
    snapshot,
)

ADDRESSES = {3: ("192.0.2.1", "2001:db8:1::1")}
HEALTHY = snapshot(ethernet("wan1", 3), addresses=ADDRESSES)
OUT = snapshot(ethernet("wan1", 3, running=False), addresses=ADDRESSES)
GATEWAY = ip_address("192.0.2.2")


SLOW = TOML.replace("interval_ms = 10", "interval_ms = 1000").replace("timeout_ms = 20", "timeout_ms = 1000")


class Rig:
    """One prober in its world, turned every 10 ms as the daemon does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, check: str, more: str, text: str = TOML) -> None:
        self.world = World(HEALTHY)
        self.world.tick_ns = 0
        kit.begin(monkeypatch, self.world)
        self.selector = Selector(self.world)
        self.port = FakePort(self.world)
        self.who = Prober(isp(check, more, text), self.port, self.selector)
        self._set_off()

    def _set_off(self) -> None:
        self.who.see(self.world.snapshot, self.world.now_ns)
        self.world.now_ns += MS  # in which the gateway answers
        self.began_ns = self.world.now_ns
        for target in self.who.targets:
            target.due_ns = target.beat_ns = self.began_ns

    def turn(self, times: int) -> None:
        """Probe so many times."""
        for _ in range(times):
            now_ns = self.world.now_ns
            for key, _ in self.selector.select(0):
                key.data(now_ns)
            for target in self.who.targets:
                self.who.advance(target, now_ns)
            self.who.judge(frozenset(), now_ns)
            self.world.now_ns = now_ns + 10 * MS

    def see(self, seen: Snapshot) -> None:
        self.world.snapshot = seen
        self.who.see(seen, self.world.now_ns)
        self.world.now_ns += MS

    def again(self, check: str, more: str = "", text: str = TOML) -> None:
        """Another configuration."""
        self.who = Prober(isp(check, more, text), self.port, self.selector, self.who)
        self._set_off()

    @property
    def target(self) -> Target:
        return self.who.targets[0]

    @property
    def status(self) -> str:
        return self.who.status


Make = Callable[..., Rig]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(check: str = '["203.0.113.1"]', more: str = "", text: str = TOML) -> Rig:
        return Rig(monkeypatch, check, more, text)

    return made


def ping(text: str) -> model.Check:
    return model.Check("echo", ip_address(text))


def isp(check: str, more: str = "", text: str = TOML) -> model.Isp:
    data = (text.format(directory="/run", check=check) + more).encode()
    return config.parse(data, "test", {}, probing=True).isps[0]


# -- answers ---------------------------------------------------------------------------------------


def test_the_verdict_follows_the_answers(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rig = make()
    rig.turn(4)
    assert rig.status == "up"
    rig.port.alive = False
    rig.turn(6)
    assert rig.status == "down"
    assert caplog.messages == [
        "ISP1 up: 203.0.113.1: 0 of the last 2 probes lost, 2 answered in a row, round trip 1.0 ms ± 0.4",
        "ISP1 down: 203.0.113.1: 3 of the last 7 probes lost, 3 in a row, round trip 1.0 ms ± 0.2",
    ]


def test_nothing_is_said_before_enough_probes(make: Make) -> None:
    rig = make()
    rig.turn(2)
    assert (rig.status, rig.who.why) == ("unknown", "not enough probes yet")


@pytest.mark.parametrize(
    ("at", "change", "foreign"),
    [
        *((15, 1, True), (19, 1, True), (24, 1, False), (27, 1, False), (28, 1, False), (35, 9, False)),
        *((40, 1, False), (48, 1, False), (21, 1, False)),
    ],
    ids=["source", "destination", "ident", "seq", "nonce", "target", "counter", "tag", "code"],
)
def test_only_the_answer_to_our_probe_counts(make: Make, at: int, change: int, foreign: bool) -> None:
    rig = make()
    rig.port.alive = False
    for _ in range(10):
        rig.turn(1)
        forged = bytearray(kit.reply(rig.port.requests[-1]))
        forged[at] ^= change
        rig.port.bring(bytes(forged))
    assert rig.status == "down"
    assert (rig.target.link.received_in_a_row, rig.target.link.lost) == (0, 8)
    assert rig.target.foreign == (9 if foreign else 0)


def test_the_right_answer_in_that_way_counts(make: Make) -> None:
    rig = make()
    rig.port.alive = False
    for _ in range(10):
        rig.turn(1)
        rig.port.bring(kit.reply(rig.port.requests[-1]))
    assert rig.status == "up"


def test_an_answer_to_the_probe_of_another_port_does_not_count(make: Make) -> None:
    rig = make()
    other = FakePort(rig.world)
    request = other.echo(ip_address("192.0.2.1"), ip_address("203.0.113.1"), 0)
    rig.port.alive = False
    for number in range(10):
        rig.turn(1)
        other.probe(request, number, 4, GATEWAY_MAC)
        rig.port.bring(kit.reply(other.requests[-1]))
    assert (rig.status, rig.target.foreign, rig.target.link.received_in_a_row) == ("down", 0, 0)


def test_an_answer_played_again_counts_once(make: Make) -> None:
    rig = make()
    rig.turn(4)
    rig.port.alive = False
    answer = kit.reply(rig.port.requests[-1])
    for _ in range(10):
        rig.port.bring(answer)
        rig.turn(1)
    assert rig.status == "down"
    assert rig.target.foreign == 0


def test_round_trips_are_those_of_the_time_stamps(make: Make) -> None:
    rig = make()
    rig.world.answer = lambda *_: 1_234_567
    rig.turn(5)
    assert set(rig.target.times._times) == {1_234_567}


def test_a_clock_that_is_set_loses_nothing(make: Make) -> None:
    rig = make()
    rig.turn(5)
    for by_ns in (-3600 * S, 3600 * S):
        rig.world.set_clock(by_ns, rig.world.now_ns + 500_000)  # while the next probe is under way
        rig.turn(5)
    assert (rig.status, rig.target.link.lost, rig.target.flight.late) == ("up", 0, 0)
    assert max(rig.target.times._ordered) <= 10 * MS + 10_000


def test_missed_probes_are_not_caught_up_with(make: Make) -> None:
    rig = make()
    rig.turn(1)
    rig.world.now_ns = rig.began_ns + 1234 * MS
    rig.turn(1)
    assert len(rig.port.requests) == 2
    assert rig.target.due_ns == rig.began_ns + 1240 * MS


def test_an_answer_that_waited_for_us_counts(make: Make) -> None:
    rig = make()
    rig.turn(2)
    rig.world.now_ns += 9 * S
    rig.turn(1)
    assert (rig.target.link.samples, rig.target.link.lost) == (2, 0)


def test_an_answer_after_its_time_is_late(make: Make) -> None:
    rig = make()
    rig.world.answer = lambda *_: 25 * MS
    rig.turn(10)
    assert rig.status == "down"
    assert rig.target.flight.late >= 5
    assert rig.who.why.startswith("203.0.113.1: 3 of the last 3 probes lost, 3 in a row")


def test_what_was_under_way_while_the_machine_slept_is_not_lost(make: Make) -> None:
    rig = make()
    rig.turn(4)
    rig.port.alive = False
    rig.turn(2)
    rig.port.alive = True
    rig.world.now_ns += 60 * S
    rig.who.stalled()
    rig.turn(5)
    assert (rig.status, rig.target.link.lost) == ("up", 0)


def test_sequence_numbers_wrap(make: Make) -> None:
    rig = make()
    rig.target.counter = 65534
    rig.turn(5)
    assert [struct.unpack_from("!H", each, 26)[0] for each in rig.port.requests] == [65534, 65535, 0, 1, 2]
    assert (rig.target.link.samples, rig.target.link.lost) == (4, 0)


def test_who_says_that_a_probe_did_not_arrive_gives_the_reason(make: Make) -> None:
    rig = make()
    rig.turn(4)
    rig.port.alive = False
    for _ in range(6):
        rig.turn(1)
        error = IP(src="198.51.100.7", dst="192.0.2.1") / ICMP(type=3, code=1) / Raw(rig.port.requests[-1][:28])
        rig.port.bring(bytes(error))
    assert rig.status == "down"
    assert rig.who.why.endswith("(host-unreachable, says 198.51.100.7)")
    rig.turn(3)
    assert "host-unreachable" in str(rig.target)  # not every loss is explained
    rig.port.alive = True
    rig.turn(5)
    assert rig.target.reason == ""


def test_an_error_is_read_once_for_each_probe_that_is_under_way(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes scapy long, and anybody can send them by the thousand."""
    rig, read, parse = make(), [], wire.parse_error

    def counted(protocol: int, packet: bytes, ident: int) -> wire.Unreachable | None:
        read.append(packet)
        return parse(protocol, packet, ident)

    monkeypatch.setattr(wire, "parse_error", counted)
    rig.turn(4)
    rig.port.alive = False
    for times in range(1, 4):
        rig.turn(1)
        for request in rig.port.requests:
            for nonsense in (b"", b"\x45" + bytes(7)):
                error = IP(src="198.51.100.7", dst="192.0.2.1") / ICMP(type=3, code=1) / Raw(nonsense or request[:28])
                for _ in range(50):
                    rig.port.bring(bytes(error))
        rig.who.receive(rig.world.now_ns)
        assert len(read) == times


def test_errors_that_nobody_understands_are_read_once_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, read = make(), []
    monkeypatch.setattr(wire, "parse_error", lambda *packet: read.append(packet))
    rig.port.alive = False
    rig.turn(4)
    error = IP(src="198.51.100.7", dst="192.0.2.1") / ICMP(type=3, code=1) / Raw(rig.port.requests[-1][:28])
    for _ in range(100):
        rig.port.bring(bytes(error))
    rig.turn(4)
    assert len(read) == 1
    assert str(rig.target).endswith("(somebody sends errors that nobody understands)")


def test_an_answer_counts_when_it_comes_and_not_with_the_next_probe(make: Make) -> None:
    rig = make(text=SLOW)
    rig.turn(1)
    assert (rig.target.link.samples, rig.target.counter) == (0, 1)
    rig.turn(1)
    assert (rig.target.link.samples, rig.target.counter) == (1, 1)


def test_an_answer_that_waits_for_an_earlier_one_counts_in_its_turn(make: Make) -> None:
    rig = make(text=SLOW.replace("interval_ms = 1000", "interval_ms = 400"))
    rig.port.alive = False
    rig.turn(41)
    rig.port.alive = True
    rig.turn(58)  # 990 ms after the first, 590 ms after the second was sent
    assert (rig.target.link.samples, rig.target.counter) == (0, 3)
    rig.turn(3)
    assert (rig.target.link.samples, rig.target.link.lost) == (1, 1)
    rig.turn(40)
    assert (rig.target.link.samples, rig.target.link.lost, rig.target.link.received_in_a_row) == (4, 2, 2)


# -- the gateway -----------------------------------------------------------------------------------


def test_the_gateway_is_asked_for_at_start_and_every_30_s(make: Make) -> None:
    rig = make()
    assert len(rig.port.questions) == 1
    rig.turn(3000)
    assert len(rig.port.questions) == 1
    rig.turn(2)
    assert len(rig.port.questions) == 2


def test_the_gateway_is_asked_for_four_times_a_second_while_probes_are_lost(make: Make) -> None:
    rig = make()
    rig.turn(3)
    rig.port.alive = rig.port.gateway_alive = False
    rig.turn(300)
    assert 11 <= len(rig.port.questions) - 1 <= 13
    assert len(rig.port.requests) == 303  # and the old hardware address serves meanwhile
    assert set(rig.port.macs) == {GATEWAY_MAC}


def test_a_gateway_with_a_new_hardware_address_is_found(make: Make) -> None:
    rig = make()
    rig.turn(2)
    ours = wire.solicitation(OUR_MAC, ip_address("192.0.2.1"), GATEWAY).packet
    others = wire.solicitation(OUR_MAC, ip_address("192.0.2.1"), ip_address("192.0.2.3")).packet
    rig.port.gateway_mac = b"\x02\0\0\0\0\x07"
    rig.port.bring(*kit.neighbour(ours, wire.ETH_ARP, rig.port.gateway_mac))
    rig.port.bring(*kit.neighbour(others, wire.ETH_ARP, b"\x02\0\0\0\0\x08"))
    rig.turn(3)
    assert rig.port.macs == [*[GATEWAY_MAC] * 2, *[rig.port.gateway_mac] * 3]


def test_a_new_hardware_address_of_ours_is_told_at_once(make: Make) -> None:
    rig = make()
    rig.turn(3)
    rig.see(snapshot(ethernet("wan1", 3, mac=b"\x02\0\0\0\0\x09"), addresses=ADDRESSES))
    rig.turn(3)
    assert [question[8:14] for question in rig.port.questions] == [OUR_MAC, b"\x02\0\0\0\0\x09"]
    assert rig.target.link.lost == 0


def test_without_the_gateway_probes_are_lost(make: Make) -> None:
    rig = make()
    rig.port.gateway_alive = False
    rig.world.now_ns += MS
    rig.port._arriving.clear()
    rig.turn(5)
    assert rig.target.counter == 0  # so long it is given time to say where it is
    rig.turn(6)
    assert rig.status == "down"
    assert rig.port.requests == []


def test_gateway_means_the_gateway_of_the_first_family_that_there_is(make: Make) -> None:
    rig = make('["gateway", "2001:db8:1::2"]')
    assert [str(each.address) for each in rig.who.targets] == ["192.0.2.2", "2001:db8:1::2"]
    rig.see(snapshot(ethernet("wan1", 3), addresses={3: ("2001:db8:1::1",)}))
    assert [str(each.address) for each in rig.who.targets] == ["2001:db8:1::2", "2001:db8:1::2"]
    rig.turn(4)
    assert rig.status == "up"


def test_each_family_goes_by_its_own_gateway(make: Make) -> None:
    rig = make('["203.0.113.1", "2001:db8:ffff::1"]', "quorum = 2")
    rig.turn(4)
    assert rig.status == "up"
    assert len(rig.port.questions) == 2
    assert rig.port.bound == [("wan1", 1, (GATEWAY, ip_address("2001:db8:1::2")))]


AUTO = re.sub(r"^(address|gateway) = .*$", r'\1 = "auto"', TOML, flags=re.MULTILINE)
V4 = TOML.replace(', "2001:db8:1::1/64"', "").replace(', "2001:db8:1::2"', "")


def test_an_isp_of_one_family_is_probed(make: Make) -> None:
    rig = make(text=V4)
    rig.turn(4)
    assert rig.status == "up"
    six = TOML.replace('"192.0.2.1/24", ', "").replace('"192.0.2.2", ', "")
    rig = make('["gateway", "2001:db8:ffff::1"]', "quorum = 2", six)
    rig.turn(4)
    assert rig.status == "up"


@pytest.mark.parametrize("gateway", ["none", "192.0.2.2"])
def test_a_link_without_hardware_addresses_is_asked_for_none(make: Make, gateway: str) -> None:
    text = V4.replace('["192.0.2.2"]', f'"{gateway}"')
    rig = make(text=text)
    tunnel = snapshot(Link("wan1", 3, 0xFFFE, True, True, False, b""), addresses=ADDRESSES)
    rig.port.questions.clear()
    rig.see(tunnel)
    rig.turn(4)
    assert rig.status == "up"
    assert rig.port.questions == []
    assert set(rig.port.macs) == {b""}
    assert rig.port.bound[-1] == ("wan1", 0xFFFE, ())


def test_ethernet_without_arp_is_asked_for_none_and_frames_go_where_the_kernel_sends_its_own(make: Make) -> None:
    rig = make(text=V4)
    rig.port.questions.clear()
    rig.port.gateway_mac = OUR_MAC  # the far end of a modem takes them all
    rig.see(snapshot(Link("wan1", 3, 1, True, True, False, OUR_MAC), addresses=ADDRESSES))
    rig.turn(4)
    assert (rig.status, rig.port.questions, set(rig.port.macs)) == ("up", [], {OUR_MAC})


def test_without_a_gateway_on_ethernet_each_target_is_asked_for_himself(make: Make) -> None:
    """As the kernel does: the provider answers for everybody (proxy ARP)."""
    text = TOML.replace('["192.0.2.2", "2001:db8:1::2"]', '"auto"')
    rig = make('["203.0.113.1", "203.0.113.9", "2001:db8:f::1"]', "quorum = 3", text)
    rig.see(snapshot(ethernet("wan1", 3), addresses=ADDRESSES, wan1_4=None, wan1_6=None))
    rig.turn(4)
    targets = tuple(map(ip_address, ("203.0.113.1", "203.0.113.9", "2001:db8:f::1")))
    assert (rig.status, set(rig.port.macs)) == ("up", {GATEWAY_MAC})
    asked = {ip_address(each[48:64] if each[0] >> 4 == 6 else each[24:28]) for each in rig.port.questions}
    assert asked == {*targets}
    assert rig.port.bound[-1] == ("wan1", 1, targets)


# -- the interface ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (OUT, "wan1 has no carrier"),
        (snapshot(), "wan1 does not exist"),
        (snapshot(ethernet("wan1", 3), addresses={3: ("192.0.2.9",)}), "wan1 lacks the address 192.0.2.1"),
    ],
)
def test_a_link_that_cannot_be_used_is_down_at_once(
    make: Make, seen: Snapshot, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = make()
    rig.turn(4)
    rig.see(seen)
    assert rig.who.judge(frozenset(), rig.world.now_ns)
    assert (rig.status, rig.who.why) == ("down", why)
    sent = len(rig.port.requests)
    rig.turn(10)
    assert (rig.status, len(rig.port.requests)) == ("down", sent)
    rig.see(HEALTHY)
    rig.turn(2)
    assert rig.status == "down"  # it is judged by probes again
    rig.turn(2)
    assert rig.status == "up"
    assert [message.split(":")[0] for message in caplog.messages] == ["ISP1 up", "ISP1 down", "ISP1 up"]


def test_an_interface_that_is_missing_at_start_is_down_until_it_comes(make: Make) -> None:
    rig = make()
    rig.see(snapshot())
    rig.turn(2)
    assert rig.status == "down"
    rig.see(snapshot(ethernet("wan1", 9), addresses={9: ADDRESSES[3]}))
    rig.turn(4)
    assert rig.status == "up"


def test_what_is_still_under_way_when_the_cable_is_out_raises_nothing(make: Make) -> None:
    """Answers wait for the fate of an earlier probe; those of before do not speak for a link that is gone."""
    rig = make(text=TOML.replace("timeout_ms = 20", "timeout_ms = 500"))
    rig.turn(4)
    rig.port.alive = False
    rig.turn(1)
    rig.port.alive = True
    rig.turn(20)
    rig.see(OUT)
    rig.turn(60)
    assert rig.status == "down"
    assert rig.target.link.status == "down"


def test_the_port_is_bound_again_when_the_interface_is_another(make: Make) -> None:
    rig = make()
    rig.turn(2)
    rig.see(HEALTHY)
    assert len(rig.port.bound) == 1
    rig.see(snapshot(ethernet("wan1", 7), addresses={7: ADDRESSES[3]}))
    assert len(rig.port.bound) == 2
    rig.turn(4)
    assert rig.target.link.lost == 0
    rig.port.problem = "wan1 does not exist"
    rig.see(rig.world.snapshot)
    assert len(rig.port.bound) == 3


def test_the_port_is_bound_again_when_another_interface_has_the_same_name_and_index(make: Make) -> None:
    """Even if it was there before anybody looked."""
    rig = make()
    rig.turn(2)
    rig.port.lost = True
    rig.see(HEALTHY)
    assert len(rig.port.bound) == 2


def test_an_address_that_changes_is_followed(make: Make) -> None:
    rig = make(text=V4.replace('["192.0.2.1/24"]', '"auto"').replace('["192.0.2.2"]', '"auto"'))
    rig.see(snapshot(ethernet("wan1", 3), addresses={3: ("192.0.2.1",)}, wan1_4="192.0.2.2"))
    rig.turn(4)
    rig.see(snapshot(ethernet("wan1", 3), addresses={3: ("198.51.100.77",)}, wan1_4="198.51.100.254"))
    rig.turn(4)
    assert rig.status == "up"
    sources = [str(ip_address(each[12:16])) for each in rig.port.requests]
    assert sources == ["192.0.2.1"] * 4 + ["198.51.100.77"] * 4
    assert rig.port.bound[-1][2] == (ip_address("198.51.100.254"),)
    assert [str(ip_address(each[24:28])) for each in rig.port.questions] == ["192.0.2.2", "198.51.100.254"]


@pytest.mark.parametrize(("check", "old", "new"), [("203.0.113.1", 0, 2), ("2001:db8:ffff::1", 1, 3)])
def test_what_is_under_way_when_the_source_changes_is_neither_lost_nor_foreign(
    make: Make, check: str, old: int, new: int
) -> None:
    """A link that works: another address is preferred, and the former one is still there."""
    own = ("192.0.2.1", "2001:db8:1::1", "192.0.2.7", "2001:db8:1::7")
    hops = {"wan1_4": "192.0.2.2", "wan1_6": "2001:db8:1::2"}
    rig = make(f'["{check}"]', text=AUTO)
    rig.see(snapshot(ethernet("wan1", 3), addresses={3: (own[old], own[new])}, **hops))
    rig.turn(4)
    rig.world.answer = lambda *_: 15 * MS
    rig.turn(4)
    rig.see(snapshot(ethernet("wan1", 3), addresses={3: (own[new], own[old])}, **hops))
    rig.turn(10)
    assert rig.target.ends[1] == ip_address(own[new]).packed
    assert (rig.status, rig.target.link.lost, rig.target.foreign) == ("up", 0, 0)


def test_no_probe_is_lost_before_a_new_gateway_could_say_where_it_is(make: Make) -> None:
    rig = make(text=V4.replace('["192.0.2.1/24"]', '"auto"').replace('["192.0.2.2"]', '"auto"'))
    rig.see(snapshot(ethernet("wan1", 3), addresses={3: ("192.0.2.1",)}, wan1_4="192.0.2.2"))
    rig.turn(4)
    rig.see(OUT)
    rig.turn(4)
    # A probe is due in the same moment.
    rig.who.see(snapshot(ethernet("wan1", 3), addresses={3: ("192.0.2.1",)}, wan1_4="192.0.2.254"), rig.world.now_ns)
    rig.turn(4)
    assert rig.status == "up"
    assert rig.target.link.lost == 0


def test_trouble_with_sending_is_told_once_and_its_end_too(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rig = make()
    rig.turn(4)
    rig.port.problem = "wan1: Network is down"
    rig.turn(5)
    rig.port.problem = ""
    rig.turn(5)
    assert caplog.messages[1:] == [
        "ISP1: wan1: Network is down; its probes count as lost",
        "ISP1: probes are sent on wan1 again",
    ]


# -- ARP and neighbour discovery -------------------------------------------------------------------


@pytest.mark.parametrize("text", [V4, TOML])
def test_a_gateway_is_checked_by_asking_for_it(make: Make, text: str) -> None:
    rig = make('["arp"]', text=text)
    rig.turn(5)
    assert rig.status == "up"
    assert rig.port.requests == []
    assert len(rig.port.questions) >= 5
    rig.port.gateway_alive = False
    rig.turn(6)
    assert rig.status == "down"
    assert len(rig.port.questions) >= 11


@pytest.mark.parametrize("check", ["gateway", "arp"])
def test_a_gateway_that_there_is_not_cannot_be_tested(make: Make, check: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    auto = V4.replace('["192.0.2.1/24"]', '"auto"').replace('["192.0.2.2"]', '"auto"')
    rig = make(f'["{check}"]', text=auto)
    routed = snapshot(ethernet("wan1", 3), addresses=ADDRESSES, wan1_4="192.0.2.2")
    without = snapshot(Link("wan1", 3, 512, True, True, False, b""), addresses=ADDRESSES, wan1_4=None)
    rig.turn(1)
    assert rig.status == "down"
    rig.see(without)
    rig.turn(20)
    cannot = f"{check} cannot be tested: wan1 has no gateway at the moment"
    assert (rig.target.link.samples, rig.port.requests, str(rig.target)) == (0, [], cannot)
    assert (
        rig.who.standing(frozenset(), rig.world.now_ns).why
        == f"{cannot}; before that wan1 has no IPv4 default route in the main table"
    )
    rig.see(routed)
    rig.turn(4)
    assert rig.status == "up"
    rig.see(without)
    rig.turn(20)
    assert rig.status == "up"  # that says nothing of the ISP
    known = rig.who.standing(frozenset(), rig.world.now_ns)
    assert known.why.startswith(f"{cannot}; before that {check}: 0 of the last ")
    assert caplog.messages.count(f"ISP1: {cannot}") == 2
    assert caplog.messages.count(f"ISP1: {check} is tested again") == 1


def test_nobody_is_asked_for_on_a_link_without_hardware_addresses(make: Make) -> None:
    rig = make('["arp"]', text=V4)
    rig.port.questions.clear()
    rig.see(snapshot(Link("wan1", 3, 0xFFFE, True, True, False, b""), addresses=ADDRESSES))
    rig.turn(10)
    assert (rig.status, rig.target.link.samples, rig.port.questions) == ("unknown", 0, [])
    known = rig.who.standing(frozenset(), rig.world.now_ns)
    assert known.why == "arp cannot be tested: wan1 is a link on which nobody can be asked for"


def test_another_hosts_announcement_is_no_answer_of_the_gateway(make: Make) -> None:
    rig = make('["arp"]')
    rig.turn(4)
    rig.port.gateway_alive = False
    others = wire.solicitation(OUR_MAC, ip_address("192.0.2.1"), ip_address("192.0.2.3")).packet
    for _ in range(6):
        rig.port.bring(*kit.neighbour(others, wire.ETH_ARP, GATEWAY_MAC))
        rig.turn(1)
    assert rig.status == "down"


SIX = TOML.replace('"192.0.2.1/24", ', "").replace('"192.0.2.2", ', "")
HERE, GATEWAY6, HERE6 = ip_address("192.0.2.1"), ip_address("2001:db8:1::2"), ip_address("2001:db8:1::1")
OTHER, OTHER6, OTHER_MAC = ip_address("192.0.2.9"), ip_address("2001:db8:1::9"), b"\x02\0\0\0\0\x09"


def arp(op: int, to: Address, to_mac: bytes = OUR_MAC) -> tuple[bytes, int]:
    """The gateway, which has other hardware now."""
    packet = ARP(op=op, hwsrc=OTHER_MAC.hex(":"), psrc=str(GATEWAY), hwdst=to_mac.hex(":"), pdst=str(to))
    return bytes(packet), wire.ETH_ARP


def advertisement(to: Address, solicited: int) -> tuple[bytes, int]:
    packet = IPv6(src=str(GATEWAY6), dst=str(to), hlim=255) / ICMPv6ND_NA(tgt=str(GATEWAY6), S=solicited)
    return bytes(packet / ICMPv6NDOptDstLLAddr(lladdr=OTHER_MAC.hex(":"))), wire.ETH_IPV6


@pytest.mark.parametrize(
    ("text", "heard", "counts"),
    [
        (V4, arp(2, HERE), True),
        (V4, arp(1, HERE), False),
        (V4, arp(1, OTHER), False),
        (V4, arp(2, OTHER), False),
        (V4, arp(2, GATEWAY), False),
        (V4, arp(2, HERE, OTHER_MAC), False),
        (SIX, advertisement(HERE6, 1), True),
        (SIX, advertisement(HERE6, 0), False),
        (SIX, advertisement(OTHER6, 1), False),
        (SIX, advertisement(ip_address("ff02::1"), 0), False),
    ],
    ids=[
        *("answer", "question for us", "question", "answer to another", "announcement", "answer to other hardware"),
        *("answer6", "unsolicited", "answer6 to another", "announcement6"),
    ],
)
def test_only_an_answer_to_us_counts_and_all_else_tells_where_the_gateway_is(
    make: Make, text: str, heard: tuple[bytes, int], counts: bool
) -> None:
    rig = make('["arp"]', text=text)
    rig.turn(4)
    rig.port.gateway_alive = False
    for _ in range(6):
        rig.turn(1)
        rig.port.bring(*heard, after_ns=MS)
    assert rig.status == ("up" if counts else "down")
    assert rig.target.hop
    assert rig.target.hop.mac == OTHER_MAC


def test_a_check_of_the_gateway_goes_on_when_our_hardware_address_changes(make: Make) -> None:
    rig = make('["arp"]')
    rig.turn(4)
    rig.see(snapshot(ethernet("wan1", 3, mac=b"\x02\0\0\0\0\x0a"), addresses=ADDRESSES))
    rig.turn(4)
    assert (rig.status, rig.target.link.lost, rig.target.link.samples) == ("up", 0, 6)


@pytest.mark.parametrize("alive", [True, False])
def test_a_gateway_that_is_checked_is_asked_once_for_each_probe(make: Make, alive: bool) -> None:
    rig = make('["arp"]', text=SLOW)
    rig.port.gateway_alive = alive
    at_start = len(rig.port.questions)  # of both families
    rig.turn(3500)
    assert (len(rig.port.questions) - at_start, rig.target.counter) == (35, 35)


def test_the_round_trip_of_a_question_is_that_of_its_time_stamps(make: Make) -> None:
    """The gateway is asked before the probe counts as sent; its answer may be there first, and is heard later."""
    rig = make('["arp"]', text=SLOW)
    rig.port.busy_ns = 300_000  # in which the answer comes
    rig.turn(301)
    assert rig.target.link.samples == 3
    assert max(rig.target.times._ordered) < MS


# -- connections and queries -----------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> type[FakeCall]:
    return kit.fake_calls(monkeypatch)


@pytest.mark.parametrize("text", ["tcp://203.0.113.1:443", "dns://203.0.113.1/example.org"])
def test_calls_count_like_probes(make: Make, calls: type[FakeCall], text: str) -> None:
    rig = make(f'["{text}"]')
    rig.turn(4)
    assert rig.status == "up"
    assert set(rig.target.times._times) == {3 * MS}
    assert (calls.made[0].address, calls.made[0].on_link) == (ip_address("203.0.113.1"), False)
    calls.end = dial.Answer(None, "connection refused")
    rig.turn(5)
    assert rig.status == "down"
    assert rig.who.why.endswith("(connection refused)")
    assert all(call.closed for call in calls.made[:-1])
    assert rig.port.requests == []


def test_calls_that_fail_behind_one_without_an_outcome_make_it_silent_now(make: Make, calls: type[FakeCall]) -> None:
    """Another ISP's may all have been refused at once; who is down first must not decide whose fault it is."""
    rig = make('["tcp://203.0.113.1:443"]', "probe = { timeout_ms = 50 }")
    rig.turn(4)
    assert rig.who.trial(rig.target) == verdict.Trial("up", False, None, 70 * MS)
    assert rig.who.answers_steadily(rig.target)
    calls.made[-1].end = None
    calls.end = dial.Answer(None, "connection refused")
    rig.turn(4)
    assert (rig.status, rig.target.link.lost_in_a_row) == ("up", 0)
    assert rig.who.trial(rig.target) == verdict.Trial("up", True, rig.world.now_ns, 70 * MS)
    assert not rig.who.answers_steadily(rig.target)


@pytest.mark.parametrize("text", [TOML, AUTO])
@pytest.mark.parametrize("near", ["192.0.2.77", "192.0.2.2"])
def test_a_call_to_a_neighbour_needs_no_gateway(make: Make, calls: type[FakeCall], text: str, near: str) -> None:
    rig = make(f'["tcp://{near}:443", "tcp://203.0.113.1:443"]', text=text)
    rig.see(snapshot(ethernet("wan1", 3), addresses={3: ("192.0.2.1/24", "2001:db8:1::1/64")}, wan1_4="192.0.2.2"))
    rig.turn(1)
    assert [call.on_link for call in calls.made[-2:]] == [True, False]


def test_a_call_without_an_outcome_is_lost_in_time_and_ended(make: Make, calls: type[FakeCall]) -> None:
    calls.end = None
    rig = make('["tcp://203.0.113.1:443"]')
    rig.turn(50)
    assert rig.status == "down"
    assert [call.closed for call in calls.made] == [True] * 48 + [False] * 2
    assert len(rig.selector.get_map()) == 3  # the port and two calls


def test_answers_to_calls_that_waited_for_us_all_count(make: Make, calls: type[FakeCall]) -> None:
    """Whichever of them is read first."""
    calls.end = None
    rig = make('["tcp://203.0.113.1:443"]')
    rig.turn(2)
    rig.world.now_ns += 500 * MS
    calls.end = dial.Answer(3 * MS)
    rig.turn(1)
    assert (rig.target.link.samples, rig.target.link.lost) == (2, 0)


def test_what_cannot_be_tested_says_nothing_and_is_told_once(
    make: Make, calls: type[FakeCall], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = make('["tcp://203.0.113.1:443"]')
    rig.turn(4)
    calls.cannot = "no way"
    rig.turn(100)
    assert (rig.status, rig.target.link.lost) == ("up", 0)
    assert str(rig.target) == "tcp://203.0.113.1:443 cannot be tested: no way"
    calls.cannot = ""
    rig.turn(3)
    assert caplog.messages[1:] == [
        "ISP1: tcp://203.0.113.1:443 cannot be tested: no way",
        "ISP1: tcp://203.0.113.1:443 is tested again",
    ]


def test_what_cannot_be_tested_keeps_no_dead_isp_up(make: Make, calls: type[FakeCall]) -> None:
    """Whether it has never been tested, or was up when that ended: for want of descriptors, say."""
    rig = make('["203.0.113.1", "tcp://203.0.113.2:443"]')
    calls.cannot = "no way"
    rig.turn(4)
    assert rig.status == "up"
    rig.port.alive = False
    rig.turn(6)
    assert rig.status == "down"
    rig.port.alive, calls.cannot = True, ""
    rig.turn(120)
    assert [each.link.status for each in rig.who.targets] == ["up", "up"]
    rig.port.alive, calls.cannot = False, "no socket can be had: Too many open files"
    rig.turn(6)
    assert (rig.status, rig.who.why.startswith("203.0.113.1: ")) == ("down", True)
    assert "tcp" not in rig.who.why


def test_what_cannot_be_tested_keeps_no_isp_down_that_answers(make: Make, calls: type[FakeCall]) -> None:
    rig = make('["203.0.113.1", "tcp://203.0.113.2:443"]', "quorum = 2")
    rig.turn(4)
    rig.see(OUT)
    rig.turn(1)
    assert rig.status == "down"
    calls.cannot = "no way"
    rig.see(HEALTHY)
    rig.turn(4)
    assert rig.status == "up"


def test_what_cannot_be_tested_any_more_acquits_nobody(make: Make, calls: type[FakeCall]) -> None:
    rig = make('["tcp://203.0.113.2:443"]')
    rig.turn(4)
    assert rig.who.answers_steadily(rig.target)
    calls.cannot = "no way"
    rig.turn(3)
    assert not rig.who.answers_steadily(rig.target)


@pytest.mark.parametrize("alive", [True, False])
def test_with_nothing_left_that_can_be_tested_the_state_stays(make: Make, calls: type[FakeCall], alive: bool) -> None:
    rig = make('["tcp://203.0.113.1:443", "dns://203.0.113.2/example.org"]')
    calls.end = dial.Answer(3 * MS) if alive else dial.Answer(None, "connection refused")
    rig.turn(6)
    before = rig.status
    assert before == ("up" if alive else "down")
    calls.cannot = "no way"
    rig.turn(100)
    assert rig.status == before


def test_calls_end_with_their_link(make: Make, calls: type[FakeCall]) -> None:
    calls.end = None
    rig = make('["tcp://203.0.113.1:443", "203.0.113.1"]')
    rig.turn(2)
    rig.see(OUT)
    assert [call.closed for call in calls.made] == [True, True]
    assert len(rig.selector.get_map()) == 1
    rig.see(HEALTHY)
    rig.turn(1)
    rig.who.close()
    assert all(call.closed for call in calls.made)
    assert rig.port.closed
    assert rig.selector.get_map() == {}


# -- several targets -------------------------------------------------------------------------------


def test_a_quorum_of_targets_must_answer(make: Make) -> None:
    rig = make('["203.0.113.1", "203.0.113.2", "203.0.113.3"]', "quorum = 2")
    dead: set[str] = set()
    rig.world.answer = lambda _, address: None if str(address) in dead else MS
    rig.turn(4)
    assert rig.status == "up"
    dead.add("203.0.113.2")
    rig.turn(10)
    assert rig.status == "up"
    dead.add("203.0.113.3")
    rig.turn(10)
    assert rig.status == "down"
    assert "203.0.113.1" not in rig.who.why
    assert rig.who.why.count("in a row") == 2


def test_at_most_three_reasons_are_given(make: Make) -> None:
    rig = make(str([f"203.0.113.{n}" for n in range(1, 6)]).replace("'", '"'))
    rig.port.alive = False
    rig.turn(6)
    assert rig.who.why.count("3 in a row") == 3
    assert rig.who.why.endswith("; and 2 more")


def test_blamed_targets_do_not_count(make: Make) -> None:
    rig = make('["203.0.113.1", "203.0.113.2"]', "quorum = 2")
    rig.world.answer = lambda _, address: None if str(address) == "203.0.113.1" else MS
    for target in rig.who.targets:
        target.link = verdict.Link("down" if target is rig.target else "up")
    now_ns = rig.world.now_ns
    assert rig.who.judge({ping("203.0.113.1")}, now_ns)
    assert rig.status == "up"
    rig.who.targets[1].link = verdict.Link("down")
    assert not rig.who.judge({ping("203.0.113.1"), ping("203.0.113.2")}, now_ns)
    assert rig.status == "up"  # nothing is known: it stays
    assert rig.who.judge({ping("203.0.113.1")}, now_ns)
    assert rig.status == "down"


def test_no_blame_helps_where_the_cable_is_out(make: Make) -> None:
    rig = make()
    rig.turn(4)
    rig.see(OUT)
    assert rig.who.judge({ping("203.0.113.1")}, rig.world.now_ns)
    assert rig.status == "down"


# -- holding down ----------------------------------------------------------------------------------


def test_an_isp_that_keeps_changing_is_held_down(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rig = make(more="probe = { hold_down_ms = 1000, max_packet_loss = 100, min_packet_loss = 99 }")
    held = []
    for _ in range(3):
        rig.turn(5)
        assert rig.status == "up"
        rig.port.alive = False
        rig.turn(5)
        assert rig.status == "down"
        known = rig.who.standing(frozenset(), rig.world.now_ns)
        held.append(round(known.held_until - rig.world.time(), 1))
        rig.port.alive = True
        began_ns = rig.world.now_ns
        while rig.who.status == "down":
            rig.turn(1)
        assert (rig.world.now_ns - began_ns) / S == pytest.approx(held[-1], abs=0.1)
        assert rig.who.standing(frozenset(), rig.world.now_ns).held_until == 0
    assert held == [1.0, 2.0, 4.0]
    ups = [message for message in caplog.messages if message.startswith("ISP1 up")]
    assert [message.partition("; ")[2] for message in ups] == [
        "",
        *(f"was held down for {seconds} s at least" for seconds in (1, 2, 4)),
    ]


def test_without_holding_down_it_is_up_as_soon_as_it_answers(make: Make) -> None:
    rig = make(more="probe = { max_packet_loss = 100, min_packet_loss = 99 }")
    for _ in range(3):
        rig.turn(5)
        assert rig.status == "up"
        rig.port.alive = False
        rig.turn(5)
        assert rig.status == "down"
        rig.port.alive = True


# -- what is known ---------------------------------------------------------------------------------


def test_what_is_known_of_each_target_is_told(make: Make) -> None:
    rig = make('["203.0.113.1", "203.0.113.2"]')
    rig.world.answer = lambda _, address: None if str(address) == "203.0.113.2" else 2 * MS
    rig.turn(12)
    known = rig.who.standing({ping("203.0.113.2")}, rig.world.now_ns)
    assert (known.state, known.held_until) == ("up", 0.0)
    assert known.since == pytest.approx(rig.world.time(), abs=1)
    first, second = known.targets["203.0.113.1"], known.targets["203.0.113.2"]
    assert (first.state, first.samples, first.lost, first.blamed) == ("up", 11, 0, False)
    assert first.rtt_ms == standing.RoundTrips(2, 2, 0, 2, 2, 2)
    assert (second.state, second.samples, second.lost, second.blamed, second.rtt_ms) == ("down", 10, 10, True, None)
    assert second.why == "203.0.113.2: 10 of the last 10 probes lost, 10 in a row"


def test_of_each_target_the_last_change_and_its_reason_are_told(make: Make) -> None:
    rig = make('["203.0.113.1", "203.0.113.2"]')

    def known() -> standing.TargetStanding:
        return rig.who.standing(frozenset(), rig.world.now_ns).targets["203.0.113.2"]

    began_s = known().since
    assert (known().state, known().cause, known().why) == (
        *("unknown", verdict.NOT_YET),
        f"203.0.113.2: {verdict.NOT_YET}",
    )
    rig.turn(10)
    up = known()
    assert (up.state, up.cause) == (
        "up",
        "203.0.113.2: 0 of the last 2 probes lost, 2 answered in a row, round trip 1.0 ms ± 0.4",
    )
    assert began_s < up.since < rig.world.time()
    assert up.why != up.cause
    rig.world.answer = lambda _, address: None if str(address) == "203.0.113.2" else MS
    rig.turn(10)
    assert (known().state, rig.status) == ("down", "up")
    assert ", 3 in a row" in known().cause
    assert known().since > up.since
    rig.see(OUT)
    assert ", 3 in a row" in known().cause  # it was down already
    rig.again('["203.0.113.2", "203.0.113.3"]')
    assert ", 3 in a row" in known().cause


def test_round_trips_are_those_of_the_window(make: Make) -> None:
    rig = make()
    rig.turn(10)
    rig.port.alive = False
    rig.turn(110)
    (known,) = rig.who.standing(frozenset(), rig.world.now_ns).targets.values()
    assert (known.samples, known.lost) == (100, 100)
    assert known.rtt_ms is None


def test_round_trips_begin_anew_with_the_window(make: Make) -> None:
    rig = make()
    rig.world.answer = lambda *_: 5 * MS
    rig.turn(10)
    rig.see(OUT)
    assert rig.who.standing(frozenset(), rig.world.now_ns).targets["203.0.113.1"].rtt_ms is None
    rig.see(HEALTHY)
    rig.world.answer = lambda *_: 2 * MS
    rig.turn(5)
    assert rig.who.standing(frozenset(), rig.world.now_ns).targets["203.0.113.1"].rtt_ms == standing.RoundTrips(
        2, 2, 0, 2, 2, 2
    )
    rig.who.begin_anew(rig.target)
    assert rig.who.standing(frozenset(), rig.world.now_ns).targets["203.0.113.1"].rtt_ms is None


def test_a_hostile_neighbour_cannot_make_it_remember_more_and_more(make: Make) -> None:
    """The kernel's filter looks at the last 32 bits of an address of IPv6."""
    rig = make('["203.0.113.1", "2001:db8:ffff::1"]')
    rig.turn(3)
    for number in range(300):
        forged = ip_address((0xFE80 << 112) + (number << 64) + 2)
        question = wire.solicitation(OUR_MAC, ip_address("2001:db8:1::1"), forged)
        rig.port.bring(*kit.neighbour(question.packet, question.protocol, GATEWAY_MAC))
    rig.turn(2)
    assert len(rig.who._neighbours._hops) == 2


# -- another configuration -------------------------------------------------------------------------


def test_what_is_known_survives_another_configuration(make: Make) -> None:
    rig = make('["203.0.113.1", "203.0.113.9"]')
    rig.turn(4)
    before = rig.who
    rig.again('["203.0.113.2", "203.0.113.1"]')
    assert rig.status == "up"
    assert [each.link.status for each in rig.who.targets] == ["unknown", "up"]
    assert rig.who.since_s == before.since_s
    assert [key.data for key in rig.selector.get_map().values()] == [rig.who.receive]
    rig.turn(4)
    assert [each.link.lost for each in rig.who.targets] == [0, 0]
    assert [each.link.status for each in rig.who.targets] == ["up", "up"]
    numbers = [each.number for each in rig.who.targets]
    assert len(set(numbers)) == 2
    assert numbers[0] not in (0, 1)  # or an answer to the target that is gone could count for this one
    assert numbers[1] == 0


def test_calls_end_with_their_target(make: Make, calls: type[FakeCall]) -> None:
    calls.end = None
    rig = make('["tcp://203.0.113.1:443", "tcp://203.0.113.2:443"]')
    rig.turn(1)
    rig.again('["tcp://203.0.113.2:443"]')
    assert [call.closed for call in calls.made] == [True, False]
    assert len(rig.selector.get_map()) == 2


def test_new_thresholds_and_times_hold_from_then_on(make: Make) -> None:
    rig = make()
    rig.turn(4)
    rig.again('["203.0.113.1"]', "probe = { timeout_ms = 50, max_successive_pkts_lost = 5 }")
    rig.port.alive = False
    rig.turn(9)
    assert (rig.status, rig.target.link.lost_in_a_row) == ("up", 4)
    rig.turn(1)
    assert rig.status == "down"


def test_an_interface_that_is_another_is_used_from_then_on(make: Make) -> None:
    rig = make()
    rig.turn(4)
    rig.world.snapshot = snapshot(ethernet("wan7", 8), addresses={8: ADDRESSES[3]})
    rig.again('["203.0.113.1"]', text=TOML.replace("wan1", "wan7"))
    rig.turn(3)
    assert (rig.status, rig.target.link.lost) == ("up", 0)
    assert rig.port.bound[-1][0] == "wan7"
