"""What a laboratory consists of: from a router's configuration to one shell script for each namespace."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from lsmpy import spare
from lsmpy.model import AUTO, FAMILIES, NONE, Address, Check, Family, Isp, Lan, Router
from lsmpy.spare import Network, TwinError

ROUTER = "router"
INTERNET = "internet"
_FOREIGN = "FROM-ROUTER"  # the chain, in each ISP's namespace, that looks at source addresses


def isp_node(name: str) -> str:
    """The namespace of an ISP."""
    return f"isp-{name}"


def lan_node(name: str) -> str:
    """The namespace of a LAN's host."""
    return f"lan-{name}"


class Twin:
    """The laboratory's map; it touches nothing.

    Attributes:
        server: the address of the internet's server, for each family that some ISP carries.
    """

    def __init__(self, router: Router) -> None:
        """Find free addresses for what the configuration does not name.

        Raises:
            TwinError: none are left, or the configuration itself leaves addresses to the kernel.
        """
        _require_fixed(router)
        self.router = router
        families = [f for f in FAMILIES if any(isp.carries(f) for isp in router.isps)]
        taken = [each.network for item in (*router.isps, *router.lans) for f in FAMILIES for each in item.addresses(f)]
        taken += [net for isp in router.isps for net in isp.prefixes(6)]
        taken += [ipaddress.ip_network(address) for address in self._checks()]
        # What goes to the server is to be balanced like most of the LANs' traffic, and not what some policy is about.
        special = [net for policy in router.policies if policy.to for f in families for net in policy.targets(f)]
        self.server: dict[Family, Address] = {f: spare.server(f, taken, special) for f in families}
        self._transit = {f: spare.transits(f, [*taken, ipaddress.ip_network(self.server[f])]) for f in families}

    # -- who and where -----------------------------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """Every namespace."""
        return [
            ROUTER,
            INTERNET,
            *(isp_node(isp.name) for isp in self.router.isps),
            *(lan_node(lan.name) for lan in self.router.lans),
        ]

    def isp(self, name: str) -> Isp:
        """The ISP called `name`.

        Raises:
            TwinError: there is none.
        """
        for isp in self.router.isps:
            if isp.name == name:
                return isp
        raise TwinError(f"there is no ISP {name}; known are {', '.join(isp.name for isp in self.router.isps)}")

    def link(self, isp: Isp) -> str:
        """The internet's interface towards an ISP."""
        return f"isp{self.router.isps.index(isp) + 1}"

    def host(self, lan: Lan, family: Family) -> Address | None:
        """The address of a LAN's host, in the LAN's first network of the family."""
        return next((address for address, _ in self._host_addresses(lan, family)), None)

    def _host_addresses(self, lan: Lan, family: Family) -> Iterator[tuple[Address, Network]]:
        own = {each.ip for each in lan.addresses(family)}
        for network in dict.fromkeys(each.network for each in lan.addresses(family)):
            hosts: Iterator[Address] = network.hosts()
            free = next((address for address in islice(hosts, len(own) + 2) if address not in own), None)
            if free is None:
                raise TwinError(f"LAN {lan.name}: {network} has no room for a host beside the router")
            yield free, network

    def outer_calls(self) -> list[str]:
        """The servers' ports (`KIND ADDRESS NUMBER`) that are checked in the internet."""
        inner = {port for isp in self.router.isps for port in self.inner_calls(isp)}
        calls = dict.fromkeys(_port(check) for isp in self.router.isps for check in isp.checks if check.port)
        return [port for port in calls if port not in inner]

    def inner_calls(self, isp: Isp) -> list[str]:
        """Those that are checked inside the ISP's own networks."""
        inner = {*self._inner_checks(isp), *(str(isp.next_hop(family)) for family in FAMILIES)}
        checks = (check for other in self.router.isps for check in other.checks if check.port)
        return list(dict.fromkeys(_port(check) for check in checks if str(check.address) in inner))

    def _checks(self) -> set[Address]:
        return {check.address for isp in self.router.isps for check in isp.checks if check.address is not None}

    def _networks(self, isp: Isp) -> list[Network]:
        return [net for family in FAMILIES for net in isp.networks(family)]

    def _routed(self, isp: Isp, family: Family) -> list[Network]:
        """What this ISP routes to the router: its prefixes, and the LANs' networks if nothing translates them.

        A network inside another ISP's prefix is that ISP's to carry, and foreign here.
        """
        own = list(isp.prefixes(family))
        if isp.nat.kind(family) != "none":
            return own
        others = [net for other in self.router.isps if other is not isp for net in self._networks(other)]
        lans = dict.fromkeys(each.network for lan in self.router.lans for each in lan.addresses(family))
        return own + [net for net in lans if not any(_inside(net, other) for other in (*own, *others))]

    # -- scripts: each makes one namespace what it is ----------------------------------------------------------------

    def links(self) -> str:
        """`ip -batch` text that makes every cable."""
        lines = [self.cable(isp) for isp in self.router.isps]
        for isp in self.router.isps:
            lines.append(_veth(isp_node(isp.name), INTERNET, INTERNET, self.link(isp)))
        lines += [_veth(ROUTER, lan.interface, lan_node(lan.name), ROUTER) for lan in self.router.lans]
        return "\n".join(lines) + "\n"

    def cable(self, isp: Isp) -> str:
        """The line of `ip -batch` text for the cable between the router and an ISP."""
        return _veth(ROUTER, isp.interface, isp_node(isp.name), ROUTER)

    def router_script(self, main_default: str | None) -> str:
        """The router before lsmpy: forwarding, addresses, and at most a default route in the main table."""
        items: tuple[Isp | Lan, ...] = (*self.router.isps, *self.router.lans)
        lines = list(chain.from_iterable(map(self.router_port, items)))
        ports = [item.interface for item in items]
        if main_default is not None:
            isp = self.isp(main_default)
            hops = [hop for family in FAMILIES if (hop := isp.next_hop(family))]
            lines += [f"route add default via {hop} dev {isp.interface}" for hop in hops]
        # rp_filter as systemd's 50-default.conf sets it: strict enough to show whoever forgets about it.
        return _script(ports, lines, {"ipv4/conf/*/rp_filter": 2, "ipv4/conf/all/rp_filter": 0})

    def router_port(self, item: Isp | Lan) -> list[str]:
        """`ip -batch` lines that bring up one interface of the router with its addresses."""
        return [*_addresses(item.address, item.interface), f"link set dev {item.interface} up"]

    def isp_script(self, isp: Isp) -> str:
        """An ISP: gateway, way to the internet, and a counter of packets that no customer of it may send."""
        lines = [*_addresses(self._inner_checks(isp), "lo")]
        for transit in self._transit.values():
            net = transit[self.router.isps.index(isp)]
            lines += _addresses([f"{net[1]}/{net.prefixlen}"], INTERNET)
            lines.append(f"route add default via {net[2]} dev internet")
        lines += self.isp_port(isp)
        # An address that a pulled cable takes away would not come back with the cable.
        sysctls = {"ipv4/conf/*/rp_filter": 0, "ipv6/conf/*/keep_addr_on_down": 1}
        guards = [(family, self._source_guard(isp, family)) for family in FAMILIES]
        return _script([ROUTER, INTERNET], lines, sysctls) + "".join(_restore(family, text) for family, text in guards)

    def isp_port(self, isp: Isp) -> list[str]:
        """`ip -batch` lines for the ISP's end of the cable to the router, whatever of it is there already."""
        lines: list[str] = []
        for family in FAMILIES:
            hop = isp.next_hop(family)
            own = isp.addresses(family)
            if not hop or not own:
                continue
            home = next((each.network for each in own if hop in each.network), None)
            lines += _addresses([f"{hop}/{home.prefixlen if home else 64}"], ROUTER, "replace")
        lines.append("link set dev router up")
        for family in FAMILIES:
            hop, own = isp.next_hop(family), isp.addresses(family)
            lines += [f"route replace {each.network} dev router" for each in own if hop not in each.network]
            lines += [f"route replace {net} via {own[0].ip} dev router" for net in self._routed(isp, family) if own]
        return lines

    def _inner_checks(self, isp: Isp) -> list[str]:
        """Check targets inside the ISP's own networks live there: they answer while its upstream is dead."""
        gateways = {isp.next_hop(family) for family in FAMILIES}
        return [
            str(address)
            for address in sorted(self._checks() - gateways, key=str)
            if any(address in net for net in self._networks(isp))
        ]

    def _source_guard(self, isp: Isp, family: Family) -> str:
        """Counts and drops, as a provider's ingress filter does (BCP 38), what comes with somebody else's source."""
        legal = [each.network for each in isp.addresses(family)] + self._routed(isp, family)
        silent = ["-d 224.0.0.0/4", "-d 255.255.255.255", "-s 0.0.0.0"]
        if family == 6:
            silent = ["-d ff00::/8", "-s fe80::/10", "-s ::/128"]
        returns = [*silent, *(f"-s {net}" for net in dict.fromkeys(legal))]
        return "\n".join(
            [
                "*raw",
                f":{_FOREIGN} - [0:0]",
                f"-A PREROUTING -i router -j {_FOREIGN}",
                *(f"-A {_FOREIGN} {match} -j RETURN" for match in returns),
                f"-A {_FOREIGN} -j DROP",
                "COMMIT",
            ]
        )

    def internet_script(self) -> str:
        """The internet: check targets, the server, and each answer by the link on which the question came."""
        inner = {text for isp in self.router.isps for text in self._inner_checks(isp)}
        gateways = {str(isp.next_hop(family)) for isp in self.router.isps for family in FAMILIES}
        targets = {str(address) for address in self._checks()} - inner - gateways
        targets |= {str(address) for address in self.server.values()}
        ports = [self.link(isp) for isp in self.router.isps]
        lines = list(_addresses(sorted(targets), "lo"))
        rules, marks = "", []
        for place, isp in enumerate(self.router.isps, 1):
            link = self.link(isp)
            marks.append(f"-A PREROUTING -i {link} -j MARK --set-mark {place}")
            for family, transit in self._transit.items():
                net = transit[place - 1]
                lines += _addresses([f"{net[2]}/{net.prefixlen}"], link)
                way = f"via {net[1]} dev {link}"
                # Sockets bound to a link find its default whatever the metric; unbound ones go where the address lives.
                lines += [f"route add default {way} metric {place}", f"route add default {way} table {1000 + place}"]
                networks = [each for each in isp.networks(family) if not each.is_link_local]
                lines += [f"route add {each} {way} metric {place}" for each in dict.fromkeys(networks)]
                rules += f"ip -{family} rule add pref {place} fwmark {place} lookup {1000 + place}\n"
        # Echo replies and resets have no socket: they leave by the link whose mark they reflect.
        sysctls = {"ipv4/conf/*/rp_filter": 0, "ipv4/fwmark_reflect": 1, "ipv6/fwmark_reflect": 1}
        restore = "\n".join(["*mangle", *marks, "COMMIT"])
        return _script(ports, lines, sysctls) + rules + "".join(_restore(family, restore) for family in self._transit)

    def lan_script(self, lan: Lan) -> str:
        """A LAN's host: an address in each of the LAN's networks and a default route to the router."""
        lines: list[str] = []
        for family in FAMILIES:
            places = list(self._host_addresses(lan, family))
            lines += _addresses([f"{address}/{net.prefixlen}" for address, net in places], ROUTER)
            if places:
                lines.append(f"route add default via {lan.addresses(family)[0].ip} dev router")
        return _script([ROUTER], lines, {"ipv4/conf/*/rp_filter": 0})


def _require_fixed(router: Router) -> None:
    """Refuse what only the router itself has.

    Raises:
        TwinError: an address or a gateway is left to the kernel, or there is none.
    """
    for item in (*router.isps, *router.lans):
        gateway = item.gateway if isinstance(item, Isp) else ()
        if AUTO in (*item.address, *gateway):
            raise TwinError(
                f'{item.name} has "{AUTO}" for an address or gateway, and a twin of the router has to know them. '
                "Nothing was built. Rehearse a copy of the configuration that gives those of today"
            )
        if NONE in gateway:
            raise TwinError(
                f'{item.name} has gateway = "{NONE}", and the cables of a twin are Ethernet, where that leads nowhere. '
                "Nothing was built. Rehearse a copy of the configuration that gives this ISP a gateway in its "
                'address\'s network, such as address = "192.0.2.1/30" and gateway = "192.0.2.2"'
            )


def foreign_count(saved: str) -> int:
    """The packets with a foreign source in what `iptables-save -c -t raw` printed in an ISP's namespace."""
    drops = [line for line in saved.splitlines() if line.endswith(f"-A {_FOREIGN} -j DROP")]
    return sum(int(line[1:].split(":")[0]) for line in drops)


def _script(ports: Sequence[str], ip_lines: Sequence[str], sysctls: dict[str, int]) -> str:
    """A shell script: sysctls below /proc/sys/net (patterns allowed), then all ports up and one batch of ip commands.

    It ends when the kernel has noticed that both ends of the cables are up, of which the multicast routes, without
    which nobody finds a neighbour, are the last sign. Duplicate address detection would take a second more, and
    so would each question for a neighbour that is asked before the other end is ready.
    """
    common = {
        "ipv4/ip_forward": 1,
        "ipv6/conf/*/accept_dad": 0,
        "ipv6/conf/*/forwarding": 1,
        "ipv6/conf/*/accept_ra": 0,
        "ipv*/neigh/*/retrans_time_ms": 100,
    }
    writes = [f"for file in {path}; do echo {value} > $file; done\n" for path, value in {**common, **sysctls}.items()]
    ups = [f"link set dev {port} up" for port in ("lo", *ports)]
    wait = f"""for try in $(seq 300); do
    [ "$(ip -6 route show table local type multicast | wc -l)" -ge {len(ports)} ] && break
    sleep 0.01
done
"""
    return "set -e\ncd /proc/sys/net\n" + "".join(writes) + batch([*ups, *ip_lines]) + wait


def batch(ip_lines: Iterable[str]) -> str:
    """Shell text that runs `ip` once for all the lines."""
    return "ip -batch - <<'END'\n" + "\n".join(ip_lines) + "\nEND\n"


def _restore(family: Family, text: str) -> str:
    return f"{'iptables' if family == 4 else 'ip6tables'}-restore -w <<'END'\n{text}\nEND\n"


def _port(check: Check) -> str:
    return f"{check.kind} {check.address} {check.port}"


def _veth(node: str, interface: str, peer_node: str, peer: str) -> str:
    return f"link add name {interface} netns {node} type veth peer name {peer} netns {peer_node}"


def _addresses(texts: Iterable[str], interface: str, verb: str = "add") -> Iterator[str]:
    return (f"address {verb} {text} dev {interface}{' nodad' if ':' in text else ''}" for text in texts)


def _inside(net: Network, other: Network) -> bool:
    return net.version == other.version and net.subnet_of(other)  # type: ignore[arg-type]
