"""Laboratories for tests; `scripts/test` puts the sandbox around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lsmpy.lab import Lab
from lsmpy.model import Router
from tests.lab import probe_kit

Build = Callable[..., Lab]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that lives here builds namespaces."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds a laboratory of a router, with the internet's server running, until the end of the test."""
    with ExitStack() as stack:

        def make(router: Router, main_default: str | None = None) -> Lab:
            lab = stack.enter_context(Lab(router, main_default))
            lab.start_server()
            return lab

        yield make


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[probe_kit.Lab]:
    """A router, two providers and an internet for lsmpy-probe, which is not started yet."""
    made = probe_kit.Lab(tmp_path)
    try:
        made.build()
        made.configure(f'["{probe_kit.TARGET4}"]', f'["{probe_kit.TARGET4}"]')
        yield made
    finally:
        made.clear()
