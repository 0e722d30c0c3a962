"""What disks and packet devices have in common: the registers, moving data by PIO, waiting for DMA (ATA/ATAPI-7).

Everything here runs inside the control strand; storage is reached through :class:`BlockRequests`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from qobra.errors import QobraError
from qobra.machine.ata import regs
from qobra.machine.block_requests import BlockRequests
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.vmstate import Field, Number, Together, VmState, flag, listed, u8
from qobra.object.property import Int, String

if TYPE_CHECKING:
    from qobra.machine.ata.bus import AtaPort, IdeBus
    from qobra.machine.dma import ScatterList
    from qobra.object.tree import ObjectTree

MAX_CHUNK = 1 << 20
"""Bytes that one request to the storage moves at most."""

_MODES_PIO, _MODES_DMA, _MODES_UDMA = 0x07, 0x07, 0x3F


class AtaDevice(BlockFrontEnd):
    """A device on an ATA cable.

    Task file registers are ``feature``, ``count``, ``low``, ``mid``, ``high`` (each with what was written there before,
    in ``previous``, for 48-bit commands), ``select``, ``status``, ``error``.
    """

    type_name = "ide-device"
    abstract = True
    bus_type = "IDE"
    signature = (0, 0)
    idle_status = regs.READY | regs.SEEK
    reset_status = regs.READY | regs.SEEK
    default_model = "QEMU HARDDISK"

    unit = Int(0xFFFFFFFF, type="uint32")
    wwn = Int(0, type="uint64")
    ver = String(type="str")
    model = String(type="str")

    vmstate = VmState(
        u8("feature", "count", "low", "mid", "high", "select", "status", "error"),
        listed("previous", kind=Number(1)),
        Field("transfer_modes", Together(Number(2), Number(2), Number(2))),
        flag("writeback"),
        partial=True,
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.feature = self.count = self.low = self.mid = self.high = self.select = 0
        self.status = self.error = 0
        self.previous = [0] * 5
        self.transfer_modes = (_MODES_PIO, _MODES_DMA, _MODES_UDMA | 1 << 13)
        self._data = bytearray()
        self._data_at = 0
        self._data_writing = False
        self._data_done: Callable[[], None] | None = None
        self._dma_run: Callable[[ScatterList], None] | None = None
        self.dma_length = 0
        """Bytes that the waiting transfer moves."""

    @property
    def ide_bus(self) -> IdeBus:
        """The channel."""
        return cast("IdeBus", self.bus)

    @property
    def port(self) -> AtaPort:
        """The host's end of the cable."""
        return self.ide_bus.port

    # -- life

    def realize_drive(self) -> None:
        """Take the backend and the defaults; QobraError where properties are wrong."""
        backend = self.realize_block(writable=False if self.is_removable else None, resizable=not self.is_removable)
        if self.logical_block_size not in (0, regs.SECTOR) and not self.is_removable:
            self.release_drive()
            raise QobraError("logical_block_size must be 512 for IDE")
        if self.serial is not None and len(self.serial) > 20:
            raise QobraError("The serial number can't be longer than 20 characters")
        if self.serial is None:
            self.serial = f"QM{self.ide_bus.first_serial + self.unit:05d}"
        if self.ver is None:
            self.ver = "2.5+"
        self.discard_granularity = self.granularity
        backend.resized.append(self._resized)
        self.requests = BlockRequests(self)
        self.reset()

    @property
    def serial_text(self) -> str:
        """The serial number that the guest sees."""
        return self.serial or ""

    def unrealize(self) -> None:
        self.requests.close()
        if self.backend is not None and self._resized in self.backend.resized:
            self.backend.resized.remove(self._resized)

    def _resized(self) -> None:
        """The medium has another length: nothing to do, as it is looked up with each command."""

    def reset(self) -> None:
        self.transfer_modes = (_MODES_PIO, _MODES_DMA, _MODES_UDMA | 1 << 13)
        self.restart()
        self.status, self.error = self.idle_status, 0

    def restart(self) -> None:
        """Drop whatever is going on, and show the signature."""
        self.requests.cancel()
        self._drop_data()
        self._dma_run = None
        self.feature = 0
        self.select = 0xA0
        self.previous = [0] * 5
        self.set_signature()
        self.status, self.error = self.reset_status, 0x01

    def set_signature(self) -> None:
        """The registers say what kind of device this is."""
        self.select &= 0xB0
        self.count = self.low = 1
        self.mid, self.high = self.signature

    # -- registers

    _NAMES = ("feature", "count", "low", "mid", "high")

    def write_register(self, number: int, value: int) -> None:
        """The guest writes register 1 to 6."""
        if self.status & (regs.BUSY | regs.DRQ):
            return
        if number == 6:
            self.select = value | 0xA0
            return
        name = self._NAMES[number - 1]
        self.previous[number - 1] = getattr(self, name)
        setattr(self, name, value)

    def read_register(self, number: int, *, high_order: bool) -> int:
        """The guest reads register 1 to 7."""
        if number == 1:
            return self.error if not high_order else self.previous[0]
        if number == 6:
            return self.select
        if number == 7:
            return self.status
        return self.previous[number - 1] if high_order else int(getattr(self, self._NAMES[number - 1]))

    # -- commands

    def execute(self, code: int) -> None:
        """The guest writes the command register."""
        if self.status & (regs.BUSY | regs.DRQ) and not (code == 0x08 and self.is_removable):
            return
        self.status, self.error = self.idle_status, 0
        handler = self.commands().get(code)
        if handler is None:
            self.abort()
        else:
            handler()

    def commands(self) -> dict[int, Callable[[], None]]:
        """What the device understands, by command code."""
        return {}

    def succeed(self) -> None:
        """The command is done."""
        self.status = self.status & ~(regs.BUSY | regs.DRQ | regs.ERR) | regs.READY | regs.SEEK
        self._finish()

    def abort(self, error: int = regs.ABORTED) -> None:
        """The command is refused, or failed."""
        self.status = regs.READY | regs.ERR
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self._drop_data()
        self.port.command_done(self)
        self.port.interrupt(self)

    # -- data by PIO

    def offer(self, data: bytes, done: Callable[[], None], *, quiet: bool = False) -> None:
        """Let the host read ``data``, then go on with ``done``. ``quiet``: it is not told."""
        self._start_data(bytearray(data), False, done, quiet)

    def want(self, length: int, done: Callable[[bytes], None], *, quiet: bool = False) -> None:
        """Let the host write ``length`` bytes, then go on with ``done``."""
        data = bytearray(length)
        self._start_data(data, True, lambda: done(bytes(data)), quiet)

    def _start_data(self, data: bytearray, writing: bool, done: Callable[[], None], quiet: bool) -> None:
        self._data, self._data_at, self._data_writing, self._data_done = data, 0, writing, done
        self.status = self.status & ~regs.BUSY | regs.READY | regs.DRQ
        if not quiet:
            self.port.interrupt(self)
        self.port.data_ready(self)

    @property
    def data_length(self) -> int:
        """Bytes of the block that the host is to move."""
        return len(self._data)

    @property
    def data_writing(self) -> bool:
        """Whether the host writes it."""
        return self._data_writing

    def take_data(self) -> bytes:
        """The whole block, for hosts that move it at once; :meth:`end_data` follows."""
        return bytes(self._data)

    def give_data(self, data: bytes) -> None:
        """The whole block, from hosts that move it at once; :meth:`end_data` follows."""
        self._data[: len(data)] = data[: len(self._data)]

    def read_data(self, width: int) -> int:
        """The guest reads the data register."""
        if not self.status & regs.DRQ or self._data_writing:
            return 0
        at = self._data_at
        if at + width > len(self._data):
            return 0
        self._data_at = at + width
        value = int.from_bytes(self._data[at : at + width], "little")
        if self._data_at >= len(self._data):
            self.end_data()
        return value

    def write_data(self, width: int, value: int) -> None:
        """The guest writes the data register."""
        if not self.status & regs.DRQ or not self._data_writing:
            return
        at = self._data_at
        if at + width > len(self._data):
            return
        self._data_at = at + width
        self._data[at : at + width] = value.to_bytes(width, "little")
        if self._data_at >= len(self._data):
            self.end_data()

    def end_data(self) -> None:
        """The block is moved: go on."""
        done, self._data_done = self._data_done, None
        self.status &= ~regs.DRQ
        if done is not None:
            done()

    def end_reading(self) -> None:
        """The host has read all there was."""
        self.status = regs.READY | regs.SEEK
        self._drop_data()
        self.port.command_done(self)

    def _drop_data(self) -> None:
        self._data, self._data_at, self._data_done = bytearray(), 0, None

    # -- data by DMA

    def await_dma(self, length: int, run: Callable[[ScatterList], None]) -> None:
        """Wait for the host's engine; ``run`` goes on with the guest memory that it leads to."""
        self.status = regs.READY | regs.SEEK | regs.DRQ | regs.BUSY
        self.dma_length, self._dma_run = length, run
        self.port.dma_ready(self)

    def run_dma(self, memory: ScatterList) -> None:
        """The engine is ready."""
        run, self._dma_run = self._dma_run, None
        if run is not None:
            run(memory)

    @property
    def working(self) -> bool:
        return self.requests.working

    def state_blocked(self) -> str | None:
        # What a command goes on with is code, not data.
        busy = self.requests.pending or self._data_done is not None or self._dma_run is not None
        return "a command is under way" if busy else None
