"""lsmpy-probe with an lsm.conf, without a network: ways, files, scripts, reloads, restarts, and LSM's faults."""

from __future__ import annotations

import json
import logging
import selectors
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest

from lsmpy import herald, links, port, probe, state
from lsmpy.events import Call
from lsmpy.links import Link, NetlinkError, Route, Snapshot
from lsmpy.model import Address
from lsmpy.port import PortError
from tests.unit import prober_kit as kit
from tests.unit.prober_kit import MS, World, ethernet, snapshot

LIMITS = """
defaults {
 interval_ms=10
 timeout_ms=20
 max_successive_pkts_lost=3
 min_successive_pkts_rcvd=2
 max_packet_loss=100
 min_packet_loss=99
 eventscript=/e
 notifyscript=
}
"""
C1 = "connection {\n name=c1\n checkip=203.0.113.1\n device=wan1\n}\n"
C2 = "connection {\n name=c2\n checkip=203.0.113.2\n device=wan2\n}\n"
GROUP = "group {\n name=g\n logic=0\n member-connection=c1\n member-connection=c2\n}\n"


class FakeCaller:
    """Notes what it is told."""

    def __init__(self, selector: selectors.BaseSelector, place: Path, words: Sequence[str] = ()) -> None:
        del selector
        self.place, self.words, self.calls, self.closed = place, words, list[Call](), False
        self.resumed: Collection[str] = ()

    def resume(self, scripts: Collection[str]) -> None:
        self.resumed = scripts

    def call(self, calls: Sequence[Call]) -> None:
        self.calls += calls

    def close(self) -> None:
        self.closed = True


class House:
    """The daemon in its world; `dead` holds addresses that do not answer, `hop` is what routes go by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
        self.dead: set[str] = set()
        self.hop: str | None = "192.0.1.2"
        self.routed = True
        self.asked: list[tuple[Address, Address | None, Link | None]] = []
        self.world = World(self.wires())
        self.world.answer = lambda _, address: None if str(address) in self.dead else MS
        kit.begin(monkeypatch, self.world)
        self.path, self.export = place / "lsm.conf", place / "var/lsm/status_export"
        self.export.parent.mkdir(parents=True)
        monkeypatch.setattr(herald, "time", self.world)
        monkeypatch.setattr(herald, "Caller", FakeCaller)
        monkeypatch.setattr(herald, "_OWN", place / "var")
        monkeypatch.setattr(links, "route", self.route)
        self.daemon: probe.Daemon

    def wires(self, *out: str) -> Snapshot:
        wans = [ethernet(f"wan{n}", 2 + n, f"wan{n}" not in out) for n in (1, 2)]
        return snapshot(*wans, addresses={3: ("192.0.1.1",), 4: ("192.0.2.1",)})

    def route(self, target: Address, source: Address | None, link: Link | None) -> Route | None:
        self.asked.append((target, source, link))
        if str(target) == "203.0.113.99" or not self.routed:
            return None
        if str(target) == "203.0.113.98":
            raise NetlinkError("the kernel is silent")
        index = link.index if link else 3
        hop = ip_address(self.hop) if self.hop else None
        return Route(index, hop, source or ip_address(f"192.0.{index - 2}.1"), str(target) == "192.0.1.1")

    def start(self, text: str, seconds: float = 1) -> None:
        self.daemon = kit.daemon_of(self.path, text)
        self.run(seconds)

    def run(self, seconds: float) -> None:
        kit.run(self.daemon, self.world, seconds)

    def reload(self, text: str) -> None:
        self.path.write_text(text)
        self.daemon._reload()
        self.daemon._herald.begin(self.daemon._selector)

    def says(self, name: str) -> str | None:
        return state.read_text(state.state_path(self.path.parent, name))

    @property
    def caller(self) -> FakeCaller:
        caller: object = self.daemon._herald._caller
        assert isinstance(caller, FakeCaller)
        return caller

    def told(self) -> list[tuple[str, str, str]]:
        """Of whom, from what, to what; and all of it once."""
        calls, self.caller.calls = self.caller.calls, []
        return [(call.argv[2], call.argv[15], call.argv[1]) for call in calls]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> House:
    return House(monkeypatch, tmp_path)


# -- what is told ----------------------------------------------------------------------------------------------


def test_states_of_connections_and_groups_are_files_and_calls(house: House) -> None:
    house.dead = {"203.0.113.2"}
    house.start(LIMITS + C1 + C2 + GROUP, 1.2)
    assert [house.says(name) for name in ("c1", "c2", "g")] == ["up", "down", "up"]
    assert house.told() == [("c1", "unknown", "up"), ("c2", "unknown", "down"), ("g", "unknown", "up")]
    assert house.export.read_text() == "c1 up\nc2 down\n"
    house.dead = {"203.0.113.1"}
    house.run(1.2)
    assert [house.says(name) for name in ("c1", "c2", "g")] == ["down", "up", "up"]
    assert sorted(house.told()) == [("c1", "up", "down"), ("c2", "down", "up"), *house.told()]
    assert house.export.read_text() == "c1 down\nc2 up\n"


def test_lsm_s_own_file_is_right_before_a_script_looks_into_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(FakeCaller, "call", lambda *_: seen.append(house.export.read_text()))
    house.start(LIMITS + C1)
    house.dead = {"203.0.113.1"}
    house.run(1)
    assert seen == ["c1 up\n", "c1 down\n"]


def test_the_first_of_the_counts_is_the_third_probe_lost(house: House) -> None:
    """LSM needs one more than it says, for it does not count its newest, and looks once a second."""
    house.start(LIMITS + C1, 1.5)
    house.caller.calls.clear()
    house.dead = {"203.0.113.1"}
    house.run(1)
    (call,) = house.caller.calls
    replied, waiting, timeout, late, received, wait, miss = map(int, call.argv[6:13])
    assert (timeout, late, received, wait, miss) == (3, 0, 0, 3, 3)
    assert replied + timeout == 100
    assert waiting - timeout in (1, 2)  # under way, of which LSM says that they are lost
    assert call.argv[14] == "192.0.1.1"
    assert 1000 <= int(call.argv[17]) <= int(call.argv[13]) <= int(call.argv[18]) < 1100


def test_late_answers_are_counted_as_late(house: House) -> None:
    house.start(LIMITS.replace("lost=3", "lost=100") + C1)
    house.world.answer = lambda *_: 30 * MS
    house.run(0.4)
    house.world.answer = lambda *_: MS
    house.run(0.2)
    (prober,) = house.daemon._probers
    counters = house.daemon._herald._counted("c1")
    lost = prober.targets[0].link.lost
    assert counters.timeout == lost == 40
    assert counters.reply_late == pytest.approx(40, abs=1)
    assert counters.replied == pytest.approx(100, abs=1)
    house.run(2)  # they have left the window
    house.world.answer = lambda *_: None
    house.run(0.2)
    counters = house.daemon._herald._counted("c1")
    assert counters.timeout > 10
    assert counters.reply_late == 0


def test_late_answers_of_another_target_are_counted_from_its_own_first(house: House) -> None:
    limits = LIMITS.replace("lost=3", "lost=100")
    house.world.answer = lambda *_: 30 * MS
    house.start(limits + C1, 2.5)
    assert house.daemon._herald._counted("c1").reply_late > 90
    house.world.answer = lambda *_: MS
    house.reload(limits + C1.replace("203.0.113.1", "203.0.113.2"))
    house.run(0.4)
    counters = house.daemon._herald._counted("c1")
    assert (counters.reply_late, counters.timeout) == (0, 0)
    assert counters.replied == house.daemon._probers[0].targets[0].link.samples


def test_nobody_waits_for_the_first_probe_because_of_others_intervals(house: House) -> None:
    """LSM sends them all at once."""
    text = LIMITS.replace("interval_ms=10", "interval_ms=100000000")
    house.start(text + C1 + C2, 1.1)
    assert [each.targets[0].counter for each in house.daemon._probers] == [1, 1]


def test_munin_s_files_are_written_every_five_minutes(house: House) -> None:
    house.start(LIMITS.replace("interval_ms=10", "interval_ms=1000") + C1, 299)
    assert sorted(each.name for each in house.export.parent.iterdir()) == ["status_export"]
    house.run(2)
    written = {each.name: each.read_text() for each in house.export.parent.iterdir()}
    assert len(written) == 7
    assert written["status.status"] == "_c1_status.value 1\n"
    assert "_c1_crcvd.value 100\n" in written["status.counts"]
    house.dead = {"203.0.113.1"}
    house.run(150)
    assert (house.export.parent / "status.status").read_text() == "_c1_status.value 1\n"
    house.run(150)
    assert (house.export.parent / "status.status").read_text() == "_c1_status.value 0\n"


def test_answers_that_take_longer_than_an_interval_are_no_losses(house: House) -> None:
    """LSM takes those under way for lost, and such a link for down for ever."""
    house.world.answer = lambda *_: 35 * MS
    house.start(LIMITS.replace("timeout_ms=20", "timeout_ms=100") + C1)
    assert house.told() == [("c1", "unknown", "up")]


def test_a_link_that_loses_its_carrier_is_down_at_once_and_forgets_the_outage(house: House) -> None:
    """LSM counts probes that cannot be sent, sleeps meanwhile, and then waits until they have left its window."""
    house.start(
        LIMITS.replace("max_packet_loss=100", "max_packet_loss=15").replace("min_packet_loss=99", "min_packet_loss=5")
        + C1
    )
    house.told()
    house.world.say(house.wires("wan1"))
    house.run(0.001)
    assert house.told() == [("c1", "up", "down")]
    house.run(3)
    house.world.say(house.wires())
    house.run(0.1)
    assert house.told() == [("c1", "down", "up")]


def test_what_is_down_at_once_has_lost_nothing_and_is_told_to_be_still_down(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """LSM counts probes that cannot be sent as lost."""
    house.start(LIMITS + C1)
    house.caller.calls.clear()
    house.world.say(house.wires("wan1"))
    with caplog.at_level(logging.INFO):
        house.run(3.3)
    (call,) = house.caller.calls
    assert (call.argv[1], call.argv[8], call.argv[12]) == ("down", "0", "0")  # timeout, cons_miss
    assert caplog.messages.count("link c1 still down") == 3  # once in 100 that were due


def test_a_connection_is_judged_by_itself_though_others_have_its_target(house: House) -> None:
    house.start(LIMITS + C1 + C2.replace("203.0.113.2", "203.0.113.1"))
    house.told()
    house.dead = {"203.0.113.1"}
    house.run(1)
    assert sorted(house.told()) == [("c1", "up", "down"), ("c2", "up", "down")]


def test_long_outages_are_told_in_time(house: House) -> None:
    house.start(LIMITS + C1.replace("}", " long_down_time=2\n long_down_eventscript=/l\n}"))
    house.dead = {"203.0.113.1"}
    house.run(2)
    house.told()
    house.run(1.2)
    assert house.told() == [("c1", "down", "long_down")]
    assert house.says("c1") == "down"


@pytest.mark.parametrize("by_s", [3600, -3600])
def test_an_outage_is_long_by_a_clock_that_nobody_sets(house: House, by_s: int) -> None:
    house.start(LIMITS + C1.replace("}", " long_down_time=2\n long_down_eventscript=/l\n}"))
    house.dead = {"203.0.113.1"}
    house.run(0.5)
    began = house.caller.calls[-1].argv[16]
    house.told()
    house.world.set_clock(by_s * kit.S)
    house.run(1)
    assert house.told() == []
    house.daemon.close()
    house.start(house.path.read_text(), 0.5)  # which does not forget since when
    assert house.told() == []
    house.run(2)
    assert [call.argv[16] for call in house.caller.calls] == [began]
    assert house.told() == [("c1", "down", "long_down")]


def test_quick_starts_and_bursts(house: House) -> None:
    text = LIMITS.replace("rcvd=2", "rcvd=50").replace("interval_ms=10", "interval_ms=1000\n startup_acceleration=3")
    more = " startup_burst_pkts=5\n startup_burst_interval=20\n}"
    house.start(text + C1.replace("}", more), 0.5)
    assert house.told() == [("c1", "unknown", "up")]
    assert house.daemon._probers[0].targets[0].counter == 6  # one more than it says, as with LSM
    house.run(1)
    assert house.daemon._probers[0].targets[0].counter == 7


def test_a_burst_has_200_ms_between_its_probes_unless_it_says_otherwise(house: House) -> None:
    """LSM takes 20 s, and then it is none."""
    limits = LIMITS.replace("interval_ms=10", "interval_ms=1000").replace("timeout_ms=20", "timeout_ms=1000")
    house.start(limits + C1.replace("}", " startup_burst_pkts=3\n}"), 2)
    left = [left_ns for left_ns, _ in house.world.ports[0].truth.values()]
    assert [round((later - earlier) / MS, -1) for earlier, later in pairwise(left)] == [200, 200, 200, 1000]


def test_a_quick_start_is_none_after_a_loss(house: House) -> None:
    house.dead = {"203.0.113.1"}
    house.start(LIMITS.replace("rcvd=2", "rcvd=50\n startup_acceleration=3\n status=0") + C1, 0.1)
    house.dead = set()
    house.run(0.4)
    assert house.told() == []
    house.run(0.3)
    assert house.told() == [("c1", "down", "up")]


def test_names_that_cannot_be_files_have_none_and_that_is_told(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        house.start(LIMITS + C1.replace("name=c1", "name=../c 1"), 1.2)
    assert '"../c 1" gets no state file' in caplog.text
    assert house.told() == [("../c 1", "unknown", "up")]
    assert sorted(each.name for each in house.path.parent.iterdir()) == ["lsm.conf", "lsmpy", "var"]


@pytest.mark.parametrize("line", [b"name=\xff\xfe", b"name=a\0b", b"device=\xff", b"device=a\0b", b"queue=\xff"])
def test_what_is_no_text_hurts_nobody(house: House, line: bytes) -> None:
    house.path.write_bytes((LIMITS + C1).encode().replace(b"name=c1", line))
    for _ in range(2):
        house.daemon = probe.Daemon(house.path, house.path.parent)
        house.run(1.2)
        house.daemon.close()
    assert len(house.export.read_bytes().splitlines()) == 1


def test_an_address_may_name_its_interface(house: House) -> None:
    kit.daemon_of(house.path, LIMITS + "connection {\n checkip=fe80::1%wan2\n}\n").close()
    assert {(str(target), link.name) for target, _, link in house.asked if link} == {("fe80::1", "wan2")}


def test_groups_of_a_name_that_is_taken_are_told_all_the_same(house: House) -> None:
    group = "group {\n member-connection=c1\n}\n"
    house.dead = {"203.0.113.2"}
    house.start(LIMITS + C1 + C2 + group.replace("}", " name=c2\n}") + group * 2, 1.2)
    assert sorted(house.told()) == [
        *(("c1", "unknown", "up"), ("c2", "unknown", "down"), ("c2", "unknown", "up")),
        *(("defaults", "unknown", "up"),) * 2,
    ]
    assert sorted(each.name for each in house.path.parent.glob("*_state")) == ["c1_state", "c2_state", "defaults_state"]
    assert house.says("c2") == "down"


def test_an_address_in_an_old_form_is_probed_and_told_as_it_is_written(house: House) -> None:
    house.start(LIMITS + C1.replace("203.0.113.1", "203.0.28929"))
    assert {str(target) for target, *_ in house.asked} == {"203.0.113.1"}
    assert {call.argv[3] for call in house.caller.calls} == {"203.0.28929"}


def test_what_lsm_would_not_take_as_written_is_told_at_start(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        house.start(LIMITS.replace("interval_ms=10", "interval_ms=0") + C1, 0.1)
    assert "interval_ms: 0 is not from 10" in caplog.text


# -- signals and restarts --------------------------------------------------------------------------------------


def test_a_dump_has_every_connection(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.start(LIMITS + C1 + C2)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        house.daemon._herald.dump()
    assert [line.split(",")[0] for line in caplog.messages] == ["name = c1", "name = c2"]
    assert all(line.endswith("status = 1") for line in caplog.messages)


def test_a_reload_keeps_states_history_and_scripts(house: House) -> None:
    house.start(LIMITS + C1 + C2 + GROUP)
    house.told()
    caller, opened = house.caller, house.daemon._probers[0].port
    probes = house.daemon._probers[0].targets[0].counter
    house.reload(LIMITS + C1 + C2 + C2.replace("c2", "c3") + GROUP)
    house.run(1.2)
    assert house.told() == [("c3", "unknown", "up")]  # LSM tells of the group again
    assert (house.caller, house.daemon._probers[0].port) == (caller, opened)
    assert house.daemon._probers[0].targets[0].counter > probes
    assert house.export.read_text() == "c1 up\nc2 up\nc3 up\n"


def test_scripts_that_come_with_a_reload_are_told_what_changes_from_then_on(house: House) -> None:
    house.path = house.path.with_name("lsmpy.toml")
    text = kit.TOML.format(directory=house.path.parent, check='["203.0.113.1"]')
    text = text.replace('"192.0.2.1/24", "2001:db8:1::1/64"', '"192.0.1.1/24"')
    text = text.replace('"192.0.2.2", "2001:db8:1::2"', '"192.0.1.2"')
    house.start(text)
    assert house.says("ISP1") == "up"
    house.reload(f'{text}[events]\nscript = "/a"\n')
    house.run(1)
    assert house.told() == []
    house.dead = {"203.0.113.1"}
    house.run(1)
    assert house.told() == [("ISP1", "up", "down")]


def test_a_bad_reload_changes_nothing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """LSM ends with status 2."""
    house.start(LIMITS + C1)
    house.told()
    house.reload(LIMITS + C1.replace("device", "devise"))
    assert "reload config failed: the configuration was not read again and the old one is kept: " in caplog.text
    assert "lsm.conf:15: connection.devise: unrecognised connection config option; did you mean device?" in caplog.text
    house.dead = {"203.0.113.1"}
    house.run(1)
    assert house.told() == [("c1", "up", "down")]


def test_a_restart_tells_only_what_has_changed(house: House) -> None:
    """LSM begins anew, and tells everything again."""
    house.start(LIMITS + C1 + C2 + GROUP)
    house.daemon.close()
    assert house.caller.closed
    house.dead = {"203.0.113.2"}
    house.start(LIMITS + C1 + C2 + GROUP)
    assert house.told() == [("c2", "up", "down")]


def test_at_the_next_boot_everything_is_told_anew(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LSM does: a directory on a disk outlasts what scripts have done."""
    house.start(LIMITS + C1)
    house.daemon.close()
    monkeypatch.setattr(state, "boot", lambda: "another")
    house.start(LIMITS + C1)
    assert house.told() == [("c1", "unknown", "up")]


def test_calls_that_a_restart_has_cut_short_are_made_again(house: House) -> None:
    house.start(LIMITS + C1.replace("}", " long_down_time=2\n long_down_eventscript=/l\n}"))
    assert house.caller.place == house.path.parent / "lsmpy/calls"
    assert house.caller.resumed == {"/e", "/l"}


def test_what_cannot_be_remembered_is_told_once(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(herald, "FILE", "nowhere/at/all")
    house.start(LIMITS + C1)
    house.dead = {"203.0.113.1"}
    house.run(1)
    assert len(house.told()) == 2
    assert caplog.text.count("a restart would tell again what has been told") == 1


@pytest.mark.parametrize("text", ["", "{", '{"c1": {"word": "sideways"}}', "\xff", '{"boot": 1, "states": {}}'])
def test_what_is_remembered_may_be_broken(house: House, text: str) -> None:
    (house.path.parent / "lsmpy").mkdir()
    (house.path.parent / herald.FILE).write_bytes(text.encode("latin-1"))
    house.start(LIMITS + C1)
    assert house.told() == [("c1", "unknown", "up")]
    assert json.loads((house.path.parent / herald.FILE).read_text())["states"]["c1"]["word"] == "up"


def test_a_missing_directory_of_lsm_s_own_is_told_once(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(herald, "_OWN", Path("/nowhere"))
    house.start(LIMITS + C1)
    house.dead = {"203.0.113.1"}
    house.run(1)
    assert len(house.told()) == 2
    assert caplog.text.count("cannot write /nowhere/lsm/status_export") == 1


def test_without_scripts_there_is_no_process_for_them(house: House) -> None:
    house.start(LIMITS.replace("eventscript=/e", "") + C1)
    assert house.daemon._herald._caller is None
    house.reload(LIMITS + C1)
    assert house.caller.words == ["--ident", "lsm"]


# -- ways ------------------------------------------------------------------------------------------------------


def reasons(house: House) -> list[str]:
    return [each.why for each in house.daemon._probers]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("device=ppp0", "ppp0 does not exist"),
        ("sourceip=192.0.2.77", "this machine lacks the address 192.0.2.77"),
        ("checkip=203.0.113.99", "there is no route to 203.0.113.99"),
        ("device=wan1\n checkip=203.0.113.99", "there is no route to 203.0.113.99 by wan1"),
        ("checkip=203.0.113.98", "the kernel is silent"),
    ],
)
def test_without_a_way_it_is_down_and_says_why(house: House, lines: str, why: str) -> None:
    house.start(LIMITS + f"connection {{\n checkip=203.0.113.1\n {lines}\n}}\n")
    assert reasons(house) == [why]
    assert house.told() == [("defaults", "unknown", "down")]


@pytest.mark.parametrize("device", [" device=wan1\n", ""])
def test_a_route_that_is_renewed_is_no_event(house: House, device: str) -> None:
    """A script that renews routes would be run for ever by what it does."""
    house.start(LIMITS + C1.replace(" device=wan1\n", device))
    assert house.told() == [("c1", "unknown", "up")]
    for seconds, told in ((0.015, []), (0.5, [("c1", "up", "down")])):
        house.routed = False
        house.world.say(house.wires())
        house.run(seconds)
        assert house.told() == told
        house.routed = True
        house.world.say(house.wires())
        house.run(0.5)
    assert house.told() == [("c1", "down", "up")]


def test_an_answer_that_comes_when_the_route_is_gone_counts(house: House) -> None:
    house.world.answer = lambda *_: 15 * MS
    house.start(LIMITS + C1)
    (target,) = house.daemon._probers[0].targets
    house.routed = False
    house.world.say(house.wires(), house.world.now_ns + MS)
    house.run(0.02)
    house.routed = True
    house.world.say(house.wires())
    house.run(0.5)
    assert 1 <= target.link.lost <= 2  # what could not be sent


def test_it_asks_for_the_way_with_all_that_it_is_told(house: House) -> None:
    house.start(LIMITS + "connection {\n checkip=203.0.113.1\n device=wan2:1\n sourceip=192.0.1.1\n ttl=2\n}\n")
    assert {(str(target), str(source), link.name) for target, source, link in house.asked if link} == {
        ("203.0.113.1", "192.0.1.1", "wan2")
    }
    (opened,) = house.world.ports
    assert {request[8] for request in opened.requests} == {2}
    assert {ip_address(request[12:16]) for request in opened.requests} == {ip_address("192.0.1.1")}
    assert house.caller.calls[0].argv[4] == "wan2:1"


def test_a_neighbour_is_sent_to_itself(house: House) -> None:
    house.hop = None
    house.start(LIMITS + C1)
    (opened,) = house.world.ports
    assert opened.bound[-1] == ("wan1", 1, (ip_address("203.0.113.1"),))


def test_arp_asks_for_the_target(house: House) -> None:
    house.start(LIMITS + C1.replace("}", " check_arp=1\n}"))
    (opened,) = house.world.ports
    assert opened.requests == []
    assert {question[24:28] for question in opened.questions} == {ip_address("203.0.113.1").packed}
    assert house.told() == [("c1", "unknown", "up")]


def test_arp_needs_an_interface_with_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel = Link("wan1", 3, 65534, True, True, False, b"")
    monkeypatch.setattr(house.world, "snapshot", snapshot(tunnel, addresses={3: ("192.0.1.1",)}))
    house.start(LIMITS + C1.replace("}", " check_arp=1\n}"))
    assert reasons(house) == ['Interface "wan1" is not ARPable']


def test_this_machine_itself_answers_without_a_packet(house: House) -> None:
    house.start(LIMITS + "connection {\n checkip=192.0.1.1\n}\n")
    assert house.told() == [("defaults", "unknown", "up")]
    assert house.world.ports[0].requests == []


# -- [events] --------------------------------------------------------------------------------------------------


def test_lsmpy_toml_s_scripts_are_told_the_same(house: House) -> None:
    house.path = house.path.with_name("lsmpy.toml")
    text = kit.TOML.format(directory=house.path.parent, check='["203.0.113.1", "gateway"]')
    text = text.replace('"192.0.2.1/24", "2001:db8:1::1/64"', '"192.0.1.1/24"')
    text = text.replace('"192.0.2.2", "2001:db8:1::2"', '"192.0.1.2"')
    house.start(f'{text}[events]\nscript = ["/a", "/b"]\n')
    calls = house.caller.calls
    assert [call.argv[0] for call in calls] == ["/a", "/b"]
    assert [call.keys for call in calls] == [("of ISP1",)] * 2
    argv = calls[0].argv
    assert argv[1:6] == ("up", "ISP1", "203.0.113.1", "wan1", "")
    assert argv[14:16] == ("192.0.1.1", "unknown")
    assert len(argv) == 19
    assert not house.export.exists()
    assert house.caller.words == []


def test_of_many_sockets_that_cannot_all_be_had_none_stays_open(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_one() -> kit.FakePort:
        if len(house.world.ports) == 15:
            raise PortError("no more")
        return kit.FakePort(house.world)

    monkeypatch.setattr(port, "Port", open_one)
    many = "".join(C1.replace("c1", f"c{number}") for number in range(20))
    with pytest.raises(PortError, match="no more"):
        house.start(LIMITS + many)
    assert len(house.world.ports) >= 15
    assert all(each.closed for each in house.world.ports)


def test_many_sockets_belong_to_their_connections(house: House) -> None:
    many = [C1.replace("c1", f"c{number}").replace("203.0.113.1", f"203.0.113.{number}") for number in range(10, 30)]
    house.dead = {"203.0.113.17"}
    house.start(LIMITS + "".join(many))
    assert {name: word for name, _, word in house.told() if word == "down"} == {"c17": "down"}
    house.daemon.close()
    assert all(each.closed for each in house.world.ports)
