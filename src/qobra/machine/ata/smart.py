"""SMART: a disk that is always well (SFF-8035i, ATA/ATAPI-7 section 6.51)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.ata import regs
from qobra.machine.vmstate import VmState, flag

if TYPE_CHECKING:
    from qobra.machine.ata.disk import Disk

_READ_DATA, _READ_THRESHOLDS, _AUTOSAVE, _SAVE, _OFFLINE, _READ_LOG = 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xD5
_ENABLE, _DISABLE, _STATUS = 0xD8, 0xD9, 0xDA
_KEY = (0x4F, 0xC2)
# id, flags, value, worst, raw, threshold
_ATTRIBUTES = (
    (0x01, 0x0003, 0x64, 0x64, 0, 0x06),  # raw read error rate
    (0x03, 0x0003, 0x64, 0x64, 0, 0x00),  # spin up
    (0x04, 0x0002, 0x64, 0x64, 0x64, 0x14),  # start and stop count
    (0x05, 0x0003, 0x64, 0x64, 0, 0x24),  # remapped sectors
    (0x09, 0x0003, 0x64, 0x64, 1, 0x00),  # power on hours
    (0x0C, 0x0003, 0x64, 0x64, 0, 0x00),  # power cycles
    (0xBE, 0x0003, 0x45, 0x45, 0x1F, 0x32),  # airflow temperature
)


class Smart:
    """The SMART state of one disk."""

    vmstate = VmState(flag("enabled", "_autosave"))

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.enabled = True
        self._autosave = True
        self._self_tests: list[int] = []

    def execute(self) -> None:
        """The command SMART; the feature register says which."""
        disk, feature = self._disk, self._disk.feature
        if (disk.mid, disk.high) != _KEY or (not self.enabled and feature != _ENABLE):
            disk.abort()
        elif feature in (_ENABLE, _DISABLE):
            self.enabled = feature == _ENABLE
            disk.succeed()
        elif feature == _AUTOSAVE and disk.count in (0x00, 0xF1):
            self._autosave = disk.count != 0
            disk.succeed()
        elif feature == _STATUS:
            disk.mid, disk.high = _KEY
            disk.succeed()
        elif feature == _READ_THRESHOLDS:
            entries = b"".join(bytes((a[0], a[5])) + bytes(10) for a in _ATTRIBUTES)
            disk.offer(_sealed(b"\x01\x00" + entries), disk.end_reading)
        elif feature == _READ_DATA:
            disk.offer(_sealed(self._data()), disk.end_reading)
        elif feature == _READ_LOG:
            self._read_log()
        elif feature == _OFFLINE and disk.low in (0, 1, 2):
            self._self_tests = [disk.low, *self._self_tests][:21]
            disk.succeed()
        else:
            disk.abort()

    def _data(self) -> bytes:
        data = bytearray(511)
        data[0] = 1
        for i, (number, flags, value, worst, raw, _threshold) in enumerate(_ATTRIBUTES):
            entry = bytes((number,)) + flags.to_bytes(2, "little") + bytes((value, worst)) + raw.to_bytes(6, "little")
            data[2 + 12 * i : 2 + 12 * i + 11] = entry
        data[362] = 0x02 | (0x80 if self._autosave else 0)
        data[364:366] = (288).to_bytes(2, "little")
        data[367] = 1 << 4 | 1 << 3 | 1  # off-line execution, self-test, read scanning
        data[368] = 0x03
        data[370] = 0x01  # logs
        data[372], data[373], data[374] = 2, 54, 0  # minutes of the tests
        return bytes(data)

    def _read_log(self) -> None:
        disk = self._disk
        data = bytearray(511)
        if disk.low == 1:
            data[0] = 1
        elif disk.low == 6:
            data[0] = 1
            for i, kind in enumerate(self._self_tests):
                data[2 + 24 * i] = kind
            data[508] = len(self._self_tests)
        else:
            disk.abort()
            return
        disk.offer(_sealed(bytes(data)), disk.end_reading)


def _sealed(data: bytes) -> bytes:
    # All 512 bytes add up to zero.
    data = data.ljust(regs.SECTOR - 1, b"\0")
    return data + bytes((-sum(data) & 0xFF,))
