"""virtio-net: a network card (virtio 1.2, section 5.1)."""

from __future__ import annotations

import threading
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.nic import Nic
from qobra.machine.virtio.device import (
    F_ANY_LAYOUT,
    F_EVENT_IDX,
    F_INDIRECT,
    F_IOMMU,
    F_NOTIFY_ON_EMPTY,
    F_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    VirtioDevice,
)
from qobra.machine.virtio.pci import VirtioPci, register_variants
from qobra.machine.virtio.queue import Buffer, Queue, VirtioError
from qobra.machine.virtio.receive_filter import VLANS, ReceiveFilter
from qobra.machine.vmstate import VmState, flag, part, raw
from qobra.object.property import Bool, Int, String

if TYPE_CHECKING:
    from qobra.machine.virtio.vhost import Vhost

F_CTRL_OFFLOADS, F_MTU, F_MAC, F_GSO, F_MRG_RXBUF, F_STATUS = 2, 3, 5, 6, 15, 16
F_CTRL_VQ, F_CTRL_RX, F_CTRL_VLAN = 17, 18, 19
F_CTRL_RX_EXTRA, F_GUEST_ANNOUNCE, F_CTRL_MAC, F_STANDBY = 20, 21, 23, 62
F_SPEED_DUPLEX = 63
_OF_QUEUES = sum(
    1 << bit
    for bit in (
        *(F_MRG_RXBUF, F_NOTIFY_ON_EMPTY, F_ANY_LAYOUT, F_INDIRECT, F_EVENT_IDX),
        *(F_VERSION_1, F_IOMMU, F_PACKED, F_RING_RESET, F_GUEST_ANNOUNCE),
    )
)
"""What a process that serves the queues has to know of, and whether it makes the card known where it comes to."""
_RX, _TX, _CTRL = 0, 1, 2
_CONFIG = Struct("<6sHHHIB")
_UNKNOWN_SPEED = 0xFFFFFFFF
_DUPLEX = {"half": 0, "full": 1, None: 0xFF}
_LINK_UP, _ANNOUNCE = 1, 2
_HEADER, _HEADER_MRG = 10, 12
_OK, _ERROR = 0, 1
_MAX_PACKET = 68 << 10
_MAX_OWN_SENDING = 256
"""How many descriptors its own sending queue has at most; QEMU's, which a machine migrates to."""


class _NotThere(Bool):
    """A feature that QEMU's card has and this one has not: descriptions of machines may switch it off."""

    def check(self, value: Any) -> bool:
        if super().check(value):
            raise QobraError(f"This network card has no '{self.name}'")
        return False


@registry.register("virtio-net-device")
class VirtioNet(VirtioDevice, Nic):
    """A card with one pair of queues and a control queue, which filters what it receives as the driver says."""

    type_name = "virtio-net-device"
    device_number = 1
    assumed_features = 1 << F_MAC
    config_size = 8

    gso = Bool(True)
    mrg_rxbuf = Bool(True, name="mrg_rxbuf")
    status_feature = Bool(True, name="status")
    ctrl_vq = Bool(True, name="ctrl_vq")
    ctrl_rx = Bool(True, name="ctrl_rx")
    ctrl_vlan = Bool(True, name="ctrl_vlan")
    ctrl_rx_extra = Bool(True, name="ctrl_rx_extra")
    ctrl_mac_addr = Bool(True, name="ctrl_mac_addr")
    guest_announce = Bool(True, name="guest_announce")
    ctrl_guest_offloads = Bool(True, name="ctrl_guest_offloads")
    x_txburst = Int(256, type="int32", name="x-txburst")
    tx = String(type="str")
    rx_queue_size = Int(256, type="uint16", name="rx_queue_size")
    tx_queue_size = Int(256, type="uint16", name="tx_queue_size")
    host_mtu = Int(0, type="uint16", name="host_mtu")
    speed = Int(-1, type="int32")
    duplex = String(type="str")
    failover = Bool(False)

    csum = _NotThere()
    guest_csum = _NotThere(name="guest_csum")
    guest_tso4 = _NotThere(name="guest_tso4")
    guest_tso6 = _NotThere(name="guest_tso6")
    guest_ecn = _NotThere(name="guest_ecn")
    guest_ufo = _NotThere(name="guest_ufo")
    guest_rsc_ext = _NotThere(name="guest_rsc_ext")
    host_tso4 = _NotThere(name="host_tso4")
    host_tso6 = _NotThere(name="host_tso6")
    host_ecn = _NotThere(name="host_ecn")
    host_ufo = _NotThere(name="host_ufo")
    mq = _NotThere()
    rss = _NotThere()
    hash = _NotThere()

    _announce = False
    vmstate = VmState(flag("_announce"), raw("address"), part("filter"))

    def realize(self) -> None:
        for name, end in (("rx_queue_size", "."), ("tx_queue_size", "")):
            size = self.get(name)
            if not 256 <= size <= 1024 or size & (size - 1):
                raise QobraError(f"Invalid {name} (= {size}), must be a power of 2 between 256 and 1024{end}")
        if self.speed < -1:
            raise QobraError("'speed' must be between 0 and INT_MAX")
        if self.duplex not in _DUPLEX:
            raise QobraError("'duplex' must be 'half' or 'full'")
        self._tells_speed = self.speed >= 0 or self.duplex is not None
        self.realize_nic()
        self.config_size = 17 if self._tells_speed else 12 if self.host_mtu else 8
        if self.backend is None or self.backend.front_end is None:
            self.values["tx_queue_size"] = min(self.tx_queue_size, _MAX_OWN_SENDING)
        for size in (self.rx_queue_size, self.tx_queue_size, 64):
            self.add_queue(size)
        self._vhost: Vhost | None = None
        if self.backend is not None and self.backend.front_end is not None:
            from qobra.machine.virtio import vhost

            self._vhost = vhost.Vhost(self, self.backend.front_end, _CTRL)
        self._receive_lock = threading.RLock()
        self.filter = ReceiveFilter()
        if self.failover:
            self.board.failover.add(self._standby_name)

    @property
    def _standby_name(self) -> str:
        return next(iter(sorted(self.names())), self.model)

    def unrealize(self) -> None:
        if self.failover:
            self.board.failover.remove(self._standby_name)
        if self._vhost is not None:
            self._vhost.close()
        self.unrealize_nic()
        self.queues.clear()

    def device_reset(self) -> None:
        if self._vhost is not None:
            self._vhost.forget()
        with self._receive_lock:
            self.drop_waiting()
        self.filter.reset()
        self._announce = False
        self.address = self.mac

    # -- features and configuration

    def device_features(self) -> int:
        bits = [F_MAC]
        for enabled, bit in (
            (self.ctrl_guest_offloads, F_CTRL_OFFLOADS),
            (self.mrg_rxbuf, F_MRG_RXBUF),
            (self.status_feature, F_STATUS),
            (self.ctrl_vq, F_CTRL_VQ),
            (self.ctrl_rx, F_CTRL_RX),
            (self.ctrl_vlan, F_CTRL_VLAN),
            (self.ctrl_rx_extra, F_CTRL_RX_EXTRA),
            (self.ctrl_mac_addr, F_CTRL_MAC),
            (self.guest_announce, F_GUEST_ANNOUNCE),
            (self.host_mtu, F_MTU),
            (self.failover, F_STANDBY),
            (self._tells_speed, F_SPEED_DUPLEX),
        ):
            if enabled:
                bits.append(bit)
        return sum(1 << bit for bit in bits)

    def offered_features(self, *, modern: bool) -> int:
        offered = super().offered_features(modern=modern)
        if self.gso and not modern:
            offered |= 1 << F_GSO  # says something only beside others, which are not offered
        if self._vhost is not None:
            # Of what concerns the queues, the process that serves them has the say.
            offered &= ~_OF_QUEUES | self._vhost.front_end.features
        return offered

    @property
    def migrates(self) -> bool:
        """Whether all the state is here: not while another process walks the queues."""
        return self._vhost is None

    def running_changed(self) -> None:
        if self._vhost is not None:
            self._vhost.update()

    def features_accepted(self) -> None:
        self.filter.vlans = set() if self.has(F_CTRL_VLAN) else set(range(VLANS))
        if self.has(F_STANDBY):
            self.board.failover.negotiated(self._standby_name)

    def state_loaded(self) -> None:
        super().state_loaded()
        if self.has(F_STANDBY):
            self.board.failover.negotiated(self._standby_name)

    def read_config(self) -> bytes:
        status = (_LINK_UP if self.link_up else 0) | (_ANNOUNCE if self._announce else 0)
        speed = self.speed & _UNKNOWN_SPEED
        return _CONFIG.pack(self.address, status, 1, self.host_mtu, speed, _DUPLEX[self.duplex])[: self.config_size]

    def write_config(self, offset: int, data: bytes) -> None:
        # Before 1.0 a driver might set the address here.
        if not self.has(F_VERSION_1) and not self.has(F_CTRL_MAC):
            self.address = (self.address[:offset] + data + self.address[offset + len(data) :])[: len(self.address)]

    def link_changed(self) -> None:
        if self._vhost is not None and self.backend is not None and self.backend.front_end is None:
            self._vhost.close()
            self._vhost = None
        if self.has(F_STATUS):
            self.notify_config()

    def announce(self) -> None:
        """Ask the driver to make itself known to the network."""
        if self.has(F_GUEST_ANNOUNCE) and self.has(F_CTRL_VQ):
            self._announce = True
            self.notify_config()

    @property
    def _header_size(self) -> int:
        return _HEADER_MRG if self.has(F_MRG_RXBUF) or self.has(F_VERSION_1) else _HEADER

    # -- sending

    def kicked(self, queue: Queue) -> None:
        if self._vhost is not None and queue.number < _CTRL:
            self._vhost.update()
            self._vhost.kick(queue.number)
        elif queue.number == _RX:
            self.room_changed()
        elif queue.number == _TX:
            self._transmit_all(queue)
        elif queue.number == _CTRL:
            self._serve_control(queue)

    def _transmit_all(self, queue: Queue) -> None:
        size = self._header_size
        for buffer in self.buffers(queue):
            if buffer.readable_length < size or buffer.writable:
                self.fail(VirtioError("virtio-net header not in first element"))
                return
            packet = buffer.gather(_MAX_PACKET + size)[size:]
            if packet and self.running:
                self.transmit(packet)
            self.push(queue, buffer, 0)
        self.notify(queue)

    # -- receiving

    def receive_packet(self, packet: bytes) -> None:
        # The queue is filled in the backend's thread: the strand would cost a hop for each packet.
        with self._receive_lock:
            if self.keep(packet):
                self.take_waiting()

    def take_waiting(self) -> None:
        with self._receive_lock:
            super().take_waiting()

    def put_packet(self, packet: bytes) -> bool:
        if not self.running or not self.filter.accepts(packet, self.address):
            return True
        queue, size = self.queues[_RX], self._header_size
        merge = self.has(F_MRG_RXBUF)
        buffers: list[tuple[Buffer, int]] = []
        rest = memoryview(packet)
        while rest or not buffers:
            buffer = self.pop(queue)
            if buffer is None:
                self._give_back(queue, buffers)
                return self.broken
            room = buffer.writable_length
            if (not buffers and room < size) or not room:
                self.machine.control.post(self.fail, VirtioError("virtio-net receive buffer too small"))
                return True
            header = bytes(size) if not buffers else b""
            part = rest[: room - len(header)]
            if not merge and len(part) < len(rest):
                # A packet that does not fit into one buffer is lost.
                self._give_back(queue, [*buffers, (buffer, 0)])
                return True
            written = buffer.scatter(header + bytes(part))
            rest = rest[len(part) :]
            buffers.append((buffer, written))
        if size == _HEADER_MRG:
            _store(buffers[0][0], 10, len(buffers).to_bytes(2, "little"))
        for buffer, written in buffers:
            self.push(queue, buffer, written)
        self.machine.control.post(self.notify, queue)
        return True

    def _give_back(self, queue: Queue, buffers: list[tuple[Buffer, int]]) -> None:
        for buffer, _written in reversed(buffers):
            if queue.ring is not None:
                queue.ring.unpop(buffer)

    # -- control

    def _serve_control(self, queue: Queue) -> None:
        for buffer in self.buffers(queue):
            if buffer.readable_length < 2 or buffer.writable_length < 1:
                self.fail(VirtioError("virtio-net ctrl missing headers"))
                return
            request = buffer.gather(_MAX_PACKET)
            status = self._control(request[0], request[1], request[2:])
            self.push(queue, buffer, buffer.scatter(bytes((status,))))
        self.notify(queue)

    def _control(self, kind: int, command: int, data: bytes) -> int:
        if kind == 0:
            return self._changed(self.filter.set_mode(command, data))
        if kind == 1 and command == 0:
            return self._changed(self.filter.set_tables(data))
        if kind == 1 and command == 1 and len(data) == 6:
            self.address = data
            return self._changed(True)
        if kind == 2:
            return self._changed(self.filter.set_vlan(command, data))
        if kind == 3 and command == 0:
            self._announce = False
            return _OK
        if kind == 5 and command == 0 and len(data) == 8:
            # The backends offload nothing, so there is nothing to switch on.
            return _ERROR if any(data) else _OK
        return _ERROR

    _filter_told = False

    def _changed(self, accepted: bool) -> int:
        # One event until someone has asked what changed.
        if accepted and not self._filter_told:
            self._filter_told = True
            proxy: Any = self.parent
            data = {"path": self.path()}
            name = proxy.user_id if proxy is not None and proxy.user_id else self.user_id
            if name:
                data["name"] = name
            self.machine.events.emit("NIC_RX_FILTER_CHANGED", data)
        return _OK if accepted else _ERROR

    def rx_filter(self) -> dict[str, Any]:
        self._filter_told = False
        return {
            "name": self.client_name,
            "main-mac": self.address.hex(":"),
            **self.filter.describe(vlans_filtered=self.has(F_CTRL_VLAN)),
        }


def _store(buffer: Buffer, offset: int, data: bytes) -> None:
    for byte in data:
        position = offset
        for view in buffer.writable:
            if position < len(view):
                view[position] = byte
                break
            position -= len(view)
        offset += 1


class VirtioNetPciBase(VirtioPci):
    """virtio-net as a PCI function."""

    type_name = "virtio-net-pci-base"
    abstract = True
    backend_type = "virtio-net-device"
    device_id = 0x1000
    class_id = 0x0200
    default_vectors = 4
    default_rom = "efi-virtio.rom"


@registry.register("virtio-net-pci")
class VirtioNetPci(VirtioNetPciBase):
    """A network card that old and new drivers can use."""

    type_name = "virtio-net-pci"


register_variants(VirtioNetPciBase, "virtio-net-pci")
