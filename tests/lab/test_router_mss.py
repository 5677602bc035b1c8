"""`clamp_mss`: both ends of a TCP connection hear that segments must fit the ISP's MTU, as seen on the wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmpy.lab import lan_node, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, configuration, rig

pytestmark = pytest.mark.lab

SYN, ANSWER = "-p tcp --tcp-flags SYN,ACK SYN", "-p tcp --tcp-flags SYN,ACK SYN,ACK"
HEADERS = {4: 40, 6: 60}


def heard(router: Rig, mtu: int, family: Family) -> tuple[int, int]:
    """Of four connections, how many SYNs at the ISP and answers at the LAN's host ask for segments of this MTU."""
    mss = f"-m tcpmss --mss {mtu - HEADERS[family]}"
    out = router.arrived("ISP1", f"{SYN} {mss}", family)
    back = router.seen(lan_node(LAN), f"{ANSWER} {mss}", family)
    before = out(), back()
    assert all(flow.ok for flow in router.send(4, ("tcp",), (family,)))
    return out() - before[0], back() - before[1]


def configured(backend: str, clamp: bool) -> str:
    text = configuration((1,), backend=backend)
    return text.replace("weight = 1\n", "weight = 1\nclamp_mss = true\n") if clamp else text


# With a default in main the kernel would find the way back by itself, without one it does not.
@pytest.mark.parametrize(("backend", "default"), [("nft", None), ("legacy", None), ("nft", "ISP1")])
def test_both_ends_hear_of_the_isps_mtu(tmp_path: Path, backend: str, default: str | None) -> None:
    with rig(tmp_path, configured(backend, clamp=False), default) as router:
        router.shell("ip link set eth2 mtu 1492\n")
        router.rebuild()
        for family in FAMILIES:
            assert heard(router, 1492, family) == (0, 0)
            assert heard(router, 1500, family) == (4, 4)  # so the far end, told nothing, would send too much
        router.configure(configured(backend, clamp=True))
        router.rebuild()
        for family in FAMILIES:
            assert heard(router, 1492, family) == (4, 4)
        assert router.idle()
        with router.watching() as watcher:
            router.shell("ip link set eth2 mtu 1400\n")
            wait_until(lambda: watcher.rebuilds, what="a rebuild for another MTU")
        for family in FAMILIES:
            assert heard(router, 1400, family) == (4, 4)
        router.shell("ip link set eth2 mtu 9000\n")  # nobody is told to send more than he can
        router.rebuild()
        for family in FAMILIES:
            assert heard(router, 1500, family) == (4, 4)
        assert router.foreign() == 0
        router.configure(configured(backend, clamp=False))
        router.rebuild()
        assert not any("TCPMSS" in line for line in router.dump())
        assert router.idle()
