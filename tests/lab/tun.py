"""A tun device and whoever sits behind it: tells what comes out of the device, and answers if it is wished.

`tun.py --name tun0` makes the device in the namespace where it is started, sets it up and prints `ready`, then a line
`SOURCE TARGET PROTOCOL` (its number) for each IP packet that the kernel sends there. Addresses and routes are given by
whoever needs them. The device goes with the program.

With --answer everybody is at home, whatever the address: an echo request gets its reply, and UDP and TCP come back with
addresses and ports swapped. A TCP client then talks to itself: its SYN comes back as the other end's, which opens the
connection from both sides at once (RFC 9293, 3.5), and what it sends is what it reads. No answer waits for another.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import ipaddress
import itertools
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # <linux/if_tun.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x0001  # <linux/sockios.h>, <linux/if.h>
_IFREQ = "16sH22x"  # a name and flags
_TCP, _UDP = 6, 17
_ECHO = {1: (8, 0), 58: (128, 129)}  # ICMP's and ICMPv6's request and reply


def open_tun(name: str) -> int:
    """Make the device and set it up; it lives as long as the file is open."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack(_IFREQ, name.encode(), _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _, flags = struct.unpack(_IFREQ, fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack(_IFREQ, name.encode(), 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack(_IFREQ, name.encode(), flags | _IFF_UP))
    return fd


def layout(packet: bytes) -> tuple[int, int, int, int]:
    """Where the addresses are and how long each is, the protocol, and where its header begins."""
    if packet[0] >> 4 == 4:
        return 12, 4, packet[9], 4 * (packet[0] & 15)
    return 8, 16, packet[6], 40


def describe(packet: bytes) -> str:
    """The line for a packet."""
    at, size, protocol, _ = layout(packet)
    return f"{ipaddress.ip_address(packet[at:][:size])} {ipaddress.ip_address(packet[at + size :][:size])} {protocol}"


def answer(packet: bytes) -> bytes | None:
    """What whoever is asked says to it; None when that is nothing, as to a fragment, or to what went to many."""
    at, size, protocol, start = layout(packet)
    source, target = packet[at:][:size], packet[at + size :][:size]
    fragment = size == 4 and int.from_bytes(packet[6:8]) & 0x3FFF
    if fragment or ipaddress.ip_address(target).is_multicast:
        return None
    back = bytearray(packet)
    back[at : at + 2 * size] = target + source  # a checksum is a sum, so what changes places leaves it as it is
    if protocol in (_TCP, _UDP):
        back[start : start + 4] = packet[start + 2 : start + 4] + packet[start : start + 2]
        return bytes(back)
    request, reply = _ECHO.get(protocol, (None, None))
    if reply is None or packet[start] != request:
        return None
    old, checksum = struct.unpack_from("!HH", packet, start)
    new = old & 0xFF | reply << 8
    struct.pack_into("!HH", back, start, new, adjusted(checksum, old, new))
    return bytes(back)


def adjusted(checksum: int, old: int, new: int) -> int:
    """A checksum after one word under it has changed (RFC 1624)."""
    total = (checksum ^ 0xFFFF) + (old ^ 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    return ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF


def serve(fd: int, args: argparse.Namespace) -> None:
    """Read and answer until the process is ended."""
    chance = random.Random(args.seed)
    waiting: list[tuple[float, int, bytes]] = []  # when it is due, in which order they came
    number = 0
    while True:
        patience = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        if select.select([fd], [], [], patience)[0]:
            packet = os.read(fd, 1 << 16)
            if not args.quiet:
                print(describe(packet), flush=True)
            back = answer(packet) if args.answer else None
            if back and chance.random() >= args.loss:
                due = time.monotonic() + (args.delay_ms + chance.uniform(0, args.jitter_ms)) / 1000
                heapq.heappush(waiting, (due, number := number + 1, back))
        while waiting and waiting[0][0] <= time.monotonic():
            with suppress(OSError):  # the device may be down just now: a lost packet
                os.write(fd, heapq.heappop(waiting)[2])


def main() -> int:
    """See the file's beginning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the device")
    parser.add_argument("--quiet", action="store_true", help="do not tell what comes out")
    parser.add_argument("--answer", action="store_true", help="answer, instead of telling only")
    parser.add_argument("--delay-ms", type=float, default=0, help="from a packet to its answer")
    parser.add_argument("--later-delay-ms", type=float, default=0, help="the same, from SIGUSR1 on until the next one")
    parser.add_argument("--jitter-ms", type=float, default=0, help="up to so much more, so that some overtake others")
    parser.add_argument("--loss", type=float, default=0, help="the share, from 0 to 1, that is never answered")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and loss: the same numbers at every run")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    delays = itertools.cycle([args.later_delay_ms, args.delay_ms])
    signal.signal(signal.SIGUSR1, lambda *_: setattr(args, "delay_ms", next(delays)))
    fd = open_tun(args.name)
    print("ready", flush=True)
    serve(fd, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
