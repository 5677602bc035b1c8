"""Providers that give addresses: DHCP by busybox, router advertisements by radvd, each in its provider's namespace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lsmpy import command
from lsmpy.lab import ROUTER, isp_node, wait_until
from tests.lab.router_kit import Rig

# What distributions' scripts for udhcpc do, with a metric for each interface, so that main holds every default route.
_CLIENT = """#!/bin/sh
case $1 in
deconfig) ip address flush dev $interface scope global; ip link set $interface up ;;
bound | renew)
    ip -4 address show dev $interface | grep -q " $ip/$mask " || {
        ip -4 address flush dev $interface
        ip address add $ip/$mask dev $interface
    }
    ip route replace default via ${router%% *} dev $interface metric ${interface#eth} ;;
esac
"""
_SERVER = """interface router
start {first}
end {first}
option subnet 255.255.255.0
option router {gateway}
option lease {lease_s}
lease_file {place}/leases
pidfile {place}/pid
"""
_ADVERTISER = """interface router {{
    AdvSendAdvert on;
    MinRtrAdvInterval 3;
    MaxRtrAdvInterval 4;
    {prefixes}
}};
"""


class Dhcp:
    """An ISP of `configuration` whose address comes by DHCP: a server there and a client in the router."""

    def __init__(self, router: Rig, place: Path, number: int) -> None:
        self._router, self._number = router, number
        self._place = place / f"dhcp{number}"
        self._place.mkdir()
        script = self._place / "client"
        script.write_text(_CLIENT)
        script.chmod(0o755)
        self._argv = ["busybox", "udhcpc", "-f", "-i", f"eth{number + 1}", "-s", str(script), "-t", "20", "-T", "1"]
        self._client: command.Running | None = None
        self._server: command.Running | None = None

    def serve(self, host: int, gateway: int = 2, lease_s: int = 3600) -> str:
        """Give this address from now on, and no other; returns it."""
        if self._server:
            self._server.stop()
        network = ".".join([str(self._number)] * 3)
        text = _SERVER.format(
            first=f"{network}.{host}", gateway=f"{network}.{gateway}", lease_s=lease_s, place=self._place
        )
        (self._place / "server").write_text(text)
        (self._place / "leases").write_bytes(b"")
        argv = ["busybox", "udhcpd", "-f", str(self._place / "server")]
        node = isp_node(f"ISP{self._number}")
        self._server = self._router.lab.start(node, argv, print)
        # A client whose renewal nobody hears tries again in a minute.
        wait_until(lambda: self._router.lab.shell(node, "ss -Hlun sport = :67\n"), what="the server")
        return f"{network}.{host}"

    def ask(self) -> None:
        """Start the client, or have it give its lease back and ask again."""
        if self._client is None:
            self._client = self._router.lab.start(ROUTER, self._argv, print)
        else:
            os.kill(self._client.pid, signal.SIGUSR2)
            os.kill(self._client.pid, signal.SIGUSR1)

    def renew(self) -> None:
        """Have the client ask for its lease again."""
        assert self._client
        os.kill(self._client.pid, signal.SIGUSR1)


class Advertiser:
    """An ISP that advertises itself and prefixes; the router is told to listen, although it forwards."""

    def __init__(self, router: Rig, place: Path, number: int) -> None:
        self._router, self._number, self._place = router, number, place / f"radvd{number}"
        self._place.mkdir()
        self._running: command.Running | None = None
        router.shell(f"echo 2 >/proc/sys/net/ipv6/conf/eth{number + 1}/accept_ra\n")

    def advertise(self, *prefixes: str, deprecated: str = "") -> None:
        """Advertise these from now on, and one that is not to be used for what is new."""
        lines = [f"prefix {each} {{ }};" for each in prefixes]
        lines += [f"prefix {deprecated} {{ AdvPreferredLifetime 0; }};"] if deprecated else []
        file = self._place / "conf"
        file.write_text(_ADVERTISER.format(prefixes="\n    ".join(lines)))
        if self._running:
            self._running.process.signal(signal.SIGHUP)  # one that ends withdraws itself as a router
            return
        argv = ["radvd", "-n", "-C", str(file), "-p", str(self._place / "pid"), "-m", "stderr"]
        self._running = self._router.lab.start(isp_node(f"ISP{self._number}"), argv, print)
