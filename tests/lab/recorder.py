"""Records what a prober sends, at the far end of its link: `recorder.py INTERFACE [targets]`.

Prints `ready`; on SIGTERM a JSON object on one line: of each kind of probe, or each target of IPv4, when the kernel
received them.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys

_ETH_P_ALL, _PACKET_OUTGOING = 3, 4
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_TIMESTAMPNS = 35  # SO_TIMESTAMPNS, <asm/socket.h>; the socket module lacks it
_SYN, _SYN_ACK = 0x02, 0x12


def kind(protocol: int, packet: bytes) -> str:
    """What kind of probe a packet is, empty for anything else."""
    if protocol == _ARP:
        return "arp" if packet[7] == 1 else ""
    version, carried, header = ("4", packet[9], 20) if protocol == _IPV4 else ("6", packet[6], 40)
    if protocol not in (_IPV4, _IPV6):
        return ""
    if (carried, packet[header]) in ((socket.IPPROTO_ICMP, 8), (socket.IPPROTO_ICMPV6, 128)):
        return f"echo{version}"
    if carried == socket.IPPROTO_TCP and packet[header + 13] & _SYN_ACK == _SYN:
        return f"tcp{version}"
    return f"dns{version}" if carried == socket.IPPROTO_UDP else ""


def main() -> None:
    """See the file's beginning."""
    times: dict[str, list[float]] = {}
    ended: list[int] = []
    by_target = sys.argv[2:] == ["targets"]
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    listener.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
    listener.bind((sys.argv[1], _ETH_P_ALL))
    listener.settimeout(0.1)
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    print("ready", flush=True)
    while not ended:
        try:
            packet, ancillary, _, address = listener.recvmsg(2048, 64)
        except TimeoutError:
            continue
        if address[2] != _PACKET_OUTGOING and (found := kind(address[1], packet.ljust(64, b"\0"))):
            seconds, nanoseconds = struct.unpack_from("=qq", ancillary[0][2])
            whose = socket.inet_ntoa(packet[16:20]) if by_target else found
            times.setdefault(whose, []).append(seconds + nanoseconds / 1e9)
    print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
