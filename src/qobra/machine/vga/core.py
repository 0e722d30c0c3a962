"""What every card of the family is made of: registers, memory, the window of the CPU, and the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.memory import AddressSpace, Mapping, Ram, Registers
from qobra.machine.vga import picture
from qobra.machine.vga import registers as vga
from qobra.machine.vga.dispi import HEIGHT, WIDTH, Dispi, DispiPorts
from qobra.machine.vga.frame import Painter
from qobra.machine.vga.mmio import ByteOrder
from qobra.machine.vga.registers import VgaRegisters
from qobra.machine.vga.window import BANKED, BASE, Window
from qobra.machine.vmstate import VmState, part

if TYPE_CHECKING:
    from qobra.display.console import Console

_PORTS = ((0x3B4, 2), (0x3BA, 1), (0x3C0, 16), (0x3D4, 2), (0x3DA, 1))
_CHAIN_4 = 0x08
_MAPPED_AS_GRAPHICS, _MAP_BITS = 0x05, 0x0C
_EIGHT_BIT_SHIFT, _SHIFT_BITS = 0x40, 0x60


class VgaCore:
    """A card with ``size`` bytes of memory, a power of two. ``now_ns`` is the guest's time, by which cursors blink."""

    vmstate = VmState(part("registers", "dispi", "order"))

    def __init__(self, size: int, now_ns: Callable[[], int], order: ByteOrder) -> None:
        self.memory = Ram("vga.vram", size)
        self.now_ns = now_ns
        self.registers = VgaRegisters(self._written)
        self.dispi = Dispi(size, self._switched)
        self.order = order
        self.window = Window(self)
        self._painter: Painter | None = None
        self._mappings: list[Mapping] = []
        self._linear: Mapping | None = None
        self._space: AddressSpace | None = None
        self._linear_from: int | None = None

    def reset(self) -> None:
        """Everything but the memory as after power-on."""
        self.registers.reset()
        self.dispi.reset()
        self.order.big_endian = self.order.default
        self._move()

    def state_loaded(self) -> None:
        """Show in the window what the registers say."""
        self._move()

    def close(self) -> None:
        """Leave the address spaces, and give the memory back."""
        for mapping in self._mappings:
            mapping.remove()
        self._mappings.clear()
        if self._linear is not None:
            self._linear.remove()
            self._linear = None
        self._space = None
        self.memory.close()

    def answer_at_legacy_places(self, memory: AddressSpace, ports: AddressSpace) -> None:
        """Be the VGA of the machine: at its ports and in its window."""
        self._space = memory
        self._mappings.append(memory.map(BASE, self.window, priority=1))
        for base, count in _PORTS:
            region = Registers("vga", count, self._reader(base), self._writer(base), valid=(1, 4), impl=(1, 1))
            self._mappings.append(ports.map(base, region))
        self._mappings.append(ports.map(0x1CE, DispiPorts(self.dispi)))

    def draw_on(self, console: Console) -> None:
        """Show the picture there, whenever somebody looks."""
        self._painter = Painter(console)
        console.refresh = self.refresh

    def refresh(self) -> None:
        """Bring the picture up to date."""
        assert self._painter is not None
        frame = picture.frame(self)
        if frame is not None:
            self._painter.paint(frame)
        elif not self.registers.shows:
            self._painter.darken()

    def _reader(self, base: int) -> Callable[[int, int], int]:
        return lambda offset, _width: self.registers.read(base + offset)

    def _writer(self, base: int) -> Callable[[int, int, int], None]:
        return lambda offset, _width, value: self.registers.write(base + offset, value)

    def bytes_at(self, offset: int, length: int) -> bytes:
        """What the beam reads: memory from ``offset`` on, which begins anew behind its end."""
        size, view = self.memory.size, self.memory.view
        offset %= size
        found = bytes(view[offset : offset + length])
        while len(found) < length:
            found += bytes(view[: length - len(found)])
        return found

    # -- what is in force

    @property
    def memory_mode(self) -> int:
        """The sequencer's memory mode: the modes of Bochs have their own."""
        return _CHAIN_4 if self._linear_pixels else self.registers.seq[vga.SEQ_MEMORY]

    @property
    def write_planes(self) -> int:
        """The planes that the CPU writes."""
        return 15 if self._linear_pixels else self.registers.seq[vga.SEQ_MASK]

    @property
    def window_map(self) -> int:
        """Which part of the window shows memory."""
        return 1 if self.dispi.on else self.registers.gfx[vga.GFX_MISC] >> 2 & 3

    @property
    def _linear_pixels(self) -> bool:
        return self.dispi.on and self.dispi.bits > 4

    def _switched(self, clear: bool) -> None:
        self._written()
        if clear:
            length = min(self.dispi.registers[HEIGHT] * self.dispi.line_length, self.memory.size)
            self.memory.view[:length] = bytes(length)

    def _written(self) -> None:
        if self.dispi.on:
            self._follow_dispi()
        self._move()

    def _follow_dispi(self) -> None:
        """Have the VGA's registers say what Bochs' do, as far as they can."""
        dispi, gfx, crtc = self.dispi, self.registers.gfx, self.registers.crtc
        gfx[vga.GFX_MISC] = (gfx[vga.GFX_MISC] & ~_MAP_BITS) | _MAPPED_AS_GRAPHICS
        gfx[vga.GFX_MODE] = (gfx[vga.GFX_MODE] & ~_SHIFT_BITS) | (_EIGHT_BIT_SHIFT if dispi.bits > 4 else 0)
        lines = dispi.registers[HEIGHT] - 1
        crtc[vga.CRTC_MODE] |= 3
        crtc[vga.CRTC_OFFSET] = dispi.line_length >> 3 & 0xFF
        crtc[vga.CRTC_WIDTH] = (dispi.registers[WIDTH] >> 3) - 1 & 0xFF
        crtc[vga.CRTC_HEIGHT] = lines & 0xFF
        high = (lines >> 7 & 0x02) | (lines >> 3 & 0x40)
        crtc[vga.CRTC_OVERFLOW] = (crtc[vga.CRTC_OVERFLOW] & ~0x42) | high | 0x10
        crtc[vga.CRTC_LINE_COMPARE] = 0xFF
        crtc[vga.CRTC_ROW_SCAN] = (crtc[vga.CRTC_ROW_SCAN] & ~0x9F) | 0x40

    def _move(self) -> None:
        """Show the memory itself in the window where there is no difference."""
        if self._space is None:
            return
        wanted = self.dispi.bank_offset if self.window.is_linear else None
        if wanted == self._linear_from:
            return
        if self._linear is not None:
            self._linear.remove()
            self._linear = None
        if wanted is not None:
            self._linear = self._space.map(BASE, self.memory, offset=wanted, size=BANKED, priority=1)
        self._linear_from = wanted
