"""The slot of an SD controller, with room for one card."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.machine.qdev import Bus, Device

if TYPE_CHECKING:
    from qobra.machine.sd.card import Card


class SdBus(Bus):
    """The slot. ``changed`` is called when a card comes or goes."""

    type_name = "sd-bus"
    limit = 1
    changed: Callable[[], None] = staticmethod(lambda: None)

    @property
    def card(self) -> Card | None:
        """The card that works here."""
        found: Any = next((device for device in self.devices if device.realized), None)
        return found.card if found is not None else None

    def plugged(self, device: Device) -> None:
        self.changed()

    def unplugged(self, device: Device) -> None:
        self.changed()


class SdhciBus(SdBus):
    """The slot of a controller after the SD host controller specification."""

    type_name = "sdhci-bus"
