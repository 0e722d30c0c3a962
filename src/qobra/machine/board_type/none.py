"""``none``: no devices, no CPUs, no memory; for clients that only ask what the program can do."""

from __future__ import annotations

from qobra.machine.board import Board, boards


@boards.register("none")
class NoneBoard(Board):
    """An empty machine."""

    type_name = "none-machine"
    description = "empty machine"
    machine_name = "none"
    architectures = frozenset(("x86_64", "riscv64"))
    default_ram_id = "ram"
    default_ram_size = 0
