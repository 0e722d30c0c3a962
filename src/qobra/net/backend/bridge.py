"""``bridge``: an interface on a bridge of the host, made by a helper."""

from __future__ import annotations

from qobra.net.backend.tap import TapNetdev
from qobra.net.bridge_helper import DEFAULT_BRIDGE, DEFAULT_HELPER, interface
from qobra.net.netdev import registry


@registry.register("bridge")
class BridgeNetdev(TapNetdev):
    """What ``tap`` with a ``helper`` is, with defaults for the helper and the bridge ``br``."""

    kind = "bridge"

    def start(self) -> None:
        options = self.options
        self._use([interface(options.get("helper", DEFAULT_HELPER), options.get("br", DEFAULT_BRIDGE))])
