"""What must fit together in a configuration: marks, tables, interfaces, addresses, gateways, targets, weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from lsmpy import choice, npt, shares
from lsmpy.mistakes import Mistakes, shown
from lsmpy.model import (
    AUTO,
    FAMILIES,
    NONE,
    Address,
    Addressed,
    Interface,
    Isp,
    Lan,
    Network,
    Options,
    Policy,
    Rules,
    lowest_bit,
    parse_check,
    parse_ports,
)
from lsmpy.routing import LOCAL_DEFAULT


def check(mistakes: Mistakes, isps: list[Isp], lans: list[Lan], options: Options) -> None:
    """Add to the `mistakes` what does not fit together."""
    _check_mask(mistakes, isps, options.mark_mask)
    _unique(mistakes, "isp", isps, ("name", "mark", "table"))
    _unique(mistakes, "lan", lans, ("name",))
    interfaces: dict[str, tuple[str, str]] = {}
    addresses: dict[str, tuple[str, str]] = {}
    for table, items in (("isp", isps), ("lan", lans)):
        for index, item in enumerate(items):
            this = table, item.name
            _check_interface(mistakes, table, index, item.interface)
            other = interfaces.setdefault(item.interface, this)
            if other != this and (other[0], table) != ("isp", "isp"):
                text = f"{shown(item.interface)} is {other[1]}'s already; each LAN needs an interface of its own"
                mistakes.wrong(table, index, "interface", text)
            _check_addresses(mistakes, table, index, item)
            for text in item.address:
                other = addresses.setdefault(text.split("/")[0], this)
                if other != this and text != AUTO:
                    mistakes.wrong(table, index, "address", f"{text} is {other[1]}'s already; give each its own")
    for index, isp in enumerate(isps):
        _check_isp(mistakes, index, isp)
        if isp.table == LOCAL_DEFAULT and options.local_traffic == "balance":
            text = f'{isp.table} is what local_traffic = "balance" uses; give another one'
            mistakes.wrong("isp", index, "table", text)
    if options.balance == "nth" and not mistakes.any_replaced("balance", "weight", "tier"):
        _check_weights(mistakes, isps)


def check_router_part(mistakes: Mistakes, isps: list[Isp]) -> None:
    """Add to the `mistakes` what the prober can do and a rebuild cannot yet."""
    interfaces: dict[str, str] = {}
    for index, isp in enumerate(isps):
        other = interfaces.setdefault(isp.interface, isp.name)
        if other != isp.name:
            later = f"is {other}'s already, which needs a later version of lsmpy-reconfig; give each ISP its own"
            mistakes.wrong("isp", index, "interface", f"{shown(isp.interface)} {later}")


def check_rules(mistakes: Mistakes, rules: Rules, options: Options) -> None:
    """Add to the `mistakes` rules for tables that are not ours."""
    for family in FAMILIES:
        if options.beside_others and rules.files(family):
            text = 'is for flush = "all", which rebuilds the tables whole; with "own" your rules stay as they are: load'
            text += " them by what else makes your rules, or by a program of after, and leave this key out"
            mistakes.wrong("rules", None, f"ipv{family}", text)


def check_paths(mistakes: Mistakes, table: str, key: str, paths: tuple[str, ...]) -> None:
    """Add to the `mistakes` files that would be looked for in the directory of whoever starts us."""
    for text in paths:
        if not text.startswith("/"):
            mistakes.wrong(table, None, key, f"{shown(text)} is no absolute path; give the file's whole path")


def check_prefixes(
    mistakes: Mistakes, isps: list[Isp], lans: list[Lan], policies: list[Policy], options: Options
) -> None:
    """Add to the `mistakes` prefixes that are none or somebody else's, and what cannot be translated to them."""
    good = [_are_prefixes(mistakes, index, isp) for index, isp in enumerate(isps)]
    if not all(good):
        return  # one mistake is told once
    links = [(ip_interface(text).network, isp) for isp in isps for text in isp.address if _is_interface(text)]
    routed: list[tuple[Network, Isp]] = []
    for index, isp in enumerate(isps):
        others = [*((net, other) for net, other in links if other is not isp), *routed]
        for net in isp.prefixes(6):
            clash = next(((n, other) for n, other in others if n.version == 6 and n.overlaps(net)), None)
            if clash:
                text = f"{net} overlaps {clash[0]} of {clash[1].name}; give each ISP what it routes to you"
                mistakes.wrong("isp", index, "prefix", text)
            others.append((net, isp))
            routed.append((net, isp))
        if not (mistakes.any_replaced("address") or _bad_addresses(isp, *lans)):
            _check_places(mistakes, index, isp, lans)
    if any(isp.nat.ipv6 == npt.STATELESS for isp in isps):
        _check_stateless(mistakes, [isp for isp in isps if _bad_addresses(isp) or isp.carries(6)], lans, options)
        for index, _ in enumerate(policies):
            text = 'needs to know of connections, and "npt-stateless" forgets each packet; leave it out, or give "npt"'
            mistakes.wrong("policy", index, "", text)


def _are_prefixes(mistakes: Mistakes, index: int, isp: Isp) -> bool:
    wrong = []
    for text in isp.prefix:
        if _is_interface(text) and "/" in text and ip_interface(text).version == 6:
            network = ip_interface(text).network
            if not _parses(ip_network, text):
                wrong.append(f"{text} has bits beyond its prefix; write {network}")
        else:
            wrong.append(f'{shown(text)} is no IPv6 prefix; give one such as "2001:db8:5:100::/56"')
    for text in wrong:
        mistakes.wrong("isp", index, "prefix", text)
    return not wrong


def _bad_addresses(*items: Addressed) -> bool:
    return not all(text == AUTO or _is_interface(text) for item in items for text in item.address)


def _check_places(mistakes: Mistakes, index: int, isp: Isp, lans: list[Lan]) -> None:
    """Add to the `mistakes` the LANs' networks that the ISP's prefixes have no room for, or it needs some."""
    if isp.nat.ipv6 not in (npt.STATEFUL, npt.STATELESS) or not isp.addresses(6):
        return
    kind = shown(isp.nat.ipv6)
    if not isp.prefix:
        text = f'is needed for nat.ipv6 = {kind}: what the ISP routes to you, such as "2001:db8:5:100::/56"'
        mistakes.wrong("isp", index, "prefix", text)
        return
    for net in npt.homeless(isp, tuple(lans)):
        text = (
            f"{', '.join(isp.prefix)} has no place for {net} of the LANs, whose bits after the prefix stay as they are"
        )
        text += ": too small, or taken; give a shorter prefix, one more, or a LAN other addresses"
        mistakes.wrong("isp", index, "prefix", text)


def _check_stateless(mistakes: Mistakes, isps: list[Isp], lans: list[Lan], options: Options) -> None:
    """Add to the `mistakes` what needs to know a packet's connection."""
    possible = 'possible with it are a tier for each ISP, or balance = "hash"; "npt" works with everything'
    if {isp.nat.ipv6 for isp in isps} != {npt.STATELESS}:
        text = '"npt-stateless" is for all ISPs or for none: what conntrack does not see, none can translate otherwise'
        mistakes.wrong("nat", None, "ipv6", text)
    for net in () if _bad_addresses(*lans) else npt.networks(lans):
        if net.prefixlen > 64:
            text = f'"npt-stateless" cannot translate {net}, which is smaller than /64; give "npt"'
            mistakes.wrong("nat", None, "ipv6", text)
    if choice.by_rule(isps) or mistakes.any_replaced("balance", "tier"):
        return
    if options.balance != "hash":
        text = f'"npt-stateless" forgets each packet, and {shown(options.balance)} would send the next one elsewhere'
        mistakes.wrong("nat", None, "ipv6", f"{text}; {possible}")
    elif options.mark_mask != 0xFFFFFFFF:
        text = f'"npt-stateless" hashes packets, which needs their whole mark, not {options.mark_mask:#x}; {possible}'
        mistakes.wrong("router", None, "mark_mask", text)


def check_policies(
    mistakes: Mistakes, policies: list[Policy], isps: list[Isp], lans: list[Lan], options: Options
) -> None:
    """Add to the `mistakes` what does not fit together in the policies, and with the rest."""
    _unique(mistakes, "policy", policies, ("name",))
    names = {"use": [isp.name for isp in isps], "lan": [lan.name for lan in lans]}
    for index, policy in enumerate(policies):
        for key, texts in (("use", policy.use), ("lan", policy.lan)):
            for text in dict.fromkeys(texts):
                known_all = not mistakes.any_replaced("name") and mistakes.usable("policy", index, key)
                if text not in names[key] and known_all:
                    known = ", ".join(names[key]) or "none"
                    mistakes.wrong("policy", index, key, f"{shown(text)} is not configured; known are {known}")
        if not policy.use and mistakes.usable("policy", index, "use"):
            mistakes.wrong("policy", index, "use", "is empty; name the ISPs for this traffic, the preferred first")
        _check_networks(mistakes, index, policy)
        _check_ports(mistakes, index, policy)
        matches = (policy.to, policy.from_, policy.lan, policy.protocol, policy.ports)
        if (
            not any(matches)
            and index < len(policies) - 1
            and not mistakes.any_replaced("to", "from", "lan", "protocol")
        ):
            text = "matches everything, so that no policy after it is ever used; put it last, or give to, from or lan"
            mistakes.wrong("policy", index, "name", text)
    highest = options.mark_mask // lowest_bit(options.mark_mask)
    if any(policy.otherwise == "unreachable" for policy in policies):
        for index, isp in enumerate(isps):
            if isp.mark == highest:
                text = f'{isp.mark} is needed for what a policy\'s otherwise = "unreachable" refuses; give another mark'
                mistakes.wrong("isp", index, "mark", text)


def _check_networks(mistakes: Mistakes, index: int, policy: Policy) -> None:
    families: dict[str, set[int]] = {"to": set(), "from": set()}
    for key, texts in (("to", policy.to), ("from", policy.from_)):
        for text in texts:
            if _parses(ip_network, text):
                network = ip_network(text)
                families[key].add(network.version)
                if network.version == 6 and network.prefixlen and not int(network.network_address) >> 96:
                    mistakes.wrong("policy", index, key, f"{text} is no network of the internet; give IPv4 as such")
            elif _is_interface(text):
                text = f"{text} has bits beyond its prefix; write {ip_interface(text).network}"
                mistakes.wrong("policy", index, key, text)
            else:
                mistakes.wrong("policy", index, key, f'{shown(text)} is no network; give one such as "198.51.100.0/24"')
    if families["to"] and families["from"] and not families["to"] & families["from"]:
        text = "is of another family than to, so that nothing matches; give networks of one family"
        mistakes.wrong("policy", index, "from", text)


def _check_ports(mistakes: Mistakes, index: int, policy: Policy) -> None:
    for item in policy.ports:
        if not _parses(parse_ports, item):
            text = f'{shown(item)} is no port; give one from 1 to 65535, or a range such as "5060-5080"'
            mistakes.wrong("policy", index, "ports", text)
    without = [each for each in policy.protocol if each not in ("tcp", "udp", "sctp")]
    if policy.ports and (without or not policy.protocol) and mistakes.usable("policy", index, "protocol"):
        text = f"{without[0]} has no ports" if without else "needs to know of which protocol"
        mistakes.wrong("policy", index, "ports", f'{text}; give protocol = "tcp", "udp" or both')


def _check_mask(mistakes: Mistakes, isps: list[Isp], mask: int) -> None:
    values = mask // lowest_bit(mask)
    if values & (values + 1):
        mistakes.wrong("router", None, "mark_mask", f"{mask:#x} has gaps; give bits in a row, such as 0xff00")
    for index, isp in enumerate(isps):
        if isp.mark > values:
            text = f"{isp.mark} does not fit into mark_mask {mask:#x}; give a mark from 1 to {values}"
            mistakes.wrong("isp", index, "mark", text)


def _unique(mistakes: Mistakes, table: str, items: Sequence[Isp | Lan | Policy], keys: tuple[str, ...]) -> None:
    for key in keys:
        seen: dict[object, str] = {}
        for index, item in enumerate(items):
            value = getattr(item, key)
            if not mistakes.usable(table, index, key):
                continue
            if value in seen:
                mistakes.wrong(table, index, key, f"{shown(value)} is {seen[value]}'s already; give each its own")
            seen.setdefault(value, item.name)


def _check_interface(mistakes: Mistakes, table: str, index: int, name: str) -> None:
    real = name.partition(":")[0]
    if real != name:
        text = f"is an alias, which only labels an address, and no interface; write {shown(real)}"
    elif name == "lo":
        text = "is the loopback, by which nobody else is reached; give the interface that the cable is at"
    elif name in ("all", "default"):
        text = "is the kernel's word for the settings of every interface; give the name of one"
    else:
        return
    mistakes.wrong(table, index, "interface", f"{shown(name)} {text}")


def _check_addresses(mistakes: Mistakes, table: str, index: int, item: Addressed) -> None:
    if not item.address and mistakes.usable(table, index, "address"):
        mistakes.wrong(table, index, "address", 'is empty; give an address with its prefix, such as "192.0.2.1/24"')
    for text in item.address:
        if text == AUTO:
            if len(item.address) > 1:
                mistakes.wrong(table, index, "address", '"auto" stands beside others; give it alone, or addresses')
            continue
        if not _is_interface(text):
            mistakes.wrong(table, index, "address", f'{shown(text)} is no address; give one such as "192.0.2.1/24"')
        elif "/" not in text:
            length = 64 if ":" in text else 24
            text = f'{shown(text)} has no prefix length; write "{text}/{length}" or what your network has'
            mistakes.wrong(table, index, "address", text)
        elif wrong := _no_host(ip_interface(text)):
            mistakes.wrong(table, index, "address", f"{text} {wrong}")


def _no_host(own: Interface) -> str:
    """Why an interface cannot have this address, or an empty string."""
    network = own.network
    if own.ip.is_loopback or own.ip.is_multicast or own.ip.is_unspecified:
        return "is no address that others can send to; give the one that this interface has"
    if own.version == 6 or network.prefixlen > 30 or own.ip not in (network[0], network[-1]):
        return ""
    what = "the network itself" if own.ip == network[0] else "the broadcast address of its network"
    return f"is {what}; give the router's address in it, from {network[1]} to {network[-2]}"


def _check_isp(mistakes: Mistakes, index: int, isp: Isp) -> None:
    own = [ip_interface(text) for text in isp.address if _is_interface(text)]
    # One mistake is told once: what cannot be read is not held against other keys.
    own_known = bool(own) and all("/" in text and _is_interface(text) for text in isp.address)
    hops_known = all(map(_is_address, isp.gateway)) and mistakes.usable("isp", index, "gateway")
    hops: dict[int, str] = {}
    for text in isp.gateway:
        if text in (AUTO, NONE):
            if len(isp.gateway) > 1:
                mistakes.wrong("isp", index, "gateway", f'"{text}" stands beside others; give it alone, or addresses')
            continue
        if not _is_address(text):
            mistakes.wrong("isp", index, "gateway", f'{shown(text)} is no address; give one such as "192.0.2.2"')
            continue
        hop = ip_address(text)
        if hop.version in hops:
            mistakes.wrong("isp", index, "gateway", f"two of IPv{hop.version}; give one of each family")
        hops[hop.version] = text
        networks = [each.network for each in own if each.version == hop.version]
        if any(each.ip == hop for each in own):
            mistakes.wrong("isp", index, "gateway", f"{text} is the router's own address; give the provider's")
        elif own_known and not any(hop in network for network in networks) and not (networks and hop.is_link_local):
            inside = ", ".join(map(str, networks)) or f"nothing: there is no IPv{hop.version} address"
            mistakes.wrong("isp", index, "gateway", f"{text} is outside the ISP's network; give one inside {inside}")
    for family in sorted({each.version for each in own} - hops.keys()) if hops_known else ():
        mistakes.wrong("isp", index, "gateway", f"there is an IPv{family} address but no gateway of IPv{family}")
    if mistakes.usable("isp", index, "check"):
        families: set[int] = set(hops) if hops_known else set(FAMILIES)
        if isp.gateway in ((AUTO,), (NONE,)) and own_known:
            families = {each.version for each in own}
        _check_targets(mistakes, index, isp, families)
    if not 1 <= isp.quorum <= max(1, len(isp.check)) and mistakes.usable("isp", index, "check"):
        text = f"{isp.quorum} of {len(isp.check)} targets can never answer; give 1 to {len(isp.check)}"
        mistakes.wrong("isp", index, "quorum", text)
    losses = [
        (t, i, f"{end}_packet_loss") for t, i in (("probe", None), ("isp.probe", index)) for end in ("max", "min")
    ]
    known = all(mistakes.usable(*place) for place in losses)
    if known and isp.probe.max_packet_loss <= isp.probe.min_packet_loss:
        highest, lowest = isp.probe.max_packet_loss, isp.probe.min_packet_loss
        text = f"max_packet_loss ({highest}) must be above min_packet_loss ({lowest}), or the ISP would flip"
        mistakes.wrong("isp", index, "probe", text)
    for kind in ("rtt", "jitter"):
        highest, lowest = (getattr(isp.probe, f"{end}_{kind}_ms") for end in ("max", "min"))
        if (highest or lowest) and not 0 < lowest < highest:
            text = f"max_{kind}_ms ({highest}) needs a min_{kind}_ms above 0 and below it, to come back at"
            mistakes.wrong("isp", index, "probe", f"{text}; it is {lowest}")


def _check_targets(mistakes: Mistakes, index: int, isp: Isp, families: set[int]) -> None:
    if not isp.check:
        mistakes.wrong("isp", index, "check", "is empty; give at least one address that only this ISP's failure hides")
    hops = [ip_address(text) for text in isp.gateway if _is_address(text)]
    for place, text in enumerate(isp.check):
        try:
            check = parse_check(text)
        except ValueError:
            forms = '"192.0.2.9", "gateway", "arp", "tcp://192.0.2.9:443" or "dns://192.0.2.9/example.org"'
            mistakes.wrong("isp", index, "check", f"{shown(text)} is nothing to ask; give one such as {forms}")
            continue
        if text == "gateway" or check.address in hops:
            mistakes.warnings.append(
                f"{isp.name}: check: the gateway answers while its upstream is dead; probe an address behind it"
            )
        if check.address is None and NONE in isp.gateway:
            mistakes.wrong("isp", index, "check", f"{shown(text)} asks the gateway and there is none; give an address")
        elif check.address and check.address.version not in families:
            family = f"IPv{check.address.version}"
            lacks = "address" if isp.gateway in ((AUTO,), (NONE,)) else "gateway"
            mistakes.wrong("isp", index, "check", f"{text} is {family}, for which this ISP has no {lacks}")
        elif check.address and (wrong := _no_target(isp, check.address)):
            text = f"{text} is {wrong}; give an address that only this ISP's failure hides"
            mistakes.wrong("isp", index, "check", text)
        if text in isp.check[:place]:
            mistakes.wrong("isp", index, "check", f"{text} stands twice; give different targets")


def _no_target(isp: Isp, address: Address) -> str:
    """What keeps an address from telling anything of the ISP, or an empty string."""
    own = (ip_interface(text).ip for text in isp.address if _is_interface(text))
    if address.is_loopback or address in own:
        return "the router itself, which does not need this ISP"
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        return "nobody's address"
    return ""


def _check_weights(mistakes: Mistakes, isps: list[Isp]) -> None:
    for tier in sorted({isp.tier for isp in isps}):
        weights = [isp.weight for isp in isps if isp.tier == tier]
        if (needed := sum(shares.reduce(weights))) > shares.MAX_SLOTS:
            index = next(i for i, isp in enumerate(isps) if isp.tier == tier)
            ratio = f"{':'.join(map(str, shares.nearest(weights)))}, or " if len(weights) <= shares.MAX_SLOTS else ""
            text = f"the weights of tier {tier} need {needed} slots and nth has {shares.MAX_SLOTS}"
            text += f'; give {ratio}balance = "random"'
            mistakes.wrong("isp", index, "weight", text)


def _is_address(text: str) -> bool:
    return "%" not in text and _parses(ip_address, text)


def _is_interface(text: str) -> bool:
    return "%" not in text and _parses(ip_interface, text)


def _parses(parse: Callable[[Any], object], text: object) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True
