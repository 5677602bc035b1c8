"""The files for munin, as Debian's lsm 1.0.4 wrote them for the same two connections after 300 s."""

from __future__ import annotations

from lsmpy import munin
from lsmpy.events import Counters

UP = Counters(replied=100, cons_rcvd=100, avg_rtt=88)
DEAD = Counters(waiting=100, timeout=99, cons_wait=100, cons_miss=100, avg_rtt=7)

CONFIG_COUNTS = """\
graph_title LSM packet counts
graph_vlabel percent
graph_info This graph shows LSM status
graph_category network
graph_args --base 1000 -l 0
_a_b_c_timeout.label a-b c Timed out
_a_b_c_timeout.type GAUGE
_a_b_c_replied.label a-b c Replied
_a_b_c_replied.type GAUGE
_a_b_c_waiting.label a-b c Waiting
_a_b_c_waiting.type GAUGE
_a_b_c_latereply.label a-b c Late replied
_a_b_c_latereply.type GAUGE
_a_b_c_cwait.label a-b c Consecutive waiting
_a_b_c_cwait.type GAUGE
_a_b_c_cmiss.label a-b c Consecutive missing
_a_b_c_cmiss.type GAUGE
_a_b_c_crcvd.label a-b c Consecutive received
_a_b_c_crcvd.type GAUGE
_dead_timeout.label dead Timed out
_dead_timeout.type GAUGE
_dead_replied.label dead Replied
_dead_replied.type GAUGE
_dead_waiting.label dead Waiting
_dead_waiting.type GAUGE
_dead_latereply.label dead Late replied
_dead_latereply.type GAUGE
_dead_cwait.label dead Consecutive waiting
_dead_cwait.type GAUGE
_dead_cmiss.label dead Consecutive missing
_dead_cmiss.type GAUGE
_dead_crcvd.label dead Consecutive received
_dead_crcvd.type GAUGE
"""
CONFIG_RTT = """\
graph_title LSM Average Ping Latency
graph_vlabel ms
graph_info This graph shows LSM status
graph_category network
graph_args --base 1000 -l 0
_a_b_c_rtt.label a-b c rtt
_a_b_c_rtt.type GAUGE
_dead_rtt.label dead rtt
_dead_rtt.type GAUGE
"""
CONFIG_STATUS = """\
graph_title LSM connection statuses
graph_vlabel Status
graph_info This graph shows LSM connection statuses
graph_category network
graph_info Status: 0 = DOWN, 1 = UP, 2 = UNKNOWN, 3 = LONG_DOWN
graph_args --base 1000 --lower-limit 0 --upper-limit 3
_a_b_c_status.label a-b c Status
_dead_status.label dead Status
"""
STATUS_COUNTS = """\
_a_b_c_timeout.value 0
_a_b_c_replied.value 100
_a_b_c_waiting.value 0
_a_b_c_latereply.value 0
_a_b_c_cwait.value 0
_a_b_c_cmiss.value 0
_a_b_c_crcvd.value 100
_dead_timeout.value 99
_dead_replied.value 0
_dead_waiting.value 100
_dead_latereply.value 0
_dead_cwait.value 100
_dead_cmiss.value 100
_dead_crcvd.value 0
"""
STATUS_RTT = """\
_a_b_c_rtt.value 0.09
_dead_rtt.value 0.00
"""
STATUS_STATUS = """\
_a_b_c_status.value 1
_dead_status.value 0
"""


def test_the_files_are_lsm_s() -> None:
    written = munin.files("lsm", {"a-b c": "up", "dead": "down"}, {"a-b c": UP, "dead": DEAD})
    wanted = {
        "config.counts": CONFIG_COUNTS,
        "config.rtt": CONFIG_RTT,
        "config.status": CONFIG_STATUS,
        "status.counts": STATUS_COUNTS,
        "status.rtt": STATUS_RTT,
        "status.status": STATUS_STATUS,
    }
    assert {name: f"{text}\n" for name, text in written.items()} == wanted


def test_a_connection_that_is_unknown_has_its_times() -> None:
    written = munin.files("foolsm", {"c": "unknown"}, {"c": UP})
    assert written["status.rtt"] == "_c_rtt.value 0.09"
    assert written["config.status"].startswith("graph_title Foolsm connection statuses")
