"""The transaction command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.qmp.registry import command

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


@command("transaction")
def transaction(machine: Machine, args: dict[str, Any]) -> None:
    from qobra.block.transaction.run import run_transaction

    properties = args.get("properties") or {}
    run_transaction(machine.block, args["actions"], properties.get("completion-mode", "individual"))
