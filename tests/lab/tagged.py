"""Somebody in another VLAN of the same cable who answers by ARP, again and again, that an address of ours is his.

`tagged.py INTERFACE ADDRESS TAG` waits for somebody to ask for the address, and prints `ready` when it has answered him
for the first time. It makes the tags itself, as not every kernel has VLANs.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

HARDWARE = bytes.fromhex("020000000099")
ETH_VLAN, ETH_ARP, ETH_IPV4, REQUEST, REPLY = 0x8100, 0x0806, 0x0800, 1, 2
ETHER, ASKER, ASKED = 14, 14 + 8, 14 + 24  # in a frame


def asker(link: socket.socket, address: bytes) -> bytes:
    """Hardware and protocol address of the next one who asks for this address."""
    while True:
        frame = link.recv(2048)
        if frame[ETHER + 7] == REQUEST and frame[ASKED : ASKED + 4] == address:
            return frame[ASKER : ASKER + 10]


def main() -> None:
    """See the file's beginning."""
    interface, address, tag = sys.argv[1:]
    own = socket.inet_aton(address)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((interface, ETH_ARP))
        to = asker(link, own)
        told = struct.pack("!HHBBH", 1, ETH_IPV4, 6, 4, REPLY) + HARDWARE + own + to
        frame = to[:6] + HARDWARE + struct.pack("!HHH", ETH_VLAN, int(tag), ETH_ARP) + told + bytes(18)
        link.send(frame)
        print("ready", flush=True)
        while True:
            time.sleep(0.002)
            link.send(frame)


if __name__ == "__main__":
    main()
