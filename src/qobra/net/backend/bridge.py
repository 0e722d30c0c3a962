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
        self._helper = self.options.get("helper", DEFAULT_HELPER)
        self._bridge = self.options.get("br", DEFAULT_BRIDGE)
        self._use([interface(self._helper, self._bridge)])

    def describe(self) -> str:
        return f"tap,helper={self._helper},br={self._bridge}"
