"""Disk images for tests: made, opened and written without a server, with a model of what they must hold.

>>> lab = ImageLab(directory)
>>> lab.create("a.qcow2", size=1 << 20)
>>> with lab.open("a.qcow2") as disk:
...     disk.write(0, b"x" * 512)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.buffers import Buffer
from qobra.block.layer import BlockLayer
from qobra.block.node import BlockNode, drivers
from qobra.block.protocol.file import FileNode

Event = tuple[str, int, bytes]
"""``("write", offset, data)``, ``("size", length, b"")`` or ``("flush", 0, b"")``."""


@drivers.register("recording-file")
class RecordingFile(FileNode):
    """A file that remembers, in ``log``, what was written and when it was flushed; see :func:`after_power_loss`."""

    driver = "recording-file"

    def open(self, opening: Any) -> None:
        super().open(opening)
        self.log: list[Event] = []

    def _write(self, offset: int, data: Buffer) -> None:
        self.log.append(("write", offset, bytes(data)))
        super()._write(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        self.log.append(("write", offset, bytes(length)))
        return super()._write_zeroes(offset, length, may_unmap, no_fallback)

    def _discard(self, offset: int, length: int) -> None:
        # Left alone: what is discarded may keep its old content for any time.
        pass

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        self.log.append(("size", length, b""))
        super()._truncate(length, preallocation, exact)

    def _flush(self) -> None:
        self.log.append(("flush", 0, b""))
        super()._flush()


def after_power_loss(base: bytes, log: list[Event], cut: int, random: Any) -> bytes:
    """A state in which a file may be found that held ``base`` and lost power after ``log[:cut]``.

    What was flushed is there. Of what was written since, each sector of 512 bytes may or may not be.
    """
    done = max((index for index, event in enumerate(log[:cut]) if event[0] == "flush"), default=0)
    content = bytearray(base)
    for index, (kind, offset, data) in enumerate(log[:cut]):
        if kind == "size":
            content = content[:offset] + bytes(max(0, offset - len(content)))
        elif kind == "write":
            if len(content) < offset + len(data):
                content += bytes(offset + len(data) - len(content))
            if index <= done:
                content[offset : offset + len(data)] = data
                continue
            whole = random.random()
            for start in range(0, len(data), 512):
                if whole < 0.3 or (whole < 0.7 and random.random() < 0.5):
                    part = data[start : start + 512]
                    content[offset + start : offset + start + len(part)] = part
    return bytes(content)


class Disk:
    """An open image: ``node``, a ``backend`` to go through, and ``layer``, which owns both. Use ``with``."""

    def __init__(
        self, options: dict[str, Any], *, read_only: bool = False, find_object: Callable[..., Any] | None = None
    ) -> None:
        self.layer = BlockLayer(find_object=find_object)
        perm = permissions.CONSISTENT_READ
        if not read_only:
            perm |= permissions.WRITE | permissions.RESIZE
        self.backend = BlockBackend(self.layer, perm=perm, description="a test")
        self.node: Any = None
        try:
            self.node = self.layer.open({**options, "read-only": read_only}, root=self.backend)
        except BaseException:
            self.layer.close()
            raise

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close everything."""
        self.backend.remove()
        self.layer.close()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk."""
        return self.backend.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write to the disk."""
        self.backend.write(offset, data)

    def content(self) -> bytes:
        """All of the disk."""
        return self.backend.read(0, self.node.length)


class ImageLab:
    """Makes and opens images in ``directory``; ``find_object`` finds the secrets that their options name."""

    def __init__(self, directory: str | os.PathLike[str], find_object: Callable[..., Any] | None = None) -> None:
        self.directory = os.fspath(directory)
        self._find_object = find_object

    def path(self, name: str) -> str:
        """The path of the image ``name``."""
        return os.path.join(self.directory, name)

    def create(self, name: str, driver: str = "qcow2", **options: Any) -> str:
        """Make the image ``name`` with the members of BlockdevCreateOptions (underscores for hyphens); its path.

        ``data_file`` is the name of a file to make as well.
        """
        wanted = {key.replace("_", "-"): value for key, value in options.items()}
        layer = BlockLayer(find_object=self._find_object)
        backends: list[BlockBackend] = []
        try:
            file = _new_file(layer, self.path(name), backends)
            rest: list[BlockNode] = []
            if "data-file" in wanted:
                rest.append(_new_file(layer, self.path(wanted["data-file"]), backends))
            found: Any = drivers.find(driver)
            found.create({"driver": driver, **wanted}, file, *rest)
        finally:
            for backend in backends:
                backend.remove()
            layer.close()
        return self.path(name)

    def open(
        self, name: str, driver: str = "qcow2", *, read_only: bool = False, recording: bool = False, **options: Any
    ) -> Disk:
        """Open the image ``name`` with more options of its driver (underscores for hyphens)."""
        wanted = {key.replace("_", "-") if key[0] != "_" else key: value for key, value in options.items()}
        file = {"driver": "recording-file" if recording else "file", "filename": self.path(name)}
        options = {"driver": driver, "file": file, **wanted}
        return Disk(options, read_only=read_only, find_object=self._find_object)


def _new_file(layer: BlockLayer, path: str, backends: list[BlockBackend]) -> BlockNode:
    FileNode.create({"filename": path, "size": 0})
    everything = permissions.ALL & ~permissions.GRAPH_MOD
    backend = BlockBackend(layer, perm=everything, description="a test")
    node = layer.open({"driver": "file", "filename": path}, root=backend)
    backends.append(backend)
    return node
