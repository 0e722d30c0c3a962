"""The options of a command line, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError

if TYPE_CHECKING:
    from collections.abc import Callable


class GivenOptions:
    """``pairs`` are names, without dashes, and values; an option may come any number of times."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return any(each == name for each, _ in self.pairs)

    def values(self, name: str) -> list[str]:
        """All values of an option."""
        return [value for each, value in self.pairs if each == name]

    def device_types(self) -> set[str]:
        """The models of ``-device``."""
        from qobra.chardev.options import split
        from qobra.cli._options import tree

        texts = self.values("device")
        return {str(tree(text, "driver")[0].get("driver")) for text in texts if text.startswith("{")} | {
            split(text, "driver").get("driver", "") for text in texts if not text.startswith("{")
        }

    def each(self, name: str, do: Callable[[str], Any]) -> None:
        """Call ``do`` with each value. The QobraError that it may raise is told with the option before it."""
        for value in self.values(name):
            self.work_off(name, value, do)

    def work_off(self, name: str, value: str, do: Callable[[str], Any]) -> None:
        """The same for one value."""
        try:
            do(value)
        except QobraError as error:
            raise error.prefixed(f"-{name} {value}: ")
