"""Persistent dirty bitmaps: the bitmaps extension of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.block.format.qcow2.check import Checker
    from qobra.block.format.qcow2.node import Qcow2Node


class BitmapStore:
    """The bitmaps that an image stores."""

    def __init__(self, node: Qcow2Node) -> None:
        self._node = node

    def count_references(self, checker: Checker) -> None:
        """Count the clusters that bitmaps take, for a check."""
