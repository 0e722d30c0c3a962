"""Disk images for fsspec: ``fsspec.open("qobra://disk.qcow2")``.

An image is one file, with the contents that a guest would see, whatever its format. How images are opened is said to
the file system, as ``fsspec.filesystem("qobra", format="qcow2")`` or ``fsspec.open("qobra://disk", format="qcow2")``.
"""

from __future__ import annotations

import os
from typing import Any

from fsspec.spec import AbstractFileSystem

from qobra.block.filename import protocol_of
from qobra.errors import QobraError, errno_of
from qobra.image import Image, open_image

_PREFIX = "qobra://"


class QobraFileSystem(AbstractFileSystem):  # type: ignore[misc,unused-ignore]
    """The images that the host's paths and QEMU's names lead to; directories are the host's.

    ``format``, ``options``, ``cache``, ``snapshot`` and ``force_share`` are those of :func:`qobra.image.open_image`;
    what else there is are fsspec's own. Images are opened with the modes ``rb`` and ``r+b``. Raises OSError.
    """

    protocol = "qobra"
    root_marker = "/"

    def __init__(
        self,
        format: str | None = None,
        options: dict[str, Any] | None = None,
        cache: str = "writeback",
        snapshot: str | None = None,
        force_share: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._settings: dict[str, Any] = {
            "format": format,
            "options": options,
            "cache": cache,
            "snapshot": snapshot,
            "force_share": force_share,
        }

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path).removeprefix(_PREFIX)
        # As for fsspec's own local files, a path is a whole one; a name that says its protocol stays as it is.
        return text if protocol_of(text) else os.path.abspath(text)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Image:
        if mode not in ("rb", "r+b", "rb+"):
            raise ValueError(f"an image can be opened for reading (rb) and changing (r+b), not {mode!r}")
        try:
            return open_image(path, mode, **self._settings)
        except QobraError as error:
            # OSError makes a FileNotFoundError or a PermissionError of it.
            raise OSError(errno_of(error), str(error), path) from error

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What fsspec wants to know, with the image's ``format`` and the bytes it takes on the host (``allocated``)."""
        path = self._strip_protocol(path)
        if os.path.isdir(path):
            return {"name": path, "size": 0, "type": "directory"}
        with self._open(path) as image:
            info = image.info()
        return {
            "name": path,
            "size": info["virtual-size"],
            "type": "file",
            "format": info["format"],
            "allocated": info.get("actual-size"),
        }

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The images in a directory, or the one image."""
        path = self._strip_protocol(path)
        if not os.path.isdir(path):
            return [self.info(path)] if detail else [path]
        found = []
        for name in sorted(os.listdir(path)):
            full = os.path.join(path, name)
            try:
                found.append(self.info(full) if detail else full)
            except OSError:
                found.append({"name": full, "size": None, "type": "other"})
        return found

    def modified(self, path: str) -> Any:
        """When the image was last written to."""
        import datetime

        return datetime.datetime.fromtimestamp(os.stat(self._strip_protocol(path)).st_mtime, tz=datetime.UTC)
