"""``virtio-mmio``: see :mod:`qobra.machine.virtio.mmio`."""

from __future__ import annotations

from qobra.machine.virtio.mmio import VirtioMmio

__all__ = ["VirtioMmio"]
