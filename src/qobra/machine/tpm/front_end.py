"""What all TPM devices have: a back end that they take for themselves, and state that is partly there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.vmstate import Field, Listed, Number, Raw, Together, VmState
from qobra.object.property import String

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.qdev import Device
    from qobra.tpm.tpm import Blob, Tpm

INTERFACE = "tpm-if"
VENDOR_ID, DEVICE_ID = 0x1014, 0x0001


def tpmdev_property() -> String:
    """The back end of a device, by id."""
    return String(type="str", description="ID of a tpm to use as a backend")


class TpmFrontEnd:
    """Mixed into the devices. ``backend`` carries the commands out."""

    backend: Tpm
    tpm_model: str
    """As query-tpm names the interface."""
    hotpluggable_class = False

    _arrived: list[Blob] | None = None

    vmstate = VmState(Field("blobs", Listed(Together(Number(4), Raw(4 << 20)), maximum=8)))

    def take_backend(self: Any) -> None:
        """Take the back end that the property names. Raises QobraError."""
        self.backend = self.machine.tpms.take(self.type_name, self.tpm_model, self.tpmdev)

    def release_backend(self) -> None:
        """Let the back end be another device's."""
        self.backend.model = None

    @property
    def migratable(self) -> bool:
        """Whether the state of the TPM can go elsewhere."""
        return self.backend.migrates

    @property
    def working(self) -> bool:
        """Whether a command is being carried out."""
        return self.backend.busy

    @property
    def blobs(self) -> list[Blob]:
        """The state of the TPM itself."""
        return self.backend.save()

    @blobs.setter
    def blobs(self, blobs: list[Blob]) -> None:
        self._arrived = blobs

    def state_loaded(self) -> None:
        """Have the back end take over the TPM's state."""
        blobs, self._arrived = self._arrived, None
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
