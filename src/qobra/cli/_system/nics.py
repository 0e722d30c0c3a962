"""Network cards by ``-net`` and ``-nic``, which are older, or shorter, than a backend and a device.

``-net`` puts cards and backends on ports of hub 0; ``-nic`` makes a card with a backend of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qobra.chardev.options import Options, pairs
from qobra.errors import QobraError
from qobra.machine.option_groups import STRING, convert_as
from qobra.machine.plug import add_device
from qobra.net.netdev import registry, with_lists
from qobra.qapi.contract import contract

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.machine import Machine

_HUB = 0
_CARD = dict.fromkeys(("id", "netdev", "macaddr", "model", "addr", "vectors"), STRING)
_MODELS = {"virtio": "virtio-net-pci"}
_ADDRESS = re.compile(r"[0-9a-fA-F]{1,2}(?:([:-])[0-9a-fA-F]{1,2})(?:\1[0-9a-fA-F]{1,2}){4}\Z")


class Nics:
    """The backends are made at once, the cards when there is a board that takes them."""

    def __init__(self, machine: Machine, board: Board) -> None:
        self._machine = machine
        self._board = board
        self._cards: list[Options] = []

    def add_unasked(self) -> None:
        """What a machine has whose command line names no card and no backend."""
        if self._board.nic_unasked:
            from qobra.net.slirp import available

            self.add_net("nic")
            if available:
                self.add_net("user")

    def add_net(self, text: str) -> None:
        """``-net``: a card or a backend on the hub. Raises QobraError."""
        given = pairs(text, "type")
        options = dict(given)
        kind = options.pop("type", "")
        if kind == "none":
            return
        if kind == "nic":
            self._add_card(options)
            return
        if kind not in (*registry.names(), "vde", "netmap"):
            raise QobraError(f"Parameter 'type' does not accept value '{kind}'")
        if kind in ("hubport", "vhost-user", "vhost-vdpa"):
            raise QobraError(f"network backend '{kind}' is only supported with -netdev/-nic")
        self._add_port(netdev=self._add_backend(kind, with_lists(options, given)))

    def add_nic(self, text: str) -> None:
        """``-nic``: a card with a backend of its own. Raises QobraError."""
        given = pairs(text, "type")
        options = dict(given)
        kind = options.pop("type", "")
        if kind == "none":
            return
        card = {"model": options.pop("model", "")}
        if "mac" in options:
            card["macaddr"] = options.pop("mac")
        _check(card)
        self._cards.append(card | {"netdev": self._add_backend(kind, with_lists(options, given))})

    def _add_card(self, options: Options) -> None:
        convert_as(_CARD, options)
        _check(options)
        netdev = options.get("netdev")
        if netdev is None:
            options = options | {"netdev": self._add_port()}
        elif self._machine.netdevs.find(netdev) is None:
            raise QobraError(f"netdev '{netdev}' not found")
        self._cards.append(options)

    def _add_port(self, **options: str) -> str:
        id = self._free_name(f"hub{_HUB}port")
        self._machine.netdevs.create({"type": "hubport", "id": id, "hubid": _HUB, **options})
        return id

    def _add_backend(self, kind: str, options: dict[str, Any]) -> str:
        name: str = options.get("id") or self._free_name("__org.qemu.net")
        netdev = contract().check("Netdev", options | {"type": kind, "id": name}, keyval=True)
        self._machine.netdevs.create(netdev)
        return name

    def _free_name(self, stem: str) -> str:
        number = 0
        while self._machine.netdevs.find(f"{stem}{number}") is not None:
            number += 1
        return f"{stem}{number}"

    def _is_card(self, model: str) -> bool:
        find = self._board.tree.find_type
        cls = find(model)
        carried = find(getattr(cls, "backend_type", ""))
        return getattr(cls, "bus_type", None) == "PCI" and "Network" in (
            getattr(cls, "category", None),
            getattr(carried, "category", None),
        )

    def plug(self) -> None:
        """Plug the cards in. Raises QobraError."""
        for card in self._cards:
            model = card.get("model") or self._board.default_nic
            model = _MODELS.get(model, model)
            if not self._is_card(model):
                raise QobraError(f"Unsupported NIC model: {model}")
            device = {"driver": model, "netdev": card["netdev"]}
            if "macaddr" in card:
                parts = re.split("[:-]", card["macaddr"])
                device["mac"] = ":".join(part.zfill(2) for part in parts)
            for name in ("addr", "vectors"):
                if name in card:
                    device[name] = card[name]
            add_device(self._machine, device, keyval=True)


def _check(card: Options) -> None:
    contract().check("NetLegacyNicOptions", {key: card[key] for key in card if key != "id"}, keyval=True)
    if "macaddr" in card and not _ADDRESS.match(card["macaddr"]):
        raise QobraError("invalid syntax for ethernet address")
