"""Somebody at the far end of a link who answers echo requests that are not his to answer, in one of several wrong ways.

`impostor.py INTERFACE WAY` prints `ready`, and then for every echo request that comes in by INTERFACE

  true      the right answer, so that a test can see that this program's answers do arrive
  other     the right answer, but from another address
  nonsense  answers to the right one with a wrong nonce, tag, number or length
  replay    the very first right answer, again and again, as fast as it can
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

ETHER = 14
ALL = 0x0003  # ETH_P_ALL, <linux/if_ether.h>


class Family(NamedTuple):
    """Where in its packets the protocol and the addresses are, how long the header is, and who is somebody else."""

    protocol: int
    protocol_at: int
    addresses_at: int
    size: int
    header: int
    request: int
    reply: int
    other: bytes


FAMILIES = {
    0x0800: Family(socket.IPPROTO_ICMP, 9, 12, 4, 20, 8, 0, ip_address("203.0.113.99").packed),
    0x86DD: Family(socket.IPPROTO_ICMPV6, 6, 8, 16, 40, 128, 129, ip_address("2001:db8:ffff::99").packed),
}


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def reply(family: Family, request: bytes, source: bytes, body: bytes) -> bytes:
    """The answer to a request, from `source`, with `body` after type, code and checksum."""
    message, head = bytes([family.reply, 0, 0, 0]) + body, bytearray(request[ETHER : ETHER + family.header])
    ends = source + head[family.addresses_at :][: family.size]
    head[family.addresses_at : family.addresses_at + len(ends)] = ends
    pseudo = b""
    if family.protocol == socket.IPPROTO_ICMP:
        head[2:4], head[10:12] = struct.pack("!H", len(head) + len(message)), bytes(2)
        head[10:12] = struct.pack("!H", checksum(bytes(head)))
    else:
        head[4:6] = struct.pack("!H", len(message))
        pseudo = ends + struct.pack("!II", len(message), family.protocol)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    return request[6:12] + request[:6] + request[12:ETHER] + bytes(head) + message


def answers(family: Family, request: bytes, way: str) -> Iterator[bytes]:
    """What comes back."""
    head, body = request[ETHER : ETHER + family.header], request[ETHER + family.header + 4 :]
    target = head[family.addresses_at + family.size :][: family.size]
    if way == "other":
        yield reply(family, request, family.other, body)
    elif way == "nonsense":
        for at in (4, 8, 12, 20):  # in nonce, target, counter and tag
            yield reply(family, request, target, body[:at] + os.urandom(4) + body[at + 4 :])
        yield reply(family, request, target, body[:-2])
        yield reply(family, request, target, bytes([body[0] ^ 1]) + body[1:])
    else:
        yield reply(family, request, target, body)


def main() -> None:
    """See the file's beginning."""
    interface, way = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)) as link:
        link.bind((interface, ALL))
        print("ready", flush=True)
        first = b""
        while True:
            if first:
                link.send(first)
                continue
            frame, address = link.recvfrom(2048)
            family = FAMILIES.get(address[1])
            if family is None or address[2] == socket.PACKET_OUTGOING:
                continue
            if (frame[ETHER + family.protocol_at], frame[ETHER + family.header]) == (family.protocol, family.request):
                for back in answers(family, frame, way):
                    link.send(back)
                    first = back if way == "replay" else b""


if __name__ == "__main__":
    main()
