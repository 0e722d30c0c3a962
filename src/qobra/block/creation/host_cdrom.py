"""Creation options of an optical drive: those of any device."""

from __future__ import annotations

from qobra.block.creation._options import formats
from qobra.block.creation.host_device import DEVICE

formats.register("host_cdrom")(DEVICE)
