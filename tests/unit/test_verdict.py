"""LSM's decision against a plain reading of its README, limits on times, blame, damping, the administrator's hand."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import model, verdict
from lsmpy.verdict import Damping, Link, Status, Trial, blamed, combine, damp, decide, excuse, is_silent, step

FAST = model.Probe(max_packet_loss=15, max_successive_pkts_lost=3, min_packet_loss=5, min_successive_pkts_rcvd=2)
MS = 1_000_000
S = 1000 * MS


@st.composite
def thresholds(draw: st.DrawFn) -> model.Probe:
    least = draw(st.integers(0, 99))
    return model.Probe(
        max_packet_loss=draw(st.integers(least + 1, 100)),
        max_successive_pkts_lost=draw(st.integers(1, 100)),
        min_packet_loss=least,
        min_successive_pkts_rcvd=draw(st.integers(1, 100)),
    )


# Long runs, as links have them: single samples would hardly ever cross a threshold.
histories = st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=8).map(
    lambda runs: [lost for lost, length in runs for _ in range(length)]
)


def lsm(samples: list[bool], limits: model.Probe) -> Status:
    """LSM's rule in lists: slow and plain."""
    status: Status = "unknown"
    for count in range(1, len(samples) + 1):
        window = samples[max(0, count - 100) : count]
        lost_run = next((i for i, lost in enumerate(reversed(samples[:count])) if not lost), count)
        received_run = next((i for i, lost in enumerate(reversed(samples[:count])) if lost), count)
        too_bad = sum(window) >= limits.max_packet_loss or lost_run >= limits.max_successive_pkts_lost
        good = sum(window) <= limits.min_packet_loss and received_run >= limits.min_successive_pkts_rcvd
        if status in ("up", "unknown") and too_bad:
            status = "down"
        elif status in ("down", "unknown") and good:
            status = "up"
    return status


def walk(samples: list[bool], limits: model.Probe, link: Link | None = None, rtt_ms: float = 1) -> Link:
    link = link or Link()
    for lost in samples:
        link = step(link, None if lost else int(rtt_ms * MS), limits)
    return link


@given(histories, thresholds())
def test_the_decision_is_lsms(samples: list[bool], limits: model.Probe) -> None:
    link = Link()
    for count, lost in enumerate(samples, 1):
        link = step(link, None if lost else MS, limits)
        assert (link.lost, link.samples) == (sum(samples[max(0, count - 100) : count]), min(100, count))
    assert link.status == lsm(samples, limits)


@given(histories, thresholds(), st.integers(0, 10**12))
def test_without_limits_times_decide_nothing(samples: list[bool], limits: model.Probe, rtt_ns: int) -> None:
    assert walk(samples, limits, rtt_ms=rtt_ns / MS).status == lsm(samples, limits)


def test_down_needs_the_last_lost_probe_of_the_threshold() -> None:
    assert walk([False] * 2, FAST).status == "up"
    assert walk([False] * 2 + [True] * 2, FAST).status == "up"
    assert walk([False] * 2 + [True] * 3, FAST).status == "down"
    assert walk([True] * 3, FAST).status == "down"


def test_scattered_loss_brings_it_down_at_max_packet_loss() -> None:
    assert walk([False, False] + [True, False] * 14, FAST).status == "up"
    assert walk([False, False] + [True, False] * 15, FAST).status == "down"


def test_recovery_waits_until_the_window_has_forgotten() -> None:
    down = walk([True] * 7, model.Probe())
    assert down.status == "down"
    assert walk([False] * 94, model.Probe(), down).status == "down"
    assert walk([False] * 95, model.Probe(), down).status == "up"


def test_words_for_the_log() -> None:
    assert str(walk([False] * 16 + [True] * 7, FAST)) == (
        "7 of the last 23 probes lost, 7 in a row, round trip 1.0 ms ± 0.0"
    )
    assert str(walk([True, False, False], FAST, rtt_ms=20)) == (
        "1 of the last 3 probes lost, 2 answered in a row, round trip 20.0 ms ± 7.5"
    )
    assert str(walk([True, True], FAST)) == "2 of the last 2 probes lost, 2 in a row"


# -- limits on times -------------------------------------------------------------------------------

SLOW = model.Probe(
    max_packet_loss=15,
    max_successive_pkts_lost=3,
    min_packet_loss=5,
    min_successive_pkts_rcvd=2,
    max_rtt_ms=100,
    min_rtt_ms=50,
)
UNEVEN = model.Probe(
    max_packet_loss=15,
    max_successive_pkts_lost=3,
    min_packet_loss=5,
    min_successive_pkts_rcvd=2,
    max_jitter_ms=40,
    min_jitter_ms=20,
)


@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=200))
def test_times_are_smoothed_as_tcp_does(rtts_ns: list[int]) -> None:
    link = Link()
    mean = variation = 0.0
    for count, rtt_ns in enumerate(rtts_ns):
        link = step(link, rtt_ns, FAST)
        variation = rtt_ns / 2 if count == 0 else 3 / 4 * variation + 1 / 4 * abs(mean - rtt_ns)  # RFC 6298, 2.2, 2.3
        mean = rtt_ns if count == 0 else 7 / 8 * mean + 1 / 8 * rtt_ns
    assert link.rtt_ns == pytest.approx(mean, abs=16)  # nanoseconds, by rounding
    assert link.jitter_ns == pytest.approx(variation, abs=32)


def test_a_lost_probe_has_no_time() -> None:
    link = walk([False, True, True], FAST, rtt_ms=20)
    assert (link.rtt_ns, link.jitter_ns) == (20 * MS, 10 * MS)


def test_a_slow_link_is_down_above_its_limit_and_not_at_it() -> None:
    assert walk([False] * 100, SLOW, rtt_ms=100, link=walk([False] * 2, SLOW)).status == "up"
    link = walk([False] * 2, SLOW)
    counts = 0
    while link.status == "up":
        link, counts = step(link, 200 * MS, SLOW), counts + 1
    assert link.rtt_ns > 100 * MS
    assert counts == 6  # 200 - 199 x (7/8)^n is above 100 from n = 6 on


def test_a_slow_link_comes_back_at_its_lower_limit_and_not_before() -> None:
    down = walk([False] * 50, SLOW, rtt_ms=200)
    assert down.status == "down"
    assert walk([False] * 500, SLOW, down, rtt_ms=51).status == "down"
    assert walk([False] * 500, SLOW, down, rtt_ms=50).status == "up"


def test_between_the_limits_it_stays_what_it_was() -> None:
    for before, status in ((1.0, "up"), (200.0, "down")):
        link = walk([False] * 50, SLOW, rtt_ms=before)
        assert link.status == status
        assert walk([False] * 500, SLOW, link, rtt_ms=75).status == status


def test_one_slow_first_answer_is_no_slow_link() -> None:
    assert step(Link(), 5000 * MS, SLOW).status == "unknown"
    assert walk([False] * 2, SLOW, rtt_ms=5000).status == "down"


def uneven(link: Link, count: int, swing_ms: int) -> Link:
    for number in range(count):
        link = step(link, (200 + swing_ms * (-1) ** number) * MS, UNEVEN)
    return link


def test_jitter_has_limits_of_its_own() -> None:
    up = uneven(Link(), 30, 1)
    assert up.status == "up"
    assert uneven(up, 100, 30).status == "up"
    down = uneven(up, 100, 50)
    assert down.status == "down"
    assert uneven(down, 100, 30).status == "down"
    assert uneven(down, 100, 10).status == "up"


def test_loss_counts_as_ever_where_there_are_limits_on_times() -> None:
    assert walk([True] * 3, SLOW, walk([False] * 5, SLOW)).status == "down"


# -- several targets, several ISPs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "quorum", "combined"),
    [
        (["up"], 1, "up"),
        (["down"], 1, "down"),
        (["unknown"], 1, "unknown"),
        (["up", "down"], 1, "up"),
        (["up", "down"], 2, "down"),
        (["up", "unknown"], 1, "up"),
        (["up", "unknown"], 2, "unknown"),
        (["down", "unknown"], 1, "unknown"),
        (["down", "unknown"], 2, "down"),
        (["up", "up", "down"], 2, "up"),
    ],
)
def test_quorum(statuses: list[Status], quorum: int, combined: Status) -> None:
    assert combine(statuses, quorum) == combined


@pytest.mark.parametrize(
    ("links", "found"),
    [
        # A shared target is dead while another one answers.
        ({"A": {"t": "down", "u": "up"}, "B": {"t": "down", "u": "up"}}, {"t"}),
        ({"A": {"t": "down", "u": "up"}, "B": {"t": "down"}}, {"t"}),
        ({"A": {"t": "down", "u": "up"}, "B": {"t": "down", "u": "down"}}, {"t"}),
        ({"A": {"t": "down", "o": "up"}, "B": {"t": "down"}, "C": {"t": "down"}}, {"t"}),
        # It still answers by one of them, or has not been judged.
        ({"A": {"t": "down", "u": "up"}, "B": {"t": "up", "u": "up"}}, set()),
        ({"A": {"t": "down", "u": "up"}, "B": {"t": "unknown", "u": "up"}}, set()),
        # It is all that anybody probes.
        ({"A": {"t": "down"}, "B": {"t": "down"}}, {"t"}),
        ({"A": {"t": "down"}, "B": {"t": "up"}}, set()),
        # One ISP is dead, with all that it probes.
        ({"A": {"t": "down", "u": "down"}, "B": {"t": "up", "u": "up"}}, set()),
        # All are: nothing speaks for them.
        ({"A": {"t": "down", "u": "down"}, "B": {"t": "down", "u": "down"}}, set()),
        ({"A": {"t": "down", "u": "unknown"}, "B": {"t": "down", "u": "down"}}, set()),
        # What only one ISP probes tells of that ISP.
        ({"A": {"t": "down", "u": "up"}, "B": {"u": "up"}}, set()),
        ({"A": {"t": "down"}, "B": {"u": "up"}}, set()),
        ({"A": {"t": "down"}}, set()),
        ({"A": {"t": "down", "u": "up"}}, set()),
        # Two at once, of three.
        ({"A": {"t": "down", "u": "down", "v": "up"}, "B": {"t": "down", "u": "down", "v": "up"}}, {"t", "u"}),
        ({"A": {}, "B": {}}, set()),
        ({}, set()),
    ],
)
def test_a_target_is_blamed_that_fails_by_every_isp_while_others_answer(
    links: dict[str, dict[str, Status]], found: set[str]
) -> None:
    assert found_dead(tried(links)) == found


def check(name: str) -> model.Check:
    """The check target of this name."""
    return model.Check("echo", ip_address(f"203.0.113.{ord(name)}"))


def found_dead(trials: Mapping[str, Mapping[str, Trial]]) -> set[str]:
    found = blamed({isp: {check(name): trial for name, trial in each.items()} for isp, each in trials.items()})
    return {name for each in trials.values() for name in each if check(name) in found}


def tried(links: dict[str, dict[str, Status]]) -> dict[str, dict[str, Trial]]:
    """What is down has been silent since one moment."""
    of: dict[Status, Trial] = {"up": UP, "down": fell(5), "unknown": Trial("unknown", False, None, 10 * S)}
    return {isp: {target: of[status] for target, status in targets.items()} for isp, targets in links.items()}


def fell(at_s: int, apart_s: int = 10) -> Trial:
    """It has not answered since then."""
    return Trial("down", True, at_s * S, apart_s * S)


UP = Trial("up", False, None, 10 * S)
LOSING = Trial("up", False, 5 * S, 10 * S)  # not for long enough to be silent
BAD = Trial("down", False, None, 10 * S)  # it answers, but not well
OUT = Trial("down", True, None, 10 * S)  # nothing new


@pytest.mark.parametrize(
    ("silent_s", "found"), [((5, 5), {"t"}), ((5, 15), {"t"}), ((16, 5), set()), ((5, 900), set())]
)
def test_two_isps_that_die_one_after_another_are_not_one_dead_target(
    silent_s: tuple[int, int], found: set[str]
) -> None:
    trials = {isp: {"t": fell(at_s)} for isp, at_s in zip("AB", silent_s, strict=True)}
    assert found_dead(trials) == found
    # Where there are others that answer it does not matter when it died.
    with_others = {isp: targets | {isp: UP} for isp, targets in trials.items()}
    assert found_dead(with_others) == {"t"}


def test_an_isp_that_probes_more_seldom_may_notice_later() -> None:
    assert found_dead({"A": {"t": fell(5, 1)}, "B": {"t": fell(40, 60)}}) == {"t"}


def test_what_answers_badly_on_all_is_blamed_only_where_another_answers() -> None:
    assert found_dead({isp: {"t": BAD} for isp in "AB"}) == set()
    assert found_dead({isp: {"t": BAD, isp: UP} for isp in "AB"}) == {"t"}


@pytest.mark.parametrize(
    ("trials", "found"),
    [
        # An ISP that had lost it before tells nothing of it, and two must.
        ({"A": {"t": fell(900)}, "B": {"t": fell(900)}, "C": {"t": fell(5)}}, {"t"}),
        ({"A": {"t": fell(900)}, "B": {"t": fell(900)}, "C": {"t": OUT}}, {"t"}),
        ({"A": {"t": fell(900)}, "B": {"t": OUT}}, set()),
        ({"A": {"t": OUT}, "B": {"t": OUT}}, set()),
        # By one it fails for reasons of that ISP's, which works: that keeps up nobody else.
        ({"A": {"t": fell(900)}, "B": {"t": fell(5), "b": UP}}, set()),
        ({"A": {"t": fell(900)}, "B": {"t": BAD, "b": UP}}, set()),
        ({"A": {"t": fell(900), "a": fell(900)}, "B": {"t": fell(5), "b": UP}, "C": {"t": OUT, "c": UP}}, set()),
        ({"A": {"t": fell(900)}, "B": {"t": fell(900)}, "C": {"t": fell(5), "c": UP}}, {"t"}),
        ({"A": {"t": OUT}, "B": {"t": fell(900), "b": UP}, "C": {"t": fell(5), "c": UP}}, {"t"}),
        ({"A": {"t": OUT}, "B": {"t": fell(900), "b": UP}}, set()),
        # It still answers one of them, though not well.
        ({"A": {"t": fell(900)}, "B": {"t": fell(900)}, "C": {"t": BAD}}, set()),
        ({"A": {"t": fell(900), "a": UP}, "B": {"t": BAD}}, set()),
        # Other targets fall silent with it: the whole site does. Or they did so before, and tell nothing.
        ({"A": {"t": fell(5), "a": fell(5)}, "B": {"t": fell(5), "b": fell(5)}}, set()),
        ({"A": {"t": fell(5), "a": LOSING}, "B": {"t": fell(5), "b": LOSING}}, set()),
        ({"A": {"t": fell(900), "a": fell(5)}, "B": {"t": fell(900), "b": OUT}}, {"t"}),
        ({"A": {"t": fell(900), "u": fell(5)}, "B": {"t": fell(900), "u": fell(5)}}, {"t"}),
        ({"A": {"t": fell(5), "a": fell(5)}, "B": {"t": fell(5), "b": UP}}, {"t"}),
    ],
)
def test_no_isp_may_be_the_reason(trials: dict[str, dict[str, Trial]], found: set[str]) -> None:
    assert found_dead(trials) == found


def test_who_fell_silent_with_it_is_told() -> None:
    trials = {"A": {"t": fell(900)}, "B": {"t": fell(905)}, "C": {"t": fell(5)}, "D": {"t": OUT}, "E": {"u": fell(900)}}
    found = blamed({isp: {check(name): trial for name, trial in each.items()} for isp, each in trials.items()})
    assert found == {check("t"): {"A": 900 * S, "B": 905 * S}}


def test_all_that_is_asked_of_one_host_dies_with_it() -> None:
    ping = check("t")
    call = model.Check("tcp", ping.address, 443)
    assert blamed({isp: {ping: fell(5), call: fell(5)} for isp in "AB"}).keys() == {ping, call}


@pytest.mark.parametrize(
    ("samples", "silent"),
    [
        ([], False),
        ([False] * 5, False),
        ([False] * 5 + [True], False),
        ([False] * 5 + [True] * 2, True),
        ([False] * 5 + [True] * 3, True),
        ([False] * 5 + [True] * 3 + [False], False),
        ([False] * 5 + [True] * 2 + [False], False),
        # Down for its losses, and then silent; or answering since.
        ([True, False] * 14 + [True], True),
        ([True, False] * 15, False),
        ([True, False] * 15 + [True], False),
        ([True, False] * 15 + [True] * 2, True),
    ],
)
def test_silent_is_one_probe_away_from_being_down_for_that(samples: list[bool], silent: bool) -> None:
    assert is_silent(walk(samples, FAST), 0, FAST) == silent


def test_what_nobody_has_heard_since_its_link_came_back_is_silent() -> None:
    assert is_silent(Link("down"), 0, FAST)
    assert is_silent(walk([True], FAST, Link("down")), 0, FAST)
    assert not is_silent(walk([False], FAST, Link("down")), 0, FAST)


@pytest.mark.parametrize(
    ("samples", "was_down"),
    [
        ([], False),
        ([False] * 5 + [True] * 9, False),
        ([True] * 9, False),
        ([True] * 9 + [False], True),
        ([True] * 9 + [False] + [True] * 9, True),
        ([True] * 4 + [False] * 9 + [True] * 9, False),
    ],
)
def test_whether_it_was_down_before_it_fell_silent(samples: list[bool], was_down: bool) -> None:
    assert walk(samples, FAST).was_down == was_down


def test_where_one_lost_probe_is_down_an_answer_is_no_silence() -> None:
    nervous = model.Probe(max_successive_pkts_lost=1, min_successive_pkts_rcvd=1)
    assert not is_silent(Link(), 0, nervous)
    assert not is_silent(walk([False], nervous), 0, nervous)
    assert is_silent(walk([True], nervous), 0, nervous)


def test_probes_that_have_failed_make_it_silent_before_an_earlier_ones_time_is_over() -> None:
    assert not is_silent(walk([False] * 5 + [True], FAST), 0, FAST)
    assert is_silent(walk([False] * 5 + [True], FAST), 1, FAST)


each = st.sampled_from(["up", "down", "unknown"])
networks = st.dictionaries(st.sampled_from("ABC"), st.dictionaries(st.sampled_from("tuv"), each, max_size=3))


@given(networks)
def test_nobody_is_blamed_who_answers_or_whom_one_isp_alone_probes(links: dict[str, dict[str, Status]]) -> None:
    for target in found_dead(tried(links)):
        says = [targets[target] for targets in links.values() if target in targets]
        assert len(says) > 1
        assert set(says) == {"down"}


@given(networks, st.sampled_from("tuv"))
def test_one_dead_target_that_is_shared_is_always_found(links: dict[str, dict[str, Status]], dead: str) -> None:
    healthy: dict[str, dict[str, Status]] = {
        isp: {target: "down" if target == dead else "up" for target in targets} for isp, targets in links.items()
    }
    sharing = [targets for targets in healthy.values() if dead in targets]
    assert found_dead(tried(healthy)) == ({dead} if len(sharing) > 1 else set())


# -- damping ---------------------------------------------------------------------------------------

HOLD_MS = 10_000


def flap(before: Damping, down_s: float, up_s: float, hold_ms: int = HOLD_MS) -> Damping:
    """Down at one time, and up as soon as it may after the other."""
    down = damp(before, "down", int(down_s * S), hold_ms)
    return damp(down, "up", max(int(up_s * S), down.until_ns), hold_ms)


def test_what_has_never_been_down_is_held_by_nothing() -> None:
    assert damp(Damping(), "unknown", 5, HOLD_MS) == Damping()
    assert damp(Damping(), "down", 5, HOLD_MS) == Damping()
    assert damp(Damping(), "up", 5, HOLD_MS) == Damping(up_ns=5)


def test_the_first_time_it_is_held_down_once() -> None:
    down = damp(Damping(up_ns=0), "down", 100 * S, HOLD_MS)
    assert down == Damping(0, 110 * S, 10 * S, None)
    assert damp(down, "down", 105 * S, HOLD_MS) == down
    assert damp(down, "up", 110 * S - 1, HOLD_MS).up_ns is None
    assert damp(down, "up", 110 * S, HOLD_MS).up_ns == 110 * S


def test_each_time_again_doubles_it_up_to_a_limit() -> None:
    damping = flap(Damping(up_ns=0), 100, 100)
    held = [damping.held_ns // S]
    for _ in range(8):
        assert damping.up_ns is not None
        now_s = damping.up_ns / S + 1
        damping = flap(damping, now_s, now_s)
        held.append(damping.held_ns // S)
    assert held == [10, 20, 40, 80, 160, 320, 320, 320, 320]


def test_it_is_forgiven_after_it_has_been_up_for_as_long_as_it_was_held() -> None:
    damping = flap(flap(Damping(up_ns=0), 100, 100), 111, 111)
    assert (damping.held_ns, damping.up_ns) == (20 * S, 131 * S)
    assert damp(damping, "down", 151 * S - 1, HOLD_MS).held_ns == 40 * S
    assert damp(damping, "down", 151 * S, HOLD_MS).held_ns == 10 * S


def test_who_went_down_for_no_reason_of_its_own_is_what_it_was() -> None:
    up = flap(Damping(up_ns=0), 100, 100)
    down = damp(up, "down", 200 * S, HOLD_MS)
    assert excuse(down, up, 200 * S) == up
    assert excuse(down, up, 150 * S) == up
    assert excuse(down, up, 200 * S + 1) == down  # it was down already
    assert excuse(up, up, 150 * S) == up
    assert excuse(Damping(), Damping(), 1) == Damping()


def test_not_being_sure_is_neither_up_nor_down() -> None:
    damping = Damping(1, 5, 5, 7)
    assert damp(damping, "unknown", 100 * S, HOLD_MS) == damping


def test_without_hold_down_nothing_is_held() -> None:
    damping = Damping(up_ns=0)
    for at_s in range(1, 20, 2):
        down = damp(damping, "down", at_s * S, 0)
        assert (down.until_ns, down.held_ns, down.times) == (at_s * S, 0, 0)
        damping = damp(down, "up", at_s * S, 0)
        assert damping.up_ns == at_s * S


@given(st.lists(st.tuples(st.sampled_from(["up", "down", "unknown"]), st.integers(0, 100)), max_size=60))
def test_it_is_never_up_while_it_is_held(said: list[tuple[Status, int]]) -> None:
    now, damping = 0, Damping()
    for status, seconds in said:
        now += seconds * S
        damping = damp(damping, status, now, HOLD_MS)
        assert damping.up_ns is None or damping.up_ns >= damping.until_ns
        assert damping.held_ns in [0] + [HOLD_MS * MS << times for times in range(6)]


# -- the administrator's hand ----------------------------------------------------------------------

U, D = "up", "down"


@pytest.mark.parametrize(
    ("said", "record", "file", "action"),
    [
        # The first time: what is there is taken over, what is not is written.
        (None, None, None, "nothing"),
        (U, None, None, "write"),
        (D, None, None, "write"),
        (None, None, D, "adopt"),
        (U, None, D, "adopt"),
        (U, None, U, "adopt"),
        # Our own file.
        (U, U, U, "nothing"),
        (D, U, U, "write"),
        (U, D, D, "write"),
        (None, D, D, "nothing"),
        # Somebody else's hand.
        (U, U, D, "leave"),
        (None, U, D, "leave"),
        (U, D, "long_down", "leave"),
        (U, U, "", "leave"),
        # Given back: it says what we say, or it is gone.
        (D, U, D, "adopt"),
        (U, D, U, "adopt"),
        (U, U, None, "write"),
        (D, U, None, "write"),
        (None, U, None, "nothing"),
    ],
)
def test_what_an_administrator_writes_holds(
    said: str | None, record: str | None, file: str | None, action: verdict.Action
) -> None:
    assert decide(said, record, file) == action


words = st.sampled_from([None, "up", "down", "long_down", ""])


@given(st.sampled_from([None, "up", "down"]), words, words)
def test_a_hand_is_never_overwritten_and_nothing_is_written_without_a_verdict(
    said: str | None, record: str | None, file: str | None
) -> None:
    action = decide(said, record, file)
    if action == "write":
        assert said is not None
        assert file in (None, record)
        assert file != said
    if action == "adopt":
        assert file is not None
        assert decide(said, file, file) in ("write", "nothing")


@pytest.mark.parametrize(
    ("status", "lost", "turning"),
    [
        ("up", 0, False),
        ("up", 1, True),
        ("unknown", 0, False),
        ("unknown", 2, True),
        ("down", 9, False),
        ("down", 0, True),
    ],
)
def test_a_link_turns_when_its_last_sample_speaks_against_its_status(
    status: verdict.Status, lost: int, turning: bool
) -> None:
    assert verdict.is_turning(verdict.Link(status, lost_in_a_row=lost, received_in_a_row=not lost)) == turning


def test_a_link_without_samples_does_not_turn() -> None:
    assert not verdict.is_turning(verdict.Link())
    assert not verdict.is_turning(verdict.Link("down"))
