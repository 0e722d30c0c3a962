"""What all TPM devices have: a back end that they take for themselves, and state that is partly there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.vmstate import Field, Kind, Listed, Number, Raw, Together, VmState
from qobra.object.property import String

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.qdev import Device
    from qobra.machine.vmstate import StateSource
    from qobra.tpm.tpm import Tpm

INTERFACE = "tpm-if"
VENDOR_ID, DEVICE_ID = 0x1014, 0x0001


def tpmdev_property() -> String:
    """The back end of a device, by id."""
    return String(type="str", description="ID of a tpm to use as a backend")


class TpmState(Kind):
    """The state of the TPM itself, which a back end has; it takes over what was read when all else is there."""

    _blobs = Listed(Together(Number(4), Raw(4 << 20)), maximum=8)

    def put(self, out: bytearray, value: Tpm) -> None:
        self._blobs.put(out, value.save())

    def take(self, source: StateSource, current: Tpm) -> Tpm:
        current.arrived = self._blobs.take(source, [])
        return current


class TpmFrontEnd:
    """Mixed into the devices. ``backend`` carries the commands out."""

    backend: Tpm
    tpm_model: str
    """As query-tpm names the interface."""
    hotpluggable_class = False

    vmstate = VmState(Field("backend", TpmState()))

    def take_backend(self: Any) -> None:
        """Take the back end that the property names. Raises QobraError."""
        self.backend = self.machine.tpms.take(self.type_name, self.tpm_model, self.tpmdev)

    def release_backend(self) -> None:
        """Let the back end be another device's."""
        self.backend.model = None

    @property
    def migrates(self) -> bool:
        """Whether the state of the TPM can go elsewhere."""
        return self.backend.migrates

    @property
    def working(self) -> bool:
        """Whether a command is being carried out."""
        return self.backend.busy

    def state_loaded(self) -> None:
        """Have the back end take over the TPM's state."""
        blobs, self.backend.arrived = self.backend.arrived, None
        if blobs is not None:
            self.backend.finish()
            self.backend.load(blobs)


def find_tpm(board: Board) -> Any:
    """The TPM device of a board, or None."""
    return next(find_devices(board, INTERFACE), None)


def start_backend(device: Device, backend: Tpm) -> None:
    """Have the TPM begin as after power-on, whatever it was doing. Raises QobraError."""
    if backend.busy:
        backend.cancel()
        backend.finish()
    try:
        backend.start()
    except QobraError as error:
        device.machine.warn(f"{device.type_name}: {error}")
