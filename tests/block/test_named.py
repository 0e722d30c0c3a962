"""blockdev-add in the form of QEMU 1.7 to 2.8: a drive by its id, in options that are wrapped once more."""

from __future__ import annotations

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp import dispatch


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


def _add(machine, **options):
    dispatch.call(machine, "blockdev-add", {"options": options})


def test_an_id_makes_a_drive(machine, tmp_path):
    (tmp_path / "disk").write_bytes(bytes(4096))
    file = {"driver": "file", "filename": str(tmp_path / "disk")}
    cache = {"writeback": False, "direct": False}
    _add(machine, driver="raw", id="my_disk", file=file, aio="threads", werror="stop", rerror="ignore", cache=cache)
    (info,) = dispatch.call(machine, "query-block", {})
    assert info["device"] == "my_disk" and "io-status" not in info  # that is for devices
    assert info["inserted"]["drv"] == "raw" and not info["inserted"]["cache"]["writeback"]
    backend = machine.block.backends["my_disk"]
    assert (backend.policy.on_read_error, backend.policy.on_write_error) == ("ignore", "stop")
    assert machine.block.find_node(backend.node.node_name).file.options["aio"] == "threads"
    dispatch.call(machine, "eject", {"device": "my_disk"})
    assert backend.node is None and not machine.block.graph.nodes


def test_a_node_name_makes_a_node(machine):
    _add(machine, **{"driver": "null-co", "node-name": "n"})
    assert machine.block.find_node("n").monitor_owned and not machine.block.backends


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"driver": "null-co"}, "'id' and/or 'node-name' need to be specified for the root node"),
        ({"driver": "null-co", "id": "1"}, "Parameter 'id' expects an identifier"),
        ({"driver": "null-co", "id": 1}, "Invalid parameter type for 'options.id', expected: string"),
        ({"driver": "null-co", "id": "taken"}, "Device with id 'taken' already exists"),
        ({"driver": "null-co", "id": "node"}, "Device name 'node' conflicts with an existing node name"),
        ({"driver": "null-co", "id": "x", "werror": "zz"}, "Parameter 'werror' does not accept value 'zz'"),
        ({"driver": "null-co", "id": "x", "zz": 1}, "Parameter 'options.zz' is unexpected"),
        (
            {"driver": "raw", "id": "x", "file": {"driver": "null-co", "id": "y"}},
            "Parameter 'options.file.id' is unexp",
        ),
    ],
)
def test_refusals(machine, options, text):
    _add(machine, driver="null-co", id="taken")
    _add(machine, **{"driver": "null-co", "node-name": "node"})
    with pytest.raises(QobraError, match=text):
        _add(machine, **options)
    assert list(machine.block.backends) == ["taken"]
