"""A temporary image over another (``snapshot=on``): what is written is gone when it is closed."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from qobra.block.backend import BlockBackend
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode, Options


def open_over(layer: BlockLayer, options: Options, *, root: BlockBackend) -> BlockNode:
    """Open what ``options`` describe read-only under a temporary qcow2 image, which ``root`` enters.

    The image has lost its name by the time this returns. Raises QobraError.
    """
    below = {**options, "read-only": True, "auto-read-only": False, "_copy-on-read": False}
    size_root = BlockBackend(layer, perm=0)
    size = layer.open(dict(below), root=size_root).length
    size_root.remove()
    directory = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        handle, path = tempfile.mkstemp(prefix="vl.", dir=directory)
    except OSError as error:
        raise QobraError.from_os("Could not get temporary filename", error)
    os.close(handle)
    try:
        from qobra.block.creation._image import plan

        plan(layer, path, "qcow2", size=size).run(layer)
        top = {
            "driver": "qcow2",
            "read-only": options.get("read-only", False),
            "cache": {"direct": False, "no-flush": True},
            "file": {"driver": "file", "filename": path},
            "backing": below,
        }
        top |= {name: options[name] for name in ("discard", "_copy-on-read") if name in options}
        return layer.open(top, root=root)
    finally:
        os.unlink(path)
