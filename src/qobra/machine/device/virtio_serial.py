"""virtio-serial: a bus of serial ports between guest and host (virtio 1.2, section 5.3)."""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Any, cast

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.qdev import Bus, Device
from qobra.machine.serial16550 import find_chardev
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.pci import VirtioPci, register_variants
from qobra.machine.virtio.queue import Queue
from qobra.machine.vmstate import Raw, VmState, flag, listed
from qobra.object.property import Bool, Int, String

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev
    from qobra.object.tree import ObjectTree

F_MULTIPORT, F_EMERGENCY_WRITE = 1, 2
_CONFIG = Struct("<HHII")
_CONTROL = Struct("<IHH")
_DEVICE_READY, _PORT_ADD, _PORT_REMOVE, _PORT_READY = 0, 1, 2, 3
_CONSOLE_PORT, _RESIZE, _PORT_OPEN, _PORT_NAME = 4, 5, 6, 7
_BAD_ID = 0xFFFFFFFF
_USUAL_PORTS, _MAX_PORTS = 31, 511
_CONTROL_LIMIT = 4096
_RESERVED = "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility."


class VirtioSerialBus(Bus):
    """The ports of one device."""

    type_name = "virtio-serial-bus"
    hotplug = True

    def check(self, device: Device) -> None:
        owner: Any = self.owner
        owner.place(device)

    def plugged(self, device: Device) -> None:
        owner: Any = self.owner
        owner.port_plugged(device)

    def unplugged(self, device: Device) -> None:
        owner: Any = self.owner
        owner.port_unplugged(device)


@registry.register("virtio-serial-device")
class VirtioSerial(VirtioDevice):
    """The device: a control queue pair, and a queue pair for each port. Port 0 is for consoles."""

    type_name = "virtio-serial-device"
    interfaces = ("hotplug-handler",)
    category = "Input"
    device_number = 3
    config_size = 12

    max_ports = Int(_USUAL_PORTS, type="uint32", name="max_ports")
    emergency_write = Bool(True, name="emergency-write")

    vmstate = VmState(listed("_waiting", kind=Raw(_CONTROL.size + 255), maximum=_CONTROL_LIMIT), flag("_driver_ready"))

    def realize(self) -> None:
        if not self.max_ports:
            raise QobraError("Maximum number of serial ports not specified")
        if self.max_ports > _MAX_PORTS:
            raise QobraError(f"maximum ports supported: {_MAX_PORTS}")
        self.ports: dict[int, SerialPort] = {}
        self._waiting: deque[bytes] = deque()
        self._driver_ready = False
        self.port_bus = VirtioSerialBus(self.tree)
        self.add_bus(self.port_bus, f"{self.given_id}.0" if self.given_id else None)
        # Port 0 in and out, control in and out, then the other ports.
        for _ in range(2 * (self.max_ports + 1)):
            self.add_queue(128 if len(self.queues) not in (2, 3) else 32)

    def unrealize(self) -> None:
        self.queues.clear()

    def device_reset(self) -> None:
        self._waiting.clear()
        self._driver_ready = False
        for port in self.ports.values():
            port.set_guest_open(False)

    def device_features(self) -> int:
        multiport = 1 << F_MULTIPORT if self.max_ports > 1 else 0
        return multiport | (1 << F_EMERGENCY_WRITE if self.emergency_write else 0)

    def read_config(self) -> bytes:
        return _CONFIG.pack(0, 0, self.max_ports, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        # A byte in an emergency, when no queue can be trusted.
        console = next((port for port in self.ports.values() if port.is_console), None)
        if self.emergency_write and offset == 8 and data and console is not None:
            console.write_out(data[:1])

    # -- ports

    def place(self, port: SerialPort) -> None:
        """Find a number for a new port."""
        if port.nr == _BAD_ID:
            first = 0 if port.is_console and 0 not in self.ports else 1
            number = next((n for n in range(first, self.max_ports) if n not in self.ports), None)
            if number is None:
                raise QobraError("virtio-serial-bus: Maximum port limit for this device reached")
            port.values["nr"] = number
        elif port.nr in self.ports:
            raise QobraError(f"virtio-serial-bus: A port already exists at id {port.nr}")
        elif port.nr >= self.max_ports:
            raise QobraError(f"virtio-serial-bus: Out-of-range port id specified, max. allowed: {self.max_ports - 1}")
        elif port.nr == 0 and not port.is_console:
            raise QobraError(_RESERVED)
        if port.port_name is not None and any(port.port_name == other.port_name for other in self.ports.values()):
            raise QobraError(f"virtio-serial-bus: A port already exists by name {port.port_name}")

    def port_plugged(self, port: SerialPort) -> None:
        """A port is there: tell the driver."""
        self.ports[port.nr] = port
        if self._driver_ready:
            self.send_control(port.nr, _PORT_ADD, 1)

    def port_unplugged(self, port: SerialPort) -> None:
        """A port has gone."""
        if self.ports.get(port.nr) is port:
            del self.ports[port.nr]
            if self._driver_ready and not self.tree.closing:
                self.send_control(port.nr, _PORT_REMOVE, 1)

    def queue_in(self, number: int) -> Queue:
        """The queue for what a port receives."""
        return self.queues[0 if number == 0 else 2 * number + 2]

    def _port_of(self, queue: Queue) -> SerialPort | None:
        return self.ports.get(0 if queue.number < 2 else (queue.number - 2) // 2)

    def kicked(self, queue: Queue) -> None:
        if queue.number == 2:
            self.deliver(queue, self._waiting)
        elif queue.number == 3:
            self._serve_control(queue)
        elif queue.number % 2:
            self._serve_output(queue)
        else:
            port = self._port_of(queue)
            if port is not None:
                port.wants_input()

    def _serve_output(self, queue: Queue) -> None:
        port = self._port_of(queue)
        for buffer in self.buffers(queue):
            if port is not None and self.running:
                for view in buffer.readable:
                    port.write_out(bytes(view))
            self.push(queue, buffer, 0)
        self.notify(queue)

    # -- control messages

    def send_control(self, number: int, event: int, value: int, text: bytes = b"") -> None:
        """A message to the driver; it waits while there is no room."""
        if self.has(F_MULTIPORT) and self.running and len(self._waiting) < _CONTROL_LIMIT:
            self._waiting.append(_CONTROL.pack(number, event, value) + text)
            self.deliver(self.queues[2], self._waiting)

    def _serve_control(self, queue: Queue) -> None:
        for buffer in self.buffers(queue):
            message = buffer.gather(64)
            self.push(queue, buffer, 0)
            if len(message) >= _CONTROL.size:
                self._control(*_CONTROL.unpack_from(message))
        self.notify(queue)

    def _control(self, number: int, event: int, value: int) -> None:
        if event == _DEVICE_READY:
            if value:
                self._driver_ready = True
                for each in sorted(self.ports):
                    self.send_control(each, _PORT_ADD, 1)
            return
        port = self.ports.get(number)
        if port is None:
            return
        if event == _PORT_READY and value:
            if port.is_console:
                self.send_control(number, _CONSOLE_PORT, 1)
            if port.port_name is not None:
                self.send_control(number, _PORT_NAME, 1, port.port_name.encode() + b"\0")
            if port.host_open:
                self.send_control(number, _PORT_OPEN, 1)
        elif event == _PORT_OPEN:
            port.set_guest_open(bool(value))


class SerialPort(Device):
    """One port, in front of a character device."""

    type_name = "virtio-serial-port"
    category = "Input"
    abstract = True
    bus_type = "virtio-serial-bus"
    is_console = False
    hotswap = True

    chardev = String(type="str", description="ID of a chardev to use as a backend")
    nr = Int(_BAD_ID, type="uint32")
    port_name = String(type="str", name="name")

    vmstate = VmState(flag("_saved_guest_open", "_saved_host_open"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.host_open = False
        """What the guest is told: whether the other end of the character device is open."""
        self._other_end_open = False
        self.guest_open = False
        self._backend: Chardev | None = None

    @property
    def serial(self) -> VirtioSerial:
        """The device that the port belongs to."""
        assert self.bus is not None
        return cast("VirtioSerial", self.bus.owner)

    def realize(self) -> None:
        if self.nr == 0 and not self.is_console:
            raise QobraError(_RESERVED)
        self._backend = find_chardev(self.board, self.chardev, self.type_name)
        self._unsubscribe = self.machine.run_state.subscribe(self._run_state_changed)
        if self._backend is not None:
            self._backend.attach(self)
            self._backend.set_frontend_open(self.is_console)
        elif self.is_console:
            self.host_open = self._other_end_open = True

    def unrealize(self) -> None:
        self._unsubscribe()
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.detach()

    def set_guest_open(self, is_open: bool) -> None:
        """The guest opened or closed the port."""
        if is_open == self.guest_open:
            return
        self.guest_open = is_open
        if self._backend is not None and not self.is_console:
            self._backend.set_frontend_open(is_open)
        if self.user_id:
            self.machine.events.emit("VSERPORT_CHANGE", {"id": self.user_id, "open": is_open})
        if self._backend is not None:
            self._backend.accept_input()

    def write_out(self, data: bytes) -> None:
        """Bytes from the guest."""
        if self._backend is not None:
            self._backend.write_all(data)

    def wants_input(self) -> None:
        """The guest has room for more."""
        if self._backend is not None:
            self._backend.accept_input()

    # -- front end of the character device

    def can_receive(self) -> int:
        """Room in the guest's buffers, as far as one is there."""
        device = self.serial if self.bus is not None else None
        if device is None or not device.running or not self.machine.run_state.running:
            return 0  # what comes while the guest stands still waits outside: its memory may be on the move
        if not self.guest_open and not self.is_console:
            return 0
        queue = device.queue_in(self.nr)
        buffer = device.pop(queue)
        if buffer is None or queue.ring is None:
            return 0
        queue.ring.unpop(buffer)
        return buffer.writable_length

    def receive(self, data: bytes) -> None:
        """Bytes for the guest."""
        self.machine.control.call(self._receive, data)

    def _receive(self, data: bytes) -> None:
        device = self.serial
        queue = device.queue_in(self.nr)
        while data:
            buffer = device.pop(queue)
            if buffer is None:
                break
            written = buffer.scatter(data)
            device.push(queue, buffer, written)
            data = data[written:]
        device.notify(queue)

    def event(self, name: str) -> None:
        """The other end of the character device opened or closed."""
        if name in ("opened", "closed"):
            self.machine.control.call(self._set_host_open, name == "opened")

    def _set_host_open(self, is_open: bool) -> None:
        self._other_end_open = is_open
        if self.machine.run_state.running or not self.realized:
            self._tell_other_end()

    def _tell_other_end(self) -> None:
        if self._other_end_open != self.host_open:
            self.host_open = self._other_end_open
            if self.realized:
                self.serial.send_control(self.nr, _PORT_OPEN, int(self.host_open))

    def _run_state_changed(self, running: bool, _state: str) -> None:
        if running:
            self._tell_other_end()
            if self._backend is not None:
                self._backend.accept_input()

    @property
    def _saved_guest_open(self) -> bool:
        return self.guest_open

    @_saved_guest_open.setter
    def _saved_guest_open(self, value: bool) -> None:
        self._loaded_open = value, self._loaded_open[1]

    @property
    def _saved_host_open(self) -> bool:
        return self.host_open

    @_saved_host_open.setter
    def _saved_host_open(self, value: bool) -> None:
        self._loaded_open = self._loaded_open[0], value

    _loaded_open = (False, False)

    def state_loaded(self) -> None:
        super().state_loaded()
        guest_open, host_was_open = self._loaded_open
        self.set_guest_open(guest_open)
        # What is at the other end here may not be what the guest was told of, and is told when it runs.
        self.host_open = host_was_open


@registry.register("virtserialport")
class VirtSerialPort(SerialPort):
    """A port that programs in the guest open by its name."""

    type_name = "virtserialport"


@registry.register("virtconsole")
class VirtConsole(VirtSerialPort):
    """A console of the guest."""

    type_name = "virtconsole"
    is_console = True


class VirtioSerialPciBase(VirtioPci):
    """virtio-serial as a PCI function."""

    type_name = "virtio-serial-pci-base"
    abstract = True
    backend_type = "virtio-serial-device"
    device_id = 0x1003
    class_id = 0x0780
    vectors = Int(2, type="uint32")


@registry.register("virtio-serial-pci")
class VirtioSerialPci(VirtioSerialPciBase):
    """A bus of ports that old and new drivers can use."""

    type_name = "virtio-serial-pci"


register_variants(VirtioSerialPciBase, "virtio-serial-pci")
