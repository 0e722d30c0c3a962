"""``filter-dump``: a copy of each packet goes to a file, in the pcap format (draft-ietf-opsawg-pcap, version 2.4)."""

from __future__ import annotations

import os
import struct
import threading
import time
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.net.filter import NetFilter
from qobra.object.property import Int, String
from qobra.object.types import registry

if TYPE_CHECKING:
    from qobra.net.netdev import Direction, Netdev

_MAGIC = 0xA1B2C3D4
_ETHERNET = 1
_MAXLEN_DEFAULT = 65536


def _set_maxlen(filter: FilterDump, value: int) -> None:
    if not value:
        raise QobraError("Property 'filter-dump.maxlen' doesn't take value '0'")
    filter.values["maxlen"] = value


@registry.register("filter-dump")
class FilterDump(NetFilter):
    """Keeps at most the first ``maxlen`` bytes of each packet in ``file``."""

    type_name = "filter-dump"
    user_creatable = True
    required = ("netdev", "file")

    maxlen = Int(_MAXLEN_DEFAULT, type="uint32", set=_set_maxlen)
    file = String("")

    _fd = -1

    def setup(self) -> None:
        path = self.file
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise QobraError.from_os(f"net dump: can't open {path}", error)
        self._lock = threading.Lock()
        self._write(struct.pack("=IHHiIII", _MAGIC, 2, 4, 0, 0, self.maxlen, _ETHERNET))

    def let_go(self, backend: Netdev) -> None:
        with self._lock:
            self._close()

    def takes(self, packet: bytes, direction: Direction) -> bool:
        now = time.time_ns()
        kept = packet[: self.maxlen]
        times = now // 1_000_000_000, now // 1_000 % 1_000_000
        with self._lock:
            if self._fd >= 0:
                self._write(struct.pack("=IIII", *times, len(kept), len(packet)) + kept)
        return False

    def _write(self, data: bytes) -> None:
        try:
            whole = os.write(self._fd, data) == len(data)
        except OSError:
            whole = False
        if not whole:
            self._close()  # a file with a part of a record in it is of no use after that

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
