"""What all tests share: how much of a long test to run, and the programs of other projects."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from qobra.testing.plugin import make_qobra_server, qobra_server

# The plugin's fixtures; where Qobra is installed, pytest finds them without this.
__all__ = ["make_qobra_server", "qobra_server"]

SOAK = bool(os.environ.get("QOBRA_SOAK"))

settings.register_profile(
    "bounded", max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile(
    "soak", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("soak" if SOAK else "bounded")


@pytest.fixture(scope="session")
def soak_scale() -> int:
    """How many times more of a test marked ``soak`` to run: 1 under ``make test``, 50 under ``make soak``."""
    return 50 if SOAK else 1


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """``peer("qemu-img")``: the path of another project's program; skips the test where it is missing."""
    return find_peer


def find_peer(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("peer"):
        for program in marker.args:
            find_peer(program)
