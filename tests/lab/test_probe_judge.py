"""lsmpy-probe's judgement: whose fault it is, loss and latency as they were made, and links that keep changing."""

import json
import signal

import pytest

from tests.lab.probe_kit import ISP, TARGET4, Lab, wait_until

pytestmark = pytest.mark.lab

SHARED, OWN = "203.0.113.7", ("203.0.113.11", "203.0.113.12")  # of both ISPs, and of each
TUNNEL = """
[[isp]]
name = "ISP1"
interface = "tun0"
address = ["10.98.0.1/24"]
gateway = "none"
check = {check}
"""


def serve_targets(lab: Lab, *targets: str) -> None:
    for target in targets:
        lab.ip("inet", f"address add {target}/32 dev lo")
        for n in (1, 2):
            lab.ip(f"isp{n}", f"route add {target} via 198.51.{n}.2")


def cut_all(lab: Lab, n: int) -> None:
    lab.ip(f"isp{n}", "link set core down")


def tunnel(lab: Lab, *options: str) -> int:
    """The process behind a new tun0."""
    running = lab.tunnel("tun0", *options)
    lab.ip("router", "address add 10.98.0.1/24 dev tun0")
    return running.pid


@pytest.mark.parametrize("quorum", [1, 2])
def test_a_dead_target_takes_no_isp_down_while_others_answer(lab: Lab, quorum: int) -> None:
    serve_targets(lab, SHARED, *OWN)
    lab.configure(*(f'["{SHARED}", "{own}"]\nquorum = {quorum}' for own in OWN))
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.ip("inet", f"address delete {SHARED}/32 dev lo")
    lab.until_logged(f"{SHARED} fails by every ISP")
    wait_until(lambda: all(lab.standing(n).targets[SHARED].blamed for n in (1, 2)), "status to say so")
    assert (lab.says(1), lab.says(2)) == ("up", "up")
    cut_all(lab, 1)  # its other target still speaks for the link
    lab.until(1, "down")
    assert lab.says(2) == "up"
    lab.ip("isp1", "link set core up")
    lab.ip("isp1", f"route replace {OWN[0]} via 198.51.1.2")
    lab.ip("isp1", f"route replace {SHARED} via 198.51.1.2")
    lab.until(1, "up")
    lab.ip("inet", f"address add {SHARED}/32 dev lo")
    lab.until_logged(f"{SHARED} answers again, and counts again")
    wait_until(lambda: lab.standing(2).targets[SHARED].state == "up", "it to be up")
    lab.ip("isp2", f"route replace blackhole {SHARED}")
    lab.until(2, "up" if quorum == 1 else "down")
    assert lab.log.read_text().count("ISP2 down") == quorum - 1


def test_one_dead_target_that_is_all_there_is_takes_no_isp_down(lab: Lab) -> None:
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.ip("inet", f"address delete {TARGET4}/32 dev lo")
    lab.until_logged(f"{TARGET4} fails by every ISP")
    lab.ip("inet", f"address add {TARGET4}/32 dev lo")
    lab.until_logged(f"{TARGET4} answers again, and counts again")
    wait_until(lambda: lab.standing(1).targets[TARGET4].state == "up", "it to be up")
    assert "down" not in lab.log.read_text()
    lab.cut(1)
    lab.until(1, "down")
    lab.cut(2)  # not at once: this is another link
    lab.until(2, "down")


def test_an_isp_that_is_out_already_and_one_that_sees_it_first_leave_none_down(lab: Lab) -> None:
    quick = "probe = { interval_ms = 20, timeout_ms = 20 }"
    isps = [ISP.format(n=n, check=f'["{TARGET4}"]\n{quick if n == 1 else ""}') for n in (1, 2, 3)]
    lab.write("".join(isps))  # nobody has a wan3
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.until(3, "down")
    lab.ip("inet", f"address delete {TARGET4}/32 dev lo")
    lab.until_logged(f"{TARGET4} fails by every ISP")
    lab.until_logged("ISP1 up", 2)
    assert "ISP2 down" not in lab.log.read_text()
    lab.until(1, "up")


def test_an_isp_whose_target_another_one_filters_is_down_when_it_dies(lab: Lab) -> None:
    serve_targets(lab, SHARED, *OWN)
    lab.configure(f'["{SHARED}"]', f'["{SHARED}", "{OWN[1]}"]')
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.ip("isp2", f"route replace blackhole {SHARED}")
    wait_until(lambda: lab.standing(2).targets[SHARED].lost > 20, "it to be lost for long")
    cut_all(lab, 1)
    lab.until(1, "down")
    assert lab.says(2) == "up"
    assert "taken for dead" not in lab.log.read_text()


def test_all_isps_dead_at_once_are_all_down(lab: Lab) -> None:
    serve_targets(lab, SHARED, *OWN)
    lab.configure(*(f'["{SHARED}", "{own}"]' for own in OWN))
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    for n in (1, 2):
        cut_all(lab, n)
    lab.until(1, "down")
    lab.until(2, "down")


def test_an_isp_that_keeps_changing_is_held_down_for_longer_each_time(lab: Lab) -> None:
    lab.write(ISP.format(n=1, check=f'["{TARGET4}"]'), probe="hold_down_ms = 400")
    lab.start()
    lab.until(1, "up")
    for times, held in enumerate(("0.4", "0.8", "1.6"), 1):
        lab.cut(1)
        lab.until_logged("ISP1 down", times)
        lab.mend(1)
        if held == "1.6":
            wait_until(lambda: lab.standing(1).held_until > 0, "status to tell how long")
            assert lab.standing(1).targets[TARGET4].state == "up"
            assert lab.says(1) == "down"
        lab.until_logged(f"; was held down for {held} s at least")


@pytest.mark.parametrize(("kind", "bad"), [("rtt", ("--delay-ms=30",)), ("jitter", ("--delay-ms=5", "--jitter-ms=80"))])
def test_a_slow_link_is_down_and_comes_back_at_the_lower_limit(lab: Lab, kind: str, bad: tuple[str, ...]) -> None:
    lab.write(TUNNEL.format(check='["198.51.100.9"]'), probe=f"max_{kind}_ms = 12\nmin_{kind}_ms = 6")
    lab.start()
    tunnel(lab, *bad)
    wait_until(lambda: lab.standing(1).targets["198.51.100.9"].samples > 30, "it to be judged")
    assert lab.standing(1).targets["198.51.100.9"].lost == 0
    lab.until(1, "down")
    lab.end(lab.helpers[-1])
    tunnel(lab, "--delay-ms=2")
    lab.until(1, "up")


def test_latency_that_rises_and_falls(lab: Lab) -> None:
    lab.write(TUNNEL.format(check='["198.51.100.9"]'), probe="max_rtt_ms = 40\nmin_rtt_ms = 15")
    lab.start()
    process = lab.tunnel("tun0", "--delay-ms=5", "--later-delay-ms=60")
    lab.ip("router", "address add 10.98.0.1/24 dev tun0")
    lab.until(1, "up")
    for _ in range(2):
        process.send_signal(signal.SIGUSR1)
        lab.until(1, "down")
        wait_until(lambda: "round trip" in lab.standing(1).why, "the reason")
        process.send_signal(signal.SIGUSR1)
        lab.until(1, "up")


@pytest.mark.parametrize("percent", [0, 2, 10, 30, 60])
def test_loss_is_reported_as_it_was_made_and_acts_where_arithmetic_says(lab: Lab, percent: int) -> None:
    targets = [f"198.51.100.{n}" for n in range(1, 21)]
    limits = "interval_ms = 40\nmax_packet_loss = 20\nmin_packet_loss = 18\nmax_successive_pkts_lost = 100"
    lab.write(TUNNEL.format(check=json.dumps(targets)) + f"quorum = {len(targets) // 2}\n", probe=limits)
    lab.start()
    tunnel(lab, f"--loss={percent / 100}", f"--seed={percent}")

    def counts() -> tuple[int, int]:
        found = lab.standing(1).targets.values()
        return sum(each.samples for each in found), sum(each.lost for each in found)

    wait_until(lambda: counts()[0] == 100 * len(targets), "full windows")
    samples, lost = counts()
    share = percent / 100
    assert abs(lost - samples * share) <= 4 * (samples * share * (1 - share)) ** 0.5
    lab.until(1, "up" if percent < 20 else "down")


def test_a_round_trip_longer_than_the_interval_is_no_loss(lab: Lab) -> None:
    lab.write(TUNNEL.format(check='["198.51.100.9"]'), probe="timeout_ms = 1000")
    lab.start()
    tunnel(lab, "--delay-ms=150")
    lab.until(1, "up")
    wait_until(lambda: lab.standing(1).targets["198.51.100.9"].samples >= 50, "samples")
    found = lab.standing(1).targets["198.51.100.9"]
    assert found.lost == 0
    assert found.rtt_ms
    assert found.rtt_ms.p50 >= 150


def test_delay_and_jitter_are_reported_as_they_were_made(lab: Lab) -> None:
    """Between 30 and 70 ms, evenly: that deviates by 40 ms / √12."""
    lab.write(TUNNEL.format(check='["198.51.100.9"]'), probe="timeout_ms = 1000")
    lab.start()
    tunnel(lab, "--delay-ms=30", "--jitter-ms=40")
    wait_until(lambda: lab.standing(1).targets["198.51.100.9"].samples == 100, "a full window")
    found = lab.standing(1).targets["198.51.100.9"]
    assert found.lost == 0
    assert found.rtt_ms
    sigma, late = 40 / 12**0.5, 10  # ms; the process behind tun0 is not always awake when an answer is due
    assert 50 - 4 * sigma / 100**0.5 <= found.rtt_ms.mean <= 50 + 4 * sigma / 100**0.5 + late
    assert found.rtt_ms.deviation == pytest.approx(sigma, abs=4)
    assert 30 <= found.rtt_ms.p50 <= found.rtt_ms.p95 <= found.rtt_ms.p99
    assert 60 <= found.rtt_ms.p99 <= 70 + 2 * late


def test_a_late_answer_is_late_by_the_clock_not_by_a_tick(lab: Lab) -> None:
    lab.write(TUNNEL.format(check='["198.51.100.9"]'), probe="interval_ms = 200\ntimeout_ms = 50")
    lab.start()
    tunnel(lab, "--delay-ms=70")
    wait_until(lambda: lab.standing(1).targets["198.51.100.9"].late >= 5, "late answers")
    found = lab.standing(1).targets["198.51.100.9"]
    assert found.lost == found.samples > 0
    assert lab.says(1) == "down"
