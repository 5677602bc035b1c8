"""lsmpy-probe without a network: whom it blames, the state files, another configuration, the command line."""

from __future__ import annotations

import errno
import json
import logging
import random
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lsmpy import links, netlink, port, probe, standing, state
from lsmpy.links import Snapshot
from lsmpy.port import PortError
from lsmpy.target import Target
from tests.unit import prober_kit as kit
from tests.unit.prober_kit import MS, TOML, Address, FakeCall, FakePort, S, World, ethernet, snapshot

# -- the daemon ------------------------------------------------------------------------------------

SHARED, OWN1, OWN2 = "203.0.113.1", "203.0.113.11", "203.0.113.22"


def isps(*checks: list[str], more: str = "") -> str:
    text = TOML.partition("[[isp]]")[0].replace("{directory}", "/run")
    for number, check in enumerate(checks, 1):
        text += f"""
[[isp]]
name = "ISP{number}"
interface = "wan{number}"
address = "192.0.{number}.1/24"
gateway = "192.0.{number}.2"
check = {json.dumps(check)}
{more}
"""
    return text


class House:
    """The daemon in its world; `dead` holds what does not answer: addresses, or interfaces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.dead: set[str] = set()
        self.world = World(self.wires())
        self.world.answer = lambda wan, address: None if {wan, str(address)} & self.dead else MS
        kit.begin(monkeypatch, self.world)
        self.path = path
        self.daemon: probe.Daemon

    def wires(self, *out: str) -> Snapshot:
        """Three interfaces, with cables but where they are out."""
        wans = [ethernet(f"wan{n}", 2 + n, f"wan{n}" not in out) for n in (1, 2, 3)]
        return snapshot(*wans, addresses={2 + n: (f"192.0.{n}.1",) for n in (1, 2, 3)})

    def start(self, text: str, seconds: float = 1) -> None:
        self.daemon = kit.daemon_of(self.path, text)
        self.run(seconds)

    def run(self, seconds: float, once: bool = False) -> None:
        kit.run(self.daemon, self.world, seconds, once)

    def says(self, *ns: int) -> list[str | None]:
        return [state.read_text(state.state_path(self.path.parent, f"ISP{n}")) for n in ns or (1, 2)]

    @property
    def blamed(self) -> list[str]:
        return [str(each.address) for each in self.daemon._blame.blamed]

    @property
    def targets(self) -> list[Target]:
        return [target for each in self.daemon._probers for target in each.targets]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> House:
    return House(monkeypatch, tmp_path / "lsmpy.toml")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> type[FakeCall]:
    return kit.fake_calls(monkeypatch)


def test_each_isp_has_the_state_that_its_probes_say(house: House) -> None:
    house.dead = {"wan2"}
    house.start(isps([OWN1], [OWN2]))
    assert house.says() == ["up", "down"]
    house.dead = {"wan1"}
    house.run(0.5)
    assert house.says() == ["down", "down"]  # the window does not forget so soon
    house.run(1)
    assert house.says() == ["down", "up"]


def test_probes_are_spread_over_the_interval(house: House) -> None:
    house.start(isps([f"203.0.113.{n}" for n in range(1, 6)], [f"203.0.113.{n}" for n in range(1, 6)]), 0.5)
    for each in house.world.ports:
        for number in range(5):
            left = [left_ns for (target, _), (left_ns, _) in each.truth.items() if target == number]
            gaps = {round((late - early) / MS) for early, late in pairwise(left)}
            assert gaps <= {9, 10, 11}
    second = sorted(each.truth[number, 1][0] / MS for each in house.world.ports for number in range(5))
    # Evenly, but for the tenth of an interval that the loop waits for more to do.
    assert max(late - early for early, late in pairwise(second)) <= 2.1
    assert second[-1] - second[0] == pytest.approx(9, abs=1.1)


def test_long_intervals_are_spread_as_well_and_the_first_probe_waits_for_no_others(house: House) -> None:
    text = isps([f"203.0.113.{n}" for n in range(1, 6)], [f"203.0.113.{n}" for n in range(1, 6)])
    began_ns = house.world.now_ns
    house.start(text.replace("interval_ms = 10\n", "interval_ms = 10000\n"), 45)
    sent = [
        [left_ns for (target, _), (left_ns, _) in each.truth.items() if target == number]
        for each in house.world.ports
        for number in range(5)
    ]
    assert max(times[0] for times in sent) - began_ns <= 1.1 * S
    assert all(0 < times[1] - times[0] <= 10.1 * S for times in sent)
    assert {round((late - early) / S, 1) for times in sent for early, late in pairwise(times[1:])} == {10.0}
    places = sorted(times[-1] % (10 * S) / S for times in sent)
    assert [late - early for early, late in pairwise(places)] == pytest.approx([1] * 9, abs=0.1)


def test_a_burst_at_the_start_keeps_its_interval_however_long_the_others_are(house: House) -> None:
    more = "probe = { interval_ms = 10000, startup_burst_pkts = 3, startup_burst_interval = 200 }"
    house.start(isps([OWN1, SHARED], [OWN2, SHARED], more=more), 10)
    for each in house.world.ports:
        for number in range(2):
            left = [left_ns for (target, _), (left_ns, _) in each.truth.items() if target == number]
            assert [round((late - early) / MS, -1) for early, late in pairwise(left[:4])] == [200] * 3


def test_no_probe_is_lost_for_want_of_the_gateways_hardware_address(house: House) -> None:
    house.start(isps([OWN1], [OWN2]))
    assert [target.link.lost for target in house.targets] == [0, 0]


def test_a_target_that_fails_by_every_isp_is_blamed_and_none_of_them_is_down(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    house.start(isps([SHARED, OWN1], [SHARED, OWN2], more="quorum = 2"))
    assert house.says() == ["up", "up"]
    house.dead = {SHARED}
    house.run(1)
    assert house.says() == ["up", "up"]
    assert [each.split(":")[0] for each in caplog.messages if "ISP" in each.split()[0]] == ["ISP1 up", "ISP2 up"]
    house.run(1)  # in which it is written
    (blame,) = [each for each in caplog.messages if each.startswith(SHARED)]
    assert "does not count until it answers" in blame
    known = standing.decode((house.path.parent / standing.FILE).read_text())
    assert known is not None
    assert [each.targets[SHARED].blamed for each in known.isps.values()] == [True, True]
    house.dead = set()
    house.run(0.2)
    assert caplog.messages[-1] == f"{SHARED} answers again, and counts again"
    assert [target.link.status for target in house.targets] == ["up"] * 4
    house.dead = {"wan1"}
    house.run(1)
    assert house.says() == ["down", "up"]


@pytest.mark.parametrize("more", ["", "probe = { hold_down_ms = 5000 }"])
def test_one_dead_target_that_is_all_there_is_takes_no_isp_down(house: House, more: str) -> None:
    house.start(isps([SHARED], [SHARED], more=more))
    house.dead = {SHARED}
    house.run(1)
    assert house.says() == ["up", "up"]


LSMS = (
    "probe = { max_packet_loss = 15, max_successive_pkts_lost = 7, min_packet_loss = 5, min_successive_pkts_rcvd = 10 }"
)


def test_a_target_that_loses_some_and_then_dies_takes_no_isp_down_for_long(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """By max_packet_loss they are down after other counts of losses in a row, each in its turn."""
    caplog.set_level("INFO")
    sent = {"wan1": 0, "wan2": 3}

    def answer(wan: str, _: Address) -> int | None:
        sent[wan] += 1
        return None if house.dead or sent[wan] % 9 == 0 else MS

    house.start(isps([SHARED], [SHARED], more=LSMS))
    house.world.answer = answer
    house.run(3)
    assert house.says() == ["up", "up"]
    house.dead = {SHARED}
    for _ in range(50):
        house.run(0.01)
        assert "up" in house.says()
    assert any(" of the last 100 probes lost" in each for each in caplog.messages if " down: " in each)
    assert house.says() == ["up", "up"]


PACES = ("interval_ms = 10, timeout_ms = 10", "interval_ms = 100, timeout_ms = 100")


@pytest.mark.parametrize("more", ["", ", hold_down_ms = 5000"])
@pytest.mark.parametrize("lost", [1, 3])
def test_an_isp_that_sees_it_first_is_up_again_when_the_target_is_blamed(
    house: House, caplog: pytest.LogCaptureFixture, lost: int, more: str
) -> None:
    caplog.set_level("INFO")
    text = isps([SHARED], [SHARED], [SHARED])
    for n, pace in enumerate((*PACES, PACES[0]), 1):
        probe_ = f"probe = {{ {pace}, max_successive_pkts_lost = {lost}{more} }}"
        text = text.replace(f'interface = "wan{n}"', f'interface = "wan{n}"\n{probe_}')
    house.dead = {"wan3"}
    house.start(text, 2)
    assert house.says(1, 2, 3) == ["up", "up", "down"]
    caplog.clear()
    house.dead |= {SHARED}
    for _ in range(20):
        house.run(0.05)
        assert "up" in house.says()
    assert house.blamed == [SHARED]
    assert house.says(1, 2, 3) == ["up", "up", "down"]  # what was down before is not helped
    assert [each.partition(":")[0] for each in caplog.messages if each.startswith("ISP")] == ["ISP1 down", "ISP1 up"]
    assert caplog.messages[-1] == "ISP1 up: it went down for a target that is dead itself"
    house.world.say(house.wires("wan1"))
    house.run(1)
    house.world.say(house.wires())
    house.run(1)
    assert house.says(1, 2) == ["down", "up"]  # nothing speaks for a link that has just come back


@pytest.mark.parametrize("out", [True, False])
def test_an_isp_that_was_out_before_is_no_witness_for_a_target(house: House, out: bool) -> None:
    house.start(isps([SHARED], [SHARED], [SHARED]))
    if out:
        house.world.say(house.wires("wan3"))
    house.dead = {"wan3"}
    house.run(2)
    assert house.says(1, 2, 3) == ["up", "up", "down"]
    house.dead |= {SHARED}
    house.run(2)
    assert house.says(1, 2, 3) == ["up", "up", "down"]
    assert house.blamed == [SHARED]


def test_what_failed_before_takes_no_isp_down_when_the_one_that_spoke_for_it_dies(house: House) -> None:
    house.start(isps([SHARED, OWN1], [SHARED, OWN2]))
    house.dead = {OWN1, OWN2}
    house.run(1)
    house.dead |= {SHARED}
    house.run(1)
    assert house.says() == ["up", "up"]
    house.dead = {OWN2, SHARED}
    house.run(2)
    house.dead = {OWN1, OWN2, SHARED}
    house.run(1)
    assert house.says() == ["down", "up"]  # it has answered since, so it counts


def test_a_family_that_was_not_there_before_takes_no_isp_down_when_the_other_ones_target_dies(house: House) -> None:
    text = isps([SHARED, SIX[0]], [SHARED, SIX[0]])
    for n in (1, 2):
        text = text.replace(f'"192.0.{n}.1/24"', f'["192.0.{n}.1/24", "2001:db8:{n}::1/64"]')
        text = text.replace(f'"192.0.{n}.2"', f'["192.0.{n}.2", "2001:db8:{n}::2"]')
    house.start(text)
    assert "lacks the address 2001:db8:1::1" in str(house.targets[1])
    house.dead = {SHARED}
    house.run(1)
    assert house.says() == ["up", "up"]
    house.world.say(house.wires("wan2"))
    house.run(1)
    assert house.says() == ["up", "down"]


def test_an_isp_is_not_kept_up_because_another_one_filters_its_target(house: House) -> None:
    house.start(isps([SHARED], [SHARED, OWN2]))
    house.world.answer = lambda wan, address: (
        None if (wan, str(address)) == ("wan2", SHARED) or wan in house.dead else MS
    )
    house.run(2)
    assert house.says() == ["up", "up"]
    house.dead = {"wan1"}
    house.run(0.2)
    assert house.says() == ["down", "up"]
    assert house.blamed == []


def test_what_nobody_could_ask_is_not_blamed(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    house.world.snapshot = house.wires("wan1", "wan2")
    house.start(isps([SHARED], [SHARED]))
    house.dead = {SHARED}
    house.world.say(house.wires())
    house.run(1)  # until it is found, a return takes its time
    house.dead = set()
    house.run(3)
    assert house.says() == ["up", "up"]
    assert not any(each.startswith(SHARED) for each in caplog.messages)


SIX = ("2001:db8:ffff::1", "2001:DB8:FFFF:0::1")


@pytest.mark.parametrize("form", ["{}", "tcp://[{}]:443"])
def test_one_target_in_two_spellings_is_one(house: House, calls: type[FakeCall], form: str) -> None:
    text = isps(*([form.format(each)] for each in SIX)).replace('.1/24"', '.1/24", "2001:db8::1/64"')
    for n in (1, 2):
        text = text.replace(f'"192.0.{n}.1/24", "2001:db8::1/64"', f'["192.0.{n}.1/24", "2001:db8:{n}::1/64"]')
        text = text.replace(f'"192.0.{n}.2"', f'["192.0.{n}.2", "2001:db8:{n}::2"]')
    addresses = {2 + n: (f"192.0.{n}.1", f"2001:db8:{n}::1") for n in (1, 2)}
    house.world.snapshot = snapshot(ethernet("wan1", 3), ethernet("wan2", 4), addresses=addresses)
    house.start(text)
    assert house.says() == ["up", "up"]
    house.dead, calls.end = {SIX[0]}, None
    house.run(1)
    assert house.says() == ["up", "up"]
    assert house.blamed == [SIX[0]]


def test_a_target_that_dies_again_and_again_never_takes_both_down(house: House) -> None:
    house.start(isps([SHARED], [SHARED]))
    for seconds in (0.5, 0.313, 0.737, 1.111):
        house.dead = {SHARED}
        house.run(seconds)
        assert "up" in house.says()
        house.dead = set()
        house.run(0.011)
        house.dead = {SHARED}
        house.run(seconds)
        assert "up" in house.says()


def test_a_single_answer_does_not_clear_who_is_blamed(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.start(isps([SHARED, OWN1], [SHARED, OWN2], more="quorum = 2"))
    house.dead = {SHARED}
    house.run(0.2)
    caplog.clear()
    caplog.set_level("INFO")
    for _ in range(10):
        house.dead = set()
        house.run(0.01)
        house.dead = {SHARED}
        house.run(0.1)
    answered = [target.link.samples - target.link.lost for target in house.targets if target.text == SHARED]
    assert min(answered) > 5
    assert caplog.messages == []
    assert house.says() == ["up", "up"]


def test_nobody_is_blamed_who_is_not_probed_any_more(house: House) -> None:
    house.start(isps([SHARED, OWN1], [SHARED, OWN2]))
    house.dead = {SHARED}
    house.run(0.2)
    assert house.blamed == [SHARED]
    house.path.write_text(isps([OWN1], [OWN2]))
    house.daemon._reload()
    house.run(0.2)
    assert house.blamed == []


def test_what_only_one_isp_probes_any_more_is_not_blamed(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.start(isps([SHARED, OWN1], [SHARED, OWN2]))
    house.dead = {SHARED}
    house.run(0.2)
    assert house.blamed == [SHARED]
    caplog.set_level("INFO")
    house.path.write_text(isps([SHARED], [OWN2]))
    house.daemon._reload()
    house.run(0.2)
    assert (house.blamed, house.says()) == ([], ["down", "up"])
    assert f"{SHARED} is probed by ISP1 alone now, and counts again" in caplog.messages


@pytest.mark.parametrize("own", [True, False])
def test_a_target_that_answers_badly_takes_no_isp_down_while_another_answers(
    house: House, caplog: pytest.LogCaptureFixture, own: bool
) -> None:
    """One probe in five is lost, by both ISPs: it is down, by LSM's rule, and nothing wipes what is known of it."""
    dice = random.Random(1)
    house.world.answer = lambda _, address: None if str(address) == SHARED and dice.random() < 0.2 else MS
    caplog.set_level("INFO")
    text = isps([SHARED, OWN1] if own else [SHARED], [SHARED, OWN2] if own else [SHARED])
    house.start(text.replace("_pkts_lost = 3", "_pkts_lost = 20"), 30)
    downs = [each for each in caplog.messages if " down: " in each]
    assert len(downs) == (0 if own else 2)
    assert house.says() == (["up", "up"] if own else ["down", "down"])
    assert any(each.startswith(SHARED) for each in caplog.messages) == own


def test_an_isp_that_is_dead_itself_is_down_whoever_else_probes_the_target(house: House) -> None:
    house.start(isps([SHARED], [SHARED]))
    house.dead = {"wan1"}
    house.run(1)
    assert house.says() == ["down", "up"]
    house.dead = {"wan1", "wan2"}
    house.run(1)
    assert house.says()[0] == "down"


def test_a_single_isp_is_never_helped_by_blame(house: House) -> None:
    house.start(isps([SHARED, OWN1], more="quorum = 2"))
    house.dead = {SHARED}
    house.run(1)
    assert house.says()[0] == "down"


def test_a_cable_that_is_pulled_is_seen_without_waiting_for_probes(house: House) -> None:
    house.start(isps([OWN1], [OWN2]))
    house.world.say(house.wires("wan2"), house.world.now_ns + 300_000)
    house.run(0.003)
    assert house.says() == ["up", "down"]
    assert house.daemon._probers[1].why == "wan2 has no carrier"
    house.world.say(house.wires())
    house.run(0.2)
    assert house.says() == ["up", "up"]


def test_routes_that_change_all_the_time_are_looked_at_ten_times_a_second(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first at once; nor does a cable that is pulled meanwhile wait."""
    house.start(isps([OWN1], [OWN2]))
    looked: list[int] = []

    def look(_: bool) -> Snapshot:
        looked.append(house.world.now_ns)
        return house.world.snapshot

    monkeypatch.setattr(links, "look", look)
    began_ns = house.world.now_ns
    for n in range(90):
        house.world.say(house.wires(), began_ns + n * 10 * MS, kit.NEW_ROUTE)
    house.run(0.005)
    assert len(looked) == 1
    house.run(0.04)
    assert len(looked) == 1
    house.world.say(house.wires("wan2"))
    house.run(0.003)
    assert (len(looked), house.says()) == (2, ["up", "down"])
    house.run(1)
    assert len(looked) in range(10, 13)
    assert house.says() == ["up", "up"]
    house.run(1)
    assert len(looked) in range(10, 13)


def test_changes_that_are_too_many_to_be_told_are_looked_at_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although routes have been looked at just now: nobody knows what was among them."""
    house.start(isps([OWN1], [OWN2]))
    recv = kit.Kernel.recv
    house.world.say(house.wires(), kind=kit.NEW_ROUTE)
    house.run(0.003)

    def overrun(self: kit.Kernel, size: int) -> bytes:
        recv(self, size)
        raise OSError(errno.ENOBUFS, "No buffer space available")

    monkeypatch.setattr(kit.Kernel, "recv", overrun)
    house.world.say(house.wires("wan2"), kind=kit.NEW_ROUTE)
    house.run(0.003)
    assert house.says() == ["up", "down"]


def test_with_a_cable_out_a_target_that_answers_again_counts_nowhere_it_cannot(house: House) -> None:
    house.start(isps([SHARED], [SHARED]))
    house.dead = {SHARED}
    house.run(0.5)
    assert house.blamed == [SHARED]
    house.world.say(house.wires("wan2"))
    house.dead = set()
    house.run(3)
    assert house.says() == ["up", "down"]
    assert house.targets[1].link.status == "down"


def test_a_cable_that_is_pulled_when_a_blamed_target_answers_again_is_down(house: House) -> None:
    house.start(isps([SHARED], [SHARED]))
    house.dead = {SHARED}
    house.run(0.5)
    assert house.blamed == [SHARED]
    house.dead = {"wan2"}
    house.world.say(house.wires("wan2"), house.targets[0].due_ns + 10 * MS + 100_000)  # the answer is told then
    house.run(1)
    assert house.says() == ["up", "down"]


@pytest.mark.parametrize("waits", [True, False])
def test_a_machine_that_slept_loses_nothing(house: House, waits: bool, caplog: pytest.LogCaptureFixture) -> None:
    house.start(isps([OWN1], [OWN2]).replace("timeout_ms = 20", "timeout_ms = 400"))
    house.world.answer = lambda *_: 300 * MS
    house.run(3)
    caplog.set_level("INFO")
    house.world.sleeps = [(house.world.now_ns + S, house.world.now_ns + 3600 * S, waits)]
    house.run(3605)
    missed = [sum(at is None for _, at in each.truth.values()) for each in house.world.ports]
    assert all(number in ((0,) if waits else (30, 31)) for number in missed)
    assert caplog.messages == []
    assert house.says() == ["up", "up"]


def test_an_answer_after_a_sleep_makes_no_loss_of_what_was_unanswered_before_it(house: House) -> None:
    house.start(isps([OWN1], [OWN2]).replace("timeout_ms = 20", "timeout_ms = 400"))
    house.run(3)
    lost_ns = house.world.now_ns + S
    house.world.answer = lambda *_: None if 0 <= house.world.now_ns - lost_ns < 100 * MS else 100 * MS
    house.world.sleeps = [(lost_ns + 250 * MS, lost_ns + 2 * S, True)]
    house.run(3.5)
    unanswered = [sum(at is None for _, at in each.truth.values()) for each in house.world.ports]
    assert min(unanswered) > 0
    assert [target.link.lost for target in house.targets] == [0, 0]


def test_what_somebody_writes_is_seen_and_left_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    house.start(isps([OWN1], [OWN2]))
    path = state.state_path(house.path.parent, "ISP1")
    path.write_text("down\n")
    house.run(3)
    assert house.says() == ["down", "up"]
    path.unlink()
    house.run(2)
    assert house.says() == ["up", "up"]
    assert caplog.messages[-2:] == [
        "ISP1: somebody wrote 'down' into its state file; it is left alone until removed or right",
        "ISP1: its state file is written by the prober again",
    ]


def test_what_is_known_is_written_once_a_second(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.start(isps([OWN1], [OWN2]))
    written = []
    monkeypatch.setattr(state, "write", lambda path, text: written.append((path, text)))
    house.run(10)
    assert {path for path, _ in written} == {house.path.parent / standing.FILE}
    assert 10 <= len(written) <= 11
    known = standing.decode(written[-1][1])
    assert known is not None
    assert known.written == pytest.approx(house.world.time(), abs=1.1)
    assert list(known.isps) == ["ISP1", "ISP2"]


def test_once_ends_as_soon_as_each_isp_has_a_verdict(house: House) -> None:
    house.dead = {"wan2"}
    house.daemon = kit.daemon_of(house.path, isps([OWN1], [OWN2]))
    began_ns = house.world.now_ns
    house.run(60, once=True)
    assert house.says() == ["up", "down"]
    assert house.world.now_ns - began_ns < 100 * MS


def test_once_without_a_verdict_is_an_error(house: House) -> None:
    house.daemon = kit.daemon_of(house.path, isps([OWN1], [OWN2]).replace("_rcvd = 2", "_rcvd = 100"))
    flip = iter(range(10**9))
    house.world.answer = lambda *_: None if next(flip) % 8 < 2 else MS
    text = house.path.read_text().replace("max_packet_loss = 15", "max_packet_loss = 99")
    house.daemon = kit.daemon_of(house.path, text)
    with pytest.raises(
        probe.ProbeError, match=r"ISP1, ISP2: neither up nor down: 100 probes leave it open\. The state"
    ):
        house.run(60, once=True)
    assert house.says() == [None, None]


def test_once_ends_where_something_cannot_be_tested(house: House, calls: type[FakeCall]) -> None:
    calls.cannot = "no way"
    house.daemon = kit.daemon_of(house.path, isps(["tcp://203.0.113.1:443"], [OWN2]))
    with pytest.raises(probe.ProbeError, match="ISP1"):
        house.run(10, once=True)


def test_another_configuration_is_taken_and_a_bad_one_refused(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    house.start(isps([OWN1], [OWN2]))
    first = house.daemon._probers[0].port
    house.path.write_text(isps([OWN1]))
    house.daemon._reload()
    house.run(1)
    assert [each.isp.name for each in house.daemon._probers] == ["ISP1"]
    assert house.daemon._probers[0].port is first
    assert [each.closed for each in house.world.ports] == [False, True]
    house.path.write_text("nonsense")
    house.daemon._reload()
    house.dead = {OWN1}
    house.run(1)
    assert house.says() == ["down", "up"]  # nobody takes back what is said of an ISP that is probed no more
    assert [each.partition(":")[0] for each in caplog.messages if "configuration" in each] == [
        "the configuration was read again",
        "the configuration was not read again and the old one is kept",
    ]


def test_a_new_configuration_without_rights_keeps_the_old_one_working(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.start(isps([OWN1]))

    def refuse() -> FakePort:
        raise PortError("no more")

    monkeypatch.setattr(port, "Port", refuse)
    house.path.write_text(isps([OWN1, OWN2], [OWN2]))
    house.daemon._reload()
    house.run(1)
    assert len(house.daemon._probers) == 1
    house.dead = {OWN1}
    house.run(1)
    assert house.says()[0] == "down"
    house.daemon.close()
    assert all(each.closed for each in house.world.ports)


def refuse(*_: object) -> object:
    raise OSError(24, "Too many open files")


def untold(*_: object) -> object:
    raise links.NetlinkError("the kernel does not tell its interfaces")


@pytest.mark.parametrize(("where", "failing"), [((netlink, "open_socket"), refuse), ((links, "look"), untold)])
def test_a_kernel_that_tells_nothing_keeps_the_old_configuration_working(
    house: House, monkeypatch: pytest.MonkeyPatch, where: tuple[object, str], failing: object
) -> None:
    house.start(isps([OWN1]))
    with monkeypatch.context() as broken:
        broken.setattr(*where, failing)
        house.path.write_text(isps([OWN2], [OWN2]).replace("wan1", "wan2"))
        house.daemon._reload()
    assert [(each.isp.interface, each.isp.check) for each in house.daemon._probers] == [("wan1", (OWN1,))]
    assert [each.closed for each in house.world.ports] == [False, True]  # and what was opened is closed again
    house.dead = {OWN1}
    house.run(1)
    assert house.says() == ["down", None]
    house.world.say(house.wires("wan1"))  # and it still hears of it
    house.run(1)
    assert str(house.targets[0]) == "wan1 has no carrier"


def test_a_kernel_that_tells_of_no_changes_ends_it_with_words(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "open_socket", refuse)
    with pytest.raises(probe.ProbeError, match="does not tell of changes of its interfaces: Too many open files"):
        kit.daemon_of(house.path, isps([OWN1]))


# -- when something is done ----------------------------------------------------------------------------------


def many() -> str:
    """A hundred targets by two ISPs, of which all must answer."""
    checks = [[f"203.0.{n}.{host}" for host in range(1, 51)] for n in (1, 2)]
    text = isps(*checks, more="quorum = 50").replace("interval_ms = 10", "interval_ms = 1000")
    return text.replace("timeout_ms = 20", "timeout_ms = 1000")


def test_a_target_that_fails_waits_for_no_others(house: House) -> None:
    """They wait for each other for a tenth of the interval; but not when it matters."""
    house.start(many(), 4.5)
    assert house.says() == ["up", "up"]
    for number in (3, 17, 29, 44):
        (who,) = [each for each in house.daemon._probers if each.isp.name == "ISP1"]
        target = who.targets[number]
        house.dead = {target.text}
        house.run(5)
        assert house.says() == ["down", "up"]
        # The third lost one was sent when it was due, and lost a second later.
        late_ns = round(who.since_s * S) - house.world.stamp(target.due_ns)
        assert (late_ns + MS // 10) % S <= MS
        house.dead = set()
        house.run(10)
        assert house.says() == ["up", "up"]


def test_while_all_is_well_they_wait_for_each_other(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.start(many(), 4.5)
    turns = []
    turn = house.daemon._turn

    def counted(now_ns: int) -> None:
        turns.append(now_ns)
        turn(now_ns)

    monkeypatch.setattr(house.daemon, "_turn", counted)
    house.run(10)
    assert len(turns) < 250  # for 1,000 probes and their answers


def test_up_is_said_when_the_answer_is_there(house: House) -> None:
    house.world.answer = lambda *_: 100 * MS
    house.start(isps([OWN1], [OWN2]).replace("interval_ms = 10", "interval_ms = 1000").replace("= 20", "= 1000"), 1.3)
    assert house.says() == ["up", None]  # the second answer came, and the third probe is not yet sent
    assert [each.counter for each in house.targets] == [2, 1]


# -- the state files -------------------------------------------------------------------------------


def test_a_file_that_is_empty_is_looked_at_again_and_nobody_waits(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.start(isps([OWN1], [OWN2]))
    monkeypatch.setattr(state, "time", None)  # which nobody asks, and nobody sleeps by
    path = state.state_path(house.path.parent, "ISP1")
    path.write_text("")
    with caplog.at_level(logging.INFO):
        house.run(0.5)  # it is looked at once a second
        assert "somebody wrote" not in caplog.text
        house.run(1.5)
    assert "ISP1: somebody wrote '' into its state file" in caplog.text
    path.unlink()
    house.run(1.5)
    assert path.read_text() == "up\n"


def test_what_only_status_reads_may_be_unwritable(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = state.write
    known = house.path.parent / standing.FILE

    def full(path: Path, text: str) -> None:
        if path == known:
            raise state.StateError("no space")
        write(path, text)

    with monkeypatch.context() as short:
        short.setattr(state, "write", full)
        house.start(isps([OWN1], [OWN2]), 3)
    assert house.says() == ["up", "up"]
    assert caplog.text.count("no space") == 1
    assert not known.exists()
    house.run(1)
    assert known.exists()


def test_a_state_file_that_cannot_be_written_ends_it(house: House) -> None:
    state.state_path(house.path.parent, "ISP1").mkdir()
    (house.path.parent / "lsmpy").touch()
    with pytest.raises(state.StateError, match="cannot write"):
        house.start(isps([OWN1], [OWN2]))


# -- the command line ------------------------------------------------------------------------------


def configured(tmp_path: Path, text: str = TOML, directory: str | None = None) -> Path:
    path = tmp_path / "lsmpy.toml"
    path.write_text(text.format(directory=directory or tmp_path, check='["203.0.113.1"]'))
    return path


def test_a_wrong_configuration_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configured(tmp_path, TOML.replace("interval_ms", "intervall_ms"))
    assert probe.main(["-c", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lsmpy-probe: error: {path}:4: probe.intervall_ms: there is no such key")


def test_a_missing_state_directory_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configured(tmp_path)
    assert probe.main(["-c", str(path), "--state-dir", str(tmp_path / "none")]) == 1
    assert f"the state directory {tmp_path}/none does not exist" in capsys.readouterr().err


def test_a_wrong_command_line_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        probe.main(["--twice"])
    assert "--twice" in capsys.readouterr().err


def test_who_may_not_have_packet_sockets_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = socket.socketpair()

    def refuse(*_: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socketpair", lambda: pair)
    monkeypatch.setattr(socket, "socket", refuse)
    assert probe.main(["-c", str(configured(tmp_path))]) == 1
    error = capsys.readouterr().err
    assert error == (
        "lsmpy-probe: error: cannot open a packet socket: Operation not permitted. "
        "No probe was sent; run it as root or with CAP_NET_RAW\n"
    )


def test_the_prober_loads_nothing_of_the_router_part() -> None:
    code = "import sys, lsmpy.probe; print(sorted({'sh', 'watchdog', 'lsmpy.command', 'scapy.all'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
