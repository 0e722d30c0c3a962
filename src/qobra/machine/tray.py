"""The tray of a CD drive, whatever bus the drive is on: who moves it, who locks it, what the guest hears of it."""

from __future__ import annotations

from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.vmstate import VmState, flag

NO_CHANGE, EJECT_REQUESTED, NEW_MEDIUM = 0, 1, 2
"""Media events (MMC-6, table 362)."""

_OPEN, _PRESENT = 1, 2


class CdTray(BlockFrontEnd):
    """A drive with a tray. The guest moves it with :meth:`guest_moves_tray`, users by the block layer's commands."""

    is_removable = True
    has_tray = True

    _new_medium = False
    _eject_requested = False

    vmstate = VmState(flag("tray_open", "medium_locked", "_new_medium", "_eject_requested"))

    @property
    def loaded(self) -> bool:
        """Whether there is a medium in a closed tray."""
        return not self.tray_open and self.backend is not None and self.backend.node is not None

    def eject_request(self, force: bool) -> None:
        self._eject_requested = True
        if force:
            self.medium_locked = False

    def move_tray(self, opened: bool) -> None:
        self.tray_open = opened
        self._new_medium = True
        self._eject_requested = False
        self.tray_moved()

    def guest_moves_tray(self, opened: bool) -> None:
        """The guest opens or closes the tray, which it may (DEVICE_TRAY_MOVED)."""
        from qobra.block.media import tell_tray

        backend = self.backend
        if opened == self.tray_open or backend is None:
            return
        self.tray_open = opened
        self.machine.control.post(lambda: tell_tray(backend, opened=opened))

    def close_and_unlock(self) -> None:
        """The state after a reset; nobody is told. What the guest has not been told of the medium stays to be told."""
        self.tray_open = self.medium_locked = False

    def take_media_event(self) -> tuple[int, int]:
        """The event to report next, which is not reported again, and the state of tray and medium."""
        inserted = self.backend is not None and self.backend.node is not None
        state = _OPEN if self.tray_open else _PRESENT if inserted else 0
        event = NO_CHANGE
        if not self.tray_open:
            if self._new_medium:
                event, self._new_medium = NEW_MEDIUM, False
            elif self._eject_requested:
                event, self._eject_requested = EJECT_REQUESTED, False
        return event, state

    def tray_moved(self) -> None:
        """A user moved the tray: have the guest notice."""
