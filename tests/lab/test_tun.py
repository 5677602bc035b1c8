"""The tun device of other tests is what they take it for: what it loses and delays is what was asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lsmpy.lab import ROUTER
from tests.lab.router_kit import configuration, rig, tunnel

pytestmark = pytest.mark.lab

COUNT = 30


@pytest.mark.parametrize("to", ["10.98.0.2", "fd98::2"])
def test_delay_jitter_and_loss_are_what_was_asked(tmp_path: Path, to: str) -> None:
    with rig(tmp_path, configuration(), server=False) as router:

        def pings(*options: str) -> dict[int, float]:
            """The time of each answer, by its question's number."""
            with tunnel(router.lab, ROUTER, "tun9", *options) as seen:
                router.shell("ip addr add 10.98.0.1/24 dev tun9\nip addr add fd98::1/64 dev tun9 nodad\n")
                said = router.anyhow("ping", f"-c{COUNT}", "-i0.005", "-W0.5", to).out
            assert sum(f" {to} " in line for line in seen) == COUNT
            return {int(number): float(ms) for number, ms in re.findall(r"_seq=(\d+) .*time=([\d.]+) ms", said)}

        assert pings() == {}
        prompt = pings("--answer")
        assert len(prompt) == COUNT
        assert min(prompt.values()) < 20
        late = pings("--answer", "--delay-ms=50", "--jitter-ms=30")
        assert len(late) == COUNT
        assert list(late) != sorted(late)  # with 5 ms between them, some have overtaken others
        assert 50 <= min(late.values()) < 60
        assert max(late.values()) > 70
        some = pings("--answer", "--loss=0.3")
        assert 0 < len(some) < COUNT
        assert pings("--answer", "--loss=0.3").keys() == some.keys()
        assert pings("--answer", "--loss=0.3", "--seed=1").keys() != some.keys()
