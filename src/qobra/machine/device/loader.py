"""``loader``: puts a file or a number into the guest's memory, at each reset anew."""

from __future__ import annotations

import os
from struct import unpack_from

from qobra.errors import QobraError, strerror
from qobra.machine.devices import registry
from qobra.machine.image_file import LOAD, elf_headers, read_image
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool, Int, String

_NO_CPU = 0xFFFFFFFF
_MAX_DATA = 8
_ELF_MACHINES = {"x86_64": (3, 62), "riscv64": (243,)}


@registry.register("loader")
class Loader(Device):
    """A program (ELF) goes where it says, any other file and ``data`` (``data_len`` bytes) to ``addr``.

    ``cpu_num`` names the CPU whose memory it is.
    """

    type_name = "loader"
    category = "Misc"
    description = "Generic Loader"
    hotpluggable_class = False

    addr = Int(0, type="uint64")
    data = Int(0, type="uint64")
    data_len = Int(0, type="uint8")
    data_be = Bool(False)
    cpu_num = Int(_NO_CPU, type="uint32")
    force_raw = Bool(False)
    file = String(type="str")

    vmstate = VmState()

    def realize(self) -> None:
        self._pieces: list[tuple[int, bytes]] = []
        if self.data or self.data_len or self.data_be:
            self._take_number()
        elif self.file:
            self._take_file(self.file)
        elif self.cpu_num != _NO_CPU:
            self._check_cpu()
            raise QobraError("no CPU runs, whose program counter could be set")
        elif self.addr:
            raise QobraError("cpu_num must be specified when setting a program counter")
        else:
            raise QobraError("please include valid arguments")
        self._check_cpu()

    def reset(self) -> None:
        for address, piece in self._pieces:
            self.board.memory.write(address, piece)

    def _check_cpu(self) -> None:
        if self.cpu_num != _NO_CPU and self.cpu_num >= len(self.board.cpus):
            raise QobraError(f"Specified boot CPU#{self.cpu_num} is nonexistent")

    def _take_number(self) -> None:
        if self.file:
            raise QobraError("Specifying a file is not supported when loading memory values")
        if self.force_raw:
            raise QobraError("Specifying force-raw is not supported when loading memory values")
        if not self.data_len:
            raise QobraError("Both data and data-len must be specified")
        if self.data_len > _MAX_DATA:
            raise QobraError("data-len cannot be greater then 8 bytes")
        # All eight bytes in their order, of which the first are taken: with ``data_be`` the highest.
        number = self.data.to_bytes(_MAX_DATA, "big" if self.data_be else "little")
        self._pieces = [(self.addr, number[: self.data_len])]

    def _take_file(self, path: str) -> None:
        failure = f"Cannot load specified image {path}"
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise QobraError(failure, hint=f"{path}: {strerror(error)}")
        data = read_image(path, failure)
        if not self.force_raw and self._is_program(data):
            segments = [each for each in elf_headers(data, failure) if each[0] == LOAD]
            if sum(room for *_rest, room in segments) > self.board.ram_size:
                raise QobraError(failure)
            self._pieces = [
                (address, data[offset : offset + length] + bytes(room - length))
                for _kind, offset, address, length, room in segments
            ]
        elif size <= self.board.ram_size:
            self._pieces = [(self.addr, data)]
        else:
            raise QobraError(failure)

    def _is_program(self, data: bytes) -> bool:
        if len(data) < 20 or data[:4] != b"\x7fELF" or data[5] != 1:
            return False
        machines = [m for name, kinds in _ELF_MACHINES.items() if name in self.machine.capabilities for m in kinds]
        return unpack_from("<H", data, 18)[0] in machines
