"""The registers of virtio over PCI before 1.0, in I/O space (virtio 1.2, section 4.1.4.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.memory import Registers

if TYPE_CHECKING:
    from qobra.machine.virtio.pci import VirtioPci
    from qobra.machine.virtio.queue import Queue

_PAGE = 4096
_NO_VECTOR = 0xFFFF


class LegacyRegisters:
    """20 bytes of registers (24 with MSI-X), then the device's configuration."""

    def __init__(self, proxy: VirtioPci) -> None:
        self._proxy = proxy
        header = 24 if proxy.msix is not None else 20
        size = 1 << (header + proxy.device.config_size - 1).bit_length()
        proxy.add_bar(0, Registers("virtio-pci", size, self._read, self._write, valid=(1, 4)), io=True)

    def _config_start(self) -> int:
        msix = self._proxy.msix
        return 24 if msix is not None and msix.enabled else 20

    def _read(self, offset: int, width: int) -> int:
        proxy, device = self._proxy, self._proxy.device
        start = self._config_start()
        if offset >= start:
            return device.read_config_at(offset - start, width)
        queue = self._queue()
        if offset == 0:
            return device.offered_features(modern=False) if proxy.modern else device.legacy_features()
        if offset == 4:
            return device.features & 0xFFFFFFFF
        if offset == 8:
            return queue.descriptors // _PAGE if queue is not None else 0
        if offset == 12:
            return queue.max_size if queue is not None else 0
        if offset == 14:
            return proxy.queue_select
        if offset == 18:
            return device.status
        if offset == 19:
            return proxy.read_isr()
        if offset == 20:
            return proxy.config_vector
        if offset == 22:
            return queue.vector if queue is not None else _NO_VECTOR
        return (1 << 8 * width) - 1

    def _write(self, offset: int, width: int, value: int) -> None:
        proxy, device = self._proxy, self._proxy.device
        start = self._config_start()
        if offset >= start:
            if offset - start + width <= device.config_size:
                device.write_config(offset - start, value.to_bytes(width, "little"))
            return
        queue = self._queue()
        if offset == 4:
            device.accept_features(value, modern=False, alone=not proxy.modern)
        elif offset == 8:
            if value == 0:
                proxy.write_status(0)
            elif queue is not None:
                place_legacy_queue(queue, value * _PAGE, _PAGE)
        elif offset == 14:
            proxy.select_queue(value & 0xFFFF)
        elif offset == 16:
            device.kick(value & 0xFFFF)
        elif offset == 18:
            proxy.write_status(value & 0xFF)
        elif offset == 20:
            proxy.config_vector = proxy.valid_vector(value & 0xFFFF)
        elif offset == 22 and queue is not None:
            queue.vector = proxy.valid_vector(value & 0xFFFF)

    def _queue(self) -> Queue | None:
        queues = self._proxy.device.queues
        return queues[self._proxy.queue_select] if self._proxy.queue_select < len(queues) else None


def place_legacy_queue(queue: Queue, address: int, alignment: int) -> None:
    """Lay a queue out from ``address`` as before 1.0: the used ring begins at the next multiple of ``alignment``."""
    queue.descriptors = address
    queue.driver_area = address + 16 * queue.size
    end = queue.driver_area + 6 + 2 * queue.size
    queue.device_area = (end + alignment - 1) & ~(alignment - 1)
    queue.ready = True
    queue.ring = None
