"""The pytest plugin: fixtures for tests of QMP clients. It is there wherever Qobra is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from qobra.testing import QobraServer


@pytest.fixture
def qobra_server(make_qobra_server: Callable[..., QobraServer]) -> QobraServer:
    """A fresh QMP server in this process: a machine without a board, as a storage daemon has."""
    return make_qobra_server()


@pytest.fixture
def make_qobra_server() -> Iterator[Callable[..., QobraServer]]:
    """Makes servers, with the arguments of :class:`qobra.testing.QobraServer`; they end with the test."""
    from qobra.testing import QobraServer

    servers: list[QobraServer] = []

    def make(**arguments: Any) -> QobraServer:
        servers.append(QobraServer(**arguments))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
