"""`scripts/bench` runs; how fast anything is depends on the machine, so that no number is judged here."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
MEASURED = {"article", "one-shot", "warm", "whole", "changed", "watch"}
COMMANDS = """
declare -a isp
declare -A iface ip localip mark status
isp=( ISP1 ISP2 )
statedir=/var/tmp
upcount=0
for i in "${isp[@]}"; do
  status[$i]=up
  [ -f "${statedir}/${i}_state" ] && status[$i]=$(< "${statedir}/${i}_state")
done

# IPv4

iptables -t mangle -F
for i in "${isp[@]}"; do
  iptables -t mangle -N "MARK-${i}" 2>/dev/null
  ip route flush table "$i"
  ip route add table "$i" default dev "${iface[$i]}" via "${ip[$i]}"
  ip route add table "$i" 1.1.1.0/24 dev eth2 src 1.1.1.1
  [ "${status[$i]}" = "up" ] && iptables -t mangle -A PREROUTING -i eth0 -m mark --mark 0 -j "MARK-$i"
done
true
"""


@pytest.mark.timeout(300)
def test_quick_run_with_a_script_in_the_articles_form(tmp_path: Path) -> None:
    seed = tmp_path / "article.txt"
    seed.write_text(f"#!/bin/bash\n\n# using associative arrays\n{COMMANDS}\nThis is just a skeleton\n")
    environment = {**os.environ, "LSMPY_SEED": str(seed)}
    done = subprocess.run([BENCH, "--quick", "--json"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    rows = [line.split()[:2] for line in done.stderr.splitlines() if line.lstrip()[:1].isdigit()]
    assert rows == [["2", "IPv4"], ["4", "IPv4"], ["2", "both"], ["4", "both"]] * 2
    assert "warm / whole, 2 ISPs, both" in done.stderr.partition("Targets:")[2]

    facts = json.loads(done.stdout)
    for row in facts["results"]:
        assert row["variants"].keys() >= MEASURED
        assert all(len(each["ms"]) >= 2 and min(each["ms"]) > 0 for each in row["variants"].values())
    assert all(isinstance(target["ok"], bool) for target in facts["targets"])


def test_seed_that_is_not_the_article_is_refused(tmp_path: Path) -> None:
    seed = tmp_path / "article.txt"
    seed.write_text("#!/bin/bash\n")
    environment = {**os.environ, "LSMPY_SEED": str(seed)}
    done = subprocess.run([BENCH, "--quick"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bench: error: the text does not hold the article's script")


@pytest.mark.timeout(300)
def test_quick_run_of_every_part_about_the_prober() -> None:
    parts = ("detect", "rtt", "cost", "flood")
    with contextlib.ExitStack() as stack:
        # All at once, each in a sandbox of its own, as they wait more than they work.
        running = {part: stack.enter_context(probe_bench("--quick", part)) for part in parts}
        for part, process in running.items():
            said, errors = process.communicate()
            assert process.returncode == 0, errors
            tables, _, goals = said.partition("Targets:\n")
            assert f"\n== {part}\n" in tables
            assert {line.split()[0] for line in goals.splitlines()} in ({"ok"}, {"ok", "MISSED"})


def test_a_part_that_there_is_not_is_refused() -> None:
    with probe_bench("cots") as process:
        assert "there is no part 'cots'; there are detect, rtt, cost, flood" in process.communicate()[1]
    assert process.returncode == 2


def probe_bench(*words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "lsmpy.lab", str(BENCH), "probe", *words]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
