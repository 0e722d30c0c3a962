"""The controller: registers, the rings of commands and answers, streams (High Definition Audio 1.0a, 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.dma import GuestMemory
from qobra.machine.hda import stream as streams
from qobra.machine.hda.codec import HdaBus
from qobra.machine.hda.stream import Stream
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.msix import Msi
from qobra.machine.vmstate import VmState, flag, i64, parts, u8, u16, u32, u64
from qobra.object.property import Bool, Enum, Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_SIZE = 0x4000
_CAPABILITIES = 0x4401
"""Four streams out, four in, addresses of 64 bits."""
_INPUTS, _OUTPUTS = 4, 4
_VERSION = b"\0\1"
_OUT_PAYLOAD, _IN_PAYLOAD = 0x3C, 0x1D
_RING_SIZES = 0x42
"""256 entries, and no other choice."""
_ENTRIES = 256

_GLOBAL, _WAKE, _STATE, _INT_CONTROL, _INT_STATUS, _CLOCK, _SYNC = 0x08, 0x0C, 0x0E, 0x20, 0x24, 0x30, 0x38
_COMMANDS, _COMMAND_WRITE, _COMMAND_READ, _COMMAND_CONTROL = 0x40, 0x48, 0x4A, 0x4C
_ANSWERS, _ANSWER_WRITE, _ANSWER_COUNT, _ANSWER_CONTROL, _ANSWER_STATUS = 0x50, 0x58, 0x5A, 0x5C, 0x5D
_IMMEDIATE, _IMMEDIATE_ANSWER, _IMMEDIATE_STATUS, _POSITIONS = 0x60, 0x64, 0x68, 0x70
_STREAMS = 0x80
_STREAMS_END = _STREAMS + streams.SIZE * (_INPUTS + _OUTPUTS)
_ALIASES = 0x2000

_OUT_OF_RESET, _UNSOLICITED = 0x001, 0x100
_RUN, _CONTROL_MASK = 0x02, 0x03
_ANSWERED, _OVERRUN, _ANSWER_MASK = 0x01, 0x04, 0x07
_POINTER_RESET = 0x80
_BUSY, _VALID = 0x01, 0x02
_ALL, _CONTROLLER, _INT_MASK = 1 << 31, 1 << 30, 0xC00000FF
_CODECS = 0x7FFF
_MEGAHERTZ = 24

_MSI_OFFSET, _OLD_MSI_OFFSET = 0x60, 0x50


class HdaController(PciDevice):
    """The controller, of which there are several by other names."""

    type_name = "intel-hda-generic"
    interfaces = ("conventional-pci-device",)
    abstract = True
    category = "Sound"
    vendor_id = regs.INTEL
    class_id = 0x0403
    interrupt_pin = 1

    debug = Int(0, type="uint32")
    msi = Enum("OnOffAuto", ("auto", "on", "off"), "auto")
    old_msi_addr = Bool(False, name="old_msi_addr")

    vmstate = VmState(
        flag("_works", "_unsolicited", "_was_raised"),
        u16("_wakes", "_state"),
        u32("_int_control", "_sync", "_immediate", "_immediate_answer"),
        u8("_command_write", "_command_read", "_command_reset", "_command_control"),
        u8("_answer_write", "_answer_count", "_answered", "_answer_control", "_answer_status"),
        u8("_immediate_status"),
        u64("_commands", "_answers", "_positions"),
        i64("_began_ns"),
        parts("streams"),
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.streams: list[Stream] = []
        self._was_raised = False

    def realize(self) -> None:
        self._memory = GuestMemory(self.board.memory, self.may_master)
        self.streams = [
            Stream(
                self.board.clock,
                self._memory,
                output=number >= _INPUTS,
                changed=self._check_interrupts,
                carry=self._carry,
                stopped=self._stopped,
            )
            for number in range(_INPUTS + _OUTPUTS)
        ]
        self.config[0x40] = 0x01  # High Definition Audio, not AC'97
        self._msi: Msi | None = None
        if self.msi != "off":
            self._msi = Msi(self, offset=_OLD_MSI_OFFSET if self.old_msi_addr else _MSI_OFFSET)
        self.link = HdaBus(self.tree)
        self.add_bus(self.link)
        self._clear()
        self.add_bar(0, Registers("intel-hda", _SIZE, self._read, self._write))

    def unrealize(self) -> None:
        for each in self.streams:
            each.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        if self._msi is not None:
            self._msi.reset()
        self._clear()
        self._check_interrupts()

    def _clear(self) -> None:
        self._works = self._unsolicited = False
        self._wakes = 0
        self._state = self._present()
        self._int_control = self._sync = self._immediate = self._immediate_answer = self._immediate_status = 0
        self._command_write = self._command_read = self._command_reset = self._command_control = 0
        self._answer_write = self._answer_count = self._answered = self._answer_control = self._answer_status = 0
        self._commands = self._answers = self._positions = 0
        self._began_ns = self.board.clock.now_ns()
        for each in self.streams:
            each.hold(False)
            each.reset()

    def _present(self) -> int:
        return sum(1 << each.cad for each in self.link.codecs())

    # -- interrupts

    @property
    def _int_status(self) -> int:
        causes = sum(1 << number for number, each in enumerate(self.streams) if each.interrupts)
        if self._answer_status & self._answer_control & (_ANSWERED | _OVERRUN) or self._state & self._wakes:
            causes |= _CONTROLLER
        return causes | (_ALL if causes & self._int_control else 0)

    def _check_interrupts(self) -> None:
        raised = bool(self._int_status & self._int_control & _ALL)
        if self._msi is None or not self._msi.enabled:
            self.set_pin(raised)
        elif raised and not self._was_raised:
            self._msi.notify()
        self._was_raised = raised

    # -- the link

    def _carry(self, stream: Stream, data: bytes) -> None:
        self._tell_position(stream)
        form = stream.form
        for codec in self.link.codecs():
            if stream.number and codec.hears(stream.number):
                codec.play(data, form)

    def _stopped(self, stream: Stream) -> None:
        for codec in self.link.codecs():
            if stream.output and stream.number and codec.hears(stream.number):
                codec.pause()

    def _tell_position(self, stream: Stream) -> None:
        if self._positions & 1:
            place = (self._positions & ~0x7F) + 8 * self.streams.index(stream)
            self._memory.write(place, stream.position.to_bytes(4, "little"))

    def _ask(self, command: int) -> tuple[int, int] | None:
        """Who answers what to a command; None for nobody."""
        codec = self.link.codec(command >> 28)
        if codec is None or command >> 27 & 1:
            return None
        return codec.cad, codec.command(command >> 20 & 0x7F, command & 0xFFFFF)

    def _run_commands(self) -> None:
        """Carry out what the guest has put into its ring of commands."""
        if not self._works or not self._command_control & _RUN:
            return
        while self._command_read != self._command_write and not self._answer_status & _ANSWERED:
            self._command_read = (self._command_read + 1) % _ENTRIES
            answer = self._ask(self._memory.number(self._commands + 4 * self._command_read, 4))
            if answer is not None:
                self._answer(*answer)
        if self._answered and self._command_read == self._command_write:
            self._tell_of_answers()

    def _answer(self, address: int, value: int) -> None:
        if not self._answer_control & _RUN:
            return
        self._answer_write = (self._answer_write + 1) % _ENTRIES
        entry = value.to_bytes(4, "little") + address.to_bytes(4, "little")
        self._memory.write(self._answers + 8 * self._answer_write, entry)
        self._answered += 1
        if self._answered == self._answer_count:
            self._tell_of_answers()

    def _tell_of_answers(self) -> None:
        self._answered = 0
        if self._answer_control & _ANSWERED:
            self._answer_status |= _ANSWERED
        self._check_interrupts()

    def _run_immediate(self) -> None:
        answer = self._ask(self._immediate)
        self._immediate_status |= _BUSY
        if answer is not None:
            address, self._immediate_answer = answer
            self._immediate_status = _VALID | address << 4

    # -- registers

    def _read(self, offset: int, width: int) -> int:
        if offset >= _ALIASES:
            offset -= _ALIASES
        if offset >= _STREAMS_END:
            return 0
        if offset >= _STREAMS:
            number, at = divmod(offset - _STREAMS, streams.SIZE)
            each = self.streams[number]
            each.catch_up()
            return int.from_bytes(each.registers()[at : at + width], "little")
        return int.from_bytes(self._registers()[offset : offset + width], "little")

    def _registers(self) -> bytes:
        """All of the controller's own, as they lie in memory."""
        ticks = (self.board.clock.now_ns() - self._began_ns) * _MEGAHERTZ // 1000
        found = bytearray(_STREAMS)
        for place, width, value in (
            (0x00, 2, _CAPABILITIES),
            (0x04, 2, _OUT_PAYLOAD),
            (0x06, 2, _IN_PAYLOAD),
            (_GLOBAL, 4, (_OUT_OF_RESET if self._works else 0) | (_UNSOLICITED if self._unsolicited else 0)),
            (_WAKE, 2, self._wakes),
            (_STATE, 2, self._state),
            (_INT_CONTROL, 4, self._int_control),
            (_INT_STATUS, 4, self._int_status),
            (_CLOCK, 4, ticks & 0xFFFFFFFF),
            (_SYNC, 4, self._sync),
            (_COMMANDS, 8, self._commands),
            (_COMMAND_WRITE, 2, self._command_write),
            (_COMMAND_READ, 2, self._command_reset << 8 | self._command_read),
            (_COMMAND_CONTROL, 1, self._command_control),
            (0x4E, 1, _RING_SIZES),
            (_ANSWERS, 8, self._answers),
            (_ANSWER_WRITE, 2, self._answer_write),
            (_ANSWER_COUNT, 2, self._answer_count),
            (_ANSWER_CONTROL, 1, self._answer_control),
            (_ANSWER_STATUS, 1, self._answer_status),
            (0x5E, 1, _RING_SIZES),
            (_IMMEDIATE, 4, self._immediate),
            (_IMMEDIATE_ANSWER, 4, self._immediate_answer),
            (_IMMEDIATE_STATUS, 2, self._immediate_status),
            (_POSITIONS, 8, self._positions),
        ):
            found[place : place + width] = value.to_bytes(width, "little")
        found[0x02:0x04] = _VERSION
        return bytes(found)

    def _write(self, offset: int, width: int, value: int) -> None:
        for at in range(width):
            self._write_byte(offset + at, value >> 8 * at & 0xFF)
        self._check_interrupts()

    def _write_byte(self, offset: int, value: int) -> None:
        if _GLOBAL <= offset < _GLOBAL + 4:
            self._write_global(offset, value)
        elif not self._works or offset >= _STREAMS_END:
            return
        elif offset >= _STREAMS:
            number, at = divmod(offset - _STREAMS, streams.SIZE)
            self.streams[number].write(at, value)
        elif offset < _COMMANDS:
            self._write_interrupts(offset, value)
        elif offset < _IMMEDIATE:
            self._write_rings(offset, value)
        elif offset < _IMMEDIATE + 4:
            self._immediate = _with_byte(self._immediate, offset - _IMMEDIATE, value)
        elif offset == _IMMEDIATE_STATUS:
            self._immediate_status &= ~(value & _VALID)
            if value & _BUSY and not self._immediate_status & _BUSY:
                self._run_immediate()
            elif not value & _BUSY:
                self._immediate_status &= ~_BUSY
        elif _POSITIONS <= offset < _POSITIONS + 8:
            self._positions = _with_byte(self._positions, offset - _POSITIONS, value) & ~0x7E

    def _write_global(self, offset: int, value: int) -> None:
        if offset == _GLOBAL + 1:
            self._unsolicited = bool(value & _UNSOLICITED >> 8) and self._works
        elif offset == _GLOBAL:
            if self._works and not value & _OUT_OF_RESET:
                self._clear()
                for codec in self.link.codecs():
                    codec.reset()
            self._works = bool(value & _OUT_OF_RESET)

    def _write_interrupts(self, offset: int, value: int) -> None:
        if _WAKE <= offset < _WAKE + 2:
            self._wakes = _with_byte(self._wakes, offset - _WAKE, value) & _CODECS
        elif _STATE <= offset < _STATE + 2:
            self._state &= ~(value << 8 * (offset - _STATE))
        elif _INT_CONTROL <= offset < _INT_CONTROL + 4:
            self._int_control = _with_byte(self._int_control, offset - _INT_CONTROL, value) & _INT_MASK
        elif offset == _SYNC:
            self._sync = value
            for number, each in enumerate(self.streams):
                each.hold(bool(value >> number & 1))

    def _write_rings(self, offset: int, value: int) -> None:
        if offset < _COMMANDS + 8:
            self._commands = _with_byte(self._commands, offset - _COMMANDS, value) & ~0x7F
        elif offset == _COMMAND_WRITE:
            self._command_write = value
            self._run_commands()
        elif offset == _COMMAND_READ + 1:
            self._command_reset = value & _POINTER_RESET
            if self._command_reset:
                self._command_read = 0
        elif offset == _COMMAND_CONTROL:
            self._command_control = value & _CONTROL_MASK
            self._run_commands()
        elif _ANSWERS <= offset < _ANSWERS + 8:
            self._answers = _with_byte(self._answers, offset - _ANSWERS, value) & ~0x7F
        elif offset == _ANSWER_WRITE + 1:
            if value & _POINTER_RESET:
                self._answer_write = 0
        elif offset == _ANSWER_COUNT:
            self._answer_count = value
        elif offset == _ANSWER_CONTROL:
            self._answer_control = value & _ANSWER_MASK
            self._run_commands()
        elif offset == _ANSWER_STATUS:
            self._answer_status &= ~(value & (_ANSWERED | _OVERRUN))
            self._run_commands()


def _with_byte(number: int, position: int, value: int) -> int:
    return number & ~(0xFF << 8 * position) | value << 8 * position
