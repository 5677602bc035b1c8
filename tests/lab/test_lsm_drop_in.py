"""In the place of lsm: its package's scripts, more connections than it can probe, its command line and its signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lsmpy import command, state
from tests.lab import recorder
from tests.lab.lsm_kit import BOTH, LSM, NEIGHBOUR, OURS, OUTSIDE, QUICK, Beside, Values, configuration, silence_lsm
from tests.lab.probe_kit import wait_until

ROOT = Path(__file__).parents[2]
CONNECTION: tuple[str, Values] = "connection", {"name": "c", "checkip": NEIGHBOUR, "device": "wan"}
SHARE = "/usr/share/lsm"


@pytest.fixture(scope="module", autouse=True)
def _lsm() -> None:
    silence_lsm()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Beside]:
    made = Beside(tmp_path / "pair")
    made.build()
    yield made
    made.clear()


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# -- the package's own scripts ---------------------------------------------------------------------------------


def tools(place: Path) -> dict[str, str]:
    """A PATH with a mail and a shorewall that note what is asked of them."""
    note = f'exec >>{place}/$TERM.$(basename "$0").$$; echo "$@"'
    place.mkdir()
    executable(place / "mail", f"{note}; cat")
    for who in BOTH:
        for kind in ("shorewall", "shorewall6"):
            var = place / f"{who}-{kind}"
            var.mkdir()
            executable(place / kind, f'if [ "$*" = "show vardir" ]; then echo {place}/$TERM-{kind}; else {note}; fi')
        executable(place / f"{who}-shorewall/firewall", f'echo "$@" >>{place}/{who}.firewall')  # none of IPv6
    return {"PATH": f"{place}:{os.environ['PATH']}"}


def done(place: Path, who: str) -> list[str]:
    """What was asked of them, and the state that Shorewall is left in; numbers do not count."""
    texts = [
        re.sub(r"(?<![a-z])\d+", "#", f"{path.name.split('.')[1]}: {path.read_text()}")
        for path in place.glob(f"{who}.*")
    ]
    for path in place.glob(f"{who}-*/*.status"):
        texts.append(f"{path.name} in {path.parent.name.split('-')[1]}: {path.read_text()}")
    return sorted(texts)


def test_debian_s_scripts_do_for_us_what_they_do_for_lsm(pair: Beside, tmp_path: Path) -> None:
    place = tmp_path / "tools"
    environment = tools(place)
    defaults = QUICK | {"notifyscript": f"{SHARE}/default_script", "warn_email": "root@example", "long_down_time": 1}
    links: list[tuple[str, Values]] = [
        (
            "connection",
            {"name": "four", "checkip": NEIGHBOUR, "device": "wan", "eventscript": f"{SHARE}/shorewall_script"},
        ),
        (
            "connection",
            {"name": "six", "checkip": OUTSIDE, "device": "wan", "eventscript": f"{SHARE}/shorewall6_script"},
        ),
        ("connection", {"name": "mute", "checkip": NEIGHBOUR, "warn_email": ""}),
    ]
    links.append(("group", {"name": "g", "member-connection": ["four", "six"], "eventscript": f"{SHARE}/group_script"}))
    pair.path.write_text(configuration(defaults, *links))
    pair.start_both(**environment)
    # Each connection mails (but the mute one), the group by its own script too, and Shorewall is told.
    enough = {"mail": 3, "firewall": 1, "shorewall6": 1}

    def is_done(who: str) -> bool:
        texts = done(place, who)
        lines = sum(text.count("able wan") for text in texts if text.startswith("firewall"))
        counts = {kind: sum(text.startswith(f"{kind}:") for text in texts) for kind in enough}
        return {**counts, "firewall": lines} == enough

    pair.wait(is_done, "scripts of the start")
    pair.silence(NEIGHBOUR, True)
    pair.silence(OUTSIDE, True)
    enough = {"mail": 7, "firewall": 2, "shorewall6": 2}
    pair.wait(is_done, "scripts of the outage")
    pair.wait(lambda _: done(place, OURS) == done(place, LSM), "the same of both")
    assert {"wan.status in shorewall: 1\n", "wan.status in shorewall6: 1\n"} < set(done(place, OURS))
    assert [text for text in done(place, OURS) if text.startswith("mail: -s LSM: four down, IP #.#.#.# root@example")]


# -- many ------------------------------------------------------------------------------------------------------

MANY, TURNS = 200, 5


def test_two_hundred_connections_are_probed_once_a_second_and_every_one_on_time(pair: Beside) -> None:
    """LSM sends 48 probes a second and begins its rounds at the first: half of 200 never get one."""
    pair.ip("p", "route add local 198.18.0.0/24 dev lo\n")
    addresses = [f"198.18.0.{n}" for n in range(1, MANY + 1)]
    links: list[tuple[str, Values]] = [
        ("connection", {"name": each, "checkip": each, "device": "wan"}) for each in addresses
    ]
    once = {"interval_ms": 1000, "timeout_ms": 1000, "min_successive_pkts_rcvd": 2, "notifyscript": ""}
    pair.path.write_text(configuration(once | {"eventscript": pair.recorder("event")}, *links))
    counters = "".join(f"-A INPUT -p icmp -d {each} -j ACCEPT\n" for each in addresses)
    there = ("ip", "netns", "exec", pair.spaces["p"])

    def counts() -> list[int]:
        listing = pair.run("p", "iptables-save", "-c", "-t", "filter")
        return [int(count) for count in re.findall(r"^\[(\d+):\d+\] -A INPUT", listing, re.MULTILINE)]

    command.run(*there, "iptables-restore", stdin=f"*filter\n{counters}COMMIT\n")
    recording = (*there, sys.executable, recorder.__file__, "customer", "targets")
    with subprocess.Popen(recording, stdout=subprocess.PIPE, text=True) as far_end:
        assert far_end.stdout
        assert far_end.stdout.readline() == "ready\n"
        pair.start(OURS)
        try:
            wait_until(lambda: min(counts()) >= TURNS, f"{TURNS} probes of each")
            now = counts()
        finally:
            far_end.terminate()
        arrived = json.loads(far_end.stdout.readline())
    assert len(now) == MANY
    assert max(now) - min(now) <= 1, sorted(now)
    gaps = {each: [later - earlier for earlier, later in pairwise(arrived[each])] for each in addresses}
    assert all(len(each) >= TURNS - 1 for each in gaps.values())
    assert {address: each for address, each in gaps.items() if not 0.5 < min(each) <= max(each) < 2} == {}
    wait_until(lambda: len(pair.told(OURS)) >= MANY, "all up")
    assert sorted(each.name for each in pair.told(OURS)) == sorted(addresses)
    assert {each.event for each in pair.told(OURS)} == {("unknown", "up")}


# -- habits ----------------------------------------------------------------------------------------------------


def test_it_is_started_stopped_and_asked_as_lsm_is(pair: Beside) -> None:
    """By the options of lsm's init script, and of those who write their own."""
    pid_file, states = pair.place / "lsm.pid", pair.states
    pair.path.write_text(configuration(QUICK | {"eventscript": pair.recorder("event"), "notifyscript": ""}, CONNECTION))
    shim = ["ip", "netns", "exec", pair.spaces["r"], str(ROOT / "scripts/lsm"), "--state-dir", str(states)]
    argv = [*shim, "-c", str(pair.path), "--pidfile", str(pid_file)]
    environment = {**os.environ, "TERM": OURS}
    assert subprocess.run(argv, check=False, env=environment, capture_output=True).returncode == 0
    daemon = int(pid_file.read_text())
    try:
        wait_until(lambda: pair.told(OURS) != [], "the first event")
        second = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert second.returncode == 1
        assert f"is locked by process {daemon}" in second.stderr
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            os.kill(daemon, number)
        pair.path.write_text(
            configuration(QUICK | {"eventscript": pair.recorder("other"), "notifyscript": ""}, CONNECTION)
        )
        os.kill(daemon, signal.SIGHUP)
        pair.silence(NEIGHBOUR, True)
        wait_until(lambda: len(pair.told(OURS)) == 2, "an event after the reload")
        assert [(each.script, *each.event) for each in pair.told(OURS)] == [
            ("event", "unknown", "up"),
            ("other", "up", "down"),
        ]
        assert Path("/var/lib/lsm/status_export").read_text() == "c down\n"
        assert state.read_text(states / "c_state") == "down"
    finally:
        os.kill(daemon, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{daemon}").exists(), "its end")
    assert not pid_file.exists()
    pair.silence(NEIGHBOUR, False)
    assert (
        subprocess.run([*argv, "--no-fork", "--once"], check=False, env=environment, capture_output=True).returncode
        == 0
    )
    assert not pid_file.exists()  # LSM has none with --no-fork
    wait_until(lambda: len(pair.told(OURS)) == 3, "what has changed meanwhile")
    assert pair.told(OURS)[-1].event == ("down", "up")


def test_the_lines_that_people_look_for_are_in_the_log(pair: Beside) -> None:
    group: tuple[str, Values] = "group", {"name": "g", "member-connection": "c"}
    values = QUICK | {"notifyscript": "", "long_down_time": 1}
    outside: Values = {"name": "c", "checkip": OUTSIDE}  # behind a gateway and without a device: LSM never reaches it
    pair.path.write_text(configuration(values, ("connection", outside), group))
    daemon = pair.start(OURS)
    statistics = (
        r"name = c, replied = \d+, waiting = \d+, timeout = \d+, timeout max = \d+, late reply = 0, cons rcvd = \d+"
    )
    statistics += r", cons wait = \d+, cons miss = \d+, cons miss max = \d+, avg_rtt = \d+\.\d{3}, seq = \d+, status = "

    def until(*patterns: str) -> None:
        wait_until(
            lambda: all(any(re.fullmatch(each, line) for line in pair.logged()) for each in patterns), str(patterns)
        )

    until("link c up event", "group g up event", f"{statistics}1")
    pair.silence(OUTSIDE, True)
    until("link c down event", "group g down event", f"{statistics}0", "link c long down event")
    daemon.send_signal(signal.SIGUSR1)
    until(f"{statistics}3")


def test_scripts_of_lsmpy_toml_are_told_the_same(pair: Beside) -> None:
    pair.path = pair.place / "lsmpy.toml"
    probe = ", ".join(f"{key} = {value}" for key, value in QUICK.items())
    isp = f'name = "ISP1"\ninterface = "wan"\naddress = "192.0.2.1/24"\ngateway = "{NEIGHBOUR}"\n'
    events = f'[events]\nscript = "{pair.recorder("event")}"\n'
    pair.path.write_text(f'{events}[[isp]]\n{isp}check = "{OUTSIDE}"\nprobe = {{ {probe} }}\n')
    pair.start(OURS)
    wait_until(lambda: pair.told(OURS) != [], "the first event")
    pair.silence(OUTSIDE, True)
    wait_until(lambda: len(pair.told(OURS)) == 2, "the outage")
    assert [each.words[:5] for each in pair.told(OURS)] == [
        (word, "ISP1", OUTSIDE, "wan", "") for word in ("up", "down")
    ]
    assert {(len(each.words), each.words[13]) for each in pair.told(OURS)} == {(18, "192.0.2.1")}
    assert [each.event for each in pair.told(OURS)] == [("unknown", "up"), ("up", "down")]
