"""What every TPM back end does for the one device that it serves."""

from __future__ import annotations

from qobra.registry import Registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Any

    from qobra.machine.machine import Machine

registry: Registry[type[Tpm]] = Registry("TPM backend", ["qobra.tpm.backend"])

TIMEOUT_SECONDS = 30.0
"""How long a command may still take that nobody waits for any more."""

Blob = tuple[int, bytes]
"""A part of a TPM's state: how it is encoded (zero: plainly), and the bytes."""


class Tpm:
    """A back end. All but :meth:`perform` is called inside the control strand.

    ``options`` are those of ``-tpmdev``. ``is_20`` is whether it is a TPM 2.0, else 1.2. ``buffer_size`` is how long a
    command or a response may be; ``model`` the device that it serves, once there is one.
    """

    kind: str
    description: str
    parameters: tuple[str, ...] = ()
    is_20 = False
    buffer_size = 4096
    migrates = False
    """Whether :meth:`save` and :meth:`load` move the state of the TPM."""

    def __init__(self, machine: Machine, id: str, options: dict[str, str]) -> None:
        self.machine = machine
        self.id = id
        self.options = options
        self.model: str | None = None
        self.arrived: list[Blob] | None = None
        """State that has come with a migration, for :meth:`load`."""
        self._thread: threading.Thread | None = None
        self._response: bytes = b""
        self._done: Callable[[bytes], None] | None = None

    # -- for kinds to fill in

    def open(self) -> None:
        """Reach the TPM. Raises QobraError."""

    def start(self) -> None:
        """Begin as after power-on. Raises QobraError."""

    def perform(self, locality: int, command: bytes) -> bytes:
        """The response to a command: called in a thread of its own. Raises QobraError or OSError."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Have a command that takes long end early, if it can."""

    def established(self) -> bool:
        """Whether a dynamic launch has taken place (the establishment flag)."""
        return False

    def reset_established(self, locality: int) -> None:
        """Forget that a dynamic launch has taken place."""

    def save(self) -> list[Blob]:
        """The state of the TPM. Raises QobraError."""
        return []

    def load(self, blobs: list[Blob]) -> None:
        """Take over the state of another, and go on. Raises QobraError."""

    def shut_down(self) -> None:
        """Let the TPM go."""

    def describe(self) -> dict[str, Any]:
        """The options, as query-tpm tells them."""
        return {name: value for name, value in self.options.items() if name in self.parameters}

    # -- commands

    @property
    def busy(self) -> bool:
        """Whether a command is being carried out."""
        return self._done is not None

    def execute(self, locality: int, command: bytes, done: Callable[[bytes], None]) -> None:
        """Carry ``command`` out and call ``done`` with the response, in the strand. One at a time."""
        import threading

        assert self._done is None
        self._done = done
        self._thread = threading.Thread(target=self._run, args=(locality, command), name="tpm", daemon=True)
        self._thread.start()

    def _run(self, locality: int, command: bytes) -> None:
        from qobra.errors import QobraError, strerror
        from qobra.report import report_error
        from qobra.tpm import messages

        try:
            short = len(command) < messages.HEADER.size
            self._response = messages.wrong_size(is_20=self.is_20) if short else self.perform(locality, command)
        except (QobraError, OSError) as error:
            reason = strerror(error) if isinstance(error, OSError) else error
            report_error(f"tpm-{self.kind}: {reason}")
            self._response = messages.FAILURE
        self.machine.control.post(self._deliver)

    def _deliver(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._thread = None
            done(self._response)

    def finish(self) -> None:
        """Wait until no command is being carried out; one that does not end is given up, and the TPM with it."""
        if self._thread is not None:
            self._thread.join(TIMEOUT_SECONDS)
            if self._thread.is_alive():
                self.shut_down()
            self._deliver()

    def close(self) -> None:
        """End what is being carried out, and let the TPM go."""
        if self.busy:
            self.cancel()
        self._done = None
        self.shut_down()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
