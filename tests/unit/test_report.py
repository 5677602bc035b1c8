"""What a rehearsal makes of the log lines and the facts."""

from __future__ import annotations

import pytest

from lsmpy import report
from lsmpy.report import Rebuild, Trial


@pytest.mark.parametrize(
    ("line", "up", "down"),
    [
        ("rebuilt in 62 ms: up ISP1 ISP2", ["ISP1", "ISP2"], []),
        ("rebuilt in 62 ms: up ISP1 ISP2, down ISP3 (its state file says 'down')\n", ["ISP1", "ISP2"], ["ISP3"]),
        ("rebuilt in 62 ms: up a, down b (gone (eth2), really), down (forced)", ["a"], ["b", "down"]),
        ("rebuilt in 7 ms: down ISP1 (x, y), ISP2 (z)", [], ["ISP1", "ISP2"]),
    ],
)
def test_a_rebuild_is_read_from_the_log(line: str, up: list[str], down: list[str]) -> None:
    rebuild = Rebuild.parse(line, 5.0)
    assert rebuild is not None
    assert (rebuild.up, rebuild.down, rebuild.heard) == (up, down, 5.0)
    assert rebuild.took_s in (0.062, 0.007)


@pytest.mark.parametrize("line", ["nothing to do: up ISP1", "ISP1 down: 4 of the last 20 probes lost", ""])
def test_other_lines_are_no_rebuild(line: str) -> None:
    assert Rebuild.parse(line, 5.0) is None


def trial(**facts: object) -> Trial:
    half, none = {"a": 0.5, "b": 0.5}, {"a": 0.0, "b": 1.0}
    good = {"isp": "a", "fault": "cable out", "switches": True, "before": half, "during": none, "after": half}
    return Trial(**(good | {"failures": []} | facts))  # type: ignore[arg-type]


def test_a_good_trial_has_no_failures() -> None:
    good = trial(lost_here=40)
    good.judge()
    assert good.failures == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"lost_elsewhere": 1}, "1 new flows were lost"),
        ({"hurt_elsewhere": 2}, "2 long flows"),
        ({"foreign": 3}, "3 packets reached an ISP with a foreign source"),
        ({"stayed": 1}, "still got 1 new flows"),
        ({"after": {"a": 0.0, "b": 1.0}}, "no new flows after"),
    ],
)
def test_whatever_was_not_promised_is_a_failure(facts: dict[str, object], words: str) -> None:
    bad = trial(**facts)
    bad.judge()
    assert len(bad.failures) == 1
    assert words in bad.failures[0]
    assert bad.failures[0] in report.table([bad])


def test_a_single_isp_cannot_be_blamed_for_keeping_its_flows() -> None:
    only = trial(switches=False, during={"a": 1.0})
    only.judge()
    assert only.failures == []


def test_the_table_shows_what_never_happened_as_a_dash() -> None:
    line = report.table([trial(detected_s=1.234)]).splitlines()[2]
    assert line.split()[:7] == ["a", "cable", "out", "1.23", "s", "-", "-"]
    assert line.endswith("a 50/0/50 %, b 50/100/50 %")
