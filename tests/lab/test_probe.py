"""lsmpy-probe on the real kernel: router, two providers and an internet, in namespaces of their own."""

import signal

import pytest

from tests.lab.probe_kit import TARGET4, TARGET6, Lab, wait_until

pytestmark = pytest.mark.lab


def test_a_dead_upstream_is_down_and_a_revived_one_up(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.cut(1)
    lab.until(1, "down")
    assert lab.says(2) == "up"
    lab.mend(1)
    lab.until(1, "up")
    first, last = [line for line in lab.logged() if line.startswith("ISP1")][:2]
    assert first.startswith(f"ISP1 up: {TARGET4}: 0 of the last 3 probes lost, 3 answered in a row, round trip ")
    assert last.startswith(f"ISP1 down: {TARGET4}: 4 of the last ")  # and not one probe later
    assert " probes lost, 4 in a row, round trip " in last


def test_routes_marks_and_the_firewall_do_not_decide(lab: Lab) -> None:
    lab.ip("router", f"route add unreachable {TARGET4}")
    lab.ip("router", f"route add {TARGET4} via 192.0.2.2 table 250")
    lab.ip("router", "rule add fwmark 0/0 table 250 priority 10")
    for chain in ("OUTPUT", "INPUT"):
        lab.exec("router", "iptables", "-w", "-P", chain, "DROP")
    lab.exec("router", "iptables", "-w", "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "2")
    lab.cut(2)
    lab.start()
    lab.until(1, "up")
    lab.until(2, "down")
    lab.cut(1)
    lab.mend(2)
    lab.until(1, "down")
    lab.until(2, "up")


def test_a_cable_out_at_the_far_end_is_down(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", "link set customer down")
    lab.until(1, "down")
    lab.ip("isp1", "link set customer up")
    lab.until(1, "up")


def test_an_interface_that_is_down_is_reported_once(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("router", "link set wan1 down")
    lab.until(1, "down")
    lab.ip("router", "link set wan1 up")
    lab.until(1, "up")
    assert lab.log.read_text().count("ISP1 down: wan1 is down\n") == 1


def test_an_interface_that_was_deleted_comes_back_up(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    for times in (1, 2):
        lab.ip("router", "link delete wan1")
        lab.until(1, "down")
        lab.plug(1)
        lab.until(1, "up")
        lab.until_logged("ISP1 down: wan1 does not exist", times)
    assert lab.says(2) == "up"


def test_an_interface_that_is_missing_at_start_is_down_until_it_comes(lab: Lab) -> None:
    lab.ip("router", "link delete wan1")
    lab.start()
    lab.until(1, "down")
    lab.until(2, "up")
    lab.plug(1)
    lab.until(1, "up")


def test_a_gateway_replaced_by_another_machine_is_found(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", "link set customer address 02:00:00:00:00:99")
    lab.ip("isp1", "link set customer down")
    lab.until(1, "down")
    lab.ip("isp1", "link set customer up")
    lab.until(1, "up")


def test_a_new_hardware_address_of_ours(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.ip("router", "link set wan1 address 02:00:00:00:00:98")
    before = lab.echoes()
    wait_until(lambda: lab.echoes() > before + 40, "probes after the change")
    assert lab.says(1) == "up"
    assert "down" not in lab.log.read_text()


def test_ipv6_targets(lab: Lab) -> None:
    lab.configure(f'["{TARGET6}"]', '["gateway"]')
    for chain in ("OUTPUT", "INPUT"):
        lab.exec(
            "router", "ip6tables", "-w", "-A", chain, "-p", "icmpv6", "--icmpv6-type", "echo-request", "-j", "DROP"
        )
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.ip("isp1", f"route replace blackhole {TARGET6}")
    lab.until(1, "down")
    lab.ip("isp1", f"route replace {TARGET6} via 2001:db8:1f::2")
    lab.until(1, "up")


def test_a_quorum_of_both_families(lab: Lab) -> None:
    lab.configure(f'["{TARGET4}", "{TARGET6}"]\nquorum = 2')
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", f"route replace blackhole {TARGET6}")
    lab.until(1, "down")


def test_what_an_administrator_writes_holds(lab: Lab) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    path = lab.states / "ISP1_state"
    path.write_text("down\n")
    lab.until_logged("ISP1: somebody wrote 'down' into its state file")
    daemon.terminate()
    assert daemon.wait(5) == 0
    lab.start()
    lab.until_logged("ISP1: somebody wrote 'down' into its state file", 2)
    lab.until_logged("ISP1 up", 2)
    before = lab.echoes()
    wait_until(lambda: lab.echoes() > before + 150, "more than a second of probes")
    assert lab.says(1) == "down"
    path.unlink()
    lab.until(1, "up")


def test_a_hand_is_given_back_when_the_link_says_the_same(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    (lab.states / "ISP1_state").write_text("down\n")
    lab.until_logged("ISP1: somebody wrote 'down' into its state file")
    lab.cut(1)
    lab.until_logged("ISP1: its state file is written by the prober again")
    lab.mend(1)
    lab.until(1, "up")


def test_a_hand_that_says_neither_up_nor_down_holds_across_flaps(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    path = lab.states / "ISP1_state"
    path.write_text("maintenance\n")
    lab.until_logged("ISP1: somebody wrote 'maintenance'")
    for times in (1, 2):
        lab.cut(1)
        lab.until_logged("ISP1 down", times)
        lab.mend(1)
        lab.until_logged("ISP1 up", times + 1)
    assert lab.says(1) == "maintenance"
    assert lab.log.read_text().count("somebody wrote") == 1
    path.write_text("up\n")
    lab.until_logged("ISP1: its state file is written by the prober again")
    lab.cut(1)
    lab.until(1, "down")


def test_a_steady_link_writes_nothing(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    before = (lab.states / "ISP1_state").stat()
    echoes = lab.echoes()
    wait_until(lambda: lab.echoes() > echoes + 200, "probes")
    after = (lab.states / "ISP1_state").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(each.name for each in lab.states.iterdir()) == ["ISP1_state", "ISP2_state", "lsmpy"]


def test_a_busy_router_does_not_wake_it(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    sockets = lab.exec("router", "ss", "--packet", "--bpf")
    assert (sockets.count("*:wan1"), sockets.count("*:wan2"), sockets.count("bpf filter (")) == (1, 1, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_0(lab: Lab, number: signal.Signals) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    daemon.send_signal(number)
    assert daemon.wait(1) == 0


def test_a_bad_configuration_is_refused_and_the_old_one_kept(lab: Lab) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    good = lab.path.read_text()
    lab.path.write_text(good.replace("interval_ms = 20", "interval_ms = 0"))
    daemon.send_signal(signal.SIGHUP)
    lab.until_logged("the configuration was not read again and the old one is kept: ")
    assert f"{lab.path}:4: probe.interval_ms: expected milliseconds" in lab.log.read_text()
    lab.cut(1)
    lab.until(1, "down")


def test_a_new_configuration_keeps_what_is_known_by_name(lab: Lab) -> None:
    lab.configure(f'["{TARGET4}"]')
    daemon = lab.start()
    lab.until(1, "up")
    lab.configure(f'["{TARGET4}"]', f'["{TARGET4}"]')
    daemon.send_signal(signal.SIGHUP)
    lab.until(2, "up")
    assert sum(line.startswith("ISP1") for line in lab.logged()) == 1
    lab.configure(f'["{TARGET6}"]')
    daemon.send_signal(signal.SIGHUP)
    lab.until_logged("the configuration was read again", 2)
    lab.cut(1)
    lab.ip("isp1", f"route replace blackhole {TARGET6}")
    lab.until(1, "down")
    assert lab.logged()[-1].startswith(f"ISP1 down: {TARGET6}: ")


def test_once_writes_each_verdict_and_ends(lab: Lab) -> None:
    lab.cut(2)
    assert lab.start("--once").wait(20) == 0
    assert (lab.says(1), lab.says(2)) == ("up", "down")


def test_the_state_directory_of_the_command_line(lab: Lab) -> None:
    other = lab.directory / "other"
    other.mkdir()
    assert lab.start("--once", "--state-dir", str(other)).wait(20) == 0
    assert (other / "ISP1_state").read_text() == "up\n"
    assert lab.says(1) is None


def test_a_state_directory_that_vanishes_ends_it_with_1(lab: Lab) -> None:
    daemon = lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.states.rename(lab.directory / "gone")
    assert daemon.wait(5) == 1
    assert "lsmpy-probe: error: cannot write" in lab.logged()[-1]


def test_without_the_right_to_packet_sockets_it_says_what_to_do(lab: Lab) -> None:
    assert lab.start(wrapper=("setpriv", "--bounding-set", "-net_raw")).wait(20) == 1
    assert "run it as root or with CAP_NET_RAW" in lab.logged()[-1]
