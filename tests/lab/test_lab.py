"""The laboratory itself, with plain article-like routing in its router: only then can it judge lsmpy."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from lsmpy import command, flows, sandbox
from lsmpy.flows import Proto
from lsmpy.lab import ROUTER, Lab, LabError, isp_node, lan_node, wait_until
from lsmpy.model import FAMILIES, Family, Router
from lsmpy.spare import TwinError
from tests.conftest import isps_of, router_of
from tests.lab.conftest import Build

SNAT = """
iptables -t nat -A POSTROUTING -o eth2 -j SNAT --to-source 1.1.1.1
iptables -t nat -A POSTROUTING -o eth3 -j SNAT --to-source 2.2.2.1
"""
NEW = "-m conntrack --ctstate NEW"
# The article's commands for its dev network, once for IPv4 and once for IPv6.
BALANCE = (
    "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done\n"
    + "".join(
        f"""
{tables} -t mangle -A PREROUTING -i eth0 -m conntrack --ctstate ESTABLISHED,RELATED -j CONNMARK --restore-mark
{tables} -t mangle -A PREROUTING -i eth0 {NEW} -m statistic --mode nth --every 2 --packet 0 -j MARK --set-mark 1
{tables} -t mangle -A PREROUTING -i eth0 {NEW} -m statistic --mode nth --every 2 --packet 1 -j MARK --set-mark 2
{tables} -t mangle -A PREROUTING -i eth0 -j CONNMARK --save-mark
ip {family} route add table 250 default via {first} dev eth2
ip {family} route add table 249 default via {second} dev eth3
ip {family} rule add fwmark 1 table 250
ip {family} rule add fwmark 2 table 249
"""
        for tables, family, first, second in (
            ("iptables", "-4", "1.1.1.2", "2.2.2.2"),
            ("ip6tables", "-6", "2001:db8:0:1::2", "2001:db8:0:2::2"),
        )
    )
    + SNAT
)


def ping(lab: Lab, node: str, target: object, *options: str) -> bool:
    try:
        lab.run(node, "ping", "-n", "-c1", "-W1", *options, str(target))
    except command.CommandError:
        return False
    return True


def processes(word: str) -> list[int]:
    """The processes that have `word` as an argument."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if word.encode() in words:
            found.append(int(file.parent.name))
    return found


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_tells_its_isp_and_source(build: Build, article: Router, proto: Proto, family: Family) -> None:
    lab = build(article, "ISP2")
    lab.shell(ROUTER, SNAT)
    flow = flows.sequence(lab, "rnd", 1, proto, family)[0]
    assert (flow.ok, flow.isp, flow.proto, flow.family) == (True, "ISP2", proto, family)
    assert flow.source == ("2.2.2.1" if family == 4 else str(lab.host("rnd", 6)))


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_articles_router_takes_turns(build: Build, article: Router, proto: Proto, family: Family) -> None:
    lab = build(article)
    lab.shell(ROUTER, BALANCE)
    sent = flows.sequence(lab, "dev", 10, proto, family)
    assert [flow.isp for flow in sent] == ["ISP1", "ISP2"] * 5
    if family == 4:
        assert [flow.source for flow in sent] == ["1.1.1.1", "2.2.2.1"] * 5
    assert [lab.foreign_packets(isp.name) for isp in article.isps] == [0, 0]
    assert set(flows.tracked(lab, [("dev", flow) for flow in sent]).values()) == {"ISP1", "ISP2"}


def test_without_a_default_nothing_leaves(build: Build, article: Router) -> None:
    lab = build(article)
    flow = flows.sequence(lab, "dev", 1)[0]
    assert (flow.ok, flow.isp, flow.source) == (False, "", "")
    assert [lab.foreign_packets(isp.name) for isp in article.isps] == [0, 0]


def test_each_packet_with_a_foreign_source_is_counted(build: Build, article: Router) -> None:
    lab = build(article, "ISP1")
    lost = flows.sequence(lab, "dev", 3)
    assert [flow.ok for flow in lost] == [False, False, False]
    assert (lab.foreign_packets("ISP1"), lab.foreign_packets("ISP2")) == (3, 0)
    assert not ping(lab, ROUTER, lab.server[4], "-I", "2.2.2.1")
    assert lab.foreign_packets("ISP1") == 4


def test_without_nat_a_lans_source_is_legal_and_another_isps_is_not(build: Build, article: Router) -> None:
    lab = build(article, "ISP1")
    assert flows.sequence(lab, "dev", 1, family=6)[0].ok
    assert lab.foreign_packets("ISP1") == 0
    assert not ping(lab, ROUTER, lab.server[6], "-I", "2001:db8:0:2::1")
    assert (lab.foreign_packets("ISP1"), lab.foreign_packets("ISP2")) == (1, 0)


def test_a_dead_upstream_is_silent_behind_a_live_gateway(build: Build, article: Router) -> None:
    lab = build(article, "ISP1")
    lab.shell(ROUTER, SNAT)
    lab.kill_upstream("ISP1")
    for family in FAMILIES:
        assert ping(lab, ROUTER, article.isps[0].next_hop(family))
        flow = flows.sequence(lab, "dev", 1, family=family)[0]
        assert (flow.ok, flow.why) == (False, "no answer")
    assert not ping(lab, ROUTER, "203.0.113.1")
    lab.revive_upstream("ISP1")
    assert all(flows.sequence(lab, "dev", 1, family=family)[0].ok for family in FAMILIES)


def carrier(lab: Lab, interface: str) -> bool:
    return "LOWER_UP" in json.loads(lab.run(ROUTER, "ip", "-j", "link", "show", interface))[0]["flags"]


def test_a_pulled_cable_takes_the_carrier_and_gives_all_back(build: Build, article: Router) -> None:
    lab = build(article, "ISP1")
    lab.shell(ROUTER, SNAT)
    lab.pull_cable("ISP1")
    assert (carrier(lab, "eth2"), carrier(lab, "eth3")) == (False, True)
    assert not flows.sequence(lab, "dev", 1)[0].ok
    lab.plug_cable("ISP1")
    wait_until(lambda: carrier(lab, "eth2"), what="the carrier")
    assert all(flows.sequence(lab, "dev", 1, family=family)[0].ok for family in FAMILIES)


def test_an_interface_is_deleted_and_comes_back(build: Build, article: Router) -> None:
    lab = build(article, "ISP1")
    lab.shell(ROUTER, SNAT)
    lab.delete_interface("ISP1")
    assert "eth2" not in lab.run(ROUTER, "ip", "-br", "link")
    lab.recreate_interface("ISP1")
    lab.shell(ROUTER, "ip route add default via 1.1.1.2\nip route add default via 2001:db8:0:1::2")
    assert all(flows.sequence(lab, "dev", 1, family=family)[0].ok for family in FAMILIES)


def test_lans_reach_each_other_through_the_router(build: Build, article: Router) -> None:
    lab = build(article)
    assert all(ping(lab, lan_node("dev"), lab.host("rnd", family)) for family in FAMILIES)


def test_a_target_checked_through_two_isps_answers_each_by_its_own_link(build: Build) -> None:
    lab = build(router_of(isps_of(2)), "I1")
    lab.shell(ROUTER, "ip route add default via 10.0.2.2 dev wan2 metric 50")
    assert all(ping(lab, ROUTER, "203.0.113.1", "-I", interface) for interface in ("wan1", "wan2"))
    lab.kill_upstream("I1")
    assert not ping(lab, ROUTER, "203.0.113.1", "-I", "wan1")
    assert ping(lab, ROUTER, "203.0.113.1", "-I", "wan2")


LAN = '[[lan]]\nname = "dev"\ninterface = "lan0"\naddress = ["192.168.9.1/24"]\n'


@pytest.mark.parametrize(
    "text",
    [
        isps_of(1) + LAN,
        isps_of(16) + LAN,
        isps_of(2, "4") + LAN,
        isps_of(2, "6"),
        # The laboratory's own favourite ranges are taken.
        isps_of(2, "4") + '[[lan]]\nname = "a"\ninterface = "a"\naddress = ["198.51.100.1/24", "100.64.0.1/10"]\n',
        # Two boxes of one provider, alike but for the router's address.
        "".join(
            f'[[isp]]\nname = "{name}"\ninterface = "{name}"\naddress = "192.168.0.{host}/24"\n'
            'gateway = "192.168.0.1"\ncheck = "203.0.113.1"\n'
            for name, host in (("a", 2), ("b", 3))
        )
        + LAN,
        # No gateway in the first network, and a target in the ISP's own.
        '[[isp]]\nname = "a"\ninterface = "a"\naddress = ["10.7.0.1/29", "10.8.0.2/31", "2001:db8:a::5/128"]\n'
        'gateway = ["10.8.0.3", "fe80::1"]\ncheck = ["10.7.0.3"]\n',
    ],
    ids=["one", "sixteen", "IPv4", "IPv6", "ranges taken", "twin boxes", "odd networks"],
)
def test_any_router_has_a_twin(build: Build, text: str) -> None:
    router = router_of(text)
    lab = build(router, router.isps[0].name)
    first = router.isps[0]
    for family, server in lab.server.items():
        target = next((check for check in first.check if (":" in check) == (family == 6)), server)
        assert ping(lab, ROUTER, first.next_hop(family), *(["-I", first.interface] if family == 6 else []))
        assert ping(lab, ROUTER, target, "-I", str(first.addresses(family)[0].ip))
    assert all(lab.foreign_packets(isp.name) == 0 for isp in router.isps)


def test_a_stream_and_long_flows_notice_an_outage(build: Build, article: Router) -> None:
    lab = build(article, "ISP1")
    lab.shell(ROUTER, SNAT)
    with flows.Stream(lab, "dev", 200, families=FAMILIES) as stream, flows.LongFlows(lab, "dev", 2) as long:
        wait_until(lambda: len(stream.flows) > 100 and len(long.isps()) == 2, what="flows")
        assert all(flow.ok for flow in stream.flows)
        lab.kill_upstream("ISP1")
        wait_until(lambda: [flow for flow in stream.flows if not flow.ok], what="a lost flow")
        lab.revive_upstream("ISP1")
        wait_until(lambda: {event.flow for event in long.events if event.event == "gap"} == {0, 1}, what="gaps")
    totals = stream.stop()
    assert totals.lost == sum(not flow.ok for flow in stream.flows) > 0
    assert totals.isps == {"ISP1": sum(flow.ok for flow in stream.flows)}
    assert [event.broken for event in long.events if event.event == "end"] == [False, False]


def forwarded(lab: Lab, isp: str) -> int:
    """IPv4 packets that the ISP has passed on, either way."""
    names, values = (line.split() for line in lab.run(isp_node(isp), "grep", "^Ip:", "/proc/net/snmp").splitlines())
    return int(values[names.index("ForwDatagrams")])


def test_a_thousand_new_flows_a_second_are_all_answered(build: Build, article: Router) -> None:
    lab = build(article, "ISP1")
    lab.shell(ROUTER, SNAT)
    with flows.Stream(lab, "dev", 1000, ("udp",), totals=True) as stream:
        wait_until(lambda: forwarded(lab, "ISP1") > 4000, what="two thousand datagrams each way")
    totals = stream.stop()
    assert totals.lost == 0
    assert totals.flows >= 2000


def test_nothing_is_left_and_another_can_follow(article: Router) -> None:
    for _ in range(2):
        with Lab(article) as lab:
            lab.start_server()
            assert (sandbox.NETNS / "isp-ISP1").exists()
        assert list(sandbox.NETNS.iterdir()) == []
        assert processes("lsmpy.labserver") == []


def test_a_failed_build_leaves_nothing(article: Router) -> None:
    with pytest.raises(TwinError, match="no ISP"), Lab(article, "ISP9"):
        pass
    assert list(sandbox.NETNS.iterdir()) == []


def test_wait_until_says_what_it_waited_for() -> None:
    with pytest.raises(LabError, match="in vain for a miracle"):
        wait_until(lambda: False, what="a miracle", deadline_s=0.05)


# -- the sandbox -----------------------------------------------------------------------------------------------------

# Root without its rights, but for the one without which root itself may not be mapped (user_namespaces(7)).
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all"]
INSIDE = [sys.executable, "-m", "lsmpy.lab"]


def test_the_sandbox_hides_this_world_and_passes_the_status_on() -> None:
    # Where /var/lib/lsmpy is to be hidden too, mount(8) leaves a directory of its own.
    said = command.run(*INSIDE, "sh", "-c", "rm -rf /run/mount; ls /run; ip -br link; echo $STATE_DIRECTORY")
    assert said.split()[:3] == ["lsmpy-saved", "netns", "lo"]
    assert said.split()[-1] == str(sandbox.SAVED)
    with pytest.raises(command.CommandError) as caught:
        command.run(*INSIDE, "sh", "-c", "exit 7")
    assert caught.value.status == 7


def test_a_sandbox_needs_no_rights() -> None:
    said = command.run(*WITHOUT_RIGHTS, *INSIDE, "sh", "-c", "ip netns add x && ip -n x link set lo up && echo done")
    assert said == "done\n"


def test_where_namespaces_are_forbidden_it_says_what_to_do() -> None:
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    argv = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", *WITHOUT_RIGHTS, *INSIDE, "true"]
    with pytest.raises(command.CommandError) as caught:
        command.run(*argv)
    assert caught.value.status == 1
    assert caught.value.stderr.startswith("lsmpy: error: this system does not let us make network namespaces")
    assert "Run it as root" in caught.value.stderr


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_sandbox_ends_with_its_maker(kill: signal.Signals, tmp_path: Path) -> None:
    word = f"{10_000 + kill}"
    orphan = f'(sleep {word} &); touch "$0"; exec sleep {word}'
    running = command.start([*INSIDE, "sh", "-c", orphan, str(tmp_path / "ready")], timeout_s=None)
    wait_until((tmp_path / "ready").exists, what="the sandbox")
    wait_until(lambda: len(processes(word)) == 2, what="both sleepers")
    os.kill(running.pid, kill)
    wait_until(lambda: not processes(word), what="everything in it to end")
    with pytest.raises(command.CommandError):
        running.wait()


def test_outside_a_sandbox_no_laboratory_is_built(article: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "inside", lambda: False)
    with pytest.raises(LabError, match=r"python -m lsmpy\.lab"), Lab(article):
        pass


def test_files_in_run_are_hidden() -> None:
    assert sandbox.hides(Path("/var/run/lsmpy.toml"))
    assert not sandbox.hides(Path("/etc/lsmpy/lsmpy.toml"))
