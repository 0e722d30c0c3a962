"""The card: registers, which are bytes, words or double words, its timer and interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.nic import Nic
from qobra.machine.pci import regs as pci
from qobra.machine.pci.device import PciDevice
from qobra.machine.rtl8139 import receive, regs, transmit
from qobra.machine.rtl8139.eeprom import Eeprom
from qobra.machine.rtl8139.tally import Tally
from qobra.machine.vmstate import Number, VmState, listed, part, raw, timer, u8, u16

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_SIZE = 256
_TICK_NS = 30
_REASONS = 0xE1FF

_INITIAL = {
    regs.CR: 0x10, regs.TCR + 3: 0x74, regs.TCR + 2: 0x80, regs.CONFIG1: 0x0C, regs.MSR: 0xD0, regs.CONFIG3: 0x01,
    regs.HLTCLK: 0x01, regs.REVISION: 0x20,
}  # fmt: skip
_INITIAL_WORDS = {
    regs.BMCR: 0x1000, regs.BMSR: 0x782D, regs.ANAR: 0x05E1, regs.ANLPAR: 0x05E1, regs.ANER: 1, regs.CSCR: 0x0340,
}  # fmt: skip
# How a register that is just stored changes by what is written: what stays set, and what can be set.
_BYTES = {**dict.fromkeys((*range(6), *range(8, 16)), (0, 255)), regs.ETTHR: (0, 0xFF)}
_LOCKED_BYTES = {
    regs.CONFIG0: (0, 0x07),
    regs.CONFIG1: (0x0C, 0xF3),
    regs.CONFIG3: (0x01, 0x70),
    regs.CONFIG4: (0, 0xF5),
}
_WORDS = {
    regs.IMR: (0, _REASONS), regs.MULINT: (0, 0x0FFF), regs.BMCR: (0x1000, 0x0200), regs.ANAR: (0, 0xFFFF),
    regs.ANER: (0, 0xFFFF), regs.CPCR: (0, 0x7B),
}  # fmt: skip
_DWORDS = {
    **dict.fromkeys((32, 36, 40, 44, regs.RBSTART, regs.RDSAR, regs.RDSAR + 4), (0, 4294967295)),
    regs.TCR: (regs.TX_VERSION, 0x03060FF0), regs.RCR: (0, 0x0F03FFBF),
}  # fmt: skip
_WORD_ONLY = {regs.CAPR, regs.CBR, regs.IMR, regs.ISR, regs.TSAD_ALL, *_INITIAL_WORDS, regs.CPCR}
_DWORD_ONLY = {regs.TCTR, regs.TIMER, *_DWORDS} - {regs.TCR}


class RealtekCard(PciDevice, Nic):
    """What is received goes into a ring buffer, or with the C+ mode on into buffers of descriptors."""

    abstract = True
    class_id = pci.CLASS_ETHERNET
    default_rom = "efi-rtl8139.rom"
    interrupt_pin = 1

    vmstate = VmState(
        raw("_registers"),
        u16("ring_at", "ring_read"),
        u8("tx_turn", maximum=3),
        u8("tx_at", "rx_at", maximum=receive.MAX_DESCRIPTORS - 1),
        listed("_timer_values", kind=Number(8)),
        timer("_timer"),
        part("_eeprom", "tally"),
        partial=True,
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._registers = bytearray(_SIZE)
        self.tally = Tally()
        self._timer_values = [0, 0]  # when it was 0, and TimerInt

    def realize(self) -> None:
        self.realize_nic()
        self.put(pci.CAPABILITIES, 1, 0xDC)
        self.dma = GuestMemory(self.board.memory, self.may_master)
        self._eeprom = Eeprom(self.address, self.vendor_id, self.device_id)
        self._timer = self.board.clock.timer(self._timer_expired)
        self.add_bar(0, Registers("rtl8139", _SIZE, self._read, self._write), io=True)
        self.add_bar(1, Registers("rtl8139", _SIZE, self._read, self._write))
        self._registers[regs.IDR : regs.IDR + 6] = self.address
        self._clear()

    def unrealize(self) -> None:
        self._timer.cancel()
        self.unrealize_nic()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self._eeprom.reset()
        self.tally.reset()
        self._clear()

    def _clear(self) -> None:
        self.drop_waiting()
        self._registers[6:] = bytes(_SIZE - 6)
        self._registers[regs.IDR : regs.IDR + 6] = self.address
        for at, value in _INITIAL.items():
            self._registers[at] = value
        for at, value in _INITIAL_WORDS.items():
            self.set_register(at, 2, value)
        for number in range(4):
            self.set_register(regs.TSD + 4 * number, 4, regs.TSD_OWN)
        self.ring_at = self.ring_read = self.tx_turn = self.tx_at = self.rx_at = 0
        self._timer_values = [self.board.clock.now_ns(), 0]
        self._timer.cancel()
        self._show_link()
        self._update_interrupt()

    # -- what the rings use

    def register(self, offset: int, width: int) -> int:
        """A register."""
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def set_register(self, offset: int, width: int, value: int) -> None:
        """Set a register, whatever the driver may write there."""
        self._registers[offset : offset + width] = value.to_bytes(width, "little")

    def raw(self, offset: int, length: int) -> bytes:
        """Registers as they lie side by side."""
        return bytes(self._registers[offset : offset + length])

    def wide(self, offset: int) -> int:
        """An address of 64 bits."""
        return self.register(offset, 8)

    def interrupt(self, reasons: int) -> None:
        """Something happened."""
        self.set_register(regs.ISR, 2, self.register(regs.ISR, 2) | reasons)
        self._update_interrupt()

    def _update_interrupt(self) -> None:
        self.set_pin(1 if self.register(regs.ISR, 2) & self.register(regs.IMR, 2) else 0)

    def send(self, packet: bytes) -> None:
        """The driver sends a packet."""
        if len(packet) < 14:
            return
        self.tally.sent()
        if self.register(regs.TCR, 4) & regs.TX_LOOPBACK == regs.TX_LOOPBACK:
            self.receive_packet(packet)
        else:
            self.transmit(packet)

    # -- the wire

    def _show_link(self) -> None:
        up, status = self.link_up, self.register(regs.BMSR, 2)
        self._registers[regs.MSR] = self._registers[regs.MSR] & ~regs.MSR_NO_LINK | (0 if up else regs.MSR_NO_LINK)
        self.set_register(regs.BMSR, 2, status | regs.BMSR_LINK if up else status & ~regs.BMSR_LINK)

    def link_changed(self) -> None:
        self._show_link()
        self.interrupt(regs.LINK)

    def put_packet(self, packet: bytes) -> bool:
        return not self.may_master() or receive.receive(self, packet)

    # -- registers

    def _read(self, offset: int, width: int) -> int:
        if width == 4 and offset in _DWORD_ONLY:
            return self._ticks() if offset == regs.TCTR else self.register(offset, 4)
        if width == 2 and offset in _WORD_ONLY:
            return self._read_word(offset)
        return sum(self._read_byte(offset + n) << 8 * n for n in range(width))

    def _read_word(self, offset: int) -> int:
        if offset == regs.CAPR:
            return self.ring_read - 16 & 0xFFFF
        if offset == regs.CBR:
            return self.ring_at
        if offset == regs.TSAD_ALL:
            statuses = [self.register(regs.TSD + 4 * number, 4) for number in range(4)]
            return sum((s >> 13 & 1) << n | (s >> 15 & 1) << n + 12 for n, s in enumerate(statuses))
        return self.register(offset, 2)

    def _read_byte(self, offset: int) -> int:
        if offset == regs.CR:
            size = receive.ring_size(self.register(regs.RCR, 4))
            empty = self.ring_at % size == self.ring_read % size
            return self._registers[offset] | (regs.CR_EMPTY if empty else 0)
        if offset == regs.EE_CR:
            return self._eeprom.lines
        if offset & ~1 in _WORD_ONLY or offset & ~3 in _DWORD_ONLY:
            return 0
        return self._registers[offset]

    def _write(self, offset: int, width: int, value: int) -> None:
        if width == 4 and self._write_dword(offset, value):
            return
        if width == 2:
            self._write_word(offset, value)
            return
        for at in range(width):
            self._write_byte(offset + at, value >> 8 * at & 0xFF)

    def _write_dword(self, offset: int, value: int) -> bool:
        if offset == regs.TCR and not self._registers[regs.CR] & regs.CR_TX:
            pass  # it cannot be changed while the transmitter is off
        elif offset in _DWORDS:
            stays, free = _DWORDS[offset]
            self.set_register(offset, 4, stays | value & free)
            if offset == regs.RDSAR:
                self.rx_at = 0
            elif offset == regs.TSAD:
                self.tx_at = 0
        elif regs.TSD <= offset < regs.TSAD and not offset & 3:
            self._write_status(offset, value)
        elif offset == regs.TCTR:
            self._settle_timer()
            self._timer_values[0] = self.board.clock.now_ns()
            self._set_timer()
        elif offset == regs.TIMER:
            self._settle_timer()
            self.set_register(offset, 4, value)
            self._timer_values[1] = value
            self._set_timer()
        elif offset == regs.MPC:
            pass
        else:
            return False
        return True

    def _write_status(self, offset: int, value: int) -> None:
        if self.register(regs.CPCR, 2) & regs.CP_TX:
            if offset == regs.TSD and value & regs.TALLY_DUMP:
                self.dma.write(self.register(regs.TSD + 4, 4) << 32 | value & ~0x3F, self.tally.dump())
                value &= ~regs.TALLY_DUMP
            self.set_register(offset, 4, value)
            return
        self.set_register(offset, 4, value & ~(0xFF00C000 | regs.TSD_OK))
        transmit.send_from_registers(self)

    def _write_word(self, offset: int, value: int) -> None:
        if offset in _WORDS:
            stays, free = _WORDS[offset]
            self.set_register(offset, 2, stays | value & free)
            self._update_interrupt()
            self.room_changed()
        elif offset == regs.CAPR:
            self.ring_read = (value + 16) % receive.ring_size(self.register(regs.RCR, 4))
            self.room_changed()
        elif offset == regs.ISR:
            self._settle_timer()
            self.set_register(offset, 2, self.register(offset, 2) & ~value)
            self._set_timer()
            self._update_interrupt()
        elif offset not in _WORD_ONLY:
            self._write_byte(offset, value & 0xFF)
            self._write_byte(offset + 1, value >> 8)

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == regs.CR:
            if value & regs.CR_RESET:
                self._clear()
            self._registers[offset] = value & (regs.CR_TX | regs.CR_RX)
            self.room_changed()
        elif offset == regs.EE_CR:
            self._eeprom.lines = value
        elif offset == regs.TPPOLL:
            if value & regs.POLL_NORMAL:
                transmit.send_from_ring(self)
        elif offset in _LOCKED_BYTES:
            if self._eeprom.lines & regs.UNLOCKED == regs.UNLOCKED:
                stays, free = _LOCKED_BYTES[offset]
                self._registers[offset] = stays | value & free
        elif offset in _BYTES:
            self._registers[offset] = value

    # -- the timer, which counts the bus's clock

    def _ticks(self) -> int:
        return (self.board.clock.now_ns() - self._timer_values[0]) // _TICK_NS & 0xFFFFFFFF

    def _settle_timer(self) -> None:
        """Note what has expired by now."""
        due = self._timer.deadline_ns
        if due is not None and due <= self.board.clock.now_ns():
            self._timer.cancel()
            self._timer_expired()

    def _set_timer(self) -> None:
        wanted = self._timer_values[1]
        if not wanted:
            self._timer.cancel()
            return
        # The next time that the counter, which begins anew after 32 bits, comes to the value.
        passed = (self.board.clock.now_ns() - self._timer_values[0]) // _TICK_NS
        ahead = (wanted - passed - 1) % (1 << 32) + 1
        self._timer.set(self._timer_values[0] + (passed + ahead) * _TICK_NS)

    def _timer_expired(self) -> None:
        self.interrupt(regs.TIMEOUT)
        self._set_timer()
