"""The prober without a network: a port that answers as told, the state files, the command line."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import count
from pathlib import Path

import pytest

from lsmpy import config, model, probe, state, wire
from lsmpy.probe import Prober, settle

OUR_MAC, GATEWAY_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
MS = 1_000_000
TOML = """
state_dir = "{directory}"
[probe]
interval_ms = 10
timeout_ms = 20
max_packet_loss = 15
max_successive_pkts_lost = 3
min_packet_loss = 5
min_successive_pkts_rcvd = 2
[[isp]]
name = "ISP1"
interface = "wan1"
address = ["192.0.2.1/24", "2001:db8:1::1/64"]
gateway = ["192.0.2.2", "2001:db8:1::2"]
check = {check}
"""


@dataclass
class FakePort:
    """A link on which everybody answers at once what is asked, as long as `alive`."""

    interface: str
    mac: bytes = OUR_MAC
    problem: str = ""
    alive: bool = True
    closed: bool = False

    def __post_init__(self) -> None:
        self.questions: list[bytes] = []
        self.requests: list[wire.EchoReply] = []
        self.next_hops: list[bytes] = []
        self._arriving: list[wire.EchoReply | wire.Neighbour] = []

    def follow(self) -> None:
        """The interface stays."""

    def close(self) -> None:
        self.closed = True

    def send(self, frame: bytes) -> None:
        kind = frame[12:14]
        if kind == b"\x08\x06" or (kind == b"\x86\xdd" and frame[54] == 135):
            self.questions.append(frame)
            asked = ip_address(frame[38:42] if kind == b"\x08\x06" else frame[62:78])
            self._arriving += [wire.Neighbour(asked, GATEWAY_MAC)] if self.alive else []
            return
        reply = bytearray(frame)
        icmp, addresses = (34, 26) if kind == b"\x08\0" else (54, 22)
        reply[icmp] = 0 if kind == b"\x08\0" else 129
        half = (icmp - addresses) // 2
        reply[addresses:icmp] = reply[addresses + half : icmp] + reply[addresses : addresses + half]
        heard = wire.parse(bytes(reply))
        assert isinstance(heard, wire.EchoReply)
        self.requests.append(heard)
        self.next_hops.append(frame[:6])
        self._arriving += [heard] if self.alive else []

    def receive(self) -> Iterator[wire.EchoReply | wire.Neighbour]:
        arrived, self._arriving = self._arriving, []
        yield from arrived

    def bring(self, *heard: wire.EchoReply | wire.Neighbour) -> None:
        self._arriving += heard


@pytest.fixture(autouse=True)
def ports(monkeypatch: pytest.MonkeyPatch) -> list[FakePort]:
    made: list[FakePort] = []

    def open_port(interface: str) -> FakePort:
        made.append(FakePort(interface))
        return made[-1]

    monkeypatch.setattr(wire, "Port", open_port)
    return made


def isp(check: str = '["203.0.113.1"]', more: str = "") -> model.Isp:
    return config.parse((TOML.format(directory="/run", check=check) + more).encode(), "test", {}).isps[0]


def prober(check: str = '["203.0.113.1"]') -> Prober:
    made = Prober(isp(check), count(100))
    made.start(0, [0] * len(made.targets))
    made.receive()
    return made


def turn(who: Prober, times: int, start_ms: int) -> int:
    """Probe `times` times from `start_ms` on, every 10 ms; returns when the next is due."""
    for at in range(start_ms, start_ms + 10 * times, 10):
        who.receive()
        who.advance(at * MS)
    who.receive()
    return start_ms + 10 * times


def status(who: Prober) -> str:
    return who.status


def test_the_verdict_follows_the_answers(ports: list[FakePort], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    who = prober()
    now = turn(who, 3, 0)
    assert status(who) == "up"
    ports[0].alive = False
    now = turn(who, 6, now)
    assert status(who) == "down"
    assert caplog.messages == [
        "ISP1 up: 0 of the last 2 probes lost, 2 answered in a row (203.0.113.1)",
        "ISP1 down: 3 of the last 6 probes lost, 3 in a row (203.0.113.1)",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": ip_address("203.0.113.2")},
        {"destination": ip_address("192.0.2.9")},
        {"ident": 999},
        {"seq": 40},
        {"payload": b"x" * 56},
    ],
    ids=lambda wrong: "".join(wrong),
)
def test_only_the_answer_to_our_probe_counts(ports: list[FakePort], wrong: dict[str, object]) -> None:
    who = prober()
    ports[0].alive = False
    for at in range(0, 100, 10):
        who.advance(at * MS)
        ports[0].bring(replace(ports[0].requests[-1], **wrong))  # type: ignore[arg-type]
        who.receive()
    assert status(who) == "down"
    assert who.targets[0].link.received_in_a_row == 0
    assert who.targets[0].link.lost == 8


def test_the_gateway_is_asked_for_at_start_and_every_30_s(ports: list[FakePort]) -> None:
    who = prober()
    assert len(ports[0].questions) == 1
    now = turn(who, 2999, 0)
    assert len(ports[0].questions) == 1
    turn(who, 2, now)
    assert len(ports[0].questions) == 2


def test_the_gateway_is_asked_for_each_second_while_probes_are_lost(ports: list[FakePort]) -> None:
    who = prober()
    now = turn(who, 3, 0)
    ports[0].alive = False
    turn(who, 300, now)
    assert 3 <= len(ports[0].questions) <= 4
    assert len(ports[0].requests) == 303  # and the old hardware address serves meanwhile


def test_a_gateway_with_a_new_hardware_address_is_found(ports: list[FakePort]) -> None:
    who = prober()
    turn(who, 1, 0)
    ports[0].bring(wire.Neighbour(ip_address("192.0.2.2"), b"\x02\0\0\0\0\x07"))
    ports[0].bring(wire.Neighbour(ip_address("192.0.2.3"), b"\x02\0\0\0\0\x08"))
    turn(who, 1, 10)
    assert ports[0].next_hops == [GATEWAY_MAC, b"\x02\0\0\0\0\x07"]


def test_a_new_hardware_address_of_ours_is_told_at_once(ports: list[FakePort]) -> None:
    who = prober()
    now = turn(who, 3, 0)
    ports[0].mac = b"\x02\0\0\0\0\x09"
    turn(who, 1, now)
    assert [question[6:12] for question in ports[0].questions] == [OUR_MAC, ports[0].mac]


def test_without_the_gateway_probes_are_lost(ports: list[FakePort]) -> None:
    who = Prober(isp(), count())
    ports[0].alive = False
    who.start(0, [0])
    turn(who, 6, 0)
    assert status(who) == "down"
    assert ports[0].requests == []


def test_an_isp_without_its_interface_is_down(ports: list[FakePort], caplog: pytest.LogCaptureFixture) -> None:
    who = Prober(isp(), count())
    ports[0].mac, ports[0].problem = b"", "wan1 does not exist"
    who.start(0, [0])
    now = turn(who, 6, 0)
    assert status(who) == "down"
    assert caplog.messages == ["ISP1: wan1 does not exist; its probes count as lost"]
    ports[0].mac, ports[0].problem = OUR_MAC, ""
    turn(who, 110, now)
    assert status(who) == "up"


def test_missed_probes_are_not_caught_up_with(ports: list[FakePort]) -> None:
    who = prober()
    turn(who, 1, 0)
    who.advance(1234 * MS)
    assert len(ports[0].requests) == 2
    assert who.targets[0].due_ns == 1240 * MS


def test_an_answer_that_waited_for_us_counts() -> None:
    who = prober()
    who.advance(0)
    who.receive()
    who.advance(9000 * MS)
    assert who.targets[0].link.samples == 1
    assert who.targets[0].link.lost == 0


def test_gateway_means_the_first_gateway() -> None:
    assert [str(each.address) for each in prober('["gateway", "2001:db8:1::2"]').targets] == [
        "192.0.2.2",
        "2001:db8:1::2",
    ]


def test_each_family_goes_by_its_own_gateway(ports: list[FakePort]) -> None:
    who = prober('["203.0.113.1", "2001:db8:ffff::1"]')
    turn(who, 3, 0)
    assert status(who) == "up"
    assert {str(each.destination) for each in ports[0].requests} == {"192.0.2.1", "2001:db8:1::1"}
    assert len(ports[0].questions) == 2


def test_sequence_numbers_wrap(ports: list[FakePort]) -> None:
    who = prober()
    who.targets[0].seq = 65534
    turn(who, 4, 0)
    assert [each.seq for each in ports[0].requests] == [65534, 65535, 0, 1]
    assert who.targets[0].link.lost == 0


def test_what_is_known_survives_another_configuration(ports: list[FakePort]) -> None:
    who = prober()
    turn(who, 3, 0)
    other = Prober(isp('["203.0.113.1", "203.0.113.2"]'), count(), who)
    assert len(ports) == 1
    assert other.status == "up"
    assert [each.link.status for each in other.targets] == ["up", "unknown"]
    other.start(30 * MS, [30 * MS, 30 * MS])
    turn(other, 2, 30)
    assert [each.link.lost for each in other.targets] == [0, 0]


# -- the state files -------------------------------------------------------------------------------


def files(directory: Path) -> tuple[str | None, str | None]:
    return state.read_text(state.state_path(directory, "ISP1")), state.read_text(state.record_path(directory, "ISP1"))


def test_nothing_is_written_without_a_verdict(tmp_path: Path) -> None:
    assert settle(tmp_path, "ISP1", None) is None
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_is_written_and_remembered(tmp_path: Path) -> None:
    for said in ("up", "down", "up"):
        assert settle(tmp_path, "ISP1", said) is None
        assert files(tmp_path) == (said, said)


def test_the_same_verdict_is_not_written_again(tmp_path: Path) -> None:
    settle(tmp_path, "ISP1", "up")
    before = state.state_path(tmp_path, "ISP1").stat()
    settle(tmp_path, "ISP1", "up")
    after = state.state_path(tmp_path, "ISP1").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_found_first_is_taken_over(tmp_path: Path) -> None:
    state.state_path(tmp_path, "ISP1").write_text("down\n")
    assert settle(tmp_path, "ISP1", None) is None
    assert files(tmp_path) == ("down", "down")
    assert settle(tmp_path, "ISP1", "up") is None
    assert files(tmp_path) == ("up", "up")


def test_a_hand_holds_until_it_is_right_or_gone(tmp_path: Path) -> None:
    path = state.state_path(tmp_path, "ISP1")
    settle(tmp_path, "ISP1", "up")
    path.write_text("down\n")
    assert settle(tmp_path, "ISP1", "up") == "down"
    assert settle(tmp_path, "ISP1", None) == "down"
    assert files(tmp_path) == ("down", "up")
    assert settle(tmp_path, "ISP1", "down") is None
    assert settle(tmp_path, "ISP1", "up") is None
    assert files(tmp_path) == ("up", "up")
    path.write_text("down\n")
    assert settle(tmp_path, "ISP1", "up") == "down"
    path.unlink()
    assert settle(tmp_path, "ISP1", "up") is None
    assert files(tmp_path) == ("up", "up")


def test_a_crash_between_file_and_record_does_not_lock_the_prober_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(tmp_path, "ISP1", "up")
    with monkeypatch.context() as broken:
        write = state.write

        def crash_after_one(path: Path, text: str) -> None:
            write(path, text)
            raise KeyboardInterrupt

        broken.setattr(state, "write", crash_after_one)
        with pytest.raises(KeyboardInterrupt):
            settle(tmp_path, "ISP1", "down")
    assert settle(tmp_path, "ISP1", None) == "down"
    assert settle(tmp_path, "ISP1", "down") is None
    assert settle(tmp_path, "ISP1", "up") is None
    assert files(tmp_path) == ("up", "up")


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
    monkeypatch.undo()  # the true port, with a kernel that refuses
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
