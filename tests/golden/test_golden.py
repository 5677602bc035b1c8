"""The article's router, whole: any change of its rules shows here. README.md says where it leaves the article.

To accept new ones after reading their difference: LSMPY_ACCEPT=1 .venv/bin/pytest tests/golden
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsmpy import changes, netfilter, plan, state
from lsmpy.model import FAMILIES, Family, Router

HERE = Path(__file__).parent
STATES = {
    "both_up": {},
    "isp1_down": {"ISP1": "down"},
    "isp2_down": {"ISP2": "down"},
    "none_up": {"ISP1": "down", "ISP2": "down"},
}


def made(router: Router, texts: dict[str, str], family: Family) -> str:
    """What a rebuild loads into an empty kernel."""
    states = {isp.name: state.judge(texts.get(isp.name, "up")) for isp in router.isps}
    whole = plan.build(router, states, None)
    side = next(each for each in whole.sides if each.family == family)
    tables = [table.with_policies(dict.fromkeys(table.policies(), "KEEP")) for table in side.tables]
    text = (
        f"# {whole.summary}\n\n# iptables-restore; a policy that reads KEEP stays as it is\n{netfilter.render(tables)}"
    )
    text += f"\n# ip -{family} -batch\n{changes.add_text(side.routes, side.rules)}"
    if family == 4:
        text += "\n# below /proc/sys\n" + "".join(f"{key} = {value}\n" for key, value in whole.sysctls)
    return text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STATES)
def test_the_articles_router(article: Router, name: str, family: Family) -> None:
    path, text = HERE / f"{name}.v{family}.txt", made(article, STATES[name], family)
    if os.environ.get("LSMPY_ACCEPT") == "1":
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_is_left_over() -> None:
    assert {path.name for path in HERE.glob("*.txt")} == {
        f"{name}.v{family}.txt" for name in STATES for family in FAMILIES
    }
