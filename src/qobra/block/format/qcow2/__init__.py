"""The qcow2 format, versions 2 and 3.

``layout`` says what is on disk and ``header`` reads and writes the header. ``image`` holds what is in memory, with
the ``tables`` (L1, L2), ``refcount`` blocks, the ``allocator`` and ``writeback``, which orders metadata writes.
``mapping``, ``writer``, ``zeroing`` and ``compressed`` serve requests; ``disk`` puts them together as a node, and
``node`` adds what is done to images beside that: snapshots, bitmaps, amending.
"""

from __future__ import annotations

from qobra.block.format.qcow2.node import Qcow2Node

__all__ = ["Qcow2Node"]
