"""A NUL character, which JSON can say and no file name can have, is an error as any other."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.errors import NUL_IN_NAME, QobraError
from qobra.migration import ways

NAME = "a\0b"
UNIX = {"type": "unix", "data": {"path": NAME}}


@pytest.mark.parametrize("driver", ["file", "host_device"])
def test_a_node_tells_of_its_file(monitored: Any, driver: str) -> None:
    client = monitored.client()
    for file in ({"driver": driver, "filename": NAME}, {"driver": "raw", "file": {"driver": driver, "filename": NAME}}):
        reply = client.call("blockdev-add", {"node-name": "disk", **file})
        assert reply["error"]["desc"] == f"Could not open '{NAME}': No such file or directory"
    assert "return" in client.call("blockdev-add", {"node-name": "disk", "driver": "null-co"})


def test_a_job_that_creates_a_file_fails(monitored: Any) -> None:
    client = monitored.client()
    options = {"driver": "file", "filename": NAME, "size": 512}
    assert "return" in client.call("blockdev-create", {"job-id": "create", "options": options})
    while (job := client.call("query-jobs")["return"][0])["status"] != "concluded":
        pass
    assert job["error"] == f"Could not create '{NAME}': No such file or directory"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("nbd-server-start", {"addr": UNIX}),
        ("chardev-add", {"id": "c", "backend": {"type": "file", "data": {"out": NAME}}}),
        ("chardev-add", {"id": "c", "backend": {"type": "null", "data": {"logfile": NAME}}}),
        ("object-add", {"qom-type": "secret", "id": "s", "file": NAME}),
        ("object-add", {"qom-type": "tls-creds-psk", "id": "t", "dir": NAME, "endpoint": "server"}),
        ("human-monitor-command", {"command-line": f"nbd_server_start unix:{NAME}"}),
    ],
)
def test_other_names_are_refused(monitored: Any, command: str, arguments: dict[str, Any]) -> None:
    client = monitored.client()
    for _ in range(2):  # nothing is left of it
        assert client.call(command, arguments) == {"error": {"class": "GenericError", "desc": NUL_IN_NAME}}


@pytest.mark.parametrize("uri", [f"exec:cat {NAME}", f"file:{NAME}"])
def test_a_migration_there_fails(uri: str) -> None:
    with pytest.raises(QobraError, match="embedded null byte"):
        ways.outgoing(uri, int).open()
