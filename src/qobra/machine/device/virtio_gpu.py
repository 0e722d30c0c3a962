"""virtio-gpu: a graphics card for pictures that the guest draws itself (virtio 1.2, section 5.7, 2D commands)."""

from __future__ import annotations

from struct import Struct

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.gpu_commands import GpuCommands
from qobra.machine.virtio.pci import VirtioPci
from qobra.machine.virtio.queue import Queue
from qobra.machine.vmstate import VmState, part, u32
from qobra.object.property import Bool, Int, Size

F_EDID = 1
_CONTROL, _CURSOR = 0, 1
_CONFIG = Struct("<IIII")
_EVENTS_CLEAR = 4
_MAX_OUTPUTS = 16
_MAX_REQUEST = 24 + 8 + 16 * 16384
_EVENT_DISPLAY = 1


@registry.register("virtio-gpu-device")
class VirtioGpu(VirtioDevice):
    """A card with one output or more, a queue for commands and one for the pointer."""

    type_name = "virtio-gpu-device"
    ancestors = {"virtio-gpu-base": ()}
    category = "Display"
    device_number = 16
    config_size = _CONFIG.size
    hotpluggable_class = False

    max_outputs = Int(1, type="uint32", name="max_outputs")
    max_hostmem = Size(256 << 20, name="max_hostmem")
    edid = Bool(True)
    blob = Bool(False)
    xres = Int(1280, type="uint32")
    yres = Int(800, type="uint32")

    vmstate = VmState(part("_commands"), u32("_events"))

    def realize(self) -> None:
        if not 1 <= self.max_outputs <= _MAX_OUTPUTS:
            raise QobraError(f"invalid max_outputs > {_MAX_OUTPUTS}")
        if self.blob:
            raise QobraError("cannot enable blob resources without udmabuf")
        owner = self.parent if isinstance(self.parent, VirtioPci) else self
        consoles = [self.board.consoles.add(owner, head) for head in range(self.max_outputs)]
        self._commands = GpuCommands(
            self.board.memory,
            consoles,
            memory_limit=self.max_hostmem,
            size=(self.xres, self.yres),
        )
        self._events = 0
        self.add_queue(64)
        self.add_queue(16)

    @property
    def commands(self) -> GpuCommands:
        """What the driver's commands have come to."""
        return self._commands

    def unrealize(self) -> None:
        self._commands.reset()
        self.board.consoles.remove(self.parent if isinstance(self.parent, VirtioPci) else self)
        self.queues.clear()

    def device_reset(self) -> None:
        self._commands.reset()
        self._events = 0

    def device_features(self) -> int:
        return 1 << F_EDID if self.edid else 0

    def read_config(self) -> bytes:
        return _CONFIG.pack(self._events, 0, self.max_outputs, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == _EVENTS_CLEAR:
            self._events &= ~int.from_bytes(data, "little")

    def set_size(self, head: int, width: int, height: int) -> None:
        """A viewer would like output ``head`` to have that size: tell the driver."""
        self._commands.sizes[head] = (width, height)
        self._events |= _EVENT_DISPLAY
        self.notify_config()

    def kicked(self, queue: Queue) -> None:
        for buffer in self.buffers(queue):
            request = buffer.gather(_MAX_REQUEST)
            if queue.number == _CURSOR:
                self._commands.cursor(request)
                self.push(queue, buffer, 0)
            else:
                self.push(queue, buffer, buffer.scatter(self._commands.control(request)))
        self.notify(queue)


@registry.register("virtio-gpu-pci")
class VirtioGpuPci(VirtioPci):
    """virtio-gpu as a PCI function."""

    type_name = "virtio-gpu-pci"
    ancestors = {"virtio-gpu-pci-base-type": (), "virtio-gpu-pci-base": ()}
    backend_type = "virtio-gpu-device"
    device_id = 0x1050
    class_id = 0x0380
    fixed_legacy = "on"
    hotpluggable_class = False

    vectors = Int(3, type="uint32")
    ioeventfd = Bool(False, description="on/off")

    vmstate = VmState()
