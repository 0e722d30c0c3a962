"""``emulator``: a TPM emulator in another process, swtpm, which a character device leads to.

Over the character device goes what controls it (:mod:`qobra.tpm.control_channel`). Commands and responses go over a
pair of sockets, one of which the emulator is given.
"""

from __future__ import annotations

import errno
import socket
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.tpm import control_channel as control
from qobra.tpm import messages
from qobra.tpm.tpm import Blob, Tpm, registry

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_NEEDED = (
    control.INIT, control.SHUTDOWN, control.GET_TPMESTABLISHED, control.SET_LOCALITY, control.SET_DATAFD, control.STOP,
    control.SET_BUFFERSIZE, control.CANCEL_TPM_CMD, control.RESET_TPMESTABLISHED,
)  # fmt: skip
_MIGRATING = (control.GET_STATEBLOB, control.SET_STATEBLOB)
_MAX_RESPONSE = 1 << 16
_U32 = Struct(">I")
_BUFFER_SIZES = Struct(">III")


@registry.register("emulator")
class Emulator(Tpm):
    """The emulator. ``chardev`` is the id of the character device."""

    kind = "emulator"
    description = "TPM emulator backend driver"
    parameters = ("chardev",)

    def __init__(self, machine: Machine, id: str, options: dict[str, str]) -> None:
        super().__init__(machine, id, options)
        self._channel: control.ControlChannel | None = None
        self._data: socket.socket | None = None
        self._locality: int | None = None
        self._established: bool | None = None

    def describe(self) -> dict[str, Any]:
        return {"chardev": self.options["chardev"]}

    @property
    def _control(self) -> control.ControlChannel:
        if self._channel is None:
            raise QobraError("tpm-emulator: the emulator is gone", errno=errno.ECONNRESET)
        return self._channel

    # -- life

    def open(self) -> None:
        name = self.options.get("chardev")
        if not name:
            raise QobraError("tpm-emulator: parameter 'chardev' is missing")
        chardev = self.machine.chardevs.find(name)
        if chardev is None:
            raise QobraError(f"tpm-emulator: tpm chardev '{name}' not found")
        channel = control.ControlChannel(chardev)
        channel.open()
        self._channel = channel
        own, given = socket.socketpair()
        self._data = own
        try:
            channel.ask(control.SET_DATAFD, fds=[given.fileno()])
        finally:
            given.close()
        own.settimeout(control.TIMEOUT_SECONDS)
        try:
            self.is_20 = self._find_version()
        except OSError as error:
            raise QobraError.from_os("tpm-emulator: the emulator does not answer commands", error)
        own.settimeout(None)
        offered = channel.capabilities()
        if not all(offered & control.CAPABILITY[request] for request in _NEEDED):
            raise QobraError("tpm-emulator: TPM does not implement minimum set of required capabilities")
        self.migrates = all(offered & control.CAPABILITY[request] for request in _MIGRATING)
        self._stop()
        self.buffer_size = self._set_buffer_size(0)

    def _find_version(self) -> bool:
        """Whether it is a TPM 2.0, which one of version 1.2 is told by. It need not have been started."""
        if messages.is_20(self._transfer(messages.PROBE_20)):
            return True
        if messages.is_12(self._transfer(messages.PROBE_12)):
            return False
        raise QobraError("tpm-emulator: the emulator is neither a TPM 2.0 nor a TPM 1.2")

    def _stop(self) -> None:
        self._control.ask(control.STOP)

    def _set_buffer_size(self, size: int) -> int:
        """Have commands and responses of up to ``size`` bytes (0: leave it); how many it is then."""
        answer = self._control.ask(control.SET_BUFFERSIZE, _U32.pack(size), _BUFFER_SIZES.size)
        actual, _least, _most = _BUFFER_SIZES.unpack(answer)
        return min(int(actual), _MAX_RESPONSE)

    def start(self) -> None:
        self._locality = None
        self._established = None
        self._stop()
        self._set_buffer_size(self.buffer_size)
        if self.machine.run_state.state != "inmigrate":  # it starts with the state that comes
            self._control.ask(control.INIT, _U32.pack(0))

    def shut_down(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            try:
                channel.ask(control.SHUTDOWN)
            except QobraError:
                pass  # it is gone already
            channel.close()
        data, self._data = self._data, None
        if data is not None:
            try:
                data.shutdown(socket.SHUT_RDWR)  # which wakes the thread that waits for a response
            except OSError:
                pass
            data.close()

    # -- commands

    def perform(self, locality: int, command: bytes) -> bytes:
        if locality != self._locality:
            self._control.ask(control.SET_LOCALITY, bytes((locality,)))
            self._locality = locality
        return self._transfer(command)

    def _transfer(self, command: bytes) -> bytes:
        data = self._data
        if data is None or data.fileno() < 0:
            raise QobraError("the emulator is gone", errno=errno.ECONNRESET)
        try:
            data.sendall(command)
            response = self._receive(data, messages.HEADER.size)
            length = messages.length(response)
            if not messages.HEADER.size <= length <= _MAX_RESPONSE:
                raise QobraError(f"a response of {length} bytes", errno=errno.EPROTO)
            return response + self._receive(data, length - len(response))
        except (OSError, QobraError):
            data.close()  # nobody knows any more what a response would belong to
            raise

    @staticmethod
    def _receive(data: socket.socket, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = data.recv(length - len(parts))
            if not part:
                raise QobraError("the emulator is gone", errno=errno.ECONNRESET)
            parts += part
        return bytes(parts)

    def cancel(self) -> None:
        try:
            self._control.ask(control.CANCEL_TPM_CMD)
        except QobraError:
            pass  # it goes on to its end then

    def established(self) -> bool:
        if self._established is None:
            try:
                answer = self._control.ask(control.GET_TPMESTABLISHED, answer=4)
            except QobraError:
                return False
            self._established = bool(answer[0])
        return self._established

    def reset_established(self, locality: int) -> None:
        if self.is_20:
            try:
                self._control.ask(control.RESET_TPMESTABLISHED, bytes((locality,)))
            except QobraError:
                return  # the locality may not
            self._established = None

    # -- state

    def save(self) -> list[Blob]:
        return [self._control.state(kind) for kind in control.STATE_TYPES]

    def load(self, blobs: list[Blob]) -> None:
        if len(blobs) != len(control.STATE_TYPES):
            raise QobraError(f"tpm-emulator: there are {len(blobs)} blobs of state", errno=errno.EINVAL)
        self._locality = self._established = None
        self._stop()
        for kind, (flags, blob) in zip(control.STATE_TYPES, blobs, strict=True):
            if blob:
                self._control.set_state(kind, flags, blob)
        self._control.ask(control.INIT, _U32.pack(control.INIT_DELETE_VOLATILE))
