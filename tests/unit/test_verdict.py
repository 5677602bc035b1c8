"""LSM's decision against a plain reading of its README, and the rule of the administrator's hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import model, verdict
from lsmpy.verdict import Flight, Link, Status, combine, decide, step

FAST = model.Probe(max_packet_loss=15, max_successive_pkts_lost=3, min_packet_loss=5, min_successive_pkts_rcvd=2)


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


def walk(samples: list[bool], limits: model.Probe, link: Link | None = None) -> Link:
    link = link or Link()
    for lost in samples:
        link = step(link, lost, limits)
    return link


@given(histories, thresholds())
def test_the_decision_is_lsms(samples: list[bool], limits: model.Probe) -> None:
    link = walk(samples, limits)
    assert link.status == lsm(samples, limits)
    assert (link.lost, link.samples) == (sum(samples[-100:]), min(100, len(samples)))


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
    assert str(walk([False] * 16 + [True] * 7, FAST)) == "7 of the last 23 probes lost, 7 in a row"
    assert str(walk([True, False, False], FAST)) == "1 of the last 3 probes lost, 2 answered in a row"


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


def test_a_probe_is_lost_when_its_time_has_passed() -> None:
    flight = Flight()
    flight.sent(0, 1000)
    assert flight.deadline_ns(50) == 1050
    assert flight.fates(1049, 50) == []
    assert flight.fates(1050, 50) == [True]
    assert flight.deadline_ns(50) is None


def test_an_answer_waits_for_the_fate_of_earlier_probes() -> None:
    flight = Flight()
    for seq in (65534, 65535, 0):
        flight.sent(seq, 1000 + 10 * ((seq + 2) & 0xFFFF))
    flight.answered(0)
    flight.answered(65535)
    assert flight.fates(1020, 50) == []
    assert flight.fates(1050, 50) == [True, False, False]


def test_a_late_answer_does_not_undo_a_loss() -> None:
    flight = Flight()
    flight.sent(7, 1000)
    assert flight.fates(1050, 50) == [True]
    flight.answered(7)
    flight.sent(8, 1060)
    assert flight.fates(1070, 50) == []


def test_an_answer_counts_once_and_only_for_a_probe_in_flight() -> None:
    flight = Flight()
    flight.answered(7)
    flight.sent(7, 1000)
    assert flight.fates(1010, 50) == []
    flight.answered(7)
    flight.answered(7)
    assert flight.fates(1010, 50) == [False]
    assert flight.fates(2000, 50) == []


def test_no_sequence_number_is_in_flight_twice() -> None:
    flight = Flight()
    fates = []
    for count in range(70_000):
        flight.sent(count & 0xFFFF, count)
        fates += flight.fates(count, 10**9)
    assert fates == [True] * (70_000 - (1 << 15) + 1)


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
