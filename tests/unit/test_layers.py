"""Who may import what: one door each to programs, packets and file events; nothing but thought in the pure modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lsmpy

MODULES = {path.stem: path for path in Path(lsmpy.__file__).parent.glob("*.py")}
DOORS = {"sh": "command", "scapy": "wire", "watchdog": "watch"}
PURE = (
    *("model", "mistakes", "checks", "config"),
    *("verdict", "flight", "uplink", "standing"),
    *("lsmmodel", "lsmconf", "events", "moving", "munin"),
    *(
        "plan",
        "lookups",
        "resolve",
        "sources",
        "npt",
        "late",
        "marking",
        "choice",
        "policies",
        "ways",
        "shares",
        "buckets",
        "tree",
        "netfilter",
    ),
    *("routing", "beside", "changes", "freeing", "script"),
)
WORLD = {"os", "time", "socket", "subprocess", "logging", "random", "threading", "sys", "fcntl", "shutil", "datetime"}


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, `lsmpy.x` for our own."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            own = {f"lsmpy.{alias.name}" for alias in node.names if alias.name in MODULES}
            found |= own if node.module == "lsmpy" else {node.module or ""}
    return found


def roots(name: str) -> set[str]:
    return {each.split(".")[0] for each in imported(MODULES[name])}


def reached(name: str) -> set[str]:
    """The module and all of ours that it imports, directly or not."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        if (current := todo.pop()) not in seen:
            seen.add(current)
            todo += [each.removeprefix("lsmpy.") for each in imported(MODULES[current]) if each.startswith("lsmpy.")]
    return seen


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_importer(library: str) -> None:
    assert [name for name in sorted(MODULES) if library in roots(name)] == [DOORS[library]]


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_not_know_the_world(name: str) -> None:
    assert not roots(name) & WORLD
    # The configuration is read from a file, and its paths are values.
    assert name in ("config", "lsmconf", "model") or "pathlib" not in roots(name)


@pytest.mark.parametrize("name", sorted(set(PURE) - {"plan", "changes", "freeing", "script", "uplink"}))
def test_pure_modules_rest_on_pure_modules(name: str) -> None:
    assert reached(name) - {"__init__"} <= set(PURE)


def test_the_plan_knows_what_a_state_means_and_no_more_of_the_world() -> None:
    assert reached("plan") - {"__init__"} <= {*PURE, "state"}
    assert reached("script") - {"__init__"} <= {*PURE, "state"}


def test_a_path_is_thought_out_from_what_the_kernel_has_told() -> None:
    assert reached("uplink") - {"__init__"} <= {*PURE, "links", "netlink"}
    assert "netlink" not in {each.removeprefix("lsmpy.") for each in imported(MODULES["uplink"])}


def test_one_module_knows_packet_sockets() -> None:
    assert [name for name, path in sorted(MODULES.items()) if "AF_PACKET" in path.read_text()] == ["port"]


def test_only_the_prober_and_the_laboratory_start_programs_without_the_door() -> None:
    users = {
        name for name, path in MODULES.items() if "posix_spawn" in path.read_text() or "os.fork(" in path.read_text()
    }
    assert users == {"calls", "background", "sandbox"}  # its own helper, and itself


def test_nobody_imports_in_a_circle() -> None:
    for name in MODULES:
        for each in imported(MODULES[name]):
            if each.startswith("lsmpy."):
                assert name not in reached(each.removeprefix("lsmpy.")), f"{name} and {each}"


def test_only_doors_start_programs_or_open_a_shell() -> None:
    users = {name for name in MODULES if "subprocess" in roots(name)}
    assert users <= {"sandbox", "lab", "traffic", "labserver", "rehearse"}  # the laboratory is not the router
    assert not any("os.system(" in path.read_text() for path in MODULES.values())


def loaded_by(statement: str) -> set[str]:
    """The top modules that are loaded after `statement`, in a process of its own."""
    asking = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_router_part_loads_neither_packets_nor_file_events() -> None:
    assert not loaded_by("import lsmpy.reconfig") & {"scapy", "watchdog"}


def test_the_prober_loads_neither_programs_nor_file_events() -> None:
    assert not loaded_by("import lsmpy.probe") & {"sh", "watchdog"}


def test_who_reads_what_the_prober_wrote_loads_no_packets() -> None:
    assert not loaded_by("import lsmpy.standing, lsmpy.verdict") & {"scapy", "sh", "watchdog"}


def test_what_has_no_licence_for_it_never_meets_scapy() -> None:
    assert "scapy" not in loaded_by("import lsmpy.watch, lsmpy.reconfig, lsmpy.apply")
