"""virtio-scsi: a SCSI host adapter (virtio 1.2, section 5.6)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.devices import registry
from qobra.machine.scsi import failure, transfer
from qobra.machine.scsi.bus import Result, ScsiBus, ScsiDevice
from qobra.machine.scsi.sense import GOOD
from qobra.machine.virtio.pci import VirtioPci, register_variants
from qobra.machine.virtio.queue import Buffer, Queue, VirtioError, split_views
from qobra.machine.virtio.served import ServedDevice
from qobra.machine.vmstate import VmState, flag, u32
from qobra.object.property import Bool, Int

if TYPE_CHECKING:
    from qobra.block.error_policy import ErrorPolicy
    from qobra.machine.qdev import Device

F_HOTPLUG, F_CHANGE = 1, 2
_CONTROL, _EVENT, _FIRST_REQUEST = 0, 1, 2
_CONFIG = Struct("<IIIIIIIHHI")
_RESPONSE = Struct("<IIHBB")
_REQUEST_HEADER = 19
_S_OK, _S_OVERRUN, _S_BAD_TARGET, _S_FAILURE, _S_INCORRECT_LUN = 0, 1, 3, 9, 12
_T_TMF, _T_AN_QUERY, _T_AN_SUBSCRIBE = 0, 1, 2
_EVENT_TRANSPORT_RESET, _EVENT_PARAM_CHANGE, _EVENTS_MISSED = 1, 3, 0x80000000
_RESCAN, _REMOVED = 1, 2
_AUTO_QUEUES = 0xFFFFFFFF
_MAX_DATA = 1 << 30


@registry.register("virtio-scsi-device")
class VirtioScsi(ServedDevice):
    """A host adapter with the bus ``ID.0``. Commands run in the iothread, or in the adapter's own thread."""

    type_name = "virtio-scsi-device"
    interfaces = ("hotplug-handler",)
    ancestors = {"virtio-scsi-common": ()}
    category = "Storage"
    device_number = 8
    config_size = 36

    num_queues = Int(_AUTO_QUEUES, type="uint32", name="num_queues")
    virtqueue_size = Int(256, type="uint32", name="virtqueue_size")
    seg_max_adjust = Bool(True, name="seg_max_adjust")
    max_sectors = Int(0xFFFF, type="uint32", name="max_sectors")
    cmd_per_lun = Int(128, type="uint32", name="cmd_per_lun")
    hotplug = Bool(True)
    param_change = Bool(True, name="param_change")

    vmstate = VmState(
        u32("sense_size", maximum=65535),
        u32("cdb_size", maximum=256),
        flag("_events_missed"),
    )

    def realize(self) -> None:
        if self.num_queues == _AUTO_QUEUES:
            self.values["num_queues"] = max(1, self.board.first_cpus)
        if not 0 < self.num_queues <= 1024 - _FIRST_REQUEST:
            raise QobraError(
                f"Invalid number of queues (= {self.num_queues}), must be a positive integer less than "
                f"{1024 - _FIRST_REQUEST}."
            )
        if not 2 < self.virtqueue_size <= 1024:
            raise QobraError(f"invalid virtqueue_size property (= {self.virtqueue_size}), must be > 2")
        for _ in range(_FIRST_REQUEST + self.num_queues):
            self.add_queue(self.virtqueue_size)
        self.sense_size, self.cdb_size = 96, 32
        self.scsi_bus = ScsiBus(self.tree)
        self.scsi_bus.has_iothreads, self.scsi_bus.iothread = True, self.iothread
        self.add_bus(self.scsi_bus, f"{self.given_id}.0" if self.given_id else None)
        self._events_missed = False
        self.start_serving("scsi")

    def unrealize(self) -> None:
        self.stop_serving()
        self.queues.clear()

    def device_reset(self) -> None:
        self.forget_requests()
        self.sense_size, self.cdb_size = 96, 32
        self._events_missed = False
        self.scsi_bus.reset()

    def device_features(self) -> int:
        return (1 << F_HOTPLUG if self.hotplug else 0) | (1 << F_CHANGE if self.param_change else 0)

    def read_config(self) -> bytes:
        return _CONFIG.pack(
            self.num_queues,
            self.virtqueue_size - 2 if self.seg_max_adjust else 126,
            self.max_sectors,
            self.cmd_per_lun,
            16,
            self.sense_size,
            self.cdb_size,
            self.scsi_bus.max_channel,
            self.scsi_bus.max_target,
            self.scsi_bus.max_lun,
        )

    def write_config(self, offset: int, data: bytes) -> None:
        config = bytearray(self.read_config())
        config[offset : offset + len(data)] = data
        sense_size, cdb_size = int.from_bytes(config[20:24], "little"), int.from_bytes(config[24:28], "little")
        if sense_size >= 65536 or cdb_size > 256:
            self.fail(VirtioError("bad data written to virtio-scsi configuration space"))
            return
        self.sense_size, self.cdb_size = sense_size, cdb_size

    # -- queues

    def kicked(self, queue: Queue) -> None:
        if queue.number == _CONTROL:
            for buffer in self.buffers(queue):
                try:
                    written = self._control(buffer)
                except VirtioError as error:
                    self.fail(error)
                    return
                self.push(queue, buffer, written)
            self.notify(queue)
        elif queue.number == _EVENT:
            if self._events_missed:
                self._send_event(None, 0, 0)
        else:
            self.serve(queue)

    def policies(self) -> Iterator[ErrorPolicy | None]:
        for device in self.scsi_bus.devices:
            if isinstance(device, BlockFrontEnd) and device.backend is not None:
                yield device.backend.policy

    def serve_one(self, queue: Queue, buffer: Buffer) -> None:
        header_size = _REQUEST_HEADER + self.cdb_size
        answer_size = _RESPONSE.size + self.sense_size
        header, data = split_views(buffer.readable, header_size)
        request = b"".join(header)
        if len(request) < header_size or buffer.writable_length < answer_size:
            raise VirtioError("wrong size for virtio-scsi headers")
        room = buffer.writable_length - answer_size
        sent = sum(map(len, data))
        if sent and room:
            # Data both ways was not negotiated.
            self._answer(queue, buffer, Result(), _S_FAILURE, 0)
            return
        if sent > _MAX_DATA:
            raise VirtioError("virtio-scsi request is too long")
        lun = request[0:8]
        if lun[0] != 1 or (lun[2] and not 0x40 <= lun[2] < 0x80):
            self._answer(queue, buffer, Result(), _S_BAD_TARGET, 0)
            return
        target, unit = lun[1], (lun[2] << 8 | lun[3]) & 0x3FFF
        cdb = request[_REQUEST_HEADER:].ljust(16, b"\0")
        found_unit: Any = self.scsi_bus.find(0, target, unit)
        if found_unit is not None and found_unit.lengths_known:
            way, length = transfer.expected(cdb, found_unit.logical_size)
            there = {transfer.NONE: 0, transfer.TO_HOST: room, transfer.TO_DEVICE: sent}[way]
            if way == transfer.NONE:
                room = 0
            if length > there:
                self._answer(queue, buffer, Result(), _S_OVERRUN, 0)
                return
        try:
            result = self.scsi_bus.execute(target, unit, cdb, b"".join(data), room)
        except (OSError, QobraError) as error:
            found = self._failed(error, found_unit, cdb, room)
            if found is None:
                self.hold(queue, buffer)
                return
            result = found
        if result is None:
            self._answer(queue, buffer, Result(), _S_BAD_TARGET, 0)
        else:
            self._answer(queue, buffer, result, _S_OK, room + sent)

    def _failed(self, error: Exception, device: Any, cdb: bytes, room: int) -> Result | None:
        """What the guest is told of failed storage; None while the machine is stopped for it."""
        policy = device.backend.policy if device is not None and device.backend is not None else None
        action = policy.decide(error, is_read=bool(room)) if policy is not None else "report"
        if action == "stop":
            return None
        return failure.ignored(cdb, device.logical_size, room) if action == "ignore" else failure.reported(error)

    def _answer(self, queue: Queue, buffer: Buffer, result: Result, response: int, expected: int) -> None:
        sense = result.sense[: self.sense_size]
        to_host = buffer.writable_length > _RESPONSE.size + self.sense_size
        residual = max(0, expected - len(result.data)) if to_host and result.status == GOOD else 0
        header = _RESPONSE.pack(len(sense), residual, 0, result.status, response) + sense.ljust(self.sense_size, b"\0")
        written = buffer.scatter(header + result.data)
        self.push(queue, buffer, written)

    # -- control and events

    def _control(self, buffer: Buffer) -> int:
        request = buffer.gather(64)
        kind = int.from_bytes(request[0:4], "little")
        if kind == _T_TMF:
            if len(request) < 24 or buffer.writable_length < 1:
                raise VirtioError("wrong size for virtio-scsi headers")
            return buffer.scatter(bytes((self._task_management(request),)))
        if kind in (_T_AN_QUERY, _T_AN_SUBSCRIBE):
            if len(request) < 16 or buffer.writable_length < 5:
                raise VirtioError("wrong size for virtio-scsi headers")
            return buffer.scatter(bytes(5))  # no asynchronous notifications
        raise VirtioError("unknown virtio-scsi control request")

    def _task_management(self, request: bytes) -> int:
        subtype, lun = int.from_bytes(request[4:8], "little"), request[8:16]
        target, unit = lun[1], (lun[2] << 8 | lun[3]) & 0x3FFF
        if subtype == 3:  # nexus reset: every unit of the target
            for device in list(self.scsi_bus.devices):
                if isinstance(device, ScsiDevice) and device.scsi_id == target:
                    device.reset()
            return _S_OK
        if lun[0] != 1 or not self.scsi_bus.has_target(target):
            return _S_BAD_TARGET
        found = self.scsi_bus.find(0, target, unit)
        if found is None:
            return _S_INCORRECT_LUN
        if subtype == 5:
            found.reset()
        # Commands run to their end one after the other: there is never one to abort.
        return _S_OK if subtype <= 7 else _S_FAILURE

    def unit_plugged(self, device: Device) -> None:
        """A unit has come: tell the guest."""
        if self.has(F_HOTPLUG):
            self._send_event(device, _EVENT_TRANSPORT_RESET, _RESCAN)

    def unit_unplugged(self, device: Device) -> None:
        """A unit has gone: tell the guest."""
        if self.has(F_HOTPLUG):
            self._send_event(device, _EVENT_TRANSPORT_RESET, _REMOVED)

    def _send_event(self, device: Device | None, event: int, reason: int) -> None:
        if not self.running:
            return
        queue = self.queues[_EVENT]
        buffer = self.pop(queue)
        if buffer is None:
            self._events_missed = True
            return
        if self._events_missed:
            event |= _EVENTS_MISSED
            self._events_missed = False
        lun = bytes(8)
        if isinstance(device, ScsiDevice):
            unit = device.lun | (0x4000 if device.lun >= 256 else 0)
            lun = bytes((1, device.scsi_id)) + unit.to_bytes(2, "big") + bytes(4)
        written = buffer.scatter(event.to_bytes(4, "little") + lun + reason.to_bytes(4, "little"))
        self.push(queue, buffer, written)
        self.notify(queue)


class VirtioScsiPciBase(VirtioPci):
    """virtio-scsi as a PCI function."""

    type_name = "virtio-scsi-pci-base"
    abstract = True
    backend_type = "virtio-scsi-device"
    device_id = 0x1004
    class_id = 0x0100


@registry.register("virtio-scsi-pci")
class VirtioScsiPci(VirtioScsiPciBase):
    """A host adapter that old and new drivers can use."""

    type_name = "virtio-scsi-pci"


register_variants(VirtioScsiPciBase, "virtio-scsi-pci")
