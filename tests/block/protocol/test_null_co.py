"""Null nodes: which sizes and latencies there can be, in QEMU's words."""

from __future__ import annotations

import pytest

from qobra.block.layer import BlockLayer
from qobra.errors import QobraError

LARGEST = (1 << 63) - (1 << 30)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": -1}, "Parameter 'size' expects a non-negative number below 2^64"),
        ({"size": LARGEST + 1}, "Could not refresh total sector count: File too large"),
        ({"latency-ns": -1}, "latency-ns is invalid"),
        ({"latency-ns": 1 << 63}, "latency-ns is invalid"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, int], reason: str) -> None:
    layer = BlockLayer()
    with pytest.raises(QobraError) as caught:
        layer.add_node({"driver": "null-co", "node-name": "n", **options})
    assert caught.value.desc == reason
    layer.add_node({"driver": "null-co", "node-name": "n", "size": LARGEST})
    assert layer.find_node("n").length == LARGEST
    layer.close()
