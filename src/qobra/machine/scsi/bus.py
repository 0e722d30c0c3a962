"""The SCSI bus: devices by channel, target and logical unit; and what a host adapter asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from qobra.errors import QobraError
from qobra.machine.qdev import Bus, Device
from qobra.machine.scsi.opcodes import (
    GET_CONFIGURATION,
    GET_EVENT_STATUS,
    INQUIRY,
    REPORT_LUNS,
    REQUEST_SENSE,
)
from qobra.machine.scsi.sense import (
    CHECK_CONDITION,
    GOOD,
    INVALID_FIELD,
    RESET_OCCURRED,
    UNIT_ATTENTION,
    Sense,
)
from qobra.machine.vmstate import Field, Maybe, Number, Together, VmState
from qobra.object.property import Int

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.backend import BlockBackend
    from qobra.object.tree import ObjectTree

_TOLD_NO_ATTENTION = frozenset((INQUIRY, REPORT_LUNS, GET_CONFIGURATION, GET_EVENT_STATUS))
"""Commands that are carried out although something else is to be told first (SPC-4, 5.14; MMC-6, 6.7)."""


class Result:
    """How a command ended: status, the data that it returned, sense for CHECK CONDITION."""

    __slots__ = ("data", "sense", "status")

    def __init__(self, status: int = GOOD, data: bytes = b"", sense: bytes = b"") -> None:
        self.status = status
        self.data = data
        self.sense = sense


class ScsiDevice(Device):
    """A logical unit. ``execute`` carries out commands; host adapters call it in their worker."""

    type_name = "scsi-device"
    abstract = True
    bus_type = "SCSI"

    lengths_known = True
    """Whether a command's block tells how much it transfers."""
    logical_size: int = 512
    """The unit of addresses, in bytes."""

    channel = Int(0, type="uint32")
    scsi_id = Int(0xFFFFFFFF, type="uint32")
    lun = Int(0xFFFFFFFF, type="uint32")

    vmstate = VmState(
        Field("attention", Maybe(Together(Number(1), Number(1), Number(1)))),
        Field("_last_failure", Maybe(Together(Number(1), Number(1), Number(1)))),
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.attention: tuple[int, int, int] | None = None
        """What the next command is told instead of being carried out (a unit attention)."""
        self.last_sense: Sense | None = None
        """Why the last command failed."""

    @property
    def scsi_bus(self) -> ScsiBus:
        """The bus that the unit is on."""
        return cast("ScsiBus", self.bus)

    def execute(self, cdb: bytes, data: bytes, room: int) -> Result:
        """Carry out the command ``cdb`` with ``data`` sent along; at most ``room`` bytes come back.

        Raises OSError or QobraError where the storage failed: the host adapter asks the error policy.
        """
        if cdb[0] == REPORT_LUNS:
            return self._outcome(cdb, lambda: Result(data=self.scsi_bus.report_luns(self.scsi_id, cdb)[:room]))
        return self._outcome(cdb, lambda: self.carry_out(cdb, data, room))

    def execute_for(self, lun: int, cdb: bytes, room: int) -> Result:
        """Answer ``cdb`` for the unit ``lun`` of the same target, which is not there."""
        from qobra.machine.scsi.absent import answer

        return self._outcome(cdb, lambda: Result(data=answer(self, lun, cdb)[:room]))

    def _outcome(self, cdb: bytes, carry_out: Callable[[], Result]) -> Result:
        """What ``carry_out`` returns, or the sense that it raises, unless something else is to be told first."""
        try:
            if self.attention is not None and cdb[0] not in _TOLD_NO_ATTENTION and not self._asked_for_attention(cdb):
                attention, self.attention = self.attention, None
                self.attention_reported()
                raise Sense(*attention)
            result = carry_out()
            self.last_sense = None
            return result
        except Sense as sense:
            # An attention is told once.
            told = sense.key == UNIT_ATTENTION and self.scsi_bus.autosense
            self.last_sense = None if told else sense
            return Result(CHECK_CONDITION, sense=sense.data())

    def _asked_for_attention(self, cdb: bytes) -> bool:
        # Where sense does not come with the status, the guest asks for it with a command.
        last = self.last_sense
        return (
            cdb[0] == REQUEST_SENSE and not self.scsi_bus.autosense and last is not None and last.key == UNIT_ATTENTION
        )

    def tell(self, attention: tuple[int, int, int]) -> None:
        """Have the next command told of ``attention``, unless something comes first that waits already.

        The order is that of the codes, but for power-on and resets, which come before everything (SAM-5, 5.14).
        """
        waiting = self.attention
        if waiting is None or _precedence(attention) < _precedence(waiting):
            self.attention = attention

    def attention_reported(self) -> None:
        """The unit attention was told; another may follow it."""

    def carry_out(self, cdb: bytes, data: bytes, room: int) -> Result:
        """What a command ends in. Raises Sense."""
        return Result(data=self.command(cdb, data, room)[:room])

    def command(self, cdb: bytes, data: bytes, room: int) -> bytes:
        """The data that a command returns. Raises Sense."""
        raise NotImplementedError

    def move_to_adapter(self, backend: BlockBackend) -> None:
        """Have ``backend`` be where the host adapter serves its requests. Raises QobraError where its node cannot."""
        if self.scsi_bus.has_iothreads:
            backend.move(self.scsi_bus.iothread)
        elif backend.node is not None and backend.node.iothread is not None:
            raise QobraError("HBA does not support iothreads")

    def reset(self) -> None:
        self.attention = RESET_OCCURRED

    @property
    def _last_failure(self) -> tuple[int, int, int] | None:
        sense = self.last_sense
        return (sense.key, sense.code, sense.qualifier) if sense is not None else None

    @_last_failure.setter
    def _last_failure(self, value: tuple[int, int, int] | None) -> None:
        self.last_sense = Sense(*value) if value is not None else None


def _precedence(attention: tuple[int, int, int]) -> tuple[bool, int, int]:
    _key, code, qualifier = attention
    return code != RESET_OCCURRED[1], code, qualifier


class ScsiBus(Bus):
    """A bus of ``max_channel``, ``max_target`` and ``max_lun``, all inclusive."""

    type_name = "SCSI"
    interfaces = ("hotplug-handler",)
    autosense = True
    """Whether the host adapter hands sense over with the status of a command."""
    queues = True
    """Whether units have several commands at a time."""
    has_iothreads = False
    """Whether the host adapter can serve its requests in an iothread."""
    iothread: Any = None
    """Where the host adapter serves its requests, if that is an iothread; units' backends are in it, too."""
    max_channel = 0
    max_target = 255
    max_lun = 16383
    hotplug = True

    def find(self, channel: int, target: int, lun: int) -> ScsiDevice | None:
        """The unit at this address."""
        for device in self._units():
            if (device.channel, device.scsi_id, device.lun) == (channel, target, lun):
                return device
        return None

    def has_target(self, target: int) -> bool:
        """Whether any unit of the target is there."""
        return bool(self.units_of(target))

    def units_of(self, target: int) -> list[ScsiDevice]:
        """The target's units."""
        return [device for device in self._units() if device.scsi_id == target]

    def execute(self, target: int, lun: int, cdb: bytes, data: bytes, room: int) -> Result | None:
        """Have the unit carry out a command; None where there is no such target.

        A target answers itself for units that it has not: by their absence.
        """
        device = self.find(0, target, lun)
        if device is not None:
            return device.execute(cdb, data, room)
        units = self.units_of(target)
        return units[0].execute_for(lun, cdb, room) if units else None

    def report_luns(self, target: int, cdb: bytes) -> bytes:
        """The list of a target's units. Raises Sense."""
        length = int.from_bytes(cdb[6:10], "big")
        if length < 16 or cdb[2] > 2:
            raise Sense(*INVALID_FIELD)
        luns = sorted({0} | {d.lun for d in self._units() if d.scsi_id == target})
        entries = b"".join((lun if lun < 256 else 0x4000 | lun).to_bytes(2, "big") + bytes(6) for lun in luns)
        return (len(entries).to_bytes(4, "big") + bytes(4) + entries)[:length]

    def _units(self) -> list[ScsiDevice]:
        return [device for device in self.devices if isinstance(device, ScsiDevice) and device.realized]

    # -- plugging

    def check(self, device: Device) -> None:
        assert isinstance(device, ScsiDevice)
        channel, target, lun = device.channel, device.scsi_id, device.lun
        if channel > self.max_channel:
            raise QobraError(f"bad scsi channel id: {channel}")
        if target != 0xFFFFFFFF and target > self.max_target:
            raise QobraError(f"bad scsi device id: {target}")
        if lun != 0xFFFFFFFF and lun > self.max_lun:
            raise QobraError(f"bad scsi device lun: {lun}")
        if target == 0xFFFFFFFF:
            lun = 0 if lun == 0xFFFFFFFF else lun
            target = next((t for t in range(self.max_target + 1) if self.find(channel, t, lun) is None), -1)
            if target < 0:
                raise QobraError("no free target")
        elif lun == 0xFFFFFFFF:
            lun = next((n for n in range(self.max_lun + 1) if self.find(channel, target, n) is None), -1)
            if lun < 0:
                raise QobraError("no free lun")
        other = self.find(channel, target, lun)
        if other is not None:
            raise QobraError(f"lun already used by '{other.user_id or ''}'")
        device.values["scsi-id"], device.values["lun"] = target, lun

    def plugged(self, device: Device) -> None:
        adapter: Any = self.owner
        if device.hotplugged:
            adapter.unit_plugged(device)

    def unplugged(self, device: Device) -> None:
        adapter: Any = self.owner
        if adapter.realized and not self.tree.closing:
            adapter.unit_unplugged(device)
