"""What becomes of programs whose output nobody reads, or for which there is no room, or no characters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import SAMPLE

LSM = "connection {\n name=a\n checkip=192.0.2.1\n device=eth0\n}\n"
FULL = "cannot write to standard output: No space left on device. Some of what was to be printed is lost\n"


@pytest.fixture(params=["status", "force", "import", "reconfig", "cli --help", "probe --help"])
def argv(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """A command that prints something and ends well."""
    (tmp_path / "lsm.conf").write_text(LSM)
    given = ["-c", str(SAMPLE), "--state-dir", str(tmp_path)]
    words = {
        "status": ["cli", "status", *given],
        "force": ["cli", "force", "ISP1", "up", *given],
        "import": ["cli", "import", str(tmp_path / "lsm.conf")],
        "reconfig": ["reconfig", "--dry-run", *given],
    }
    name, *rest = words.get(request.param, request.param.split())
    return [sys.executable, "-m", f"lsmpy.{name}", *rest]


def run(argv: Sequence[str], stdout: int | None, **environment: str) -> tuple[int, str]:
    """Its status and what it says on standard error."""
    told = {**os.environ, "PYTHONUNBUFFERED": "", **environment}
    ended = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, env=told, timeout=60, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_when_nobody_reads_it_ends_without_words(argv: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        status, said = run(argv, writing, PYTHONUNBUFFERED=unbuffered)
        kept = {0} if unbuffered and "--help" in argv else set()  # to itself, by the argparse of some Pythons
        assert (status in {141, *kept}, said) == (True, "")
    finally:
        os.close(writing)


def test_a_full_disk_is_told_in_a_line(argv: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    status, said = run(argv, full)
    os.close(full)
    assert (status, said.partition(" error: ")[2]) == (1, FULL)


def test_a_closed_output_is_nothing_to_complain_of(argv: list[str]) -> None:
    assert run(["sh", "-c", 'exec "$0" "$@" >&-', *argv], None) == (0, "")


def test_when_told_apart_a_full_disk_is_no_difference(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "lsmpy.reconfig", "--diff", "-c", str(SAMPLE), "--state-dir", str(tmp_path)]
    assert run(["sh", "-c", 'exec "$0" "$@" >/dev/full', *argv], None)[0] == 2


def test_what_a_terminal_has_no_characters_for_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "ISP1_state").write_text("größer\n")
    argv = [sys.executable, "-m", "lsmpy.cli", "status", "-c", str(SAMPLE), "--state-dir", str(tmp_path)]
    ended = subprocess.run(
        argv, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60, check=False
    )
    assert (ended.returncode, b"ISP1" in ended.stdout, ended.stderr) == (1, True, b"")
    assert b"?" in ended.stdout


def test_a_worse_thing_is_told_rather_than_the_output(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "lsmpy.cli", "status", "-c", str(tmp_path / "none")]
    status, said = run(["sh", "-c", 'exec "$0" "$@" >/dev/full', *argv], None)
    assert (status, "cannot read the configuration" in said) == (2, True)
