"""The ``compress`` filter: everything written through it is written compressed."""

from __future__ import annotations

import errno
import threading

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.filter._filter import FilterNode
from qobra.block.node import drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError


@drivers.register("compress")
class CompressNode(FilterNode):
    """Over a format that compresses (qcow2). Parts of a cluster are read, completed and compressed again."""

    driver = "compress"
    can_reopen = False

    def open(self, opening: Opening) -> None:
        opening.child("file", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        if not self.file.can_compress:
            raise QobraError(
                f"Compression is not supported for underlying format: {self.file.driver}", errno=errno.ENOTSUP
            )
        self._lock = threading.Lock()
        self.child_resized("file")
        self.request_alignment = max(1, self.file.cluster_size())

    def plain_writes(self) -> bool:
        return False

    def _write(self, offset: int, data: Buffer) -> None:
        cluster = self.file.cluster_size()
        view = memoryview(data)
        end = offset + len(view)
        with self._lock:
            start = offset & -cluster
            while start < end:
                limit = min(start + cluster, self.length)
                low, high = max(offset, start), min(end, limit)
                if low == start and high == limit:
                    self.below.write_compressed(start, view[low - offset : high - offset])
                else:
                    whole = bytearray(self.below.read(start, limit - start))
                    whole[low - start : high - start] = view[low - offset : high - offset]
                    self.below.write_compressed(start, whole)
                start += cluster
