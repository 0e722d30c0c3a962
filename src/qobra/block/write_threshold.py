"""BLOCK_WRITE_THRESHOLD: tell management once a write goes past an offset, so that it can grow the volume in time."""

from __future__ import annotations

from qobra.block.contracts import WriteTracker
from qobra.block.node import BlockNode
from qobra.errors import QobraError


class _Threshold(WriteTracker):
    """Fires once; the user sets a new one after that."""

    def __init__(self, node: BlockNode, threshold: int) -> None:
        self._node = node
        self.threshold = threshold

    def mark(self, offset: int, length: int) -> None:
        end = offset + length
        if end > self.threshold and self._node.write_threshold == self.threshold:
            self._node.write_threshold = 0
            self._node.layer.emit_from_request(
                "BLOCK_WRITE_THRESHOLD",
                {
                    "node-name": self._node.node_name,
                    "amount-exceeded": end - self.threshold,
                    "write-threshold": self.threshold,
                },
            )


def set_write_threshold(node: BlockNode, threshold: int) -> None:
    """Watch ``node`` for writes past ``threshold`` bytes; 0 ends that. Raises QobraError for a negative one."""
    if threshold < 0:
        raise QobraError("Parameter 'write-threshold' expects a non-negative value")
    for tracker in node.trackers:
        if isinstance(tracker, _Threshold):
            node.remove_tracker(tracker)
    node.write_threshold = threshold
    if threshold:
        node.add_tracker(_Threshold(node, threshold))
