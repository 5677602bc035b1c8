"""What is kept over reboots: written whole, read again, and no end of a rebuild when it is spoilt."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from lsmpy import memory, netfilter
from lsmpy.memory import KeepingError, Kept
from lsmpy.netfilter import Chain
from lsmpy.plan import Side
from lsmpy.routing import Route, Rule

GUARD = netfilter.table("filter", [Chain("INPUT", "DROP", ("-A INPUT -i lo -j ACCEPT",)), Chain("MINE")])
LOOSE = netfilter.table("filter", [Chain("INPUT", "DROP", ("-A INPUT -i lo -m comment --comment us -j ACCEPT",))])
FOUR = Side(4, (GUARD,), (Route("default", 250, gateway="1.1.1.2", device="eth2"),), (Rule(7, "oif eth2", 250),))
SIX = Side(6, (), (), (Rule(20000, "", 254, suppress_default=True),))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "lsmpy"))
    return tmp_path / "lsmpy"


def test_it_is_kept_below_var_lib_unless_systemd_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/private/lsmpy:/var/lib/other")
    assert memory.directory() == Path("/var/lib/private/lsmpy")
    monkeypatch.delenv("STATE_DIRECTORY")
    assert memory.directory() == Path("/var/lib/lsmpy")


SETTINGS = {"net/ipv4/conf/eth2/rp_filter": "1"}
BOTH = Kept({4: FOUR, 6: SIX}, SETTINGS)


def test_what_was_there_before_is_read_as_it_was_written(place: Path) -> None:
    memory.keep(BOTH)
    kept = memory.load()
    assert kept
    assert kept.sides[4].table("filter").same_as(GUARD.with_policies({}))
    assert (kept.sides[4].routes, kept.sides[4].rules) == (FOUR.routes, FOUR.rules)
    assert kept.sides[6] == SIX
    assert (kept.sysctls, kept.beside_others, kept.damaged) == (SETTINGS, False, False)
    assert sorted(os.listdir(place)) == ["before.json", "before.v4"]
    memory.keep(kept)
    assert memory.load() == kept, "what is read is what would be written"


def test_the_saved_tables_are_for_iptables_restore(place: Path) -> None:
    memory.keep(BOTH)
    assert (place / "before.v4").read_text() == netfilter.render([GUARD])
    assert memory.saved_tables() == [place / "before.v4"]


def test_nobody_else_may_read_it(place: Path) -> None:
    memory.keep(BOTH)
    assert place.stat().st_mode & 0o077 == 0


def test_nothing_kept_is_none() -> None:
    assert memory.load() is None
    memory.forget(4)
    assert memory.load() is None


def test_what_is_put_back_is_forgotten(place: Path) -> None:
    memory.keep(BOTH)
    memory.learn_spelling(4, LOOSE, GUARD)
    memory.forget_all()
    memory.forget_all()
    assert memory.load() is None
    assert os.listdir(place) == []


def test_a_family_and_a_table_are_forgotten_alone(place: Path) -> None:
    raw = netfilter.table("raw", [Chain("OUTPUT")])
    memory.keep(Kept({4: Side(4, (GUARD, raw), FOUR.routes, FOUR.rules), 6: SIX}, SETTINGS))
    memory.forget(4, {"raw"})
    kept = memory.load()
    assert kept
    assert [table.name for table in kept.sides[4].tables] == ["filter"]
    assert kept.sides[4].routes == FOUR.routes
    memory.forget(4)
    kept = memory.load()
    assert kept
    assert (sorted(kept.sides), kept.sysctls) == ([6], SETTINGS)
    assert not (place / "before.v4").exists()


def test_tables_that_were_given_up_stay_where_others_are_left_alone_now(place: Path) -> None:
    memory.keep(BOTH)
    memory.keep(msgspec.structs.replace(BOTH, beside_others=True))
    memory.forget(4)
    memory.forget_all(tables=False)
    assert os.listdir(place) == ["before.v4"]
    assert memory.load() is None


def test_what_an_older_version_has_kept_replaced_tables(place: Path) -> None:
    place.mkdir()
    (place / "before.json").write_text('{"routes": {}, "rules": {}, "sysctls": {}}')
    assert memory.load() == Kept({}, {})


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"routes": 1}', b"\xff\xfe", b""])
def test_of_what_is_spoilt_the_tables_are_known(place: Path, content: bytes) -> None:
    memory.keep(BOTH)
    (place / "before.json").write_bytes(content)
    kept = memory.load()
    assert kept
    assert (sorted(kept.sides), kept.sysctls, kept.damaged) == ([4], {}, True)
    assert kept.sides[4].table("filter").same_as(GUARD.with_policies({}))


def test_where_nothing_can_be_kept_nothing_may_be_replaced(place: Path) -> None:
    place.write_text("a file in its place")
    with pytest.raises(KeepingError, match=r"cannot write .*before.v4: "):
        memory.keep(BOTH)
    with pytest.raises(KeepingError, match="cannot read"):
        memory.load()


def test_a_spelling_is_known_for_exactly_these_two_texts() -> None:
    assert not memory.is_spelling_of(4, LOOSE, GUARD)
    memory.learn_spelling(4, LOOSE, GUARD)
    assert memory.is_spelling_of(4, LOOSE, GUARD)
    assert not memory.is_spelling_of(6, LOOSE, GUARD)
    assert not memory.is_spelling_of(4, GUARD, GUARD)
    assert not memory.is_spelling_of(4, LOOSE, LOOSE)


def test_spellings_of_several_tables_are_known_together() -> None:
    raw = netfilter.table("raw", [Chain("OUTPUT")])
    memory.learn_spelling(4, LOOSE, GUARD)
    memory.learn_spelling(4, raw, raw)
    assert memory.is_spelling_of(4, LOOSE, GUARD)
    assert memory.is_spelling_of(4, raw, raw)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_spoilt_spellings_are_learnt_anew(place: Path, content: bytes) -> None:
    memory.learn_spelling(4, LOOSE, GUARD)
    (place / "spelling.json").write_bytes(content)
    assert not memory.is_spelling_of(4, LOOSE, GUARD)
    memory.learn_spelling(4, LOOSE, GUARD)
    assert memory.is_spelling_of(4, LOOSE, GUARD)
