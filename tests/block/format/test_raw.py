"""The raw format: a window onto another node."""

from __future__ import annotations

import errno

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer


@pytest.mark.parametrize("size", [None, 1024])
def test_a_guest_cannot_write_past_the_end_of_the_window(tmp_path, size):
    layer = BlockLayer()
    path = tmp_path / "file"
    path.write_bytes(bytes(2048))
    options = {"driver": "raw", "offset": 1024, "file": {"driver": "file", "filename": str(path)}}
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    layer.open(options if size is None else {**options, "size": size}, root=backend)
    backend.write(1022, b"in")
    for request in (lambda: backend.write(1023, b"in"), lambda: backend.read(1023, 2)):
        with pytest.raises(OSError) as error:
            request()
        assert error.value.errno == errno.EIO
    layer.close()
    assert path.read_bytes() == bytes(2046) + b"in"


def test_it_grows_under_a_format(tmp_path):
    layer = BlockLayer()
    path = tmp_path / "file"
    path.write_bytes(bytes(2048))
    node = {"driver": "raw", "offset": 1024, "file": {"driver": "file", "filename": str(path)}}
    backend = BlockBackend(layer, perm=permissions.WRITE | permissions.RESIZE)
    layer.open(node, root=backend)
    backend.write(2048, b"more")
    assert backend.length == 2052
    layer.close()
    assert path.read_bytes() == bytes(3072) + b"more"


def test_what_was_taken_for_raw_keeps_its_first_sector(tmp_path):
    layer = BlockLayer()
    layer.warn = lambda text: None
    path = tmp_path / "file"
    path.write_bytes(bytes(2048))
    file = {"file": {"driver": "file", "filename": str(path)}}
    for options, alignment in ((file, 512), ({**file, "driver": "raw"}, 1)):
        backend = BlockBackend(layer, perm=permissions.WRITE | permissions.CONSISTENT_READ)
        node = layer.open({**options, "node-name": f"n{alignment}"}, root=backend)
        assert node.request_alignment == alignment  # clients are asked for whole sectors
        if alignment == 512:
            backend.write(4, b"data")
            with pytest.raises(OSError):
                backend.write(0, b"QFI\xfb\x00\x00\x00\x03")
        backend.remove()
    layer.close()
