"""The files that LSM leaves for munin, whose plugin prints them: `config.…` once told, `status.…` each time. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from lsmpy.events import WORDS, Counters, Word

INTERVAL_S = 300

_TITLE = {"lsm": "LSM", "foolsm": "Foolsm"}
_COUNTS = {
    "timeout": "Timed out",
    "replied": "Replied",
    "waiting": "Waiting",
    "latereply": "Late replied",
    "cwait": "Consecutive waiting",
    "cmiss": "Consecutive missing",
    "crcvd": "Consecutive received",
}


def files(flavour: str, words: Mapping[str, Word], counters: Mapping[str, Counters]) -> dict[str, str]:
    """The texts of all files by their names.

    Args:
        flavour: `lsm` or `foolsm`.
        words: the state of each connection.
        counters: what is counted of each.
    """
    title = _TITLE[flavour]
    about = "graph_info This graph shows LSM status\ngraph_category network\ngraph_args --base 1000 -l 0"
    of_states = f"graph_info This graph shows {title} connection statuses\ngraph_category network\n"
    of_states += "graph_info Status: 0 = DOWN, 1 = UP, 2 = UNKNOWN, 3 = LONG_DOWN\n"
    of_states += "graph_args --base 1000 --lower-limit 0 --upper-limit 3"
    found = {
        "config.rtt": [f"graph_title {title} Average Ping Latency", "graph_vlabel ms", about],
        "config.counts": [f"graph_title {title} packet counts", "graph_vlabel percent", about],
        "config.status": [f"graph_title {title} connection statuses", "graph_vlabel Status", of_states],
        "status.rtt": [],
        "status.counts": [],
        "status.status": [],
    }
    for name, word in words.items():
        field, counted = _field(name), counters[name]
        found["config.rtt"] += [f"{field}_rtt.label {name} rtt", f"{field}_rtt.type GAUGE"]
        found["config.status"].append(f"{field}_status.label {name} Status")
        rtt_ms = 0.0 if word in ("down", "long_down") else counted.avg_rtt / 1000
        found["status.rtt"].append(f"{field}_rtt.value {rtt_ms:.2f}")
        found["status.status"].append(f"{field}_status.value {WORDS.index(word)}")
        for (key, label), value in zip(_COUNTS.items(), _values(counted), strict=True):
            found["config.counts"] += [f"{field}_{key}.label {name} {label}", f"{field}_{key}.type GAUGE"]
            found["status.counts"].append(f"{field}_{key}.value {value}")
    return {name: "\n".join(lines) for name, lines in found.items()}


def _values(counted: Counters) -> tuple[int, ...]:
    """In the order of `_COUNTS`."""
    packets = counted.timeout, counted.replied, counted.waiting, counted.reply_late
    return *packets, counted.cons_wait, counted.cons_miss, counted.cons_rcvd


def _field(name: str) -> str:
    return "_" + name.replace("-", "_").replace(" ", "_")
