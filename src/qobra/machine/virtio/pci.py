"""Virtio over PCI (virtio 1.2, section 4.1): the modern registers and, in I/O space, those of before 1.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.memory import Registers
from qobra.machine.pci import express, regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.msix import MAX_VECTORS, Msix
from qobra.machine.virtio.device import F_VERSION_1, STATUS_DRIVER, STATUS_FEATURES_OK, VirtioBus, VirtioDevice
from qobra.machine.virtio.legacy_pci import LegacyRegisters
from qobra.machine.virtio.queue import QUEUE_MAX, Queue
from qobra.machine.vmstate import Number, VmState, listed, part, u8, u16, u32
from qobra.object.property import Bool, Enum, Int, Property

if TYPE_CHECKING:
    from qobra.object.qom import Object
    from qobra.object.tree import ObjectTree

_NO_VECTOR = 0xFFFF
CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, _CAP_PCI_CFG = 1, 2, 3, 4, 5
_AREAS_SIZE = 0x4000
_NOTIFY_MULTIPLIER = 4
ISR_QUEUE, ISR_CONFIG = 1, 2


class VirtioPciBus(VirtioBus):
    """The place for the device on a PCI function."""

    type_name = "virtio-pci-bus"

    def notify_queue(self, queue: Queue) -> None:
        self._proxy.interrupt(queue.vector, ISR_QUEUE)

    def notify_config(self) -> None:
        self._proxy.interrupt(self._proxy.config_vector, ISR_QUEUE | ISR_CONFIG)

    @property
    def modern(self) -> bool:
        return self._proxy.modern

    @property
    def _proxy(self) -> VirtioPci:
        return cast("VirtioPci", self.parent)


class Alias(Property):
    """A property that is really another object's."""

    forwarded = True

    def __init__(self, target: Object, prop: Property) -> None:
        super().__init__(prop.type, prop.default, name=prop.name, description=prop.description)
        self._target = target
        self.show_default = prop.show_default
        self.choices = prop.choices  # type: ignore[method-assign]

    def read(self, instance: Object) -> Any:
        return self._target.get(self.name)

    def write(self, instance: Object, value: Any, *, keyval: bool = False) -> None:
        self._target.set(self.name, value, keyval=keyval)


def register_variants(base: type[VirtioPci], name: str) -> None:
    """The two types beside ``name``: one that always has the interface of before 1.0, one that never has."""
    for suffix, legacy in (("transitional", "off"), ("non-transitional", "on")):
        members: dict[str, Any] = {
            "__doc__": f"{name}, {suffix}.",
            "__module__": base.__module__,
            "type_name": f"{name}-{suffix}",
            "disable_legacy": None,
            "disable_modern": None,
            "fixed_legacy": legacy,
            "plugs_into": base.plugs_into if legacy == "on" else PciDevice.plugs_into,
        }
        registry.register(f"{name}-{suffix}")(type(f"{base.__name__}{suffix.title()}", (base,), members))


class VirtioPci(PciDevice):
    """A PCI function that carries a virtio device. Concrete types name the device in ``backend_type``."""

    type_name = "virtio-pci"
    abstract = True
    plugs_into = ("pci-express-device", "conventional-pci-device")
    modern_bar, msix_bar = 4, 1
    areas: ClassVar[dict[int, tuple[int, int]]] = {
        CAP_COMMON: (0x0000, 0x1000),
        CAP_ISR: (0x1000, 0x1000),
        CAP_DEVICE: (0x2000, 0x1000),
        CAP_NOTIFY: (0x3000, 0x1000),
    }
    """Where in the modern base address each structure is: offset and length."""
    interrupt_pin = 1
    default_vectors: ClassVar[int | None] = None
    fixed_legacy: ClassVar[str | None] = None

    disable_legacy = Enum("OnOffAuto", ("auto", "on", "off"), "auto")
    disable_modern = Bool(False)
    ioeventfd = Bool(True, description="on/off")
    vectors = Int(0xFFFFFFFF, type="uint32")
    modern_pio_notify = Bool(False)
    page_per_vq = Bool(False)
    ats = Bool(False)

    vmstate = VmState(
        u16("config_vector", "queue_select"),
        u8("isr"),
        u32("device_select", "driver_select"),
        listed("_chosen", kind=Number(4)),
        part("msix"),
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.virtio_bus = VirtioPciBus(tree)
        self.add_child("virtio-bus", self.virtio_bus)
        cls: Any = tree.find_type(self.backend_type)
        self.device: VirtioDevice = cls(tree)
        self.add_child("virtio-backend", self.device)
        for prop in self.device.properties().values():
            if prop.name not in self.BASE_PROPERTIES:
                self.add_property(Alias(self.device, prop))
        self.config_vector = _NO_VECTOR
        self.isr = 0
        self.device_select = self.driver_select = self.queue_select = 0
        self._chosen = [0, 0]

    # -- life

    @property
    def _behind_port(self) -> bool:
        return self.pci_bus.implements("PCIE") and self.pci_bus.parent_bridge is not None

    @property
    def is_express(self) -> bool:
        """Behind a port it is an endpoint of PCI Express, unless it has the interface of before 1.0 alone."""
        return self._behind_port and not self.disable_modern

    def realize(self) -> None:
        wanted = self.fixed_legacy or self.disable_legacy
        self.legacy = wanted == "off" or (wanted == "auto" and not self._behind_port)
        self.modern = not self.disable_modern or self.fixed_legacy == "on"
        if not self.legacy and not self.modern:
            raise QobraError(
                "device cannot work as neither modern nor legacy mode is enabled",
                hint="Set either disable-modern or disable-legacy to off",
            )
        if "disable-legacy" in self.class_properties():
            self.values["disable-legacy"] = "off" if self.legacy else "on"  # what is in force can be asked for
        self.virtio_bus.insert(self.device)
        self.device.hotplugged = self.hotplugged
        self.device.set_realized(True)
        if self.modern and not self.device.offered_features(modern=True) >> F_VERSION_1 & 1:
            # Another process serves the queues, and has the layout of before 1.0 alone.
            if not self.legacy:
                self.device.unparent()
                raise QobraError(
                    "Device doesn't support modern mode, and legacy mode is disabled", hint="Set disable-legacy to off"
                )
            self.modern = False
        if self.vectors == 0xFFFFFFFF:
            vectors = self.default_vectors
            self.values["vectors"] = len(self.device.queues) + 1 if vectors is None else vectors
        if self.vectors > MAX_VECTORS:
            self.values["vectors"] = 0  # as QEMU, which goes on without
        if not self.legacy:
            self.put(regs.DEVICE_ID, 2, 0x1040 + self.device.device_number)
            self.put(regs.SUBSYSTEM_ID, 2, 0x1100)
            self.put(regs.REVISION, 1, 1)
        else:
            self.put(regs.SUBSYSTEM_ID, 2, self.device.device_number)
        if self.is_express:
            self._express = express.add_endpoint(self)
            express.allow_link_options(self, self._express)
            self._power = express.add_power_management(self)
            if self.ats:
                express.add_address_translation(self)
        if self.modern:
            self._add_modern()
        self.msix: Msix | None = None
        if self.vectors:
            self.msix = Msix(self, self.vectors, bar=self.msix_bar)
        if self.legacy:
            LegacyRegisters(self)

    def unrealize(self) -> None:
        self.device.unparent()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.device.reset()
        if self.is_express:
            express.reset_controls(self, self._express)
            self.config[self._power] = 0
        if self.msix is not None:
            self.msix.reset()
        self.config_vector = _NO_VECTOR
        self.isr = 0
        self.queue_select = 0

    # -- interrupts

    def interrupt(self, vector: int, cause: int) -> None:
        """Interrupt the driver by message, or by pin where messages are off. From any thread."""
        self.machine.control.post(self._interrupt, vector, cause)

    def _interrupt(self, vector: int, cause: int) -> None:
        if not self.realized:
            return
        if self.msix is not None and self.msix.enabled:
            if vector != _NO_VECTOR:
                self.msix.notify(vector)
            return
        self.isr |= cause
        self.set_pin(1)

    def read_isr(self) -> int:
        """What happened; reading it acknowledges."""
        isr, self.isr = self.isr, 0
        self.set_pin(0)
        return isr

    def valid_vector(self, vector: int) -> int:
        """``vector`` if there is one of that number, else none."""
        return vector if vector < self.vectors else _NO_VECTOR

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        if self.msix is not None:
            self.msix.config_written(offset, width)
        if self.modern and self._window <= offset < self._window + 20:
            if offset + width > self._window + 16:
                self._access_window(offset - self._window - 16, width, value)
        if self.is_express:
            express.reset_if_asked(self, self._express)

    def config_read(self, offset: int, width: int) -> int:
        if self.modern and self._window + 16 <= offset < self._window + 20:
            return self._read_window(offset, width)
        return super().config_read(offset, width)

    # -- modern registers

    def _add_modern(self) -> None:
        for kind, (offset, length) in self.areas.items():
            start = self._add_vendor_capability(kind, 20 if kind == CAP_NOTIFY else 16)
            self.put(start + 4, 1, self.modern_bar)
            self.put(start + 8, 4, offset)
            self.put(start + 12, 4, length)
            if kind == CAP_NOTIFY:
                self.put(start + 16, 4, _NOTIFY_MULTIPLIER)
        self._window = self._add_vendor_capability(_CAP_PCI_CFG, 20)
        self.writable[self._window + 4] = 0xFF
        self.writable[self._window + 8 : self._window + 20] = b"\xff" * 12
        region = Registers("virtio-pci", _AREAS_SIZE, self.read_modern, self.write_modern, valid=(1, 4))
        self.add_bar(self.modern_bar, region, wide=True, prefetch=True)

    def _add_vendor_capability(self, kind: int, size: int) -> int:
        start = self.add_capability(regs.CAP_VENDOR, size)
        self.put(start + 2, 1, size)
        self.put(start + 3, 1, kind)
        return start

    def _area(self, offset: int) -> tuple[int, int]:
        """Which structure is at ``offset``, and where in it that is; 0 where there is none."""
        for kind, (start, length) in self.areas.items():
            if 0 <= offset - start < length:
                return kind, offset - start
        return 0, offset

    def read_modern(self, offset: int, width: int) -> int:
        """Read at ``offset`` of the modern base address."""
        area, offset = self._area(offset)
        if area == CAP_COMMON:
            return self._read_common(offset)
        if area == CAP_ISR:
            return self.read_isr() if offset == 0 else 0
        if area == CAP_DEVICE:
            return self.device.read_config_at(offset, width)
        return 0

    def write_modern(self, offset: int, width: int, value: int) -> None:
        """Write there."""
        area, offset = self._area(offset)
        if area == CAP_COMMON:
            self._write_common(offset, value)
        elif area == CAP_DEVICE:
            if offset + width <= self.device.config_size:
                self.device.write_config(offset, value.to_bytes(width, "little"))
        elif area == CAP_NOTIFY:
            self.device.kick(offset // _NOTIFY_MULTIPLIER)

    def _queue(self) -> Queue | None:
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def _read_common(self, offset: int) -> int:
        device = self.device
        if offset == 0x00:
            return self.device_select
        if offset == 0x04:
            offered = device.offered_features(modern=True)
            return offered >> 32 * self.device_select & 0xFFFFFFFF if self.device_select < 2 else 0
        if offset == 0x08:
            return self.driver_select
        if offset == 0x0C:
            return self._chosen[self.driver_select] if self.driver_select < 2 else 0
        if offset == 0x10:
            return self.config_vector
        if offset == 0x12:
            return len(device.queues)
        if offset == 0x14:
            return device.status
        if offset == 0x15:
            return device.generation
        if offset in (0x16, 0x1E):
            return self.queue_select
        queue = self._queue()
        if queue is None:
            return _NO_VECTOR if offset == 0x1A else 0
        fields = {
            0x18: queue.size,
            0x1A: queue.vector,
            0x1C: int(queue.ready),
            0x20: queue.descriptors & 0xFFFFFFFF,
            0x24: queue.descriptors >> 32,
            0x28: queue.driver_area & 0xFFFFFFFF,
            0x2C: queue.driver_area >> 32,
            0x30: queue.device_area & 0xFFFFFFFF,
            0x34: queue.device_area >> 32,
        }
        return fields.get(offset, 0)

    def _write_common(self, offset: int, value: int) -> None:
        device = self.device
        if offset == 0x00:
            self.device_select = value
        elif offset == 0x08:
            self.driver_select = value
        elif offset == 0x0C:
            if self.driver_select < 2:
                self._chosen[self.driver_select] = value & 0xFFFFFFFF
                device.accept_features(self._chosen[1] << 32 | self._chosen[0], modern=True)
        elif offset == 0x10:
            self.config_vector = self.valid_vector(value)
        elif offset == 0x14:
            self.write_status(value & 0xFF)
        elif offset == 0x16:
            self.select_queue(value & 0xFFFF)
        else:
            queue = self._queue()
            if queue is not None:
                self._write_queue(queue, offset, value)

    def _write_queue(self, queue: Queue, offset: int, value: int) -> None:
        if offset == 0x18:
            # A power of two for split rings, any number for packed ones.
            if 0 < value <= queue.max_size and not queue.ready:
                queue.size = value
        elif offset == 0x1A:
            queue.vector = self.valid_vector(value)
        elif offset == 0x1C:
            if value == 1:
                queue.ready = True
        elif offset == 0x3A:
            if value == 1:
                queue.reset()
        elif 0x20 <= offset < 0x38 and not queue.ready:
            name = ("descriptors", "driver_area", "device_area")[(offset - 0x20) // 8]
            shift = 32 if offset & 4 else 0
            kept = getattr(queue, name) & ~(0xFFFFFFFF << shift)
            setattr(queue, name, kept | (value & 0xFFFFFFFF) << shift)

    def select_queue(self, number: int) -> None:
        """The driver turns to a queue; no device has as many as are not taken here."""
        if number < QUEUE_MAX:
            self.queue_select = number

    def write_status(self, status: int) -> None:
        """The driver sets the status: 0 resets, and with it the vectors and the interrupt."""
        self.device.write_status(status)
        if status == 0:
            self.config_vector = _NO_VECTOR
            self.queue_select = 0
            self.read_isr()
        elif status & STATUS_DRIVER and not status & STATUS_FEATURES_OK and not self.may_master() and self.legacy:
            # Old drivers never switch bus mastering on.
            self.put(regs.COMMAND, 2, self.word(regs.COMMAND) | regs.COMMAND_MASTER)

    # -- the window in configuration space (4.1.4.9)

    def _window_access(self) -> tuple[int, int] | None:
        start = self._window
        offset, length = self.dword(start + 8), self.dword(start + 12)
        if self.config[start + 4] != self.modern_bar or length not in (1, 2, 4) or offset % length:
            return None
        return (offset, length) if offset + length <= _AREAS_SIZE else None

    def _read_window(self, offset: int, width: int) -> int:
        access = self._window_access()
        return self.read_modern(*access) if access is not None else super().config_read(offset, width)

    def _access_window(self, _position: int, width: int, value: int) -> None:
        access = self._window_access()
        if access is not None:
            offset, length = access
            self.write_modern(offset, length, value & ((1 << 8 * length) - 1))
