"""The adapter: registers, commands in them, and the way of SCSI commands through the rings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import unpack_from
from typing import TYPE_CHECKING, Any

from qobra.machine.dma import GuestMemory, ScatterList
from qobra.machine.memory import Registers
from qobra.machine.pci import express, regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.msix import Msi
from qobra.machine.pvscsi.rings import MESSAGE, PAGE, Rings
from qobra.machine.scsi import transfer
from qobra.machine.scsi.bus import Result, ScsiBus, ScsiDevice
from qobra.machine.scsi.requests import MAX_DATA, ScsiRequests
from qobra.machine.scsi.sense import GOOD
from qobra.machine.vmstate import Number, VmState, listed, part, u32
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_SIZE = 0x8000
_COMMAND, _DATA, _STATUS, _INTERRUPTS, _MASK, _KICK, _DEBUG, _KICK_READ_WRITE = (
    0x0, 0x4, 0x8, 0x100C, 0x2010, 0x3014, 0x3018, 0x4018,
)  # fmt: skip
_COMPLETED, _MESSAGE = 0x1, 0x4
_SUCCEEDED, _FAILED, _INCOMPLETE = 0, 0xFFFFFFFF, 0xFFFFFFFE
_MAX_PAGES, _MAX_MESSAGE_PAGES = 32, 16
_SG_LIST, _OUT_OF_BAND, _NO_DATA, _TO_HOST, _TO_DEVICE = 0x01, 0x02, 0x04, 0x08, 0x10
_CHAIN = 1
_SG_SIZE, _MAX_PIECES = 16, 2048
_OK, _UNDERRUN, _NO_TARGET, _OVERRUN, _INVALID = 0x00, 0x0C, 0x11, 0x12, 0x14
_ADDED, _REMOVED = 0, 1


class PvScsiBus(ScsiBus):
    """64 targets of one unit each."""

    provided = False
    max_target = 63
    max_lun = 0


class PvScsiAdapter(PciDevice):
    """An adapter with the bus ``ID.0``."""

    abstract = True
    plugs_into = ("conventional-pci-device", "pci-express-device")
    interfaces = ("hotplug-handler",)
    category = "Storage"
    vendor_id = 0x15AD
    device_id = 0x07C0
    subsystem_vendor_id = 0x15AD
    subsystem_id = 0x07C0
    revision = 2
    class_id = 0x0100
    interrupt_pin = 1

    use_msg = Int(1, type="uint8", name="use_msg")

    vmstate = VmState(
        u32("_command", "_status", "_pending", "_mask"),
        listed("_words", kind=Number(4), maximum=256),
        part("_rings", "_msi"),
        partial=True,
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._words: list[int] = []
        self._command = self._status = self._pending = self._mask = 0

    @property
    def is_express(self) -> bool:
        return bool(self.pci_bus.implements("PCIE"))

    def realize(self) -> None:
        self.config[regs.LATENCY] = 0xFF
        self.dma = GuestMemory(self.board.memory, self.may_master)
        self._rings = Rings(self.dma)
        self._msi = Msi(self, offset=0x7C)
        if self.is_express:
            at_root = self.pci_bus.parent_bridge is None
            kind = express.INTEGRATED if at_root else express.ENDPOINT
            express.add_link(self, express.add_capability(self, kind, offset=0x40, reports_errors=False))
        self.add_bar(0, Registers("pvscsi-io", _SIZE, self._read, self._write, valid=(1, 4), impl=(4, 4)))
        self.scsi_bus = PvScsiBus(self.tree)
        self.add_bus(self.scsi_bus)
        self._requests = ScsiRequests(self.scsi_bus)
        self._commands: dict[int, tuple[int, Callable[[list[int]], int]]] = {
            1: (0, self._reset_adapter),
            3: (132, self._set_up_rings),
            4: (0, self._reset_bus),
            5: (3, self._reset_device),
            6: (4, lambda _words: _SUCCEEDED),  # commands go too fast to be caught
            7: (6, lambda _words: _FAILED),
            8: (34, self._set_up_messages),
        }

    def unrealize(self) -> None:
        self._requests.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self._msi.reset()
        self._stop()

    def _stop(self) -> None:
        self._requests.cancel()
        self._rings.reset()
        self._command = self._status = self._pending = self._mask = 0
        self._words = []
        self._update_interrupt()

    @property
    def working(self) -> bool:
        return self._requests.working

    def state_blocked(self) -> str | None:
        return "commands wait for their disk" if self._requests.pending else None

    # -- registers

    def _read(self, offset: int, _width: int) -> int:
        return {_STATUS: self._status, _INTERRUPTS: self._pending, _MASK: self._mask}.get(offset, 0)

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == _COMMAND:
            self._words = []
            self._command = value
            self._carry_on()
        elif offset == _DATA:
            self._words.append(value)
            self._carry_on()
        elif offset == _INTERRUPTS:
            self._pending &= ~value
            self._update_interrupt()
        elif offset == _MASK:
            self._mask = value
            self._update_interrupt()
        elif offset in (_KICK, _KICK_READ_WRITE):
            for request in self._rings.requests():
                self._begin(request)

    def _carry_on(self) -> None:
        """Carry out the command in the registers once all of its words are there."""
        found = self._commands.get(self._command)
        if found is None:
            self._status, self._words = _FAILED, []
            return
        needed, handler = found
        if len(self._words) < needed:
            self._status = _INCOMPLETE
            return
        words, self._words = self._words, []
        self._command = 0
        self._status = handler(words)

    def _reset_adapter(self, _words: list[int]) -> int:
        self._stop()
        self.scsi_bus.reset()
        return _SUCCEEDED

    def _reset_bus(self, _words: list[int]) -> int:
        self._requests.cancel()
        self.scsi_bus.reset()
        return _SUCCEEDED

    def _reset_device(self, words: list[int]) -> int:
        unit = self.scsi_bus.find(0, words[0], words[1] >> 8 & 0xFF)
        if unit is None:
            return _FAILED
        unit.reset()
        return _SUCCEEDED

    def _set_up_rings(self, words: list[int]) -> int:
        requests, completions = words[:2]
        if not 1 <= requests <= _MAX_PAGES or not 1 <= completions <= _MAX_PAGES:
            return _FAILED
        places = [low | high << 32 for low, high in zip(words[2::2], words[3::2], strict=True)]
        pages = [place * PAGE % (1 << 64) for place in places]
        self._rings.set_up(pages[0], pages[1 : 1 + requests], pages[33 : 33 + completions])
        return _SUCCEEDED

    def _set_up_messages(self, words: list[int]) -> int:
        if not self.use_msg:
            return _FAILED
        count = words[0]
        if self._rings.state:
            if not 1 <= count <= _MAX_MESSAGE_PAGES:
                return _FAILED
            places = [low | high << 32 for low, high in zip(words[2::2], words[3::2], strict=True)]
            self._rings.set_up_messages([place * PAGE % (1 << 64) for place in places[:count]])
        return 34  # how many words it took

    # -- commands of the rings

    def _begin(self, request: Any) -> None:
        context, address, length, sense_at, sense_room, flags, cdb, cdb_length, lun, _tag, _bus, target, _cpu = request
        finish = partial(self._complete, context, sense_at, sense_room)
        if flags & _OUT_OF_BAND or cdb_length > len(cdb) or length > MAX_DATA or any(lun[:1] + lun[2:]):
            self._tell(context, 0, 0, _INVALID, 0)
            return
        pieces = self._pieces(address, length, bool(flags & _SG_LIST))
        unit = self.scsi_bus.find(0, target, lun[1])
        cdb = cdb[:cdb_length].ljust(16, b"\0")
        way, expected = transfer.expected(cdb, ScsiDevice.logical_size if unit is None else unit.logical_size)
        sent = b""
        if way == transfer.TO_DEVICE and flags & (_TO_DEVICE | _TO_HOST | _NO_DATA) in (0, _TO_DEVICE):
            if unit is not None and unit.lengths_known and expected > pieces.length:
                self._tell(context, 0, 0, _OVERRUN, 0)
                return
            sent = pieces.read(0, min(pieces.length, expected) if expected else pieces.length)
        room = pieces.length if way == transfer.TO_HOST and not flags & _TO_DEVICE else 0
        self._requests.begin(target, lun[1], cdb, sent, room, partial(finish, pieces, len(sent)))

    def _pieces(self, address: int, length: int, is_list: bool) -> ScatterList:
        """The guest memory of a request: of one piece, or of a list whose parts may lie apart."""
        pieces = ScatterList(self.dma)
        if not is_list:
            if length:
                pieces.add(address, length)
            return pieces
        for _ in range(_MAX_PIECES):
            left = length - pieces.length
            if left <= 0:
                break
            place, size, flags = unpack_from("<QII", self.dma.read(address, _SG_SIZE))
            if flags & _CHAIN:
                address = place
                continue
            if size:
                pieces.add(place, min(size, left))
            address += _SG_SIZE
        return pieces

    def _complete(
        self, context: int, sense_at: int, sense_room: int, pieces: ScatterList, sent: int, result: Result | None
    ) -> None:
        if result is None:
            self._tell(context, 0, 0, _NO_TARGET, 0)
            return
        moved = sent or (pieces.write(0, result.data) if result.data else 0)
        sense = result.sense[: min(sense_room, 252)]
        if sense:
            self.dma.write(sense_at, sense)
        short = result.status == GOOD and moved < pieces.length
        self._tell(context, moved, len(sense), _UNDERRUN if short else _OK, result.status)

    def _tell(self, *values: int) -> None:
        self._rings.complete(*values)
        self._raise(_COMPLETED)

    # -- interrupts

    def _raise(self, bits: int) -> None:
        self._pending |= bits
        if self._pending & self._mask and self._msi.enabled:
            self._msi.notify()
        self._update_interrupt()

    def _update_interrupt(self) -> None:
        self.set_pin(1 if self._pending & self._mask and not self._msi.enabled else 0)

    # -- units that come and go

    def unit_plugged(self, device: ScsiDevice) -> None:
        """A unit has come: tell the guest."""
        self._send_message(device, _ADDED)

    def unit_unplugged(self, device: ScsiDevice) -> None:
        """A unit has gone: tell the guest."""
        self._requests.forget(device)
        self._send_message(device, _REMOVED)

    def _send_message(self, device: ScsiDevice, kind: int) -> None:
        lun = bytes((0, device.lun & 0xFF)) + bytes(6)
        if self.use_msg and self._rings.send(MESSAGE.pack(kind, 0, device.scsi_id, lun)):
            self._raise(_MESSAGE)
