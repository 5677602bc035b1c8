"""`lsmpy status`: what becomes of files and of the prober's words, in a table, in JSON and in the exit status."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lsmpy import state
from lsmpy.standing import FILE, IspStanding, RoundTrips, Standing, TargetStanding, encode
from lsmpy.state import StateError
from lsmpy.status import Files, IspStatus, Overview, judge, look, show, table

NOW = 1_000_000_000.0
GOOD = "203.0.113.1: 0 of the last 10 probes lost, 10 answered in a row"
Targets = dict[str, TargetStanding]
OTHER = "dns://192.0.2.53/example.org"


def target(
    said: str = "up", samples: int = 100, lost: int = 2, mean: float | None = 12.34, blamed: bool = False, why: str = ""
) -> TargetStanding:
    rtt = None if mean is None else RoundTrips(mean, mean, 0.42, mean, mean, mean)
    return TargetStanding(said, NOW - 120, "", why, samples, lost, 0, 0, blamed, rtt)


def standing(
    said: str = "up", why: str = GOOD, age: float = 3 * 3600, held_s: float = 0, targets: Targets | None = None
) -> IspStanding:
    held_until = NOW + held_s if held_s else 0.0
    return IspStanding(said, NOW - age, why, held_until, targets or {"203.0.113.1": target(said)})


def files(
    text: str | None = "up", record: str | None = "same", force: str | None = None, age: float = 60, forced_s: float = 5
) -> Files:
    says, state_at = state.judge(text, force), None if text is None else NOW - age
    return Files("ISP1", says, text if record == "same" else record, state_at, NOW - forced_s if force else None)


def one(facts: Files, known: IspStanding | None = None, age: float = 0.5) -> IspStatus:
    return judge([facts], None if known is None else Standing(NOW - age, {"ISP1": known}), NOW).isps[0]


def overview(known: IspStanding, facts: Files | None = None, age: float = 0.5) -> Overview:
    return judge([facts or files(known.state)], Standing(NOW - age, {"ISP1": known}), NOW)


def cells(line: str) -> list[str]:
    return [each.strip() for each in line.split("  ") if each]


def test_a_healthy_isp_on_one_line() -> None:
    head, line = table(overview(standing(), files(age=3 * 3600)), NOW).splitlines()
    assert cells(head) == ["ISP", "STATE", "FORCED", "SINCE", "WHY", "LOSS", "RTT"]
    assert cells(line) == ["ISP1", "up", "-", "3 h", GOOD, "2 %", "12.3 ± 0.4 ms"]
    assert head.index("WHY") == line.index(GOOD)


@pytest.mark.parametrize("force", state.FORCES)
def test_a_force_goes_before_everything(force: str) -> None:
    seen = one(files("down", force=force), standing("down"))
    assert (seen.state, seen.up, seen.forced) == (force, force == "up", force)
    assert (seen.why, seen.hand) == ("forced by hand; its state file says 'down'", None)


def test_a_force_without_a_state_file() -> None:
    assert one(files(None, force="down")).why == "forced by hand; no state file"


def test_a_force_file_that_says_nothing_is_told_below_the_table() -> None:
    seen = overview(standing(), files(force="sideways"))
    assert (seen.isps[0].forced, seen.isps[0].state) == (None, "up")
    assert table(seen, NOW).splitlines()[-1].startswith("ISP1: its force file says 'sideways'")


@pytest.mark.parametrize(("text", "said"), [("down", "up"), ("up", "down"), ("maintenance", "down")])
def test_a_hand_is_named_with_what_the_prober_says(text: str, said: str) -> None:
    seen = one(files(text, record=said), standing(said))
    assert seen.state == ("up" if text == "up" else "down")
    assert (seen.hand, seen.why) == (text, f"somebody wrote {text!r}; the prober says {said}")


def test_a_hand_while_nobody_probes() -> None:
    assert one(files("down", record="up")).why == "somebody wrote 'down'"


def test_a_long_text_of_a_hand_and_its_control_characters_do_not_break_the_table() -> None:
    assert one(files("\x1b[2J\n" * 20, record="up"), standing()).why.startswith("somebody wrote '\\x1b[2J\\n\\x1b")
    assert len(one(files("x" * 4000, record="up"), standing()).why) < 100


def test_the_prober_is_no_hand_while_its_report_is_a_second_older_than_its_file() -> None:
    seen = one(files("down", record="down"), standing("up"))
    assert (seen.hand, seen.why, seen.since) == (None, "its state file says 'down'", NOW - 60)


def test_without_a_record_nobody_is_a_hand() -> None:
    assert one(files("down", record=None), standing("up")).hand is None


def test_a_removed_state_file_is_up() -> None:
    seen = one(files(None, record="down"), standing("down"))
    assert (seen.state, seen.why, seen.since) == ("up", "no state file", None)


def test_a_prober_without_a_verdict_yet() -> None:
    known = standing("unknown", "not enough probes yet")
    assert one(files("up"), known).why == "its state file says 'up'; not enough probes yet"
    assert one(files(None, None), known).why == "no state file; not enough probes yet"


def test_an_isp_that_is_held_down() -> None:
    seen = one(files("down"), standing("down", "eth3 has no carrier", held_s=40))
    assert (seen.why, seen.held_until) == ("held down for another 40 s; eth3 has no carrier", NOW + 40)
    for facts, known, age in (
        (files("down"), standing("down", "eth3 has no carrier", held_s=-1), 0.5),
        (files("down"), standing("down", "eth3 has no carrier", held_s=40), 60.0),
    ):
        seen = one(facts, known, age)
        assert (seen.why, seen.held_until) == ("eth3 has no carrier", 0)


def test_what_is_forced_is_not_held() -> None:
    assert one(files("down", force="down"), standing("down", held_s=40)).held_until == 0


@pytest.mark.parametrize(
    ("facts", "known", "age"),
    [
        (files(age=60), standing(age=3600), 3600),
        (files(age=3600), standing(age=60), 3600),  # the prober was started again
        (files(age=60), standing("down", age=3600), 60),
        (files(age=60), None, 60),
        (files("up", force="down"), standing(age=3600), 5),
        (files("down", force="down"), standing("up"), 60),
        (files("down", force="down"), standing("down", age=3600), 3600),
        (files(None), standing(age=3600), 3600),
    ],
)
def test_since_is_the_earliest_that_tells_of_this_state(facts: Files, known: IspStanding | None, age: float) -> None:
    assert one(facts, known).since == NOW - age


@pytest.mark.parametrize(
    ("age", "words"),
    [(-3, "0 s"), (3.9, "3 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (4 * 3600, "4 h"), (200_000, "2 d")],
)
def test_ages_in_words(age: float, words: str) -> None:
    assert cells(table(overview(standing(age=age), files(None)), NOW).splitlines()[1])[3] == words


def test_nothing_is_known_of_a_fresh_directory() -> None:
    text = table(judge([files(None, None)], None, NOW), NOW)
    assert cells(text.splitlines()[1]) == ["ISP1", "up", "-", "-", "no state file", "-", "-"]
    assert text.splitlines()[-1] == "the prober has written nothing; is lsmpy-probe running?"


def test_a_prober_that_has_gone_is_told_and_measures_nothing() -> None:
    known = standing("down", targets={"a": target("down"), "b": target("up")})
    assert "prober" not in table(overview(known, age=5), NOW)
    lines = table(overview(known, files("down", age=3 * 3600), 12 * 60), NOW).splitlines()
    assert cells(lines[1]) == ["ISP1", "down", "-", "3 h", GOOD, "-", "-"]
    assert lines[2:] == ["the prober has written nothing for 12 min; is lsmpy-probe running?"]


def test_what_was_written_before_the_clock_was_set_back_is_not_fresh() -> None:
    known = Standing(NOW + 3600, {"ISP1": standing("down")})
    assert judge([files("down")], known, NOW).prober.stale
    assert not judge([files("down")], Standing(NOW + 1, known.isps), NOW).prober.stale


def test_who_has_many_targets_may_take_longer() -> None:
    known = standing(targets={f"t{number}": target() for number in range(2000)})
    assert not overview(known, age=13).prober.stale
    assert overview(known, age=15).prober.stale


def test_an_isp_that_the_prober_does_not_know_yet() -> None:
    seen = judge([files()], Standing(NOW, {}), NOW)
    assert cells(table(seen, NOW).splitlines()[1])[4:] == ["its state file says 'up'", "-", "-"]


def test_a_line_for_each_of_several_targets() -> None:
    known = standing(
        targets={
            "203.0.113.1": target("down", 50, 50, None, why="203.0.113.1: 50 of the last 50 probes lost, 50 in a row"),
            OTHER: target("up", 50, 0, 8.88, why=f"{OTHER}: 0 of the last 50 probes lost, 50 answered in a row"),
        }
    )
    _, isp, first, second = table(overview(known, files(age=3 * 3600)), NOW).splitlines()
    assert cells(isp) == ["ISP1", "up", "-", "3 h", GOOD, "50 %", "8.9 ± 0.4 ms"]
    assert first.startswith("  203.0.113.1  ")
    assert cells(first)[1:] == ["down", "2 min", "50 of the last 50 probes lost, 50 in a row", "100 %", "-"]
    well = "0 of the last 50 probes lost, 50 answered in a row"
    assert cells(second)[1:] == ["up", "2 min", well, "0 %", "8.9 ± 0.4 ms"]


def test_blame_is_told_once() -> None:
    alone = table(overview(standing(targets={"203.0.113.1": target("down", blamed=True)})), NOW)
    assert f"203.0.113.1 is blamed itself; {GOOD}" in alone
    both = {"a": target("down", why="a: no answer", blamed=True), "b": target()}
    several = table(overview(standing(targets=both)), NOW)
    assert several.count("blamed itself") == 1
    assert "blamed itself; no answer" in several.splitlines()[2]


def test_no_samples_are_no_losses() -> None:
    line = table(overview(standing(targets={"a": target("unknown", 0, 0, None)})), NOW).splitlines()[1]
    assert cells(line)[-2:] == ["-", "-"]


@pytest.mark.parametrize(("ups", "code"), [("++", 0), ("+-", 1), ("-+", 1), ("--", 2), ("+", 0), ("-", 2)])
def test_exit_status(ups: str, code: int) -> None:
    each = {"+": files("up"), "-": files("down")}
    assert judge([each[up] for up in ups], None, NOW).exit_status == code


def test_reasons_are_cut_to_the_width_and_nothing_else() -> None:
    seen = overview(standing(why="why " * 40), files(age=3 * 3600))
    assert "why " * 39 in table(seen, NOW)
    head, line = table(seen, NOW, 80).splitlines()
    assert len(line) == 80
    assert cells(line)[4].endswith("…")
    assert cells(line)[5:] == ["2 %", "12.3 ± 0.4 ms"]
    assert head.index("LOSS") == line.index("2 %")
    assert table(seen, NOW, 300) == table(seen, NOW)
    assert "  wh…  2 %" in table(seen, NOW, 10)


def test_colours_stand_for_states_and_take_no_room() -> None:
    unsure = {"a": target("unknown"), "b": target("down"), "c": target("down", blamed=True), "d": target("odd")}
    seen = overview(standing(targets=unsure))
    coloured = table(seen, NOW, colour=True)
    shades = [line.partition("\x1b[")[2][:2] for line in coloured.splitlines()]
    assert shades == ["", "32", "33", "31", "33", "33"]
    for number in (31, 32, 33, 0):
        coloured = coloured.replace(f"\x1b[{number}m", "")
    assert coloured == table(seen, NOW)
    assert "\x1b[33mdown" in table(overview(standing("down", held_s=9)), NOW, colour=True)


def test_json_there_and_back() -> None:
    known = standing("down", targets={"a": target("down", mean=None), "b": target()})
    seen = overview(known, files("down", force="up"))
    text = msgspec.json.encode(seen)
    assert msgspec.json.decode(text, type=Overview) == seen
    raw = msgspec.json.decode(text)
    assert raw["prober"] == {"written": NOW - 0.5, "stale": False}
    isp = raw["isps"][0]
    assert {"name", "state", "up", "forced", "since", "why", "hand", "targets"} <= isp.keys()
    assert (isp["up"], isp["forced"], isp["hand"]) == (True, "up", None)
    assert isp["targets"]["b"]["rtt_ms"]["mean"] == 12.34
    assert (isp["targets"]["b"]["since"], isp["targets"]["b"]["cause"]) == (NOW - 120, "")
    assert msgspec.json.decode(msgspec.json.encode(judge([], None, NOW)))["prober"] == {"written": None, "stale": True}


# -- the files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "lsmpy").mkdir()
    for name, text in (("ISP1", "up"), ("ISP2", "down")):
        for path in (state.state_path(tmp_path, name), state.record_path(tmp_path, name)):
            state.write(path, text)
    return tmp_path


def test_the_files_are_read(directory: Path) -> None:
    os.utime(directory / "ISP2_state", (NOW, NOW))
    state.write(directory / "ISP1_state", "down")
    (directory / "ISP1_force").write_text("up\n")
    (directory / FILE).write_text(encode(Standing(time.time(), {"ISP1": standing(), "ISP2": standing("down")})))
    seen = look(["ISP1", "ISP2", "ISP3"], directory)
    assert not seen.prober.stale
    assert [(each.name, each.state, each.forced) for each in seen.isps] == [
        ("ISP1", "up", "up"),
        ("ISP2", "down", None),
        ("ISP3", "up", None),
    ]
    assert (seen.isps[1].since, seen.isps[1].why) == (NOW - 3 * 3600, GOOD)
    (directory / "ISP1_force").unlink()
    assert look(["ISP1"], directory).isps[0].hand == "down"


@pytest.mark.parametrize("data", [b"", b"\xff\x00\x80", b"{}", b'{"written": "today", "isps": {}}', b"[" * 100_000])
def test_a_report_that_is_none_counts_as_absent(data: bytes, directory: Path) -> None:
    (directory / FILE).write_bytes(data)
    seen = look(["ISP1", "ISP2"], directory)
    assert (seen.prober.written, seen.prober.stale) == (None, True)
    assert [each.up for each in seen.isps] == [True, False]


def test_a_directory_in_place_of_the_report(directory: Path) -> None:
    (directory / FILE).mkdir()
    assert look(["ISP1"], directory).prober.stale


def test_no_state_directory_is_not_every_isp_up(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="does not exist"):
        look(["ISP1"], tmp_path / "none")


# -- showing it --------------------------------------------------------------------------------------------------------


def seconds_of(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Let `watch` sleep through `steps`, then press Ctrl-C."""
    left = iter(steps)

    def sleep(_: float) -> None:
        step = next(left, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr("lsmpy.status.time.sleep", sleep)


def test_once(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(["ISP1", "ISP2"], directory, again=False, as_json=False) == 1
    assert capsys.readouterr().out.startswith("ISP   STATE  FORCED")


def test_an_interrupt_before_the_first_table_is_not_all_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "require_directory", interrupt)
    assert show(["ISP1"], directory, again=False, as_json=False) == 130


def test_watching_prints_a_table_a_change(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds_of(
        monkeypatch,
        lambda: os.utime(directory / "ISP1_state", (NOW, NOW)),  # only SINCE is another
        lambda: (directory / "ISP1_force").write_text("down\n"),
        lambda: None,
    )
    assert show(["ISP1", "ISP2"], directory, again=True, as_json=False) == 2
    first, second = capsys.readouterr().out.split("\n\n")
    assert (first.count("ISP1"), second.count("ISP1")) == (1, 1)
    assert "forced by hand" not in first
    assert "forced by hand" in second


def test_watching_as_json_is_a_line_a_second(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds_of(monkeypatch, lambda: (directory / "ISP2_state").write_text("up\n"), lambda: None)
    assert show(["ISP1", "ISP2"], directory, again=True, as_json=True) == 0
    lines = [msgspec.json.decode(line, type=Overview) for line in capsys.readouterr().out.splitlines()]
    assert [each.exit_status for each in lines] == [1, 0, 0]


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_a_terminal_is_cleared_coloured_and_never_overrun(
    no_colour: str, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("COLUMNS", "50")
    seconds_of(monkeypatch, lambda: None)
    assert show(["ISP1", "ISP2"], directory, again=True, as_json=False) == 1
    out = capsys.readouterr().out
    assert out.count("\x1b[H\x1b[2JISP") == 2
    assert ("\x1b[31mdown" in out) == (not no_colour)
    assert "its state …" in out
    show(["ISP1"], directory, again=False, as_json=False)
    assert "\x1b[2J" not in capsys.readouterr().out
