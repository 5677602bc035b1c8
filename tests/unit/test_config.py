"""The configuration: what is right, and for everything that is wrong the line and the words that help."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lsmpy import ConfigError, config, model
from lsmpy.model import FAMILIES, Check
from tests.conftest import isps_of, router_of

ISP = """\
[[isp]]
name = "ISP1"
interface = "eth2"
address = "1.1.1.1/24"
gateway = "1.1.1.2"
check = "203.0.113.1"
"""
TWO = ISP + ISP.replace("ISP1", "ISP2").replace("eth2", "eth3").replace("1.1.1.", "2.2.2.")
LAN = '[[lan]]\nname = "dev"\ninterface = "eth0"\naddress = "192.168.1.254/24"\n'
POLICY = ISP + '[[policy]]\nname = "bank"\nuse = "ISP1"\n'
ARTICLE = """\
state_dir = "/var/run"

[router]
flush = "all"
balance = "nth"
local_traffic = "balance"
when_all_down = "all"
flush_conntrack = true
failback = "drain"
failback_after_s = 0
iptables = "auto"
mark_mask = 0xffffffff

[probe]
interval_ms = 1000
timeout_ms = 1000
max_packet_loss = 15
max_successive_pkts_lost = 7
min_packet_loss = 5
min_successive_pkts_rcvd = 10

[[isp]]
name = "ISP1"
interface = "eth2"
address = ["1.1.1.1/24"]
gateway = ["1.1.1.2"]
prefix = []
check = ["203.0.113.1"]
quorum = 1
mark = 1
table = 250
weight = 1
tier = 1
clamp_mss = false

[[isp]]
name = "ISP2"
interface = "eth3"
address = ["2.2.2.1/24"]
gateway = ["2.2.2.2"]
check = ["203.0.113.2"]

[[lan]]
name = "dev"
interface = "eth0"
address = ["192.168.1.254/24"]

[[lan]]
name = "rnd"
interface = "eth1"
address = ["192.168.2.254/24"]

[rules]
ipv4 = ["/etc/lsmpy/rules.v4"]
ipv6 = []
after = []

[nat]
ipv4 = "snat"
ipv6 = "none"

[events]
script = []
"""


def probed(text: str) -> model.Router:
    """As the prober reads it."""
    return config.parse(text.encode(), "lsmpy.toml", {}, probing=True)


def errors_of(text: str | bytes, tables: dict[str, int] | None = None) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigError) as caught:
        config.parse(data, "lsmpy.toml", tables or {})
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


# -- what is right -------------------------------------------------------------------------------------------


def test_the_articles_router_with_every_key_is_read() -> None:
    router = router_of(ARTICLE)
    assert [isp.name for isp in router.isps] == ["ISP1", "ISP2"]
    assert [(isp.mark, isp.table, isp.weight, isp.tier) for isp in router.isps] == [(1, 250, 1, 1), (2, 249, 1, 1)]
    assert [(lan.name, lan.interface) for lan in router.lans] == [("dev", "eth0"), ("rnd", "eth1")]
    assert router.rules.files(4) == (Path("/etc/lsmpy/rules.v4"),)
    assert router.families == (4,)
    assert router.warnings == ()


def test_defaults_are_those_of_the_contract() -> None:
    router = router_of(ISP)
    (isp,) = router.isps
    assert router.state_dir == "/var/run"
    assert (isp.mark, isp.table, isp.weight, isp.tier, isp.quorum) == (1, 250, 1, 1, 1)
    assert (isp.nat.ipv4, isp.nat.ipv6) == ("snat", "none")
    assert isp.probe == model.Probe(1000, 1000, 15, 7, 5, 10)
    options = router.options
    assert (options.flush, options.balance, options.iptables, options.when_all_down) == ("all", "nth", "auto", "all")
    assert options.mark_mask == 0xFFFFFFFF


def test_beside_others_marks_are_eight_bits_unless_another_mask_is_given() -> None:
    router = router_of("[router]\nflush = 'own'\n" + ISP)
    assert (router.options.mark_mask, router.options.beside_others) == (0xFF00, True)
    assert (router.mark_value(router.isps[0]), router.others_bits) == (0x100, 0xFE00)
    assert router_of("[router]\nflush = 'own'\nmark_mask = 0x70\n" + ISP).options.mark_mask == 0x70
    assert router_of("[router]\nmark_mask = 0xff00\n" + ISP).others_bits == 0


def test_an_isps_own_probe_and_nat_override_the_common_ones_key_by_key() -> None:
    text = '[probe]\ninterval_ms = 500\ntimeout_ms = 700\n[nat]\nipv6 = "snat"\n' + TWO
    router = router_of(text + 'probe = { interval_ms = 250 }\nnat = { ipv4 = "masquerade" }\n')
    assert [(isp.probe.interval_ms, isp.probe.timeout_ms) for isp in router.isps] == [(500, 700), (250, 700)]
    assert [(isp.nat.ipv4, isp.nat.ipv6) for isp in router.isps] == [("snat", "snat"), ("masquerade", "snat")]


def test_a_table_may_be_a_name_of_rt_tables() -> None:
    router = config.parse((ISP + 'table = "uplink"\n').encode(), "lsmpy.toml", {"uplink": 77})
    assert router.isps[0].table == 77


def test_a_mark_stands_where_the_mask_puts_it() -> None:
    router = router_of("[router]\nmark_mask = 0xff00\n" + ISP + "mark = 3\n")
    assert router.mark_value(router.isps[0]) == 0x300


def test_a_family_is_carried_with_address_and_gateway() -> None:
    both, six = router_of(isps_of(1)), router_of(isps_of(1, "6"))
    assert (both.families, six.families) == ((4, 6), (6,))
    assert not six.isps[0].carries(4)


def test_a_mark_of_the_byte_order_is_no_mistake() -> None:
    router = config.parse(b"\xef\xbb\xbf" + ISP.encode(), "lsmpy.toml", {})
    assert router == router_of(ISP)
    with pytest.raises(ConfigError, match=r"lsmpy\.toml:1: not text: byte 0xff is no UTF-8"):
        config.parse(b"\xef\xbb\xbf# \xff\n", "lsmpy.toml", {})


@pytest.mark.parametrize("length", [31, 32])
def test_a_network_of_two_has_no_broadcast_address(length: int) -> None:
    text = ISP.replace("1.1.1.1/24", f"1.1.1.1/{length}").replace("1.1.1.2", "1.1.1.0" if length == 31 else "none")
    assert router_of(text).isps[0].address == (f"1.1.1.1/{length}",)


def test_a_link_local_gateway_needs_no_network() -> None:
    text = ISP.replace('"1.1.1.1/24"', '["1.1.1.1/24", "2001:db8::1/64"]').replace(
        '"1.1.1.2"', '["1.1.1.2", "fe80::1"]'
    )
    assert str(router_of(text).isps[0].next_hop(6)) == "fe80::1"


@pytest.mark.parametrize("check", ["gateway", "1.1.1.2", "tcp://1.1.1.2:80"])
def test_probing_the_gateway_is_allowed_and_warned_of(check: str) -> None:
    (warning,) = router_of(ISP.replace("203.0.113.1", check)).warnings
    assert "ISP1: check: the gateway answers while its upstream is dead" in warning


LIMITS = "max_rtt_ms = 200\nmin_rtt_ms = 100\nmax_jitter_ms = 50\nmin_jitter_ms = 20\nhold_down_ms = 30000\n"


def test_limits_on_times_and_holding_down_are_read() -> None:
    probe = router_of("[probe]\n" + LIMITS + ISP + "probe = { min_rtt_ms = 150, hold_down_ms = 0 }\n").isps[0].probe
    assert (probe.max_rtt_ms, probe.min_rtt_ms, probe.max_jitter_ms, probe.min_jitter_ms) == (200, 150, 50, 20)
    assert probe.hold_down_ms == 0
    defaults = router_of(ISP).isps[0].probe
    assert (defaults.max_rtt_ms, defaults.max_jitter_ms, defaults.hold_down_ms) == (0, 0, 0)


CHECKS = {
    "203.0.113.1": Check("echo", ip_address("203.0.113.1")),
    "2001:db8::9": Check("echo", ip_address("2001:db8::9")),
    "gateway": Check("echo"),
    "arp": Check("neighbour"),
    "tcp://203.0.113.1:443": Check("tcp", ip_address("203.0.113.1"), 443),
    "tcp://203.0.113.1:443/": Check("tcp", ip_address("203.0.113.1"), 443),
    "tcp://[2001:db8::9]:80": Check("tcp", ip_address("2001:db8::9"), 80),
    "dns://9.9.9.9/example.org": Check("dns", ip_address("9.9.9.9"), 53, "example.org"),
    "dns://9.9.9.9:5353/example.org": Check("dns", ip_address("9.9.9.9"), 5353, "example.org"),
    "dns://[2620:fe::fe]/a.b.c": Check("dns", ip_address("2620:fe::fe"), 53, "a.b.c"),
}


@pytest.mark.parametrize("text", CHECKS)
def test_each_kind_of_check_is_understood(text: str) -> None:
    both = isps_of(1).replace('check = "203.0.113.1"', f'check = "{text}"')
    assert router_of(both).isps[0].checks == (CHECKS[text],)


@pytest.mark.parametrize(
    "text",
    [
        *("", "http://203.0.113.1/", "ARP", "gateways", "203.0.113", "203.0.113.1:443", "203.0.113.0/24"),
        *("tcp://203.0.113.1", "tcp://203.0.113.1:0", "tcp://203.0.113.1:65536", "tcp://203.0.113.1:443/path"),
        *("tcp://example.org:443", "tcp://", "tcp://[2001:db8::9:443", "tcp://203.0.113.1:https"),
        *("dns://9.9.9.9", "dns://9.9.9.9/", "dns://example.org/example.org", "dns://9.9.9.9/a..b"),
        *("dns://9.9.9.9/" + "a" * 64, "dns://9.9.9.9/" + "a.b" * 85, "dns://9.9.9.9/exämple.org", "://"),
    ],
)
def test_what_nobody_can_be_asked_is_refused(text: str) -> None:
    (said,) = errors_of(ISP.replace("203.0.113.1", text))
    assert said.startswith("lsmpy.toml:6: isp.check: ")
    assert said.endswith(
        'give one such as "192.0.2.9", "gateway", "arp", "tcp://192.0.2.9:443" or "dns://192.0.2.9/example.org"'
    )


@pytest.mark.parametrize("check", ["arp", "gateway"])
def test_without_a_gateway_there_is_nobody_to_ask_for_it(check: str) -> None:
    text = ISP.replace("1.1.1.2", "none").replace("203.0.113.1", check)
    with pytest.raises(ConfigError, match=f'isp.check: "{check}" asks the gateway and there is none; give an address'):
        probed(text)


def test_where_the_kernel_tells_the_gateway_either_family_may_be_checked() -> None:
    text = ISP.replace("1.1.1.1/24", "auto").replace("1.1.1.2", "auto").replace("203.0.113.1", "2001:db8::9")
    assert probed(text).isps[0].check == ("2001:db8::9",)


@pytest.mark.parametrize("gateway", ["none", "auto"])
def test_a_check_of_a_family_without_an_address_is_refused(gateway: str) -> None:
    with pytest.raises(ConfigError, match=r"isp\.check"):
        probed(ISP.replace("1.1.1.2", gateway).replace("203.0.113.1", "2001:db8::9"))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("203.0.113.1", "fe80::9%eth2"), ("203.0.113.1", "tcp://[fe80::9%eth2]:443")),
        *(("2001:db8:1::2", "fe80::2%eth2"), ("2001:db8:1::1/64", "fe80::1%eth2/64")),
    ],
)
def test_an_address_with_a_zone_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match="%eth2"):
        router_of(isps_of(1).replace(key, text))


# -- what is wrong -------------------------------------------------------------------------------------------

# Two ISPs, each of which routes a prefix to the router, and a LAN of both families.
SIX = TWO.replace('.1/24"', '.1/24", "2001:db8:0:1::1/64"', 1).replace(
    '"2.2.2.1/24"', '"2.2.2.1/24", "2001:db8:0:2::1/64"'
)
SIX = SIX.replace('address = "', 'address = ["').replace('/64"', '/64"]')
SIX = SIX.replace('"1.1.1.2"', '["1.1.1.2", "2001:db8:0:1::2"]').replace('"2.2.2.2"', '["2.2.2.2", "2001:db8:0:2::2"]')
SIX = SIX.replace('name = "ISP1"', 'name = "ISP1"\nprefix = "2001:db8:101::/48"')
SIX = SIX.replace('name = "ISP2"', 'name = "ISP2"\nprefix = "2001:db8:102::/48"')
SIX += '[[lan]]\nname = "dev"\ninterface = "eth0"\naddress = ["192.168.1.254/24", "fd00:a:0:1::1/64"]\n'
RND = '[[lan]]\nname = "rnd"\ninterface = "eth1"\naddress = "fd00:b:0:1::1/64"\n'
NPT, STATELESS = "[nat]\nipv6 = 'npt'\n", "[nat]\nipv6 = 'npt-stateless'\n"


def test_a_policy_is_read_with_its_networks_and_ports_in_order() -> None:
    text = ISP + LAN + "[[policy]]\nname = 'voip'\nuse = ['ISP1']\nlan = 'dev'\notherwise = 'unreachable'\n"
    text += "protocol = ['udp', 'tcp']\nports = ['5060-5061', 443, '5062-5080', 80]\nfrom = '192.168.1.7'\n"
    text += "to = ['10.0.0.0/9', '10.128.0.0/9', '::/0']\n"
    voip, bank = router_of(text + POLICY[len(ISP) :]).policies
    assert bank == model.Policy(name="bank", use=("ISP1",))
    assert voip.port_ranges == ((80, 80), (443, 443), (5060, 5080))
    assert voip.targets(4) == (ip_network("10.0.0.0/8"),)
    assert voip.targets(6) == (ip_network("::/0"),)
    assert (voip.sources(4), voip.sources(6)) == ((ip_network("192.168.1.7"),), ())
    assert (bank.sources(4), bank.targets(6)) == ((ip_network("0.0.0.0/0"),), (ip_network("::/0"),))


WRONG = {
    "no prefix": (
        SIX.replace("2001:db8:101::/48", "mine"),
        '3: isp.prefix: "mine" is no IPv6 prefix; give one such as "2001:db8:5:100::/56"',
    ),
    "prefix of IPv4": (SIX.replace("2001:db8:101::/48", "192.0.2.0/24"), '3: isp.prefix: "192.0.2.0/24" is no IPv6'),
    "prefix without length": (
        SIX.replace("2001:db8:101::/48", "2001:db8:101::"),
        '3: isp.prefix: "2001:db8:101::" is no',
    ),
    "prefix with a host": (
        SIX.replace("2001:db8:101::/48", "2001:db8:101::1/48"),
        "3: isp.prefix: 2001:db8:101::1/48 has bits beyond its prefix; write 2001:db8:101::/48",
    ),
    "prefix of another": (
        SIX.replace("2001:db8:102::/48", "2001:db8:101:7::/64"),
        "10: isp.prefix: 2001:db8:101:7::/64 overlaps 2001:db8:101::/48 of ISP1; give each ISP what it routes to you",
    ),
    "prefix twice": (
        SIX.replace('"2001:db8:101::/48"', '["2001:db8:101::/48", "2001:db8:101::/48"]'),
        "3: isp.prefix: 2001:db8:101::/48 overlaps 2001:db8:101::/48 of ISP1",
    ),
    "prefix of another's link": (
        SIX.replace("2001:db8:101::/48", "2001:db8::/56"),
        "3: isp.prefix: 2001:db8::/56 overlaps 2001:db8:0:2::/64 of ISP2",
    ),
    "npt without prefix": (
        NPT + SIX.replace('prefix = "2001:db8:102::/48"\n', ""),
        '10: isp.prefix: is needed for nat.ipv6 = "npt": what the ISP routes to you, such as "2001:db8:5:100::/56"',
    ),
    "npt of two LANs with the same bits": (
        SIX.replace('"2001:db8:101::/48"', '"2001:db8:101:e00::/56"\nnat = { ipv6 = "npt" }') + RND,
        "3: isp.prefix: 2001:db8:101:e00::/56 has no place for fd00:b:0:1::/64 of the LANs, whose bits after the",
    ),
    "npt of one ISP into too little": (
        SIX.replace('"2001:db8:101::/48"', '"2001:db8:101::/72"\nnat = { ipv6 = "npt" }'),
        "3: isp.prefix: 2001:db8:101::/72 has no place for fd00:a:0:1::/64 of the LANs",
    ),
    "stateless in turns": (
        STATELESS + SIX,
        '2: nat.ipv6: "npt-stateless" forgets each packet, and "nth" would send the next one elsewhere; possible with '
        'it are a tier for each ISP, or balance = "hash"; "npt" works with everything',
    ),
    "stateless hashing with a mask": (
        "[router]\nbalance = 'hash'\nmark_mask = 0xff00\n" + STATELESS + SIX,
        '3: router.mark_mask: "npt-stateless" hashes packets, which needs their whole mark, not 0xff00',
    ),
    "stateless of one ISP alone": (
        "[router]\nbalance = 'hash'\n" + SIX.replace('"ISP2"', '"ISP2"\nnat = { ipv6 = "npt-stateless" }'),
        '1: nat.ipv6: "npt-stateless" is for all ISPs or for none',
    ),
    "stateless with a policy": (
        "[router]\nbalance = 'hash'\n" + STATELESS + SIX + "[[policy]]\nname = 'bank'\nuse = 'ISP1'\n",
        '23: policy: needs to know of connections, and "npt-stateless" forgets each packet; leave it out, or give',
    ),
    "stateless of small networks": (
        "[router]\nbalance = 'hash'\n" + STATELESS + SIX.replace("fd00:a:0:1::1/64", "fd00:a:0:1::1/80"),
        '4: nat.ipv6: "npt-stateless" cannot translate fd00:a:0:1::/80, which is smaller than /64; give "npt"',
    ),
    "after": (
        ISP + "[rules]\nafter = ['tunnels']\n",
        '8: rules.after: "tunnels" is no absolute path; give the file\'s whole path',
    ),
    "rules of a relative path": (
        ISP + "[rules]\nipv6 = ['/a', 'rules.v6']\n",
        '8: rules.ipv6: "rules.v6" is no absolute path; give the file\'s whole path',
    ),
    "number too large": (
        ISP + "weight = 4294967296\n",
        "7: isp.weight: expected a whole number from 1 to 4294967295, got 4294967296",
    ),
    "an isp and a lan of one name on one interface": (
        LAN.replace("eth0", "eth2").replace('"dev"', '"ISP1"') + ISP,
        '3: lan.interface: "eth2" is ISP1\'s already; each LAN needs an interface of its own',
    ),
    "an isp and a lan of one name with one address": (
        LAN.replace("192.168.1.254", "1.1.1.1").replace('"dev"', '"ISP1"') + ISP,
        "4: lan.address: 1.1.1.1/24 is ISP1's already; give each its own",
    ),
    "an alias": (
        ISP.replace("eth2", "eth2:0"),
        '3: isp.interface: "eth2:0" is an alias, which only labels an address, and no interface; write "eth2"',
    ),
    "the loopback": (
        LAN.replace("eth0", "lo") + ISP,
        '3: lan.interface: "lo" is the loopback, by which nobody else is reached; give the interface',
    ),
    "every interface": (
        ISP.replace("eth2", "all"),
        '3: isp.interface: "all" is the kernel\'s word for the settings of every interface; give the name of one',
    ),
    "the default of interfaces": (ISP.replace("eth2", "default"), '3: isp.interface: "default" is the kernel\'s word'),
    "the network as address": (
        ISP.replace("1.1.1.1/24", "1.1.1.0/24"),
        "4: isp.address: 1.1.1.0/24 is the network itself; give the router's address in it, from 1.1.1.1 to 1.1.1.254",
    ),
    "the broadcast address": (
        LAN.replace("192.168.1.254/24", "192.168.1.3/30") + ISP,
        "4: lan.address: 192.168.1.3/30 is the broadcast address of its network; give the router's address in it, from",
    ),
    "an address of nobody": (
        LAN.replace("192.168.1.254/24", "127.0.0.1/8") + ISP,
        "4: lan.address: 127.0.0.1/8 is no address that others can send to; give the one that this interface has",
    ),
    "checking the loopback": (
        ISP.replace("203.0.113.1", "tcp://127.0.0.1:80"),
        "6: isp.check: tcp://127.0.0.1:80 is the router itself, which does not need this ISP; give an address",
    ),
    "checking oneself": (ISP.replace("203.0.113.1", "1.1.1.1"), "6: isp.check: 1.1.1.1 is the router itself"),
    "checking many": (ISP.replace("203.0.113.1", "224.0.0.1"), "6: isp.check: 224.0.0.1 is nobody's address; give"),
    "checking all": (ISP.replace("203.0.113.1", "255.255.255.255"), "6: isp.check: 255.255.255.255 is nobody's"),
    "checking none": (ISP.replace("203.0.113.1", "0.0.0.0"), "6: isp.check: 0.0.0.0 is nobody's address"),
    "rules beside others": (
        "[router]\nflush = 'own'\n" + ISP + "[rules]\nipv4 = ['/r']\nafter = ['/a']\n",
        '10: rules.ipv4: is for flush = "all", which rebuilds the tables whole; with "own" your rules stay as they are',
    ),
    "a mark beyond those of others": (
        "[router]\nflush = 'own'\n" + ISP + "mark = 256\n",
        "9: isp.mark: 256 does not fit into mark_mask 0xff00; give a mark from 1 to 255",
    ),
    "unknown key": (ISP + "wieght = 2\n", "7: isp.wieght: there is no such key; did you mean weight?"),
    "unknown top key": ("stat_dir = '/x'\n" + ISP, "1: stat_dir: there is no such key; did you mean state_dir?"),
    "unknown router key": (ISP + "[router]\nbalanze = 1\n", "8: router.balanze: there is no such key; did you mean"),
    "failback": (ISP + "[router]\nfailback = 'back'\n", '8: router.failback: expected "drain" or "move"'),
    "failback_after_s": (
        ISP + "[router]\nfailback_after_s = -1\n",
        "8: router.failback_after_s: expected seconds, from 0 to 86400",
    ),
    "unknown probe key": (
        ISP + "probe = { interval_ms = 5000, tries = 3 }\n",
        "7: isp.probe.tries: there is no such key; known are hold_down_ms, interval_ms, ",
    ),
    "wrong type": (
        ISP + 'weight = "much"\n',
        '7: isp.weight: expected a whole number from 1 to 4294967295, got "much"',
    ),
    "wrong type in a list": (
        ISP.replace('"1.1.1.1/24"', "[1]"),
        "4: isp.address: expected text or a list of texts, got [1]",
    ),
    "truth for a number": (
        ISP + "quorum = true\n",
        "7: isp.quorum: expected a whole number from 1 to 4294967295, got true",
    ),
    "wrong choice": (
        "[router]\nbalance = 'dice'\n" + ISP,
        '2: router.balance: expected "nth" or "random" or "hash", got "dice"',
    ),
    "out of range": (
        "[probe]\ninterval_ms = 0\n" + ISP,
        "2: probe.interval_ms: expected milliseconds, from 10 to 3600000, got 0",
    ),
    "in a table of its own": (
        ISP + "[isp.probe]\ntimeout_ms = 'x'\n",
        '8: isp.probe.timeout_ms: expected milliseconds, from 10 to 3600000, got "x"',
    ),
    "missing key": (ISP.replace("gateway =", "#"), "1: isp.gateway: is missing; give text or a list of texts"),
    "missing in the second": (
        ISP + "\n" + TWO[len(ISP) :].replace("check =", "#"),
        "8: isp.check: is missing; give text or a list of texts",
    ),
    "no isp": (LAN, "1: isp: no ISP is configured; add an [[isp]] table for each provider"),
    "path as a name": (
        ISP.replace("ISP1", "../../etc/passwd"),
        "2: isp.name: expected 1 to 20 letters, digits, '_' or '-', got \"../../etc/passwd\"",
    ),
    "name with a line's end": (
        ISP.replace("ISP1", "ISP1\\n"),
        "2: isp.name: expected 1 to 20 letters, digits, '_' or '-', got 'ISP1\\n'",
    ),
    "name too long": (ISP.replace("ISP1", "x" * 21), "2: isp.name: expected 1 to 20 letters"),
    "interface with a space": (ISP.replace("eth2", "eth 2"), "3: isp.interface: expected an interface name"),
    "gateway outside": (
        ISP.replace("1.1.1.2", "1.1.2.2"),
        "5: isp.gateway: 1.1.2.2 is outside the ISP's network; give one inside 1.1.1.0/24",
    ),
    "gateway is the router": (ISP.replace("1.1.1.2", "1.1.1.1"), "5: isp.gateway: 1.1.1.1 is the router's own address"),
    "gateway is no address": (ISP.replace("1.1.1.2", "1.1.1"), '5: isp.gateway: "1.1.1" is no address; give one such'),
    "gateway of another family": (
        ISP.replace('"1.1.1.2"', '["1.1.1.2", "fe80::1"]'),
        "5: isp.gateway: fe80::1 is outside the ISP's network; give one inside nothing: there is no IPv6 address",
    ),
    "two gateways": (ISP.replace('"1.1.1.2"', '["1.1.1.2", "1.1.1.3"]'), "5: isp.gateway: two of IPv4; give one"),
    "no gateway for a family": (
        ISP.replace('"1.1.1.1/24"', '["1.1.1.1/24", "2001:db8::1/64"]'),
        "5: isp.gateway: there is an IPv6 address but no gateway of IPv6",
    ),
    "no prefix length": (
        ISP.replace("1.1.1.1/24", "1.1.1.1"),
        '4: isp.address: "1.1.1.1" has no prefix length; write "1.1.1.1/24"',
    ),
    "impossible prefix length": (ISP.replace("1.1.1.1/24", "1.1.1.1/99"), '4: isp.address: "1.1.1.1/99" is no address'),
    "no address": (ISP.replace('"1.1.1.1/24"', "[]"), "4: isp.address: is empty; give an address with its prefix"),
    "check is nothing": (
        ISP.replace("203.0.113.1", "example.net"),
        '6: isp.check: "example.net" is nothing to ask; give one such as "192.0.2.9", "gateway", "arp", '
        '"tcp://192.0.2.9:443" or "dns://192.0.2.9/example.org"',
    ),
    "check of a service that is not known": (
        ISP.replace("203.0.113.1", "http://192.0.2.9/"),
        '6: isp.check: "http://192.0.2.9/" is nothing to ask; give one such as',
    ),
    "connection of another family": (
        ISP.replace("203.0.113.1", "tcp://[2001:db8::9]:443"),
        "6: isp.check: tcp://[2001:db8::9]:443 is IPv6, for which this ISP has no gateway",
    ),
    "auto beside an address": (
        ISP.replace('"1.1.1.1/24"', '["auto", "1.1.1.1/24"]'),
        '4: isp.address: "auto" stands beside others; give it alone, or addresses',
    ),
    "none beside a gateway": (
        ISP.replace('"1.1.1.2"', '["1.1.1.2", "none"]'),
        '5: isp.gateway: "none" stands beside others; give it alone, or addresses',
    ),
    "limit without a lower one": (
        ISP + "probe = { max_rtt_ms = 200 }\n",
        "7: isp.probe: max_rtt_ms (200) needs a min_rtt_ms above 0 and below it, to come back at; it is 0",
    ),
    "lower limit alone": (
        ISP + "probe = { min_jitter_ms = 5 }\n",
        "7: isp.probe: max_jitter_ms (0) needs a min_jitter_ms above 0 and below it, to come back at; it is 5",
    ),
    "limits that flip": (
        ISP + "probe = { max_rtt_ms = 200, min_rtt_ms = 200 }\n",
        "7: isp.probe: max_rtt_ms (200) needs a min_rtt_ms above 0 and below it, to come back at; it is 200",
    ),
    "limit that is none": (
        ISP + "probe = { hold_down_ms = -1 }\n",
        "7: isp.probe.hold_down_ms: expected milliseconds, from 0 (none) to 3600000, got -1",
    ),
    "check of another family": (
        ISP.replace("203.0.113.1", "2001:db8::9"),
        "6: isp.check: 2001:db8::9 is IPv6, for which this ISP has no gateway",
    ),
    "no check": (ISP.replace('"203.0.113.1"', "[]"), "6: isp.check: is empty; give at least one address"),
    "check twice": (
        ISP.replace('"203.0.113.1"', '["203.0.113.1", "203.0.113.1"]'),
        "6: isp.check: 203.0.113.1 stands twice; give different targets",
    ),
    "quorum too high": (ISP + "quorum = 2\n", "7: isp.quorum: 2 of 1 targets can never answer; give 1 to 1"),
    "thresholds that flip": (
        ISP + "probe = { max_packet_loss = 5 }\n",
        "7: isp.probe: max_packet_loss (5) must be above min_packet_loss (5), or the ISP would flip",
    ),
    "same name": (TWO.replace("ISP2", "ISP1"), '8: isp.name: "ISP1" is ISP1\'s already; give each its own'),
    "same interface of two lans": (
        ISP + LAN + LAN.replace("dev", "rnd").replace("1.254", "2.254"),
        '13: lan.interface: "eth0" is dev\'s already; each LAN needs an interface of its own',
    ),
    "same address": (TWO.replace("2.2.2.", "1.1.1."), "10: isp.address: 1.1.1.1/24 is ISP1's already; give each"),
    "same mark": (TWO + "mark = 1\n", "13: isp.mark: 1 is ISP1's already; give each its own"),
    "same table": (TWO + "table = 250\n", "13: isp.table: 250 is ISP1's already; give each its own"),
    "lan on an isp's interface": (
        LAN.replace("eth0", "eth2") + ISP,
        '3: lan.interface: "eth2" is ISP1\'s already; each LAN needs an interface of its own',
    ),
    "same lan name": (
        ISP + LAN + LAN.replace("eth0", "eth1").replace("1.254", "2.254"),
        '12: lan.name: "dev" is dev\'s already; give each its own',
    ),
    "unknown table name": (
        ISP + 'table = "uplink"\n',
        '7: isp.table: "uplink" is no name in /etc/iproute2/rt_tables; give its number',
    ),
    "the main table": (ISP + "table = 254\n", "7: isp.table: 254 is not free for an ISP; choose one from 1 to 252"),
    "mark beyond the mask": (
        "[router]\nmark_mask = 0x30\n" + ISP + "mark = 4\n",
        "9: isp.mark: 4 does not fit into mark_mask 0x30; give a mark from 1 to 3",
    ),
    "mask with gaps": (
        "[router]\nmark_mask = 0x505\n" + ISP,
        "2: router.mark_mask: 0x505 has gaps; give bits in a row",
    ),
    "too many slots": (
        ISP + "weight = 100\n" + TWO[len(ISP) :] + "weight = 33\n",
        '7: isp.weight: the weights of tier 1 need 133 slots and nth has 128; give 3:1, or balance = "random"',
    ),
    "the table of local traffic": (
        "[router]\nlocal_traffic = 'balance'\n" + ISP + "table = 76\n",
        '9: isp.table: 76 is what local_traffic = "balance" uses; give another one',
    ),
    "policy without a name": (ISP + "[[policy]]\nuse = 'ISP1'\n", "7: policy.name: is missing; give 1 to 20 letters"),
    "policy without use": (POLICY.replace("use", "#"), "7: policy.use: is missing; give text or a list of texts"),
    "policy for nobody": (
        POLICY.replace('use = "ISP1"', "use = []"),
        "9: policy.use: is empty; name the ISPs for this traffic",
    ),
    "policy for an unknown isp": (
        POLICY.replace('use = "ISP1"', 'use = ["ISP1", "ISP3"]'),
        '9: policy.use: "ISP3" is not configured; known are ISP1',
    ),
    "policy of an unknown lan": (
        POLICY + "lan = 'guests'\n",
        '10: policy.lan: "guests" is not configured; known are none',
    ),
    "same policy name": (
        POLICY + "to = '10.0.0.0/8'\n" + POLICY[len(ISP) :],
        '12: policy.name: "bank" is bank\'s already',
    ),
    "policy to nowhere": (
        POLICY + "to = ['10.0.0.0/8', 'bank.example']\n",
        '10: policy.to: "bank.example" is no network; give one such as "198.51.100.0/24"',
    ),
    "policy with host bits": (
        POLICY + "from = '10.0.0.1/8'\n",
        "10: policy.from: 10.0.0.1/8 has bits beyond its prefix; write 10.0.0.0/8",
    ),
    "policy for IPv4 in IPv6's words": (
        POLICY + "to = '::ffff:192.0.2.0/120'\n",
        "10: policy.to: ::ffff:192.0.2.0/120 is no network of the internet; give IPv4 as such",
    ),
    "policy of two families": (
        POLICY + "to = '10.0.0.0/8'\nfrom = '2001:db8::/32'\n",
        "11: policy.from: is of another family than to, so that nothing matches; give networks of one family",
    ),
    "ports of no protocol": (
        POLICY + "ports = 443\n",
        '10: policy.ports: needs to know of which protocol; give protocol = "tcp", "udp" or both',
    ),
    "ports of icmp": (
        POLICY + "protocol = ['tcp', 'icmp']\nports = 443\n",
        '11: policy.ports: icmp has no ports; give protocol = "tcp", "udp" or both',
    ),
    "unknown protocol": (
        POLICY + "protocol = 'http'\n",
        '10: policy.protocol: expected "tcp", "udp", "sctp", "icmp", "esp", "ah" or a list of them, got "http"',
    ),
    "port 0": (
        POLICY + "protocol = 'tcp'\nports = [80, 0]\n",
        '11: policy.ports: 0 is no port; give one from 1 to 65535, or a range such as "5060-5080"',
    ),
    "ports the wrong way round": (
        POLICY + "protocol = 'tcp'\nports = '90-80'\n",
        '11: policy.ports: "90-80" is no port; give one from 1 to 65535, or a range such as "5060-5080"',
    ),
    "a port with an underscore": (
        POLICY + "protocol = 'tcp'\nports = '1_0'\n",
        '11: policy.ports: "1_0" is no port; give one from 1 to 65535, or a range such as "5060-5080"',
    ),
    "ports that are no number": (
        POLICY + "protocol = 'tcp'\nports = 4.5\n",
        '11: policy.ports: expected a destination port, a range such as "5060-5080" or a list of them, got 4.5',
    ),
    "policies after one of everything": (
        POLICY + POLICY[len(ISP) :].replace("bank", "rest"),
        "8: policy.name: matches everything, so that no policy after it is ever used; put it last, or give to",
    ),
    "no mark left to refuse": (
        "[router]\nmark_mask = 0x7\n"
        + POLICY.replace("[[policy]]", "mark = 7\n[[policy]]")
        + "otherwise = 'unreachable'\n",
        '9: isp.mark: 7 is needed for what a policy\'s otherwise = "unreachable" refuses; give another mark',
    ),
    "otherwise what": (
        POLICY + "otherwise = 'drop'\n",
        '10: policy.otherwise: expected "balance" or "unreachable", got "drop"',
    ),
    "unknown key of a policy": (POLICY + "source = 'x'\n", "10: policy.source: there is no such key; known are"),
    "relative state_dir": ("state_dir = 'run'\n" + ISP, '1: state_dir: expected an absolute path, got "run"'),
    "state_dir is no text": ("state_dir = 3\n" + ISP, "1: state_dir: expected an absolute path, got 3"),
    "single table": (
        ISP.replace("[[isp]]", "[isp]"),
        "1: isp: expected one [[isp]] table for each, got a single [isp]",
    ),
    "no table at all": ("router = 3\n" + ISP, "1: router: expected a table, got 3"),
    "too many digits": (ISP + f"x = {'9' * 5000}\n", "7: not TOML: a number of more than 1000 digits"),
    "too many hex digits": (ISP + f"mark = 0x{'f' * 5000}\n", "7: not TOML: a number of more than 1000 digits"),
    "too deep": (ISP + f"\nx = {'[' * 5000}\n", "8: not TOML: too many lists or tables in one another"),
    "broken toml": (ISP + "mark = \n", "7: not TOML: Invalid value"),
    "twice in toml": (ISP + 'name = "X"\n', "7: not TOML: Cannot overwrite a value"),
    "empty": ("", "1: isp: no ISP is configured; add an [[isp]] table for each provider"),
    "only comments": ("# nothing\n", "1: isp: no ISP is configured"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_told_with_its_line_and_a_remedy(name: str) -> None:
    text, wanted = WRONG[name]
    said = errors_of(text)
    assert any(line.startswith(f"lsmpy.toml:{wanted}") for line in said), said
    assert all(re.match(r"lsmpy\.toml:\d+: ([\w.-]+|not TOML): \S", line) for line in said)


ALONE = (
    set(WRONG)
    - {"stateless of small networks"}
    - {"single table", "no table at all", "auto beside an address", "none beside a gateway"}
)


@pytest.mark.parametrize("name", sorted(ALONE))
def test_one_mistake_is_told_once(name: str) -> None:
    assert len(errors_of(WRONG[name][0])) == 1


def test_all_mistakes_are_told_at_once_whatever_their_kind() -> None:
    text = """\
colour = "blue"
state_dir = 7

[router]
balance = "dice"

[[isp]]
name = "ISP1"
interface = "eth2"
address = "1.1.1.1/24"
gateway = "9.9.9.9"
check = "203.0.113.1"
weight = "much"

[[isp]]
name = "ISP1"
interface = "eth3"
address = "2.2.2.1/24"
gateway = "2.2.2.2"
check = "203.0.113.2"
mark = 1
table = "uplink"
speed = 10
"""
    assert [re.sub(r": (?:there|expected|is |9|\"|1 ).*", "", line) for line in errors_of(text)] == [
        "lsmpy.toml:1: colour",
        "lsmpy.toml:2: state_dir",
        "lsmpy.toml:5: router.balance",
        "lsmpy.toml:11: isp.gateway",
        "lsmpy.toml:13: isp.weight",
        "lsmpy.toml:16: isp.name",
        "lsmpy.toml:21: isp.mark",
        "lsmpy.toml:22: isp.table",
        "lsmpy.toml:23: isp.speed",
    ]


# What the prober follows by itself and a rebuild cannot yet.
ONLY_PROBED = {
    "same interface": (
        TWO.replace("eth3", "eth2"),
        '9: isp.interface: "eth2" is ISP1\'s already, which needs a later version of lsmpy-reconfig; give each ISP its',
    ),
}


@pytest.mark.parametrize("name", ONLY_PROBED)
def test_what_a_rebuild_cannot_yet_is_refused_and_never_ignored(name: str) -> None:
    text, wanted = ONLY_PROBED[name]
    (said,) = errors_of(text)
    assert said.startswith(f"lsmpy.toml:{wanted}"), said
    assert "needs a later version of lsmpy" in said


@pytest.mark.parametrize("name", ONLY_PROBED)
def test_the_prober_takes_what_a_rebuild_cannot_yet(name: str) -> None:
    text, _ = ONLY_PROBED[name]
    isps = probed(text).isps
    assert [isp.name for isp in isps] == ["ISP1", "ISP2"][: len(isps)]


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_prober_takes_nothing_else(name: str) -> None:
    text, wanted = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        probed(text)
    assert f"lsmpy.toml:{wanted}" in str(caught.value)


def test_a_rebuild_is_told_all_at_once_what_it_cannot_do() -> None:
    text = TWO.replace("eth3", "eth2").replace("check =", "mark = 0\ncheck =", 1)
    assert [line.split(": ")[1] for line in errors_of(text)] == ["isp.mark", "isp.interface"]


@pytest.mark.parametrize(
    ("address", "gateway", "families", "carries"),
    [
        ("auto", "auto", (4, 6), (4, 6)),
        ("auto", "none", (4, 6), (4, 6)),
        ("auto", "1.1.1.2", (4, 6), (4,)),
        ("1.1.1.1/24", "auto", (4,), (4,)),
        ("1.1.1.1/24", "none", (4,), (4,)),
    ],
)
def test_what_the_kernel_shall_tell_may_be_of_both_families(
    address: str, gateway: str, families: tuple[int, ...], carries: tuple[int, ...]
) -> None:
    isp = router_of(ISP.replace("1.1.1.1/24", address).replace("1.1.1.2", gateway)).isps[0]
    assert (isp.families, tuple(f for f in FAMILIES if isp.carries(f))) == (families, carries)
    assert isp.follows == ("auto" in (address, gateway))
    hop = {"auto": None, "none": "0.0.0.0"}.get(gateway, gateway)
    assert str(isp.next_hop(4)) == str(hop)


def test_a_lan_may_have_what_its_interface_has() -> None:
    lan = router_of(ISP + LAN.replace("192.168.1.254/24", "auto")).lans[0]
    assert (lan.families, lan.addresses(4)) == ((4, 6), ())


def test_a_binary_file_is_told_with_its_line() -> None:
    assert errors_of(b"state_dir = '/run'\n\xff\x00\x01") == ["lsmpy.toml:2: not text: byte 0xff is no UTF-8"]


def test_weights_of_dice_have_no_limit() -> None:
    assert router_of("[router]\nbalance = 'random'\n" + ISP + "weight = 1000\n").isps[0].weight == 1000


def test_weights_of_different_tiers_share_no_round() -> None:
    text = ISP + "weight = 100\n" + TWO[len(ISP) :] + "weight = 99\ntier = 2\n"
    assert [isp.tier for isp in router_of(text).isps] == [1, 2]


# -- files ---------------------------------------------------------------------------------------------------


def test_the_file_is_loaded_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(ISP)
    assert config.load(path).isps[0].name == "ISP1"
    path.write_text(ISP + "mark = 0\n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}:7: isp.mark: "):
        config.load(path)


@pytest.mark.parametrize("kind", ["missing", "a directory"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "none.toml" if kind == "missing" else tmp_path
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(str(path))}: cannot read the configuration: .*Nothing was changed"
    ):
        config.load(path)
