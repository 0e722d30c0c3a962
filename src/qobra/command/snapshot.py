"""Snapshots of block devices, outside and inside of their images, and the backing file that an image records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.qmp.registry import command

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

Args = dict[str, Any]


@command("blockdev-snapshot")
def blockdev_snapshot(machine: Machine, args: Args) -> None:
    from qobra.block.snapshot import blockdev_snapshot as take

    with machine.block.drained():
        take(machine.block, args).settle()


@command("blockdev-snapshot-sync")
def blockdev_snapshot_sync(machine: Machine, args: Args) -> None:
    from qobra.block.snapshot import blockdev_snapshot_sync as take

    with machine.block.drained():
        take(machine.block, args).settle()


@command("blockdev-snapshot-internal-sync")
def blockdev_snapshot_internal_sync(machine: Machine, args: Args) -> None:
    from qobra.block.snapshot import snapshot_internal

    with machine.block.drained():
        snapshot_internal(machine.block, args).settle()


@command("blockdev-snapshot-delete-internal-sync")
def blockdev_snapshot_delete_internal_sync(machine: Machine, args: Args) -> dict[str, Any]:
    from qobra.block.snapshot import delete_internal

    with machine.block.drained():
        return delete_internal(machine.block, args)


@command("change-backing-file")
def change_backing_file(machine: Machine, args: Args) -> None:
    from qobra.block.snapshot import change_backing_file as change

    with machine.block.drained():
        change(machine.block, args)
