"""lsmpy-probe's kinds of check: of the gateway as a neighbour, and by TCP and DNS through the kernel's own sockets."""

import re
import sys

import pytest

from tests.lab import server as serving
from tests.lab.probe_kit import ISP, TARGET4, TARGET6, Lab, wait_until

pytestmark = pytest.mark.lab

CALLS = [
    f"tcp://{TARGET4}:443",
    f"tcp://[{TARGET6}]:443",
    f"dns://{TARGET4}/example.org",
    f"dns://[{TARGET6}]/a.example",
]


@pytest.mark.parametrize("family", [4, 6])
def test_the_gateway_as_a_neighbour(lab: Lab, family: int) -> None:
    text = ISP.format(n=1, check='["arp"]')
    if family == 6:
        text = text.replace('"192.0.1.1/24", ', "").replace('"192.0.1.2", ', "")
    lab.write(text)
    tool = "iptables" if family == 4 else "ip6tables"
    lab.exec("isp1", tool, "-w", "-A", "INPUT", "-p", "icmp" if family == 4 else "tcp", "-j", "DROP")
    lab.start()
    lab.until(1, "up")
    assert lab.echoes() == 0
    wait_until(lambda: lab.standing(1).targets["arp"].rtt_ms is not None, "its round trip")
    lab.exec("isp1", "sysctl", "-qw", "net.ipv4.conf.customer.arp_ignore=8")
    lab.exec("isp1", "ip6tables", "-w", "-A", "INPUT", "-p", "icmpv6", "-j", "DROP")
    lab.until(1, "down")
    lab.exec("isp1", "sysctl", "-qw", "net.ipv4.conf.customer.arp_ignore=0")
    lab.exec("isp1", "ip6tables", "-w", "-F", "INPUT")
    lab.until(1, "up")


def test_a_gateway_of_ipv6_answers_whatever_the_firewall_lets_out(lab: Lab) -> None:
    """Nobody answers its own questions for us then, and it forgets us again and again; each of ours reminds it."""
    text = ISP.format(n=1, check='["arp"]').replace('"192.0.1.1/24", ', "").replace('"192.0.1.2", ', "")
    lab.write(text, probe="interval_ms = 100")
    for chain in ("OUTPUT", "INPUT"):
        lab.exec("router", "ip6tables", "-w", "-P", chain, "DROP")
    hurried = ("delay_first_probe_time=1", "retrans_time_ms=100", "base_reachable_time_ms=1000")
    lab.exec("isp1", "sysctl", "-qw", *(f"net.ipv6.neigh.customer.{each}" for each in hurried))
    lab.start()
    lab.until(1, "up")
    wait_until(lambda: "FAILED" in lab.ip("isp1", "-6 neigh show dev customer"), "the gateway to forget us")
    before = lab.standing(1).targets["arp"].samples
    wait_until(lambda: lab.standing(1).targets["arp"].samples >= before + 20, "more probes")
    assert lab.standing(1).targets["arp"].lost == 0


@pytest.mark.parametrize("check", CALLS)
def test_calls_by_the_rules_of_source(lab: Lab, check: str) -> None:
    lab.configure(f'["{check}"]', f'["{check}"]')
    for n in (1, 2):
        lab.rules_by_source(n)
    server = lab.serve()
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.ip("isp1", f"route replace blackhole {TARGET6 if '[' in check else TARGET4}")
    lab.until(1, "down")
    assert lab.says(2) == "up"
    hop = "2001:db8:1f::2" if "[" in check else "198.51.1.2"
    lab.ip("isp1", f"route replace {TARGET6 if '[' in check else TARGET4} via {hop}")
    lab.until(1, "up")
    wait_until(lambda: lab.standing(1).targets[check].rtt_ms is not None, "its round trip")
    lab.end(server)  # nobody listens: the target is there, and the check fails on every ISP
    lab.until_logged(f"{check} fails by every ISP: taken for dead itself")
    wait_until(lambda: "connection refused" in lab.standing(1).targets[check].why, "the reason")
    assert (lab.says(1), lab.says(2)) == ("up", "up"), lab.log.read_text()


@pytest.mark.parametrize("check", CALLS)
def test_a_call_whose_way_is_not_there_says_nothing_of_the_isp(lab: Lab, check: str) -> None:
    lab.configure(f'["{check}"]', f'["{TARGET4}"]')
    lab.serve()
    for family, hop in (("-4", "192.0.2.2"), ("-6", "2001:db8:2::2")):  # main leads to the other one
        lab.exec("router", "ip", family, *f"route add default via {hop} dev wan2".split())
    lab.start()
    lab.until(2, "up")
    lab.until_logged(f"ISP1: {check} cannot be tested: the kernel's routes from ")
    assert lab.says(1) is None
    lab.rules_by_source(1)
    lab.until(1, "up")
    lab.until_logged(f"ISP1: {check} is tested again")
    lab.ip("router", "rule delete priority 10")
    lab.exec("router", "ip", "-6", "rule", "delete", "priority", "10")
    lab.until_logged(f"ISP1: {check} cannot be tested: ", 2)
    wait_until(lambda: "cannot be tested" in lab.standing(1).targets[check].why, "status to say so")
    assert lab.says(1) == "up"


@pytest.mark.parametrize("direct", [True, False])
def test_calls_of_the_gateway_where_addresses_come_from_the_provider(lab: Lab, direct: bool) -> None:
    """By the network of the address, as in main, or by a table that has only the default."""
    text = ISP.format(n=1, check='["tcp://192.0.1.2:443", "dns://192.0.1.2/example.org"]')
    lab.write(re.sub(r"^(address|gateway) = .*$", r'\1 = "auto"', text, flags=re.MULTILINE))
    lab.ip("router", "route add default via 192.0.1.2 dev wan1")
    lab.ip("router", "-6 route add default via 2001:db8:1::2 dev wan1")
    if not direct:
        lab.rules_by_source(1)
    server = lab.run_in("isp1", sys.executable, serving.__file__, "192.0.1.2")
    lab.start()
    lab.until(1, "up")
    wait_until(lambda: {each.state for each in lab.standing(1).targets.values()} == {"up"}, "both to answer")
    lab.end(server)
    lab.until(1, "down")


def test_a_server_that_says_nothing_is_lost(lab: Lab) -> None:
    lab.configure(f'["dns://{TARGET4}/example.org"]', f'["{TARGET4}"]')
    for n in (1, 2):
        lab.rules_by_source(n)
    lab.serve("silent")
    lab.start()
    lab.until(1, "down")
    lab.until(2, "up")


def test_a_call_never_leaves_by_another_isp(lab: Lab) -> None:
    checks = ", ".join(f'"{each}"' for each in CALLS)
    lab.configure(f"[{checks}]")
    lab.rules_by_source(1)
    for family, hop in (("-4", "192.0.2.2"), ("-6", "2001:db8:2::2")):
        lab.exec("router", "ip", family, *f"route add default via {hop} dev wan2".split())
    for tool in ("iptables", "ip6tables"):
        for protocol in ("tcp", "udp"):
            lab.exec("isp2", tool, "-w", "-t", "raw", "-A", "PREROUTING", "-i", "customer", "-p", protocol)
    lab.serve()
    lab.start()
    lab.until(1, "up")
    for _ in range(3):
        lab.ip("router", "rule delete priority 10")
        lab.exec("router", "ip", "-6", "rule", "delete", "priority", "10")
        wait_until(lambda: "cannot be tested" in lab.standing(1).targets[CALLS[0]].why, "no way")
        lab.ip("router", "rule add from 192.0.1.1 lookup 101 priority 10")
        lab.exec("router", "ip", "-6", "rule", "add", "from", "2001:db8:1::1", "lookup", "101", "priority", "10")
        wait_until(lambda: "cannot be tested" not in lab.standing(1).targets[CALLS[0]].why, "a way")
    for tool in ("iptables", "ip6tables"):
        saved = lab.exec("isp2", f"{tool}-save", "-c", "-t", "raw")
        counted = [line for line in saved.splitlines() if "-p " in line]
        assert len(counted) == 2
        assert all(line.startswith("[0:0]") for line in counted), counted
