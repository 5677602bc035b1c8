"""Somebody in another VLAN of the same cable who says by ARP, again and again, that an address of ours is his.

`tagged.py INTERFACE ADDRESS TAG` prints `ready` when it has said so for the first time. It makes the tags itself, as
not every kernel has VLANs.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

HARDWARE = bytes.fromhex("020000000099")
EVERYBODY = b"\xff" * 6
ETH_VLAN, ETH_ARP, ETH_IPV4, REPLY = 0x8100, 0x0806, 0x0800, 2


def main() -> None:
    """See the file's beginning."""
    interface, address, tag = sys.argv[1:]
    own = HARDWARE + socket.inet_aton(address)
    told = struct.pack("!HHBBH", 1, ETH_IPV4, 6, 4, REPLY) + own + own
    frame = EVERYBODY + HARDWARE + struct.pack("!HHH", ETH_VLAN, int(tag), ETH_ARP) + told + bytes(18)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((interface, 0))
        link.send(frame)
        print("ready", flush=True)
        while True:
            time.sleep(0.002)
            link.send(frame)


if __name__ == "__main__":
    main()
