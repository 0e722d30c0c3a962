"""The processor that runs SCRIPTS (chapter 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.lsi import regs, target

if TYPE_CHECKING:
    from qobra.machine.lsi.adapter import LsiAdapter

_AT_A_TIME = 2000
"""Instructions, or pages moved, until others get their turn."""
_ALL = 0xFFFFFFFF
_INDIRECT, _TABLE = 1 << 29, 1 << 28
_CHAINED_OR_PHASE = 1 << 27
_RELATIVE, _CARRY, _FLY, _TRUE, _DATA, _PHASE, _WAIT = 1 << 23, 1 << 21, 1 << 20, 1 << 19, 1 << 18, 1 << 17, 1 << 16
_SET_CARRY, _SET_ATTENTION = 1 << 10, 1 << 3


def _signed(value: int) -> int:
    return (value & 0xFFFFFF) - ((value & 0x800000) << 1)


class Scripts:
    """The processor of ``adapter``: it runs until it interrupts, or waits for the target or the driver."""

    def __init__(self, adapter: LsiAdapter) -> None:
        self._adapter = adapter
        self.running = self.waits_for_reselection = False
        self.carry = self.attention = False
        self._left = 0

    def reset(self) -> None:
        """It stands still."""
        self.running = self.waits_for_reselection = self.carry = self.attention = False

    def run(self) -> None:
        """Go on from DSP."""
        self._left = _AT_A_TIME
        while self._left > 0:
            self._left -= 1
            if not self.running or not self._step():
                return
            if self._adapter.byte(regs.DCNTL) & regs.STEP:
                self._adapter.dma_interrupt(regs.SINGLE_STEP)
        if self.running:
            self._adapter.run_later()

    def signalled(self) -> None:
        """The driver wants something: whoever waits to be reselected goes elsewhere."""
        if self.waits_for_reselection:
            self.waits_for_reselection = False
            adapter = self._adapter
            adapter.set_register(regs.DSP, 4, adapter.register(regs.DNAD, 4))
            self.running = True
            self.run()

    def _step(self) -> bool:
        """One instruction; False if it has to be tried again, or the processor waits."""
        adapter = self._adapter
        start = adapter.register(regs.DSP, 4)
        word, address = adapter.dma.number(start, 4), adapter.dma.number(start + 4 & _ALL, 4)
        kind = word >> 30
        if adapter.target.phase is None and (kind == 0 or (kind == 2 and word & (_PHASE | _WAIT))):
            return False  # the target is busy
        adapter.set_register(regs.DCMD, 1, word >> 24)
        adapter.set_register(regs.DBC, 3, 0)
        adapter.set_register(regs.DSPS, 4, address)
        self._next = start + 8 & _ALL
        adapter.set_register(regs.DSP, 4, self._next)
        if kind == 0:
            return self._block_move(start, word, address)
        if kind == 1:
            return self._io(word, address) if word >> 27 & 7 < 5 else self._register(word)
        if kind == 2:
            return self._transfer(word, address)
        return self._memory(word, address)

    # -- moving data over the bus

    def _block_move(self, start: int, word: int, address: int) -> bool:
        adapter, end = self._adapter, self._adapter.target
        if end.id is None:
            self.running = False  # nothing will ever come
            return False
        count, entry = word & 0xFFFFFF, start + 4 & _ALL
        if word & _TABLE:
            entry = adapter.register(regs.DSA, 4) + _signed(address) & _ALL
            count, address = adapter.dma.number(entry, 4) & 0xFFFFFF, adapter.dma.number(entry + 4 & _ALL, 4)
        elif word & _INDIRECT:
            address = adapter.dma.number(address, 4)
        wanted = word >> 24 & 7
        moved = 0
        adapter.set_register(regs.DNAD, 4, address)
        while moved < count and end.phase == wanted and not end.gone:
            if wanted in (target.DATA_OUT, target.COMMAND, target.MESSAGE_OUT):
                size = end.room(min(count - moved, 1 << 20))
                end.take(adapter.dma.read(address + moved & _ALL, size))
            else:
                data = end.give(min(count - moved, 1 << 20))
                size = len(data)
                adapter.dma.write(address + moved & _ALL, data)
                if data and wanted != target.DATA_IN:
                    adapter.set_register(regs.SFBR, 1, data[0])
            if not size:
                break
            moved += size
            self._left -= size >> 12
        adapter.set_register(regs.DBC, 3, count - moved)
        adapter.set_register(regs.DNAD, 4, address + moved & _ALL)
        adapter.set_register(regs.CSBC, 4, adapter.register(regs.CSBC, 4) + moved & _ALL)
        adapter.set_register(regs.SBC, 3, moved)
        if wanted == target.MESSAGE_OUT:
            self.attention = False
        if moved == count or end.phase is None or end.gone:
            return True
        self._mismatched(start, word, entry, address + moved & _ALL, count - moved, wanted)
        return True

    def _mismatched(self, start: int, word: int, entry: int, address: int, left: int, wanted: int) -> None:
        adapter = self._adapter
        control = adapter.byte(regs.CCNTL0)
        is_data = wanted in (target.DATA_IN, target.DATA_OUT)
        if not control & regs.JUMP_AT_MISMATCH or not is_data:
            adapter.scsi_interrupt(regs.PHASE_MISMATCH, 0)
            return
        second = control & regs.BY_DIRECTION and wanted == target.DATA_IN
        adapter.set_register(regs.UA, 4, address)
        adapter.set_register(regs.RBC, 4, word >> 24 << 24 | left)
        adapter.set_register(regs.ESA, 4, entry if word & _TABLE else 0)
        adapter.set_register(regs.IA, 4, start)
        adapter.set_register(regs.DSP, 4, adapter.register(regs.PMJAD2 if second else regs.PMJAD1, 4))

    # -- connecting

    def _io(self, word: int, address: int) -> bool:
        adapter = self._adapter
        operation = word >> 27 & 7
        if operation in (0, 2) and word & 1 << 26:
            address = self._next + _signed(address) & _ALL
        if operation == 0:
            return self._select(word, address)
        if operation == 1:
            if adapter.target.gone:
                adapter.disconnect()
            return True
        if operation == 2:
            if adapter.byte(regs.ISTAT0) & regs.SIGNAL:
                adapter.set_register(regs.DSP, 4, address)
                return True
            adapter.set_register(regs.DNAD, 4, address)
            self.running, self.waits_for_reselection = False, True
            return False
        value = operation == 3
        if word & _SET_CARRY:
            self.carry = value
        if word & _SET_ATTENTION:
            self.attention = value
            if value and adapter.target.id is not None and not adapter.target.gone:
                adapter.target.phase = target.MESSAGE_OUT
        return True

    def _select(self, word: int, address: int) -> bool:
        adapter = self._adapter
        if word & 1 << 25:
            entry = adapter.dma.number(adapter.register(regs.DSA, 4) + _signed(word) & _ALL, 4)
            id = entry >> 16 & 15
        else:
            id = word >> 16 & 15
        adapter.set_register(regs.SDID, 1, id)
        if not adapter.target.select(id, attention=bool(word & 1 << 24)):
            adapter.disconnect()
            adapter.scsi_interrupt(0, regs.SELECTION_TIMEOUT)
            return True
        self.attention = bool(word & 1 << 24)
        adapter.set_register(regs.SSID, 1, 0x80 | id)
        adapter.connect()
        return True

    # -- registers

    def _register(self, word: int) -> bool:
        adapter = self._adapter
        number, data = word >> 16 & 0x7F | word & 0x80, word >> 8 & 0xFF
        operation, operator = word >> 27 & 7, word >> 24 & 7
        filled = adapter.byte(regs.SFBR)
        if word & 1 << 23:
            data = filled
        value = filled if operation == 5 else adapter.read_byte(number)
        if operator == 0:
            value = data if operation != 5 or not word & 1 << 23 else filled
        elif operator == 1:
            shifted = value << 1 | self.carry
            value, self.carry = shifted & 0xFF, bool(shifted >> 8)
        elif operator == 2:
            value |= data
        elif operator == 3:
            value ^= data
        elif operator == 4:
            value &= data
        elif operator == 5:
            value, self.carry = value >> 1 | self.carry << 7, bool(value & 1)
        else:
            sum = value + data + (self.carry if operator == 7 else 0)
            value, self.carry = sum & 0xFF, sum > 0xFF
        if operation == 6 or (operation == 7 and number == regs.SFBR):
            adapter.set_register(regs.SFBR, 1, value)
        else:
            adapter.write_byte(number, value)
        return True

    # -- jumps and interrupts

    def _transfer(self, word: int, address: int) -> bool:
        adapter = self._adapter
        if not self._condition(word):
            return True
        operation = word >> 27 & 7
        if word & _RELATIVE:
            address = self._next + _signed(address) & _ALL
        if operation == 0:
            adapter.set_register(regs.DSP, 4, address)
        elif operation == 1:
            adapter.set_register(regs.TEMP, 4, self._next)
            adapter.set_register(regs.DSP, 4, address)
        elif operation == 2:
            adapter.set_register(regs.DSP, 4, adapter.register(regs.TEMP, 4))
        elif operation == 3:
            if word & _FLY:
                adapter.set_register(regs.ISTAT0, 1, adapter.byte(regs.ISTAT0) | regs.ON_THE_FLY)
                adapter.update_interrupt()
            else:
                adapter.dma_interrupt(regs.SCRIPT_INTERRUPT)
        else:
            adapter.dma_interrupt(regs.ILLEGAL)
        return True

    def _condition(self, word: int) -> bool:
        adapter = self._adapter
        wanted, found = bool(word & _TRUE), True
        if not word & (_CARRY | _DATA | _PHASE):
            return wanted
        if word & _CARRY:
            return self.carry == wanted
        if word & _PHASE:
            phase = target.DATA_OUT if adapter.target.phase is None else adapter.target.phase
            found = adapter.target.id is not None and phase == word >> 24 & 7
        if word & _DATA:
            mask = ~(word >> 8) & 0xFF
            found = found and adapter.byte(regs.SFBR) & mask == word & mask & 0xFF
        return found == wanted

    # -- memory

    def _memory(self, word: int, address: int) -> bool:
        adapter = self._adapter
        if word & 1 << 29:
            self._load_or_store(word, address)
            return True
        place = adapter.dma.number(self._next, 4)
        adapter.set_register(regs.DSP, 4, self._next + 4 & _ALL)
        count = word & 0xFFFFFF
        self._left -= count >> 12
        for at in range(0, count, 1 << 16):
            size = min(count - at, 1 << 16)
            adapter.dma.write(place + at & _ALL, adapter.dma.read(address + at & _ALL, size))
        return True

    def _load_or_store(self, word: int, address: int) -> None:
        adapter = self._adapter
        if word & 1 << 28:
            address = adapter.register(regs.DSA, 4) + _signed(address) & _ALL
        number, count = word >> 16 & 0xFF, word & 7
        if word & 1 << 24:
            for at, value in enumerate(adapter.dma.read(address, count)):
                adapter.write_byte(number + at & 0xFF, value)
        else:
            adapter.dma.write(address, bytes(adapter.read_byte(number + at & 0xFF) for at in range(count)))
