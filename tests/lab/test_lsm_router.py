"""Both ways between the programs: lsm's events for lsmpy-reconfig, and lsmpy-probe's for the article's scripts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lsmpy.lab import ROUTER, isp_node, wait_until
from tests.lab.lsm_kit import QUICK, Values, configuration, silence_lsm
from tests.lab.router_kit import Rig, rig
from tests.lab.router_kit import configuration as router_configuration

ROOT = Path(__file__).parents[2]
ARTICLE = Path(__file__).with_name("article.sh")


@pytest.fixture(scope="module", autouse=True)
def _lsm() -> None:
    silence_lsm()


def links(script: Path) -> str:
    """An lsm.conf with both providers of the sample router; each is asked itself."""
    blocks: list[tuple[str, Values]] = [
        ("connection", {"name": f"ISP{n}", "checkip": f"{n}.{n}.{n}.2", "device": f"eth{n + 1}"}) for n in (1, 2)
    ]
    return configuration(QUICK | {"eventscript": script, "notifyscript": ""}, *blocks)


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def silence(router: Rig, isp: str, silent: bool) -> None:
    router.lab.shell(isp_node(isp), f"iptables -w {'-I' if silent else '-D'} INPUT -i router -p icmp -j DROP\n")


def test_an_unmodified_lsm_s_event_script_moves_lsmpy_reconfig(tmp_path: Path) -> None:
    """LSM tells its scripts nothing of its environment, so another directory is named in a script around ours."""
    with rig(tmp_path, router_configuration(), server=False) as router:
        text = f'#!/bin/sh\nLSMPY_STATE_DIR={router.states} exec {ROOT}/scripts/lsm_event "$@"\n'
        conf = tmp_path / "lsm.conf"
        conf.write_text(links(program(tmp_path / "event", text)))
        with router.watching() as watcher:
            router.lab.start(ROUTER, ["lsm", "-f", "-c", str(conf)])
            for n in (1, 2):
                wait_until((router.states / f"ISP{n}_state").exists, what=f"lsm's word on ISP{n}")
            seen = len(watcher.lines)
            silence(router, "ISP2", True)
            seen = watcher.await_line("up ISP1, down ISP2", after=seen)
            silence(router, "ISP2", False)
            watcher.await_line("up ISP1 ISP2", after=seen)
            assert router.idle()
        assert (router.states / "ISP2_state").read_text() == "up\n"


def test_the_article_s_scripts_work_behind_lsmpy_probe(tmp_path: Path) -> None:
    """Its event script writes the state file as well, and then rebuilds everything by its own config_router.sh."""
    with rig(tmp_path, router_configuration(), server=False) as router:
        event = f'#!/bin/bash\nstate=${{1}}\nname=${{2}}\n\necho "$state" > "{router.states}/${{name}}_state"\n'
        event += f"bash {ARTICLE} {router.states}\necho done >>{tmp_path}/done\n"
        conf = tmp_path / "lsm.conf"
        conf.write_text(
            links(program(tmp_path / "event", event)).replace("notifyscript=", "queue=router\n notifyscript=")
        )
        probe = [str(Path(sys.executable).with_name("lsmpy-probe")), "-c", str(conf), "--state-dir", str(router.states)]

        def rebuilt(times: int) -> None:
            wait_until(
                lambda: (tmp_path / "done").exists() and len((tmp_path / "done").read_text().split()) == times,
                what=f"{times} rebuilds",
                deadline_s=20,
            )

        def chosen() -> set[str]:
            rules = router.shell("iptables -w -t mangle -S PREROUTING\n")
            return {name for name in ("ISP1", "ISP2") if f"-j MARK-{name}" in rules}

        said: list[str] = []
        daemon = router.lab.start(ROUTER, probe, said.append)
        rebuilt(2)
        assert chosen() == {"ISP1", "ISP2"}
        silence(router, "ISP2", True)
        rebuilt(3)
        assert chosen() == {"ISP1"}
        silence(router, "ISP2", False)
        rebuilt(4)
        assert chosen() == {"ISP1", "ISP2"}
        assert not any("somebody wrote" in line or "ended with" in line for line in said), said
        daemon.stop()


ARTICLE_S_EVENT = """#!/bin/bash
state=${1}
name=${2}

echo "$state" > "/var/run/${name}_state"
config_router.sh
"""


def test_the_article_s_event_script_works_unchanged_with_our_config_router_in_its_place(tmp_path: Path) -> None:
    """All that is told where its files are is the program that is installed, and /var/run is the router's own."""
    with rig(tmp_path, router_configuration()) as router:
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "config_router.sh").symlink_to(ROOT / "scripts/config_router.sh")
        installed = [f"STATE_DIRECTORY={router.kept}", sys.executable, "-m", "lsmpy.reconfig", "-c", str(router.config)]
        program(tools / "lsmpy-reconfig", f'#!/bin/sh\nexec env {" ".join(installed)} "$@"\n')
        conf = tmp_path / "lsm.conf"
        conf.write_text(links(program(tmp_path / "event", ARTICLE_S_EVENT)))
        daemon = [str(Path(sys.executable).with_name("lsmpy-probe")), "-c", str(conf)]
        with_its_own = f'mount --bind {router.states} /var/run; PATH={tools}:$PATH exec "$@"'

        def shared_by(*isps: str) -> None:
            wait_until(lambda: {flow.isp for flow in router.send(4)} == set(isps), what=f"flows by {isps}")

        said: list[str] = []
        router.lab.start(ROUTER, ["unshare", "--mount", "sh", "-ec", with_its_own, "sh", *daemon], said.append)
        shared_by("ISP1", "ISP2")
        silence(router, "ISP2", True)
        shared_by("ISP1")
        assert (router.states / "ISP2_state").read_text() == "down\n"
        silence(router, "ISP2", False)
        shared_by("ISP1", "ISP2")
        assert not any("somebody wrote" in line or "ended with" in line for line in said), said
