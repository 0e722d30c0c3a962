"""Run the actions of a transaction: prepare all at one instant, then commit all, or undo what was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.block import bitmap_changes, snapshot
from qobra.block.job.group import JobGroup
from qobra.block.transaction.change import Change
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.job.backup import BackupJob
    from qobra.block.layer import BlockLayer

Options = dict[str, Any]


class Transaction:
    """What the actions of one transaction share. ``group`` is that of its jobs where they complete together."""

    def __init__(self, layer: BlockLayer, group: JobGroup | None) -> None:
        self.layer = layer
        self.group = group
        self.started: list[BackupJob] = []

    def of_job(self, job: BackupJob) -> Change:
        """The change that a job was made; it is started when all is well."""

        def commit() -> None:
            job.start()
            self.started.append(job)

        return Change(undo=lambda: job.cancel(True), commit=commit)


def _backup(transaction: Transaction, data: Options) -> Change:
    from qobra.block.job.start_backup import start_backup

    layer = transaction.layer
    source = layer.find_device_or_node(data["device"])
    target = layer.find_device_or_node(data["target"])
    return transaction.of_job(start_backup(layer.jobs, source, target, data, transaction.group))


def _drive_backup(transaction: Transaction, data: Options) -> Change:
    from qobra.block.job.drive import start_drive_backup

    return transaction.of_job(start_drive_backup(transaction.layer.jobs, data, transaction.group))


def _abort(transaction: Transaction, data: Options) -> Change:
    raise QobraError("Transaction aborted using Abort action")


Action = Callable[[Transaction, Any], Change]
"""Makes the change that the ``data`` of an action ask for, which the contract has checked."""

_WITH_GROUPS: dict[str, Action] = {
    "abort": _abort,
    "blockdev-backup": _backup,
    "drive-backup": _drive_backup,
}
_ALONE: dict[str, Action] = {
    "block-dirty-bitmap-add": lambda it, data: bitmap_changes.add_bitmap(it.layer, data),
    "block-dirty-bitmap-remove": lambda it, data: bitmap_changes.remove_bitmap(it.layer, data["node"], data["name"]),
    "block-dirty-bitmap-clear": lambda it, data: bitmap_changes.clear_bitmap(it.layer, data["node"], data["name"]),
    "block-dirty-bitmap-enable": lambda it, data: bitmap_changes.enable_bitmap(it.layer, data["node"], data["name"]),
    "block-dirty-bitmap-disable": lambda it, data: bitmap_changes.disable_bitmap(it.layer, data["node"], data["name"]),
    "block-dirty-bitmap-merge": lambda it, data: bitmap_changes.merge_bitmaps(
        it.layer, data["node"], data["target"], data["bitmaps"]
    ),
    "blockdev-snapshot": lambda it, data: snapshot.blockdev_snapshot(it.layer, data),
    "blockdev-snapshot-sync": lambda it, data: snapshot.blockdev_snapshot_sync(it.layer, data),
    "blockdev-snapshot-internal-sync": lambda it, data: snapshot.snapshot_internal(it.layer, data),
}
"""Actions whose effect is there at once, so that they cannot be part of a grouped completion."""


def run_transaction(layer: BlockLayer, actions: list[Options], completion_mode: str = "individual") -> None:
    """Run ``actions`` (TransactionAction) at one instant. Raises the error of the first that cannot be done."""
    grouped = completion_mode == "grouped"
    transaction = Transaction(layer, JobGroup() if grouped else None)
    changes: list[Change] = []
    with layer.drained():
        try:
            for action in actions:
                changes.append(_prepare(transaction, action["type"], action["data"], grouped))
        except BaseException:
            for change in reversed(changes):
                change.undo()
            raise
        else:
            for change in changes:
                change.commit()
        finally:
            for change in changes:
                change.clean()
    for job in transaction.started:
        job.drain_over()


def _prepare(transaction: Transaction, kind: str, data: Options, grouped: bool) -> Change:
    if kind in _WITH_GROUPS:
        return _WITH_GROUPS[kind](transaction, data)
    if grouped:
        raise QobraError(f"Action '{kind}' does not support Transaction property completion-mode = grouped")
    return _ALONE[kind](transaction, data)
