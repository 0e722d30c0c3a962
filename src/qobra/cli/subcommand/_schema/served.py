"""What Qobra serves, as its registry of commands says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser


def add_storage_daemon_option(parser: ArgumentParser) -> None:
    parser.add_argument("--storage-daemon", action="store_true", help="what a machine without a board serves")


def served(*, board: bool) -> tuple[set[str], set[str]]:
    """The names of the commands and of the events that machines serve, of whatever architecture those with a board."""
    from qobra.machine.machine import Machine
    from qobra.qmp import registry

    machine = Machine(capabilities=registry.capabilities() if board else frozenset())
    try:
        return set(registry.served(machine)), set(registry.served_events(machine))
    finally:
        machine.close()
