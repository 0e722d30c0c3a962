"""``-vga`` and ``-display``: the graphics card of the board, and who is shown what it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.cli._options import structure
from qobra.errors import QobraError
from qobra.report import report_warning

if TYPE_CHECKING:
    from qobra.cli._system.given_options import GivenOptions
    from qobra.machine.board import Board

_CARDS = {
    "none": (None, "no graphic card"),
    "std": ("VGA", "VGA with the larger modes of Bochs"),
    "virtio": ("virtio-vga", "virtio-gpu that is a VGA as well"),
}
"""Types of devices, and what they are, by what ``-vga`` calls them."""
_INSTEAD = frozenset(("VGA", "isa-vga", "virtio-vga"))
"""Cards of which a PC has no other beside it unless it is asked for."""
_VNC = "vnc="


def set_up(board: Board, options: GivenOptions) -> None:
    """Let ``board`` know of its graphics card and display. Raises QobraError."""
    if not options.has("nodefaults") and not options.device_types() & _INSTEAD:
        board.graphics_card = board.default_graphics_card
    for value in options.values("vga"):
        board.graphics_card = _card(value)
        if board.graphics_card is not None and not board.has_place_for_graphics_card:
            report_warning(
                "A -vga option was passed but this machine type does not use that option; "
                "No VGA device has been created"
            )
    for value in options.values("display"):
        if value.startswith(_VNC):
            options.pairs.append(("vnc", value.removeprefix(_VNC)))
        elif value == "vnc":
            raise QobraError("-display vnc: VNC requires a display argument vnc=<display>")
        else:
            _set_display(board, options, value)


def _card(value: str) -> str | None:
    name, _, rest = value.partition(",")
    # Beams do not move here, however precisely their retrace is asked for.
    if name not in _CARDS or rest not in ("", "retrace=dumb"):
        raise QobraError(f"unknown vga type: {value}")
    return _CARDS[name][0]


def _set_display(board: Board, options: GivenOptions, value: str) -> None:
    chosen: dict[str, Any] = {}
    options.work_off("display", value, lambda text: chosen.update(structure(text, "DisplayOptions", "type")))
    if chosen["type"] not in ("none", "default"):
        raise QobraError(f"Display '{chosen['type']}' is not available.")
    if chosen.get("gl", "off") != "off":
        raise QobraError("OpenGL is not supported by the display")
    board.display_options = chosen | {"type": "none"}


def cards_text(board: type[Board]) -> str:
    """What ``-vga help`` says."""
    lines = []
    for name, (card, what) in _CARDS.items():
        default = " (default)" if card is not None and card == board.default_graphics_card else ""
        lines.append(f"{name:<20} {what}{default}\n")
    return "".join(lines)
