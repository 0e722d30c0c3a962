"""``null``: takes everything, gives nothing."""

from __future__ import annotations

from qobra.chardev.chardev import Chardev, registry


@registry.register("null")
class NullChardev(Chardev):
    """The device without an outside."""

    kind = "null"

    def start(self) -> None:
        """Nothing to open, and nobody will ever be there."""
