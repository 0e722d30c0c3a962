"""``testdev``: does what test programs in the guest write: ``STATUSq`` ends the program with an exit status."""

from __future__ import annotations

from qobra.chardev.chardev import Chardev, registry

_MAX_DIGITS = 31


@registry.register("testdev")
class TestDevice(Chardev):
    """Takes commands: a number, then a letter. What is no command is passed over."""

    kind = "testdev"
    __test__ = False  # no test of pytest's, in spite of its name

    def start(self) -> None:
        """Nothing to open."""
        self._digits = ""

    def transmit(self, data: bytes) -> int:
        for character in data.decode("latin-1"):
            if character.isascii() and character.isdigit():
                self._digits = (self._digits + character)[-_MAX_DIGITS:]
            elif character == "q":
                self.machine.run_state.exit_status = (int(self._digits or "0") << 1 | 1) & 0xFF
                self.machine.request_exit()
            elif not character.isspace():
                self._digits = ""
        return len(data)
