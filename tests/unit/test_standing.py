"""What the prober writes down of every ISP: statistics against the standard library, and a file that may be garbage."""

from __future__ import annotations

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import standing
from lsmpy.standing import IspStanding, RoundTrips, Standing, TargetStanding, Window

names = st.text(max_size=20)
numbers = st.floats(0, 4e9)
targets = st.builds(
    TargetStanding,
    state=st.sampled_from(["up", "down", "unknown"]),
    since=numbers,
    cause=names,
    why=names,
    samples=st.integers(0, 100),
    lost=st.integers(0, 100),
    late=st.integers(0, 1 << 40),
    foreign=st.integers(0, 1 << 40),
    blamed=st.booleans(),
    rtt_ms=st.none() | st.builds(RoundTrips, *[numbers] * 6),
)
isps = st.builds(IspStanding, names, numbers, names, numbers, st.dictionaries(names, targets, max_size=3))
standings = st.builds(Standing, numbers, st.dictionaries(names, isps, max_size=3))


def round_trips(rtts_ns: list[int], size: int = 100) -> RoundTrips | None:
    window = Window(size)
    for rtt_ns in rtts_ns:
        window.add(rtt_ns)
    return window.round_trips()


def test_without_an_answer_there_are_no_round_trips() -> None:
    assert round_trips([]) is None


def test_one_answer_is_all_of_its_statistics() -> None:
    assert round_trips([1_234_567]) == RoundTrips(1.235, 1.235, 0.0, 1.235, 1.235, 1.235)


def test_percentiles_are_by_the_nearest_rank() -> None:
    found = round_trips([n * 1_000_000 for n in range(100, 0, -1)])
    assert found == RoundTrips(1.0, 50.5, 28.866, 50.0, 95.0, 99.0)
    assert round_trips([n * 1_000_000 for n in (4, 2, 3, 1)]) == RoundTrips(1.0, 2.5, 1.118, 2.0, 4.0, 4.0)


@given(st.lists(st.integers(0, 3_600_000_000_000) | st.integers(0, 20), min_size=1, max_size=60), st.integers(1, 30))
def test_the_statistics_are_those_of_the_last_answers(rtts_ns: list[int], size: int) -> None:
    """Against the standard library's, after every answer."""
    window = Window(size)
    for count, rtt_ns in enumerate(rtts_ns, 1):
        window.add(rtt_ns)
        last = rtts_ns[max(0, count - size) : count]
        found = window.round_trips()
        assert found is not None
        assert found.last == round(rtt_ns / 1e6, 3)
        assert found.mean == pytest.approx(statistics.fmean(last) / 1e6, abs=0.001)
        assert found.deviation == pytest.approx(statistics.pstdev(last) / 1e6, abs=0.001)
        ordered = sorted(last)
        for percent, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
            rank = next(n for n in range(1, len(ordered) + 1) if 100 * n >= percent * len(ordered))
            assert value == round(ordered[rank - 1] / 1e6, 3)


@given(st.integers(1, 3_600_000_000_000), st.integers(1, 100))
def test_a_steady_link_has_no_deviation(rtt_ns: int, count: int) -> None:
    found = round_trips([rtt_ns] * count)
    assert found is not None
    assert found.deviation == 0
    assert found.mean == found.p50


def test_what_is_remembered_is_bounded() -> None:
    window = Window(100)
    for rtt_ns in range(10_000):
        window.add(rtt_ns % 77)
    assert (len(window._times), len(window._ordered)) == (100, 100)


@given(standings)
def test_what_is_written_is_read_again(known: Standing) -> None:
    assert standing.decode(standing.encode(known)) == known


def test_the_file_is_json_with_readable_names() -> None:
    target = TargetStanding("up", 2.0, "it answered", "well", 100, 2, 1, 0, False, RoundTrips(1, 2, 3, 4, 5, 6))
    text = standing.encode(Standing(12.5, {"ISP1": IspStanding("up", 1.0, "well", 0.0, {"203.0.113.1": target})}))
    isp = json.loads(text)["isps"]["ISP1"]
    assert (isp["state"], isp["since"], isp["held_until"]) == ("up", 1.0, 0.0)
    assert isp["targets"]["203.0.113.1"] == {
        "state": "up",
        "since": 2.0,
        "cause": "it answered",
        "why": "well",
        "samples": 100,
        "lost": 2,
        "late": 1,
        "foreign": 0,
        "blamed": False,
        "rtt_ms": {"last": 1, "mean": 2, "deviation": 3, "p50": 4, "p95": 5, "p99": 6},
    }


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert standing.decode('{"written": 1, "isps": {}, "more": [1, {"x": null}]}') == Standing(1.0, {})


@pytest.mark.parametrize(
    "text",
    [
        *("", "up", "{", "null", "[]", "{}", '{"written": 1}', '{"isps": {}}', '{"written": "1", "isps": {}}'),
        *('{"written": 1, "isps": []}', '{"written": 1, "isps": {"A": {}}}', '{"written": 1e999, "isps": {}}'),
        *("\ud800", '{"written": 1, "isps": {"\ud800": 1}}', "\0", "[" * 100_000),
    ],
    ids=range(16),
)
def test_garbage_is_no_standing(text: str) -> None:
    assert standing.decode(text) is None


def test_garbage_that_is_deeply_nested_is_no_standing() -> None:
    assert standing.decode('{"more": ' + "[" * 100_000) is None


@given(st.text() | st.text('{}[]":,0123456789.eEtrufalsn-', max_size=60))
def test_no_text_is_too_much(text: str) -> None:
    assert isinstance(standing.decode(text), Standing | None)
