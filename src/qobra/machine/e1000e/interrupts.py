"""When and how the card interrupts: by the pin, by a message, or by five messages of their own (section 7.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.e1000 import regs as old
from qobra.machine.e1000e import regs

if TYPE_CHECKING:
    from qobra.machine.e1000e.card import E1000e

_VALID = 8
_ALWAYS_ON_SENT = 1 << 31


class Interrupts:
    """The causes (ICR) and masks (IMS) of ``card``, which says by what means it interrupts."""

    def __init__(self, card: E1000e) -> None:
        self._card = card

    def raise_causes(self, causes: int) -> None:
        """Something happened."""
        card = self._card
        before = card.register(old.ICR)
        card.set_register(old.ICR, before | causes)
        self.update(causes & ~before)

    def update(self, new: int = 0) -> None:
        """See what is to be signalled; ``new`` are causes that were not there before."""
        card = self._card
        causes = card.register(old.ICR) & ~regs.ASSERTED
        pending = causes & card.register(old.IMS)
        card.set_register(old.ICR, causes | (regs.ASSERTED if causes else 0))
        if card.msix.enabled:
            for cause in regs.QUEUE_CAUSES:
                if pending & cause & new:
                    self._send(cause)
            return
        card.set_pin(0 if card.msi.enabled or not pending else 1)
        if card.msi.enabled and pending & new:
            card.msi.notify()

    def unmasked(self, mask: int) -> None:
        """Causes that were there already are no longer masked."""
        card = self._card
        card.set_register(old.IMS, (card.register(old.IMS) | mask) & regs.MASKABLE)
        self.update(card.register(old.ICR) & mask)

    def masked(self, mask: int) -> None:
        """Causes are not to be signalled."""
        card = self._card
        card.set_register(old.IMS, card.register(old.IMS) & ~mask)
        self.update()

    def acknowledge(self) -> int:
        """A driver reads the causes, which clears them, and masks some if it wants that (10.2.4.1)."""
        causes = self._card.register(old.ICR)
        self.clear(causes)
        return causes

    def clear(self, causes: int) -> None:
        """A driver has seen these causes."""
        card = self._card
        mask = card.register(old.IMS)
        if card.register(old.ICR) & mask and card.register(regs.CTRL_EXT) & regs.EXT_ACKNOWLEDGE_MASKS:
            card.set_register(old.IMS, mask & ~card.register(regs.IAM))
        card.set_register(old.ICR, card.register(old.ICR) & ~causes)
        self.update()

    def _send(self, cause: int) -> None:
        card = self._card
        vector = card.register(regs.IVAR) >> 4 * regs.QUEUE_CAUSES.index(cause) & 15
        if vector & _VALID:
            card.msix.notify(vector & 7)
        if card.register(regs.CTRL_EXT) & regs.EXT_AUTO_MASKS:
            card.set_register(old.IMS, card.register(old.IMS) & ~(card.register(regs.IAM) & cause))
        automatic = card.register(regs.EIAC) & cause
        card.set_register(old.ICR, card.register(old.ICR) & ~automatic)
