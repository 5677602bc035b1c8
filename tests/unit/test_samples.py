"""What is copied by people: the sample configuration and states parse, and every script is one."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from lsmpy import config, model, state
from tests.conftest import ROOT, SAMPLE

SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())
SHELL = [path for path in SCRIPTS if path.suffix != ".py"]


def test_the_sample_configuration_is_the_articles_router() -> None:
    router = config.load(SAMPLE)
    assert [(isp.name, isp.interface, isp.address[0], isp.gateway[0]) for isp in router.isps] == [
        ("ISP1", "eth2", "1.1.1.1/24", "1.1.1.2"),
        ("ISP2", "eth3", "2.2.2.1/24", "2.2.2.2"),
    ]
    assert [(lan.name, lan.interface, lan.address[0]) for lan in router.lans] == [
        ("dev", "eth0", "192.168.1.254/24"),
        ("rnd", "eth1", "192.168.2.254/24"),
    ]
    assert [(isp.mark, isp.table) for isp in router.isps] == [(1, 250), (2, 249)]
    assert router.families == (4, 6)
    assert router.warnings == ()


def test_what_the_sample_has_as_comments_can_be_uncommented() -> None:
    text = re.sub(r"^# (?=\[|\w+ = )", "", SAMPLE.read_text(), flags=re.MULTILINE)
    router = config.parse(text.encode(), str(SAMPLE), {})
    assert [isp.name for isp in router.isps] == ["ISP1", "DSL", "ISP2"]
    assert [policy.name for policy in router.policies] == ["bank", "dns-isp1", "dns-isp2"]
    assert router.rules.after
    assert router.events.script


def test_the_router_section_of_the_sample_holds_the_defaults() -> None:
    given = tomllib.loads(SAMPLE.read_text())
    assert {key: getattr(model.Options(), key) for key in given["router"]} == given["router"]
    assert given["state_dir"] == model.DEFAULT_STATE_DIR


def test_the_sample_state_files_are_known_words() -> None:
    for name in ("ISP1", "ISP2"):
        assert state.read(SAMPLE.parent, name) == state.Status(True, "up")


def test_there_are_scripts() -> None:
    assert {"demo", "test", "lint", "bench", "config_router.sh", "lsm_event"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_every_script_is_one_for_its_shell(path: Path) -> None:
    first = re.match(r"#!(\S+)", path.read_text())
    subprocess.run([first[1] if first else "sh", "-n", path], check=True)  # one without is read by the others


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_has_an_interpreter_can_be_run(path: Path) -> None:
    assert path.read_bytes().startswith(b"#!") == os.access(path, os.X_OK)
