"""`lsmpy status` while the real prober watches two ISPs fail."""

import json
import subprocess
import sys
from pathlib import Path

from tests.lab.probe_kit import TARGET4, TARGET6, Lab, wait_until

COMMAND = str(Path(sys.executable).with_name("lsmpy"))


def run(lab: Lab, command: str, *words: str) -> tuple[int, str]:
    done = subprocess.run([COMMAND, command, "-c", str(lab.path), *words], capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


def until_shown(lab: Lab, exit_status: int, *parts: str) -> str:
    """The table as soon as all `parts` are in it; the prober tells once a second what it knows."""
    last = (-1, "")

    def shown() -> bool:
        nonlocal last
        last = run(lab, "status")
        return last[0] == exit_status and all(part in last[1] for part in parts)

    try:
        wait_until(shown, "the table")
    except AssertionError as error:
        raise AssertionError(f"{exit_status} {parts}, but {last}") from error
    return last[1]


def test_failures_hands_and_a_dead_prober_are_shown(lab: Lab) -> None:
    lab.configure(f'["{TARGET4}"]', f'["{TARGET6}"]')  # neither can be blamed
    daemon = lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    text = until_shown(lab, 0, f"{TARGET4}: 0 of the last ", f"{TARGET6}: 0 of the last ")
    assert len(text.splitlines()) == 3
    assert text.count(" 0 %  ") == text.count(" ms\n") == 2

    lab.cut(1)
    lab.until(1, "down")
    until_shown(lab, 1, f"{TARGET4}: 4 of the last ")
    lab.ip("isp2", f"route replace blackhole {TARGET6}")
    lab.until(2, "down")
    until_shown(lab, 2, f"{TARGET4}: 4 of the last ", f"{TARGET6}: 4 of the last ")

    lab.mend(1)
    lab.until(1, "up")
    assert run(lab, "force", "ISP1", "down")[0] == 0
    line = until_shown(lab, 2, "forced by hand; its state file says 'up'").splitlines()[1]
    assert line.split()[:3] == ["ISP1", "down", "down"]
    assert run(lab, "force", "ISP1", "auto")[0] == 0
    (lab.states / "ISP1_state").write_text("down\n")
    until_shown(lab, 2, "somebody wrote 'down'; the prober says up")
    (lab.states / "ISP1_state").unlink()
    lab.until(1, "up")
    until_shown(lab, 1, f"{TARGET4}: ")

    daemon.kill()
    text = until_shown(lab, 1, "the prober has written nothing for ")
    assert text.endswith(" s; is lsmpy-probe running?\n")
    assert [line[-7:] for line in text.splitlines()[1:3]] == ["-     -"] * 2
    known = json.loads(run(lab, "status", "--json")[1])
    assert known["prober"]["stale"]
    assert [isp["state"] for isp in known["isps"]] == ["up", "down"]
