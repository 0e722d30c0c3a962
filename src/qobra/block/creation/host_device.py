"""Creation options of a block device: it cannot be made, but one that is there and large enough serves."""

from __future__ import annotations

from qobra.block.creation._options import SIZE, STRING, Format, Option, formats

_OPTIONS = (
    Option("size", SIZE, "virtual size of the disk"),
    Option("preallocation", STRING, "space to reserve (off)"),
)

DEVICE = Format(_OPTIONS, lambda values: {"size": values["size"]})

formats.register("host_device")(DEVICE)
