"""The ``host_cdrom`` driver: the host's optical drive."""

from __future__ import annotations

import os

from qobra.block.node import drivers
from qobra.block.protocol.host_device import HostDeviceNode


@drivers.register("host_cdrom")
class HostCdromNode(HostDeviceNode):
    """Opens even without a medium, as O_NONBLOCK has it; then it is empty."""

    driver = "host_cdrom"
    protocols = ("host_cdrom",)

    def _host_length(self) -> int:
        try:
            return os.lseek(self.fd, 0, os.SEEK_END)
        except OSError:
            return 0  # no medium
