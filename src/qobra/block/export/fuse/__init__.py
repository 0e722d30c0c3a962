"""The ``fuse`` export: a node shown as a raw image file, mounted over an existing regular file."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.export.export import Export, kinds
from qobra.block.export.fuse.mount import mount, unmount
from qobra.block.export.fuse.requests import Ended, Requests
from qobra.errors import QobraError, strerror

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

THREADS = 4
"""Requests that are served at the same time."""

_mounted: set[str] = set()
"""Mount points in use in this process: the kernel would stack a second file system on the first without a word."""


@kinds.register("fuse")
class FuseExport(Export):
    """A file whose reads and writes are the node's. ``growable``: a write past the end makes it longer."""

    type_name = "fuse"

    def __init__(self, layer: BlockLayer, options: dict[str, Any], node: BlockNode, writable: bool) -> None:
        self.growable: bool = options.get("growable", False)
        self.mountpoint: str = options["mountpoint"]
        super().__init__(layer, options, node, writable)
        if writable or self.growable:
            # Truncating the file is the user's right; so is growing it where that is switched on.
            self.backend.set_permissions(self.backend.perm | permissions.RESIZE, permissions.ALL)
        self.fd = -1
        self.open_to_others = False
        """Whether other users may be given access to the file."""
        self._key = ""

    def start(self) -> None:
        try:
            os.stat(self.mountpoint)
        except OSError as error:
            raise QobraError(f"Failed to stat '{self.mountpoint}': {strerror(error)}", errno=error.errno)
        try:
            key = os.path.realpath(self.mountpoint)
            if key in _mounted:
                raise QobraError(f"There already is a FUSE export on '{self.mountpoint}'")
            self.fd = self._mount()
        except OSError as error:
            raise QobraError(f"Failed to mount on '{self.mountpoint}': {strerror(error)}", errno=error.errno)
        _mounted.add(key)
        self._key = key
        # A disk is nobody else's business until it is made so.
        requests = Requests(self, os.getuid(), os.getgid(), 0o600)
        client = _Kernel(self)
        self.attach(client)
        self._left = THREADS
        self._ending = threading.Lock()
        for number in range(THREADS):
            threading.Thread(
                target=self._serve, args=(requests, client), name=f"fuse {self.id} {number}", daemon=True
            ).start()

    @property
    def in_use(self) -> bool:
        # The mount is the export's own; whoever has the file open keeps it alive in the kernel, not here.
        return False

    def _mount(self) -> int:
        allow_other = self.options.get("allow-other", "auto")
        self.open_to_others = allow_other != "off"
        try:
            return mount(self.mountpoint, allow_other=self.open_to_others)
        except (OSError, QobraError):
            if allow_other != "auto":
                raise
            self.open_to_others = False
            return mount(self.mountpoint, allow_other=False)

    def _serve(self, requests: Requests, client: _Kernel) -> None:
        self.enter_thread()
        try:
            requests.serve(self.fd)
        except Ended:
            pass
        with self._ending:
            self._left -= 1
            last = not self._left
        if last:
            os.close(self.fd)
            self.fd = -1
            # Unmounted by someone else, the export has nothing left to be.
            self.layer.control.post(self._unmounted)
            self.detach(client)

    def _unmounted(self) -> None:
        if not self.shutting_down:
            self.request_shutdown()

    def release(self) -> None:
        _mounted.discard(self._key)


class _Kernel:
    """The one client of an export: the kernel, for all who have the file open."""

    def __init__(self, export: FuseExport) -> None:
        self._export = export

    def disconnect(self) -> None:
        unmount(self._export.mountpoint)

    def hung_up(self) -> bool:
        return False
