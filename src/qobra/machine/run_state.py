"""What a machine is doing - running, paused, shut down, ... - and the requests and events that change it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

StateListener = Callable[[bool, str], None]

# Which state may follow which (the reference's RunState).
_LEAVES = ("finish-migrate", "prelaunch")
TRANSITIONS: dict[str, frozenset[str]] = {
    "prelaunch": frozenset(("running", "finish-migrate", "inmigrate")),
    "debug": frozenset(("running", "suspended", *_LEAVES)),
    "inmigrate": frozenset(
        ("internal-error", "io-error", "paused", "running", "shutdown", "suspended", "watchdog")
        + ("guest-panicked", "postmigrate", "colo", *_LEAVES)
    ),
    "internal-error": frozenset(("paused", *_LEAVES)),
    "io-error": frozenset(("running", *_LEAVES)),
    "paused": frozenset(("running", "postmigrate", "colo", *_LEAVES)),
    "postmigrate": frozenset(("running", *_LEAVES)),
    "finish-migrate": frozenset(("running", "paused", "postmigrate", "prelaunch", "colo")),
    "restore-vm": frozenset(("running", "prelaunch")),
    "colo": frozenset(("running", "prelaunch", "shutdown")),
    "running": frozenset(
        ("debug", "internal-error", "io-error", "paused", "finish-migrate", "restore-vm", "save-vm")
        + ("shutdown", "watchdog", "guest-panicked", "suspended", "colo")
    ),
    "save-vm": frozenset(("running",)),
    "shutdown": frozenset(("paused", "colo", *_LEAVES)),
    "suspended": frozenset(("running", "colo", *_LEAVES)),
    "watchdog": frozenset(("running", "colo", *_LEAVES)),
    "guest-panicked": frozenset(("running", *_LEAVES)),
}

_SETTLE_NS = 30 * 10**9
_POLL_S = 0.001
_GUEST_CAUSES = frozenset(("guest-shutdown", "guest-reset", "guest-panic", "subsystem-reset"))


class RunState:
    """The run state of one machine. Everything here is called inside the control strand.

    A machine without a board (a storage daemon) has nothing to start: it is ``running`` from the
    beginning. The ``*_action`` attributes say what follows a guest's reset, shutdown, panic and watchdog
    (``set-action``).
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.state = "prelaunch" if "board" in machine.capabilities else "running"
        self.reboot_action = "reset"
        self.shutdown_action = "poweroff"
        self.panic_action = "shutdown"
        self.watchdog_action = "reset"
        self.autostart = True
        self.wakeup_supported = False
        self.exit_status = 0
        self.incoming: str | None = None
        """Where a migration is to come from, if the machine waits for one."""
        self._listeners: list[StateListener] = []
        self._reset_handlers: list[Callable[[], None]] = []
        self._powerdown_handlers: list[Callable[[], None]] = []
        self._wakeup_handlers: list[Callable[[str], None]] = []
        self._start_checks: list[Callable[[], None]] = []
        self._requested: set[str] = set()
        self._unwritten = False
        """The guest has stopped, and its disks have not been written out since."""

    # -- state

    @property
    def running(self) -> bool:
        """Whether the guest runs."""
        return self.state == "running"

    def query(self) -> dict[str, Any]:
        """StatusInfo of the reference."""
        return {"running": self.running, "singlestep": False, "status": self.state}

    def set(self, state: str) -> None:
        """Go to ``state``; QobraError where the reference does not allow it from here."""
        if state == self.state:
            return
        if state not in TRANSITIONS[self.state]:
            raise QobraError(f"invalid runstate transition: '{self.state}' -> '{state}'")
        self.state = state

    def subscribe(self, listener: StateListener) -> Callable[[], None]:
        """Call ``listener(running, state)`` when the guest starts and stops; the returned call ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_reset(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Call ``handler`` at each system reset; the returned call ends that."""
        self._reset_handlers.append(handler)
        return lambda: self._reset_handlers.remove(handler)

    def on_powerdown(self, handler: Callable[[], None]) -> None:
        """Call ``handler`` when the power button is pressed."""
        self._powerdown_handlers.append(handler)

    def on_wakeup(self, handler: Callable[[str], None]) -> None:
        """Call ``handler(reason)`` when the guest wakes from suspension; a board that has one supports
        waking.
        """
        self._wakeup_handlers.append(handler)
        self.wakeup_supported = True

    def before_start(self, check: Callable[[], None]) -> None:
        """Call ``check`` before the guest starts; a QobraError from it keeps the guest from starting."""
        self._start_checks.append(check)

    # -- stop and go

    def start(self) -> None:
        """Let the guest run (RESUME)."""
        if self.running:
            return
        if "running" not in TRANSITIONS[self.state]:
            raise QobraError(f"invalid runstate transition: '{self.state}' -> 'running'")
        for check in self._start_checks:
            check()
        self.set("running")
        self._machine.events.emit("RESUME")
        self._notify()

    def stop(self, state: str = "paused") -> None:
        """Stop a running guest and go to ``state`` (STOP); nothing happens when it does not run.

        Its disks are written out soon after (:meth:`write_out`).
        """
        if not self.running:
            if self.state == "inmigrate":
                self.autostart = False
            return
        self.set(state)
        self._notify()
        self._machine.events.emit("STOP")
        self._unwritten = True
        # In the timers' thread, as a device's own would wait for itself.
        self._machine.control.call_later(0, self._write_out_once)

    def settle(self) -> None:
        """Let what devices have begun end, the guest standing still; no limits hold it up. Raises QobraError."""
        machine = self._machine
        if machine.board is None:
            return
        from qobra.machine.board import find_devices

        deadline = time.monotonic_ns() + _SETTLE_NS
        with machine.block.unthrottled():
            while any(device.working for device in find_devices(machine.board, "device")):
                if time.monotonic_ns() > deadline:
                    raise QobraError("a device does not come to rest", errno=errno.EBUSY)
                time.sleep(_POLL_S)
                machine.control.serve()
        machine.control.serve()

    def write_out(self) -> None:
        """Let the disks of a guest that stands still be on stable storage, as who stops one to copy them expects.

        What fails is passed over: a guest is told when it asks for the same.
        """
        self._unwritten = False
        if "block" not in self._machine.__dict__:
            return
        try:
            self.settle()
        except QobraError as error:
            report_error(error)
        self._machine.block.flush()

    def _write_out_once(self) -> None:
        if self._unwritten and not self.running:
            self.write_out()

    def cont(self) -> None:
        """What the command ``cont`` does: start, unless the state needs something else first."""
        if self.state in ("internal-error", "shutdown"):
            raise QobraError("Resetting the Virtual Machine is required")
        if self.state == "suspended":
            return
        if self.state == "finish-migrate":
            raise QobraError("Migration is not finalized yet")
        if self.state == "inmigrate":
            self.autostart = True
            return
        self.start()

    # -- requests; each is served after what is going on in the strand, as from a main loop

    def request_shutdown(self, cause: str) -> None:
        """The machine shuts down for ``cause``, a ShutdownCause (SHUTDOWN)."""
        self._request("shutdown", self._serve_shutdown, cause)

    def request_reset(self, cause: str = "host-qmp-system-reset") -> None:
        """The machine is reset for ``cause`` (RESET), or shuts down where a reset is to end it."""
        if self.reboot_action == "shutdown" and cause != "subsystem-reset":
            self.request_shutdown(cause)
        else:
            self._request("reset", self._serve_reset, cause)

    def request_powerdown(self) -> None:
        """The power button is pressed (POWERDOWN); what follows is the guest's to decide."""
        self._request("powerdown", self._serve_powerdown, "host-qmp-system-powerdown")

    def request_quit(self, cause: str = "host-qmp-quit") -> None:
        """End the program, whatever a shutdown otherwise does."""
        if "board" not in self._machine.capabilities:
            self._machine.control.post(self._machine.request_exit)
            return
        self.shutdown_action = "poweroff"
        self.request_shutdown(cause)

    def request_suspend(self) -> None:
        """The guest suspends itself to RAM (SUSPEND)."""
        if self.state != "suspended":
            self._request("suspend", self._serve_suspend, "")

    def wake_up(self) -> None:
        """What the command ``system_wakeup`` does."""
        if not self.wakeup_supported:
            raise QobraError("wake-up from suspend is not supported by this guest")
        self.request_wakeup()

    def request_wakeup(self, reason: str = "other") -> None:
        """Wake a suspended guest (WAKEUP)."""
        if self.state != "suspended":
            raise QobraError("Unable to wake up: guest is not in suspended state")
        self.set("running")
        for handler in self._wakeup_handlers:
            handler(reason)
        self._machine.events.emit("WAKEUP")
        self._notify()

    # -- what guests do to themselves

    def guest_panicked(self, info: dict[str, Any] | None = None) -> None:
        """The guest says that it panicked (GUEST_PANICKED); ``panic_action`` says what follows."""
        action = {"pause": "pause", "none": "run"}.get(self.panic_action, "poweroff")
        data: dict[str, Any] = {"action": action}
        if info:
            data["info"] = info
        self._machine.events.emit("GUEST_PANICKED", data)
        if action != "run":
            self.stop("guest-panicked")
        if action == "poweroff":
            self.exit_status = 1 if self.panic_action == "exit-failure" else self.exit_status
            self.request_shutdown("guest-panic")

    def guest_crashloaded(self, info: dict[str, Any] | None = None) -> None:
        """The guest says that it loaded its crash kernel (GUEST_CRASHLOADED)."""
        data: dict[str, Any] = {"action": "run"}
        if info:
            data["info"] = info
        self._machine.events.emit("GUEST_CRASHLOADED", data)

    # -- private

    def _request(self, kind: str, serve: Callable[[str], None], cause: str) -> None:
        # A second request before the first is served adds nothing.
        if kind in self._requested:
            return
        self._requested.add(kind)

        def run() -> None:
            self._requested.discard(kind)
            serve(cause)

        self._machine.control.post(run)

    def _serve_shutdown(self, cause: str) -> None:
        self._machine.events.emit("SHUTDOWN", {"guest": cause in _GUEST_CAUSES, "reason": cause})
        if self.shutdown_action == "pause":
            self.stop("shutdown")
        else:
            # Once the command that asked for it has its reply.
            self._machine.control.post(self._machine.request_exit)

    def _serve_reset(self, cause: str) -> None:
        for handler in tuple(self._reset_handlers):
            handler()
        if cause != "subsystem-reset":
            self._machine.events.emit("RESET", {"guest": cause in _GUEST_CAUSES, "reason": cause})
        if self.state not in ("running", "inmigrate", "finish-migrate"):
            self.set("prelaunch")

    def _serve_powerdown(self, _cause: str) -> None:
        self._machine.events.emit("POWERDOWN")
        for handler in self._powerdown_handlers:
            handler()

    def _serve_suspend(self, _cause: str) -> None:
        if not self.running:
            return
        self.set("suspended")
        self._notify()
        self._machine.events.emit("SUSPEND")

    def _notify(self) -> None:
        for listener in tuple(self._listeners):
            listener(self.running, self.state)
