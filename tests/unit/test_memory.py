"""What is kept over reboots: written whole, read again, and no end of a rebuild when it is spoilt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsmpy import memory, netfilter
from lsmpy.memory import KeepingError
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


def test_what_was_there_before_is_read_as_it_was_written(place: Path) -> None:
    memory.save_before({4: FOUR, 6: SIX}, {"net/ipv4/conf/eth2/rp_filter": "1"})
    kept = memory.load_before((4, 6))
    assert kept
    assert kept.sides[4].table("filter").same_as(GUARD.with_policies({}))
    assert (kept.sides[4].routes, kept.sides[4].rules) == (FOUR.routes, FOUR.rules)
    assert kept.sides[6].rules == SIX.rules
    assert kept.sysctls == {"net/ipv4/conf/eth2/rp_filter": "1"}
    assert memory.replaced_all()
    assert sorted(os.listdir(place)) == ["before.json", "before.v4", "before.v6"]


def test_the_saved_tables_are_for_iptables_restore(place: Path) -> None:
    memory.save_before({4: FOUR}, {})
    assert (place / "before.v4").read_text() == netfilter.render([GUARD])


def test_nobody_else_may_read_it(place: Path) -> None:
    memory.save_before({4: FOUR}, {})
    assert place.stat().st_mode & 0o077 == 0


def test_nothing_kept_is_none() -> None:
    assert memory.load_before((4, 6)) is None


def test_what_is_put_back_is_forgotten(place: Path) -> None:
    memory.save_before({4: FOUR, 6: SIX}, {})
    memory.learn_spelling(4, LOOSE, GUARD)
    memory.forget_before()
    memory.forget_before()
    assert memory.load_before((4, 6)) is None
    assert os.listdir(place) == []


def test_what_replaced_tables_and_what_left_them_alone_are_told_apart(place: Path) -> None:
    assert not memory.replaced_all()
    memory.save_settings({"net/ipv4/conf/eth2/rp_filter": "1"})
    memory.save_settings({"net/ipv4/conf/eth2/rp_filter": "2"})
    kept = memory.load_before((4,))
    assert kept
    assert (kept.sysctls, kept.beside_others) == ({"net/ipv4/conf/eth2/rp_filter": "1"}, True)
    assert (memory.replaced_all(), memory.saved_tables()) == (False, [])
    memory.save_before({4: FOUR}, {})
    assert (memory.replaced_all(), memory.saved_tables()) == (True, [place / "before.v4"])
    memory.save_settings({})
    assert not memory.replaced_all()
    memory.forget_before(tables=False)
    assert os.listdir(place) == ["before.v4"]
    assert memory.load_before((4,)) is None


def test_what_an_older_version_has_kept_replaced_tables(place: Path) -> None:
    place.mkdir()
    (place / "before.json").write_text('{"routes": {}, "rules": {}, "sysctls": {}}')
    assert memory.replaced_all()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"routes": 1}', b"\xff\xfe", b""])
def test_what_is_spoilt_is_refused_and_nothing_changed(place: Path, content: bytes) -> None:
    memory.save_before({4: FOUR}, {})
    (place / "before.json").write_bytes(content)
    with pytest.raises(KeepingError, match=r"before.json cannot be understood: .*Nothing was changed"):
        memory.load_before((4,))


def test_where_nothing_can_be_kept_nothing_may_be_replaced(place: Path) -> None:
    place.write_text("a file in its place")
    with pytest.raises(KeepingError, match=r"cannot write .*before.v4: .*The router is as it was"):
        memory.save_before({4: FOUR}, {})
    with pytest.raises(KeepingError, match="cannot read"):
        memory.load_before((4,))


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
