"""A temporary image over another (``snapshot=on``): what is written is gone when it is closed."""

from __future__ import annotations

import os
import string
from contextlib import suppress
from typing import TYPE_CHECKING

from qobra.block.backend import BlockBackend
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode, Options

_LETTERS = string.ascii_letters + string.digits


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
        handle, path = _create_in(directory)
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
        with suppress(FileNotFoundError):  # an image that could not be made is gone by now
            os.unlink(path)


def _create_in(directory: str) -> tuple[int, str]:
    """A new empty file, open, and its path: named as QEMU names it, which scripts that filter output know.

    Raises OSError.
    """
    while True:
        name = "vl." + "".join(_LETTERS[octet % len(_LETTERS)] for octet in os.urandom(6))
        path = os.path.join(directory, name)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path
        except FileExistsError:
            continue
