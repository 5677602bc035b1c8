"""lsmpy-probe finds its way: links without neighbours, two gateways on one link, addresses and gateways that change."""

import re
import select
import sys

import pytest

from tests.lab.probe_kit import ISP, TARGET4, TARGET6, Lab, wait_until

pytestmark = pytest.mark.lab

TUNNEL = """
[[isp]]
name = "ISP1"
interface = "tun0"
address = ["10.98.0.1/24", "2001:db8:98::1/64"]
gateway = "none"
check = {check}
quorum = {quorum}
"""


@pytest.mark.parametrize("check", ['["198.51.100.9"]', '["2001:db8:99::9"]', '["198.51.100.9", "2001:db8:99::9"]'])
def test_a_link_without_neighbours(lab: Lab, check: str) -> None:
    lab.write(TUNNEL.format(check=check, quorum=check.count(",") + 1))
    daemon = lab.start()
    lab.until(1, "down")
    lab.until_logged("ISP1 down: tun0 does not exist")
    lab.tunnel("tun0")
    lab.ip("router", "address add 10.98.0.1/24 dev tun0")
    lab.ip("router", "address add 2001:db8:98::1/64 dev tun0 nodad")
    lab.until(1, "up")
    lab.helpers[-1].kill()  # the device goes with it
    lab.until_logged("ISP1 down: tun0 does not exist", 2)
    assert daemon.poll() is None


def test_a_gateway_that_is_none_on_ethernet_is_told(lab: Lab) -> None:
    lab.write(ISP.format(n=1, check=f'["{TARGET4}"]').replace('["192.0.1.2", "2001:db8:1::2"]', '"none"'))
    lab.start()
    lab.until_logged('ISP1 down: wan1 is Ethernet, where gateway = "none" leads nowhere')


def test_a_default_route_without_a_gateway_on_ethernet(lab: Lab) -> None:
    """The provider answers for everybody."""
    lab.exec("isp1", "sysctl", "-qw", "net.ipv4.conf.customer.proxy_arp=1", "net.ipv6.conf.customer.proxy_ndp=1")
    lab.ip("isp1", f"neighbour add proxy {TARGET6} dev customer")
    for family in (4, 6):
        lab.ip("router", f"-{family} route add default dev wan1")
    check = f'["{TARGET4}", "{TARGET6}"]\nquorum = 2'
    lab.write(ISP.format(n=1, check=check).replace('["192.0.1.2", "2001:db8:1::2"]', '"auto"'))
    lab.start()
    lab.until(1, "up")


def test_ethernet_without_arp(lab: Lab) -> None:
    """Frames go where the kernel sends its own: to our hardware address, as who is at the other end takes them all."""
    lab.ip("router", "link set wan1 arp off")
    mac = lab.ip("router", "-o link show wan1").split("link/ether ")[1].split()[0]
    lab.ip("isp1", "link set customer down")
    lab.ip("isp1", f"link set customer address {mac}")
    lab.ip("isp1", "link set customer up")
    lab.mend(1)
    lab.ip("isp1", f"neighbour replace 192.0.1.1 lladdr {mac} dev customer")
    lab.configure(f'["{TARGET4}"]')
    lab.start()
    lab.until(1, "up")


def test_two_gateways_on_one_interface(lab: Lab) -> None:
    lab.exec("isp1", "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")  # each gateway has hardware of its own
    lab.ip("isp1", "link add second link customer type macvlan mode bridge")
    lab.link("isp1", "second", "192.0.1.3/24")
    lab.ip("router", "address add 192.0.1.9/24 dev wan1")
    for n in (1, 2):  # who comes by the second gateway takes another way on, which can be cut for itself
        lab.ip("isp1", f"route add {TARGET4} via 198.51.1.2 table 10{n}")
    lab.ip("isp1", "rule add iif second lookup 102 priority 10")
    first = ISP.format(n=1, check=f'["{TARGET4}"]')
    second = first.replace("ISP1", "ISP2").replace("192.0.1.1/24", "192.0.1.9/24").replace("192.0.1.2", "192.0.1.3")
    lab.write(first + second.replace(', "2001:db8:1::1/64"', "").replace(', "2001:db8:1::2"', ""))
    lab.start()
    lab.until(1, "up")
    lab.until(2, "up")
    lab.ip("isp1", f"route replace blackhole {TARGET4} table 102")
    lab.until(2, "down")
    assert lab.says(1) == "up"
    lab.ip("isp1", f"route replace {TARGET4} via 198.51.1.2 table 102")
    lab.until(2, "up")
    lab.ip("isp1", f"route replace blackhole {TARGET4}")
    lab.until(1, "down")
    assert lab.says(2) == "up"


def test_a_cable_that_is_out_is_down_for_that_reason_and_judged_anew_after(lab: Lab) -> None:
    lab.write(ISP.format(n=1, check=f'["{TARGET4}"]'), probe="max_successive_pkts_lost = 100")
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", "link set customer down")
    lab.until_logged("ISP1 down: wan1 has no carrier\n")
    lab.until(1, "down")
    lab.ip("isp1", "link set customer up")
    lab.until(1, "up")
    lab.until_logged("ISP1 up: ", 2)
    assert int(lab.logged()[-1].split(" of the last ")[1].split()[0]) < 20  # and not a hundred lost ones before


def test_an_interface_that_returns_with_the_same_index_is_heard_again(lab: Lab) -> None:
    """As one does that was in another namespace meanwhile; the kernel binds nobody to the new one."""
    lab.configure(f'["{TARGET4}"]', f'["{TARGET6}"]')
    lab.start()
    lab.until(1, "up")
    index = lab.index("wan1")
    lab.ip("router", "link delete wan1")
    lab.until(1, "down")
    lab.plug(1, f"index {index}")
    lab.until(1, "up")


PORT = """
import select, subprocess
from lsmpy.port import Port
port = Port()
port.bind("wan1", 1, ())  # ARPHRD_ETHER
subprocess.run(["ip", *"link {}".split()], check=True)
waiting = select.poll()
waiting.register(port, select.POLLIN)
print([each for _, each in waiting.poll(5000)], list(port.receive()), waiting.poll(0))
"""


@pytest.mark.parametrize("words", ["set wan1 down", "delete wan1"])
def test_an_interface_that_goes_wakes_the_loop_once(lab: Lab, words: str) -> None:
    said = lab.exec("router", sys.executable, "-c", PORT.format(words))
    assert said == f"[{select.POLLERR}] [] []\n"


def test_a_source_address_that_is_gone_is_a_fault_and_no_other_is_used(lab: Lab) -> None:
    lab.configure(f'["{TARGET4}", "{TARGET6}"]\nquorum = 2')
    lab.ip("router", "address add 192.0.8.77/24 dev wan1")
    lab.start()
    lab.until(1, "up")
    lab.ip("router", "address delete 192.0.1.1/24 dev wan1")
    lab.until_logged("ISP1 down: wan1 lacks the address 192.0.1.1")
    before, echoes = lab.standing(1).targets[TARGET6].samples, lab.echoes()
    wait_until(lambda: lab.standing(1).targets[TARGET6].samples > before + 20, "probes of the other target")
    assert lab.echoes() == echoes
    assert lab.standing(1).targets[TARGET6].state == "up"
    lab.ip("router", "address add 192.0.1.1/24 dev wan1")
    lab.until(1, "up")


def test_address_and_gateway_are_followed(lab: Lab) -> None:
    auto = ISP.format(n=1, check=f'["{TARGET4}"]')
    auto = auto.replace('["192.0.1.1/24", "2001:db8:1::1/64"]', '"auto"')
    lab.write(auto.replace('["192.0.1.2", "2001:db8:1::2"]', '"auto"'))
    lab.start()
    lab.until_logged("ISP1 down: wan1 has no IPv4 default route in the main table")
    lab.ip("router", "route add default via 192.0.1.2 dev wan1")
    lab.until(1, "up")
    # The provider gives another network, as after a new lease.
    lab.ip("isp1", "address add 192.0.7.2/24 dev customer")
    lab.ip("inet", "route add 192.0.7.0/24 via 198.51.1.1")
    lab.ip("router", "address delete 192.0.1.1/24 dev wan1")
    lab.until(1, "down")
    lab.ip("router", "address add 192.0.7.1/24 dev wan1")
    lab.ip("router", "route add default via 192.0.7.2 dev wan1")
    lab.until(1, "up")
    lab.ip("isp1", "address delete 192.0.1.2/24 dev customer")
    before = lab.echoes()
    wait_until(lambda: lab.echoes() > before + 20, "probes by the new gateway")
    assert lab.says(1) == "up"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("objects", [False, True])
def test_a_default_route_by_both_isps_tells_the_gateway_of_each(lab: Lab, family: int, objects: bool) -> None:
    address = {4: "192.0.{n}.2", 6: "2001:db8:{n}::2"}[family]
    ways = [f"via {address.format(n=n)} dev wan{n}" for n in (1, 2)]
    by = " ".join(f"nexthop {way}" for way in ways)
    if objects:
        for n, way in enumerate(ways, 1):
            lab.ip("router", f"nexthop add id {n} {way}")
        lab.ip("router", "nexthop add id 10 group 1/2")
        by = "nhid 10"
    lab.ip("router", f"-{family} route add default {by}")
    check = f'["{TARGET4 if family == 4 else TARGET6}"]'
    text = "".join(ISP.format(n=n, check=check) for n in (1, 2))
    lab.write(re.sub(r"^gateway = .*$", 'gateway = "auto"', text, flags=re.MULTILINE))
    lab.start()
    for n in (1, 2):
        lab.until(n, "up")


def test_what_is_said_on_the_way_is_told_from_silence(lab: Lab) -> None:
    lab.configure(f'["{TARGET4}"]', f'["{TARGET6}"]')
    for n, tool in ((1, "iptables"), (2, "ip6tables")):
        lab.exec(f"isp{n}", "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        words = "admin-prohibited" if n == 1 else "addr-unreachable"
        rule = f"-w -A FORWARD -o core -j REJECT --reject-with icmp{'' if n == 1 else '6'}-{words}"
        lab.exec(f"isp{n}", tool, *rule.split())
    lab.start()
    lab.until_logged("(communication-prohibited, says 192.0.1.2)")
    lab.until_logged("(Address unreachable, says 2001:db8:2::2)")
    lab.exec("isp1", "iptables", "-w", "-F", "FORWARD")
    lab.until(1, "up")
    lab.cut(1)
    lab.until(1, "down")
    assert "says" not in [line for line in lab.logged() if line.startswith("ISP1 down")][-1]


@pytest.mark.parametrize("target", [TARGET4, TARGET6])
def test_only_the_right_answer_counts(lab: Lab, target: str) -> None:
    lab.configure(f'["{target}"]')
    lab.ip("isp1", f"route replace blackhole {target}")
    lab.start()
    lab.until(1, "down")
    impostor = lab.impostor("customer", "true")  # it can be heard
    lab.until(1, "up")
    lab.end(impostor)
    lab.until(1, "down")
    impostor = lab.impostor("customer", "other")
    wait_until(lambda: lab.standing(1).targets[target].foreign > 50, "answers from somebody else")
    lab.end(impostor)
    impostor = lab.impostor("customer", "nonsense")
    lab.probes(100)
    lab.end(impostor)
    impostor = lab.impostor("customer", "replay")
    lab.until(1, "down")
    lab.probes(100)
    assert lab.says(1) == "down"
    assert lab.log.read_text().count("ISP1 up") == 1


def test_what_is_said_in_another_vlan_of_the_cable_is_not_said_to_us(lab: Lab) -> None:
    lab.configure('["arp"]')
    lab.start()
    lab.until(1, "up")
    lab.ip("isp1", "address delete 192.0.1.2/24 dev customer")
    lab.until(1, "down")
    stranger = lab.tagged("192.0.1.2", 10)
    lab.probes(100)
    assert lab.says(1) == "down"
    lab.end(stranger)
    lab.tagged("192.0.1.2", 7 << 13)  # a priority alone, and so in ours
    lab.until(1, "up")
