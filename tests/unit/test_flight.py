"""What becomes of probes under way, by given times: answered, lost, late, failed, forgotten."""

from __future__ import annotations

import random
import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lsmpy.flight import Flight, Sample

MS = 1_000_000
S = 1_000 * MS
STAMPED = 1_700_000_000 * S  # what the clock of the time stamps says when the loop's says 0


def flight(*numbers: int, timeout_ms: int = 50, every_ms: int = 10) -> Flight:
    """Probes that were sent one after another, the first at 0, and left at once."""
    made = Flight(timeout_ms * MS)
    for place, number in enumerate(numbers):
        made.sent(number, place * every_ms * MS, STAMPED + place * every_ms * MS)
    return made


def answer(probes: Flight, number: int, at_ms: float, heard_ms: float | None = None, set_ms: float = 0) -> None:
    """An answer at `at_ms`, taken in at `heard_ms`, with the clock of the stamps set by `set_ms` before."""
    heard_ms = at_ms if heard_ms is None else heard_ms
    probes.answered(number, b"", STAMPED + int((at_ms + set_ms) * MS), int(heard_ms * MS))


def fates(probes: Flight, at_ms: float) -> list[float | str | None]:
    """Round trips in milliseconds, and the reason for what was lost, or None for silence."""
    told = probes.fates(int(at_ms * MS))
    return [each.reason or None if each.rtt_ns is None else each.rtt_ns / MS for each in told]


def test_a_probe_is_lost_when_its_time_has_passed() -> None:
    probes = flight(7)
    assert probes.deadline_ns() == 50 * MS
    assert fates(probes, 49.999) == []
    assert 7 in probes
    assert fates(probes, 50) == [None]
    assert 7 not in probes
    assert probes.deadline_ns() is None
    assert fates(probes, 1000) == []


def test_an_answer_tells_its_round_trip_once() -> None:
    probes = flight(7)
    answer(probes, 7, 3)
    assert fates(probes, 3) == [3]
    assert fates(probes, 3) == []


def test_an_answer_waits_for_the_fate_of_earlier_probes() -> None:
    probes = flight(0, 1, 2)
    answer(probes, 2, 21)
    answer(probes, 1, 22)
    assert fates(probes, 30) == []
    assert probes.deadline_ns() == 50 * MS
    assert fates(probes, 50) == [None, 12, 1]


def test_the_kernel_says_when_a_probe_left() -> None:
    probes = flight(7)
    probes.left(7, STAMPED + 2 * MS)
    probes.left(8, STAMPED)  # of another target's, or of one whose fate is told
    answer(probes, 7, 5)
    assert fates(probes, 5) == [3]


def test_without_a_stamp_of_its_leaving_the_loops_clock_is_the_truth() -> None:
    probes = Flight(50 * MS)
    probes.sent(7, 10 * MS)
    answer(probes, 7, 13, heard_ms=14)
    assert fates(probes, 14) == [4]


def test_an_answer_that_waited_for_us_is_in_time_by_the_clock_and_not_by_our_tick() -> None:
    probes = flight(7, 8)
    answer(probes, 7, 49, heard_ms=900)
    answer(probes, 8, 60, heard_ms=900)  # 50 ms after it was sent, and so in time too
    assert fates(probes, 900) == [49, 50]
    assert probes.late == 0


def test_an_answer_without_the_probes_tag_is_none() -> None:
    probes = Flight(50 * MS)
    probes.sent(7, 0, STAMPED, b"the tag")
    for tag in (b"", b"no tag", b"the tag of another"):
        probes.answered(7, tag, STAMPED + MS, 2 * MS)
        assert not probes.is_true(7, tag)
    assert fates(probes, 3) == []
    assert probes.is_true(7, b"the tag")
    assert not probes.is_true(8, b"the tag")
    assert fates(probes, 50) == [None]
    probes.answered(7, b"no tag", STAMPED + 60 * MS, 60 * MS)
    assert (probes.late, probes.is_true(7, b"the tag")) == (0, True)
    probes.answered(7, b"the tag", STAMPED + 60 * MS, 60 * MS)
    assert probes.late == 1


def test_an_answer_after_its_time_is_lost_however_early_we_look() -> None:
    probes = flight(7)
    answer(probes, 7, 50.001)
    assert fates(probes, 50.001) == ["answered after 50 ms"]
    assert probes.late == 1


def test_an_answer_after_its_fate_was_told_is_late_and_undoes_nothing() -> None:
    probes = flight(7)
    assert fates(probes, 50) == [None]
    answer(probes, 7, 60)
    assert (probes.late, fates(probes, 60)) == (1, [])
    answer(probes, 7, 61)
    assert probes.late == 1  # a duplicate of it is not counted again


def test_an_answer_counts_once_and_only_for_a_probe_under_way() -> None:
    probes = Flight(50 * MS)
    answer(probes, 7, 1)
    probes.sent(7, 10 * MS, STAMPED + 10 * MS)
    assert fates(probes, 20) == []
    answer(probes, 7, 21)
    answer(probes, 7, 35)
    assert fates(probes, 40) == [11]
    answer(probes, 7, 41)
    assert (fates(probes, 99), probes.late) == ([], 0)


def test_a_clock_set_back_between_sending_and_answer_does_not_matter() -> None:
    probes = flight(7)
    answer(probes, 7, 3, heard_ms=4, set_ms=-3600_000)
    assert fates(probes, 4) == [4]


def test_a_clock_set_forward_between_sending_and_answer_does_not_matter() -> None:
    probes = flight(7)
    answer(probes, 7, 3, heard_ms=4, set_ms=3600_000)
    assert fates(probes, 4) == [4]
    assert probes.late == 0


def test_a_clock_that_is_set_later_does_not_matter() -> None:
    probes = flight(7, 8)
    answer(probes, 7, 3)
    answer(probes, 8, 12, heard_ms=13, set_ms=-50)
    assert fates(probes, 100) == [3, 3]


def test_who_says_it_did_not_arrive_is_remembered_and_no_verdict() -> None:
    probes = flight(7, 8)
    probes.unreachable(7, "host-unreachable, says 192.0.2.2")
    probes.unreachable(8, "host-unreachable, says 192.0.2.2")
    assert fates(probes, 20) == []
    answer(probes, 8, 30)
    assert fates(probes, 50) == ["host-unreachable, says 192.0.2.2", 20]


def test_what_is_said_once_needs_no_more_explanation() -> None:
    probes = flight(65536 + 7, 65536 + 8)
    assert [probes.is_unexplained(seq) for seq in (6, 7, 8, 9)] == [False, True, True, False]
    probes.unreachable(7, "no")
    assert [probes.is_unexplained(seq) for seq in (7, 8)] == [False, True]
    assert not Flight(MS).is_unexplained(0)


def test_it_is_said_of_the_low_16_bits_of_a_number() -> None:
    probes = flight(65536 + 7, 65536 + 8)
    probes.unreachable(7, "no")
    assert fates(probes, 100) == ["no", None]


def test_a_call_ends_with_its_round_trip_or_its_failure_before_its_time() -> None:
    probes = flight(1, 2, 3)
    probes.ended(1, 4 * MS, "")
    probes.ended(2, None, "connection refused")
    probes.ended(9, 4 * MS, "")  # nobody's
    assert fates(probes, 25) == [4, "connection refused"]
    assert probes.deadline_ns() == 70 * MS


def test_how_many_calls_failed_is_known_before_their_turn_to_be_told_unless_one_is_answered() -> None:
    probes = flight(1, 2, 3, 4)
    assert probes.failed() == 0
    probes.ended(2, None, "connection refused")
    probes.ended(3, None, "connection refused")
    assert (fates(probes, 25), probes.failed()) == ([], 2)
    probes.ended(4, 4 * MS, "")
    assert probes.failed() == 0


def test_a_call_that_took_too_long_is_lost() -> None:
    probes = flight(1)
    probes.ended(1, 51 * MS, "")
    assert fates(probes, 51) == ["answered after 51 ms"]


def test_what_is_forgotten_is_neither_answered_nor_lost() -> None:
    probes = flight(1, 2, 3)
    answer(probes, 2, 15)
    probes.forget()
    assert fates(probes, 15) == [5]
    answer(probes, 1, 16)
    assert (fates(probes, 1000), probes.late) == ([], 0)


def test_the_newest_is_the_one_sent_last() -> None:
    probes = flight(4, 5)
    assert probes.newest() == 5
    answer(probes, 5, 11)
    assert probes.newest() == 5
    fates(probes, 50)
    assert probes.newest() is None


def test_no_sequence_number_is_under_way_twice() -> None:
    probes = Flight(3600 * S)
    told = []
    for number in range(40_000):
        probes.sent(number, number)
        told += probes.fates(number)
    assert told == [Sample(None)] * (40_000 - (1 << 15) + 1)
    assert all(sample.lost for sample in told)
    probes.unreachable(39_999 & 0xFFFF, "no")
    assert [each.reason for each in probes.fates(4000 * S)].count("no") == 1


def test_many_under_way_do_not_make_it_slow() -> None:
    """Ten seconds of processor time are many times what it takes; looking for the oldest among gaps took thirty."""
    probes, many, more = Flight(30_000), 30_000, 600_000
    began = time.process_time()
    told = 0
    for number in range(many + more):
        probes.sent(number, number)
        told += len(probes.fates(number))
        assert time.process_time() - began < 10
    assert told == more


def test_what_is_remembered_of_the_lost_is_bounded() -> None:
    probes = flight(*range(1000))
    assert len(probes.fates(100 * S)) == 1000
    for number in range(1000):
        answer(probes, number, 100_001)
    assert probes.late == 100


@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 120), min_size=1, max_size=60), st.integers(1, 100))
def test_fates_are_told_in_the_order_of_sending_and_each_once(seed: int, rtts_ms: list[int], timeout_ms: int) -> None:
    """Every 10 ms a probe, whose answer comes after its round trip; looked at by chance, at the end for long."""
    dice, probes = random.Random(seed), Flight(timeout_ms * MS + MS // 2)
    told: list[float | str | None] = []
    events = sorted(
        [(10 * n, 0, n) for n in range(len(rtts_ms))] + [(10 * n + rtt, 1, n) for n, rtt in enumerate(rtts_ms)]
    )
    for at_ms, answered, number in events:
        if answered:
            answer(probes, number, at_ms)
        else:
            probes.sent(number, at_ms * MS, STAMPED + at_ms * MS)
        if dice.random() < 0.3:
            told += fates(probes, at_ms)
    told += fates(probes, 10_000)
    in_time = [rtt if rtt <= timeout_ms else None for rtt in rtts_ms]
    assert [each if isinstance(each, float) else None for each in told] == in_time
    assert probes.late == sum(rtt is None for rtt in in_time)


def test_the_deadline_is_that_of_the_oldest() -> None:
    probes = flight(1, 2, 3)
    for wanted, after in pairwise([50, 60, 70]):
        assert probes.deadline_ns() == wanted * MS
        fates(probes, wanted)
        assert probes.deadline_ns() == after * MS
