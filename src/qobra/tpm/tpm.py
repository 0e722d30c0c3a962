"""What every TPM back end does for the one device that it serves."""

from __future__ import annotations

from qobra.registry import Registry
from qobra.tpm import messages

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


class _Command:
    """A command that is being carried out in ``thread``, and whom its response is for."""

    __slots__ = ("done", "response", "thread")

    thread: threading.Thread

    def __init__(self, done: Callable[[bytes], None]) -> None:
        self.done = done
        self.response = messages.FAILURE


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
        self._command: _Command | None = None

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
        return self._command is not None

    def execute(self, locality: int, command: bytes, done: Callable[[bytes], None]) -> None:
        """Carry ``command`` out and call ``done`` with the response, in the strand. One at a time."""
        import threading

        assert self._command is None
        run = self._command = _Command(done)
        run.thread = threading.Thread(target=self._run, args=(run, locality, command), name="tpm", daemon=True)
        run.thread.start()

    def _run(self, run: _Command, locality: int, command: bytes) -> None:
        from qobra.errors import QobraError, strerror
        from qobra.report import report_error

        try:
            short = len(command) < messages.HEADER.size
            run.response = messages.wrong_size(is_20=self.is_20) if short else self.perform(locality, command)
        except QobraError as error:
            report_error(f"tpm-{self.kind}: {error}")
        except OSError as error:
            report_error(f"tpm-{self.kind}: {strerror(error)}")
        self.machine.control.post(self._deliver, run)

    def _deliver(self, run: _Command) -> None:
        # Whoever waited in finish() has had the response already, and another command may be under way.
        if self._command is run:
            self._command = None
            run.done(run.response)

    def finish(self) -> None:
        """Wait until no command is being carried out; one that does not end is given up, and the TPM with it."""
        run = self._command
        if run is not None:
            run.thread.join(TIMEOUT_SECONDS)
            if run.thread.is_alive():
                self.shut_down()
            self._deliver(run)

    def close(self) -> None:
        """End what is being carried out, and let the TPM go."""
        run, self._command = self._command, None
        if run is not None:
            self.cancel()
        self.shut_down()
        if run is not None:
            run.thread.join(TIMEOUT_SECONDS)  # the host's TPM may go on with what it was told, whoever closes it
