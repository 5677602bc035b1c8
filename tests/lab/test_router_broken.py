"""What is broken at one ISP stops nothing at another, and it comes back by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmpy import flows
from lsmpy.lab import wait_until
from lsmpy.model import FAMILIES
from tests.lab.router_kit import Rig, configuration, rig

pytestmark = pytest.mark.lab

ALL, REST = {"ISP1", "ISP2", "ISP3"}, {"ISP1", "ISP3"}
ADDRESSES = "ip addr replace 2.2.2.1/24 dev eth3\nip addr replace 2001:db8:0:2::1/64 dev eth3 nodad\n"
FAULTS = ["deleted", "down", "without address", "without carrier"]


def break_it(router: Rig, fault: str) -> None:
    if fault == "deleted":
        router.lab.delete_interface("ISP2")
    elif fault == "without carrier":
        router.lab.pull_cable("ISP2")
    else:
        router.shell("ip link set eth3 down\n" if fault == "down" else "ip addr flush dev eth3 scope global\n")


def repair(router: Rig, fault: str) -> None:
    if fault == "deleted":
        router.lab.recreate_interface("ISP2")
    elif fault == "without carrier":
        router.lab.plug_cable("ISP2")
    else:
        router.shell(f"ip link set eth3 up\n{ADDRESSES}")


def served_by(router: Rig) -> set[str]:
    return {flow.isp for flow in router.send(12, ("tcp", "udp"), FAMILIES)}


def is_whole(router: Rig) -> bool:
    """Whether the ISP's tables hold its default of both families."""
    listing = router.shell("ip -4 route show table 249\nip -6 route show table 249\n")
    return "default via 2.2.2.2 dev eth3" in listing and "default via 2001:db8:0:2::2 dev eth3" in listing


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("moment", ["at the start", "under way"])
def test_the_others_serve_and_it_comes_back_by_itself(tmp_path: Path, moment: str, fault: str) -> None:
    with rig(tmp_path, configuration((1, 1, 1)), None if fault == "down" else "ISP2") as router:
        if moment == "at the start":
            break_it(router, fault)
        with router.watching() as watcher:
            if moment == "under way":
                assert served_by(router) == ALL
                break_it(router, fault)
            wait_until(lambda: "up ISP1 ISP3, down ISP2" in "".join(watcher.rebuilds[-1:]), what="ISP2 to be left")
            assert served_by(router) == REST
            # What becomes of one, meanwhile, still happens.
            router.say("ISP3", "down")
            wait_until(lambda: "up ISP1, down ISP2" in watcher.rebuilds[-1], what="ISP3 to be left")
            assert served_by(router) == {"ISP1"}
            router.say("ISP3", "up")
            wait_until(lambda: "up ISP1 ISP3, down ISP2" in watcher.rebuilds[-1], what="ISP3 to return")
            repair(router, fault)
            wait_until(lambda: "up ISP1 ISP2 ISP3" in watcher.rebuilds[-1] and is_whole(router), what="ISP2 to return")
            wait_until(router.idle, what="the router to be whole")
            assert served_by(router) == ALL
            assert not any("Traceback" in line for line in watcher.lines)
        assert router.foreign() == 0


@pytest.mark.parametrize("fault", ["deleted", "down", "without address"])
def test_a_one_shot_run_builds_the_others(tmp_path: Path, fault: str) -> None:
    with rig(tmp_path, configuration((1, 1, 1), backend="legacy"), "ISP1") as router:
        break_it(router, fault)
        assert "up ISP1 ISP3, down ISP2" in router.rebuild()
        assert router.idle()
        assert served_by(router) == REST
        repair(router, fault)
        assert "up ISP1 ISP2 ISP3" in router.rebuild()
        assert served_by(router) == ALL
        break_it(router, fault)
        assert "up ISP1 ISP3, down ISP2" in router.rebuild()
        assert served_by(router) == REST
        assert router.foreign() == 0


def test_a_link_that_flaps_for_a_moment_gets_its_table_back(tmp_path: Path) -> None:
    """Shorter than any probe notices: the kernel has emptied the table by itself, and nobody else would fill it."""
    with rig(tmp_path, configuration(), "ISP1") as router:
        router.shell("echo 1 >/proc/sys/net/ipv6/conf/eth3/keep_addr_on_down\n")
        with router.watching():
            with flows.Stream(router.lab, "rnd", 100, ("udp",), FAMILIES, totals=True) as stream:
                for _ in range(3):
                    router.shell("ip link set eth3 down\nsleep 0.05\nip link set eth3 up\n")
                    wait_until(lambda: is_whole(router), what="the table to be filled again")
                    wait_until(router.idle, what="the router to be whole")
                    assert {flow.isp for flow in router.send(8, ("udp",), FAMILIES)} == {"ISP1", "ISP2"}
                stream.stop()
                lost = flows.tracked(router.lab, [("rnd", flow) for flow in stream.flows])
            assert "ISP1" not in lost.values()
        assert router.foreign() == 0


@pytest.mark.parametrize("default", [None, "ISP1"])
def test_a_gateway_that_the_kernel_refuses_stops_nobody_else(tmp_path: Path, default: str | None) -> None:
    """The link goes after the rebuild has looked at it: a program in front of `ip` takes it down just then."""
    program = tmp_path / "ip"
    program.write_text(
        "#!/bin/sh\ncase $* in\n"
        f"*-force*) test -e {tmp_path}/once || /bin/ip link set eth3 down; touch {tmp_path}/once ;;\n"
        "esac\n"
        'exec /bin/ip "$@"\n'
    )
    program.chmod(0o755)
    with rig(tmp_path, configuration((1, 1, 1)), default) as router:
        result = router.anyhow("sh", "-c", f'PATH={tmp_path}:$PATH exec "$@"', "sh", *router.argv())
        assert result.status == 0, result.err
        assert "the kernel refuses the route 'default via 2.2.2.2 dev eth3" in result.err
        assert "up ISP1 ISP3, down ISP2 (the kernel refuses its route" in result.err
        assert served_by(router) == REST
        router.shell(f"ip link set eth3 up\n{ADDRESSES}")
        assert "up ISP1 ISP2 ISP3" in router.rebuild()
        assert router.idle()
        assert served_by(router) == ALL
        assert router.foreign() == 0


@pytest.mark.parametrize("tiers", [True, False])
def test_the_rest_is_built_when_the_first_isp_is_refused_in_the_first_rebuild(tmp_path: Path, tiers: bool) -> None:
    """What was added for it before is in nobody's way, and what the others need instead is added as well."""
    text = configuration()
    if tiers:
        head, mark, last = text.rpartition("[[isp]]\n")
        text = f"{head}{mark}tier = 2\n{last}"
    program = tmp_path / "ip"
    program.write_text(
        "#!/bin/sh\ncase $* in\n"
        f"*-force*) test -e {tmp_path}/once || /bin/ip link set eth2 down; touch {tmp_path}/once ;;\n"
        "esac\n"
        'exec /bin/ip "$@"\n'
    )
    program.chmod(0o755)
    with rig(tmp_path, text) as router:
        result = router.anyhow("sh", "-c", f'PATH={tmp_path}:$PATH exec "$@"', "sh", *router.argv())
        assert result.status == 0, result.err
        assert "up ISP2, down ISP1 (the kernel refuses its route" in result.err
        told = result.err.splitlines()
        assert sorted(set(told)) == sorted(told)
        assert served_by(router) == {"ISP2"}
        right = router.dump()
        router.rebuild()
        assert router.dump() == right
        assert router.foreign() == 0


def test_one_family_without_address_leaves_the_other_as_it_is(tmp_path: Path) -> None:
    with rig(tmp_path, configuration()) as router, router.watching() as watcher:
        seen = len(watcher.rebuilds)
        router.shell("ip -6 addr flush dev eth3 scope global\n")
        wait_until(lambda: len(watcher.rebuilds) > seen, what="a rebuild")
        assert {flow.isp for flow in router.send(8, ("udp",), (6,))} == {"ISP1"}
        assert {flow.isp for flow in router.send(8, ("udp",), (4,))} == {"ISP1", "ISP2"}
        router.shell(ADDRESSES)
        wait_until(lambda: is_whole(router) and router.idle(), what="both families")
        assert {flow.isp for flow in router.send(8, ("udp",), (6,))} == {"ISP1", "ISP2"}
