"""What all tests share: sample configurations, and the house rules that every test must keep."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lsmpy import config
from lsmpy.model import Router

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "state" / "lsmpy.toml"
_IN_CI = os.environ.get("CI") == "true"
_THREADS_END_S = 5.0

# How long generated tests look: little at every run, the same in CI each time, and long when asked to.
settings.register_profile(
    "lsmpy",
    max_examples=200 if os.environ.get("LSMPY_LONG") == "1" else 25,
    deadline=None,  # a busy machine is no mistake
    derandomize=_IN_CI,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lsmpy")


@pytest.fixture
def article() -> Router:
    """The article's router: two LANs, two ISPs, IPv4 and IPv6."""
    return config.load(SAMPLE)


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether tests marked `long` shall take their full time."""
    return os.environ.get("LSMPY_LONG") == "1"


def router_of(text: str) -> Router:
    """The router that a configuration's text describes."""
    return config.parse(text.encode(), "test.toml", {})


def isps_of(count: int, families: str = "46") -> str:
    """Configuration text for ISPs I1, I2, … on wan1, wan2, …, one target checked through all of them."""
    text = ""
    for number in range(1, count + 1):
        addresses = [f"10.0.{number}.1/24"] * ("4" in families) + [f"2001:db8:{number}::1/64"] * ("6" in families)
        gateways = [f"10.0.{number}.2"] * ("4" in families) + [f"2001:db8:{number}::2"] * ("6" in families)
        check = "203.0.113.1" if "4" in families else "2001:db8:cc::1"
        text += f'[[isp]]\nname = "I{number}"\ninterface = "wan{number}"\ncheck = "{check}"\n'
        text += f"address = {addresses}\ngateway = {gateways}\n"
    return text


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + _THREADS_END_S
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        if time.monotonic() > deadline:
            pytest.fail(f"threads are left: {left}")
        left[0].join(0.1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failure: nobody reads what was not run."""
    report = yield
    if _IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for whole modules."""
    report = yield
    if _IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
