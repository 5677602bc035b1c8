"""The script of --dry-run does what a rebuild does, on a kernel that is anything but clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmpy.model import FAMILIES
from tests.lab.router_kit import Rig, configuration, rig

pytestmark = pytest.mark.lab

# What the article's scripts leave behind, and what an administrator may have there.
LEFTOVERS = """
for tool in iptables ip6tables; do
    $tool -P INPUT DROP
    $tool -A INPUT -i lo -j ACCEPT
    $tool -t mangle -N OLD
    $tool -t mangle -A PREROUTING -i eth0 -m conntrack --ctstate NEW -j OLD
    $tool -t mangle -A OLD -m statistic --mode nth --every 2 --packet 0 -j MARK --set-mark 1
    $tool -t mangle -A PREROUTING -j CONNMARK --save-mark
    $tool -t nat -A POSTROUTING -o eth2 -j MASQUERADE
done
for family in -4 -6; do
    ip $family rule add fwmark 1 lookup 250
    ip $family rule add pref 100 fwmark 1 lookup 250
    ip $family rule add pref 101 fwmark 2 lookup 249
    ip $family rule add pref 102 to 10.0.0.0/8 lookup 249 2>/dev/null || true
done
ip route add default via 1.1.1.9 dev eth2 table 250
ip route add 192.168.1.0/24 dev eth0 table 250
ip route add 10.7.0.0/16 via 2.2.2.9 table 249
ip route add blackhole 10.8.0.0/16 table 249
ip route add default via 2.2.2.9 table 249 metric 50
ip route add prohibit default table 250 metric 60
ip route add 10.6.0.0/16 via 2.2.2.9 table 77
ip -6 route add default via 2001:db8:0:2::9 table 249
ip -6 route add blackhole fd78::/16 table 250
ip -6 route add fd77::/16 via 2001:db8:0:1::9 table 250
echo 1 >/proc/sys/net/ipv4/conf/eth2/rp_filter
"""


@pytest.mark.parametrize("down", ["", "ISP2"])
@pytest.mark.parametrize(
    ("weights", "ipv6", "dirty"),
    [
        pytest.param((1, 1), "snat", LEFTOVERS, id="article"),
        pytest.param((5, 3, 2), "none", LEFTOVERS, id="weights"),
        pytest.param((1, 1), "none", "", id="clean"),
    ],
)
def test_the_script_does_what_a_rebuild_does(
    tmp_path: Path, weights: tuple[int, ...], ipv6: str, dirty: str, down: str
) -> None:
    made = []
    for way in ("rebuild", "script"):
        place = tmp_path / way
        place.mkdir()
        with rig(place, configuration(weights, ipv6), "ISP1") as router:
            router.shell(dirty)
            if down:
                router.say(down, "down")
            if way == "rebuild":
                router.rebuild("--replace")
            else:
                before = router.dump()
                script = router.reconfig("--dry-run")
                assert script.status == 0
                assert router.dump() == before
                router.shell(script.out)
                assert router.idle()
                once = router.dump()
                router.shell(script.out)
                assert router.dump() == once
            made.append(router.dump())
            assert made[-1].count(":INPUT DROP") == (2 if dirty else 0)
            up = {f"ISP{number}" for number in range(1, len(weights) + 1)} - {down}
            # Under INPUT DROP nobody finds the router's IPv6 neighbours.
            assert {flow.isp for flow in router.send(40, ("tcp", "udp"), (4,) if dirty else FAMILIES)} == up
            assert router.foreign() == 0
    assert made[0] == made[1]


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_the_script_uses_the_iptables_that_is_configured(tmp_path: Path, backend: str) -> None:
    with rig(tmp_path, configuration(backend=backend), server=False) as router:
        router.shell(router.reconfig("--dry-run").out)
        assert router.idle()


def test_the_script_builds_the_others_when_one_is_broken(tmp_path: Path) -> None:
    with rig(tmp_path, configuration((1, 1, 1)), "ISP1") as router:
        router.lab.delete_interface("ISP2")
        router.shell(router.reconfig("--dry-run").out)
        assert router.idle()
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == {"ISP1", "ISP3"}


def run_elsewhere(router: Rig) -> str:
    """What --dry-run prints on a machine that has none of the interfaces."""
    result = router.anyhow("unshare", "--net", *router.argv("--dry-run"))
    assert result.status == 0, result.err
    return result.out


def test_the_script_can_be_made_elsewhere(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        router.shell(run_elsewhere(router))
        assert router.idle()
