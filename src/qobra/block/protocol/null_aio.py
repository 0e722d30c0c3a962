"""The ``null-aio`` driver: ``null-co`` under the name that QEMU gives its asynchronous twin."""

from __future__ import annotations

from qobra.block.node import drivers
from qobra.block.protocol.null_co import NullNode


@drivers.register("null-aio")
class NullAioNode(NullNode):
    """See :class:`NullNode`; requests are blocking calls here, so the two do not differ."""

    driver = "null-aio"
    protocols = ("null-aio",)
