"""What is not done to an image that another process may be writing to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block import permissions
from qobra.block.activation import activate_all, deactivate_all
from qobra.block.backend import BlockBackend
from qobra.block.creation._image import plan
from qobra.block.layer import BlockLayer
from qobra.block.snapshot import change_backing_file, delete_internal, snapshot_internal
from qobra.block.temporary import open_over
from qobra.errors import QobraError

MIB = 1 << 20


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[BlockLayer]:
    made = BlockLayer()
    plan(made, str(tmp_path / "base"), "qcow2", size=MIB).run(made)
    plan(
        made, str(tmp_path / "disk"), "qcow2", size=MIB, backing_file=str(tmp_path / "base"), backing_format="qcow2"
    ).run(made)
    made.add_node(
        {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(tmp_path / "disk")}}
    )
    snapshot_internal(made, {"device": "disk", "name": "kept"})
    deactivate_all(made)
    yield made
    made.close()


CHANGES: dict[str, tuple[Callable[[BlockLayer], Any], str]] = {
    "resize": (lambda layer: layer.find_node("disk").truncate(2 * MIB), "Block node is inactive"),
    "snapshot": (
        lambda layer: snapshot_internal(layer, {"device": "disk", "name": "new"}),
        "Block format 'qcow2' used by device 'disk' does not support internal snapshots",
    ),
    "delete": (lambda layer: delete_internal(layer, {"device": "disk", "name": "kept"}), "Block node is inactive"),
    "backing": (
        lambda layer: change_backing_file(layer, {"device": "disk", "image-node-name": "disk", "backing-file": "x"}),
        "Block node is inactive",
    ),
    "write": (lambda layer: writer(layer, permissions.WRITE), "Block node is read-only"),
    "unchanged": (lambda layer: writer(layer, permissions.WRITE_UNCHANGED), "Block node is read-only"),
}


def writer(layer: BlockLayer, perm: int) -> None:
    """Somebody new, who is no device of the guest, is to write to the disk."""
    root = BlockBackend(layer, perm=perm, description="a job")
    try:
        root.insert(layer.find_node("disk"))
    finally:
        root.remove()


@pytest.mark.parametrize("what", CHANGES)
def test_an_inactive_image_stays_as_it_is(layer: BlockLayer, tmp_path: Path, what: str) -> None:
    before = (tmp_path / "disk").read_bytes()
    call, text = CHANGES[what]
    with layer.control, layer.drained(), pytest.raises(QobraError) as error:
        call(layer)
    assert str(error.value) == text
    assert (tmp_path / "disk").read_bytes() == before
    activate_all(layer)
    with layer.control, layer.drained():
        call(layer)


def test_new_images_are_made_while_others_wait_for_a_migration(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"disk" * 0x4000)
    options = {"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / "disk")}}
    here, there = BlockLayer(), BlockLayer()
    here.add_node({**options, "node-name": "disk"})
    there.opens_inactive = True
    root = BlockBackend(there, "drive", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    with there.control:
        temporary = open_over(there, options, root=root)
        assert temporary.inactive and temporary.children["backing"].inactive
        with there.drained():
            here.close()
            activate_all(there)
        temporary.write(0, b"gone")
        assert temporary.read(0, 8) == b"gonedisk"
    there.close()
    assert (tmp_path / "disk").read_bytes() == b"disk" * 0x4000


def test_a_temporary_image_that_cannot_be_made_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    options = {"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / "disk")}}
    layer = BlockLayer()

    def refuse(*_arguments: object) -> None:
        raise QobraError("no room")

    monkeypatch.setattr("qobra.block.creation._image._format", refuse)
    with pytest.raises(QobraError, match="no room"):
        open_over(layer, options, root=BlockBackend(layer, perm=0))
    assert not any((tmp_path / "temporary").iterdir())
    layer.close()
