"""Removable media: trays that open and close, media that are taken out and put in, and who is told of it.

``called`` is the name by which the user called the device, for error texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.node import BlockNode, Options
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer


def find_backend(layer: BlockLayer, device: str | None, id: str | None) -> BlockBackend:
    """The backend that a command means by exactly one of its ``device`` and ``id``. Raises QobraError."""
    if (device is None) == (id is None):
        raise QobraError("Need exactly one of 'device' and 'id'")
    if device is not None:
        return layer.find_backend(device)
    assert id is not None
    return layer.find_qdev(id)


def open_tray(backend: BlockBackend, called: str, *, force: bool) -> bool:
    """Open the tray; a locked one only asks the guest to, unless ``force``.

    True once it is open, False where there is no tray. Raises QobraError where the medium is not removable, or where
    the guest has to agree first.
    """
    device = backend.device
    if device is None:
        return False
    if not device.is_removable:
        raise QobraError(f"Device '{called}' is not removable")
    if not device.has_tray:
        return False
    if device.tray_open:
        return True
    locked = device.medium_locked
    if locked:
        device.eject_request(force)
    if locked and not force:
        raise TrayLocked(
            f"Device '{called}' is locked and force was not specified, wait for tray to open and try again"
        )
    move_tray(backend, opened=True)
    return True


class TrayLocked(QobraError):
    """The guest holds the tray; it was asked to let go."""


def close_tray(backend: BlockBackend, called: str) -> None:
    """Close the tray, if there is one and it is open."""
    device = backend.device
    if device is not None and not device.is_removable:
        raise QobraError(f"Device '{called}' is not removable")
    if device is not None and device.has_tray and device.tray_open:
        move_tray(backend, opened=False)


def move_tray(backend: BlockBackend, *, opened: bool) -> None:
    """Let the device move its tray, and say so."""
    device = backend.device
    assert device is not None
    device.move_tray(opened)
    tell_tray(backend, opened=opened)


def tell_tray(backend: BlockBackend, *, opened: bool) -> None:
    """DEVICE_TRAY_MOVED, for devices whose guest moved the tray as well. Inside the strand."""
    backend.layer.emit("DEVICE_TRAY_MOVED", {"device": backend.name, "id": backend.device_path(), "tray-open": opened})


def remove_medium(backend: BlockBackend, called: str) -> None:
    """Take the medium out of an open tray; a drive without one is left as it is."""
    device = backend.device
    if device is not None and not device.is_removable:
        raise QobraError(f"Device '{called}' is not removable")
    if device is not None and device.has_tray and not device.tray_open:
        raise QobraError(f"Tray of device '{called}' is not open")
    if backend.node is None:
        return
    backend.layer.check_blockers(backend.node)
    _note_mode(backend)
    if backend.throttle is not None:
        backend.throttle.release()  # the limits are the drive's, and are there for the next medium
    backend.remove()
    _changed(backend)


def insert_medium(backend: BlockBackend, node: BlockNode) -> None:
    """Put ``node`` into an open tray. Raises QobraError; it is out again where the device cannot use it."""
    device = backend.device
    if device is not None and not device.is_removable:
        raise QobraError("Device is not removable")
    if device is not None and device.has_tray and not device.tray_open:
        raise QobraError("Tray of the device is not open")
    if backend.node is not None:
        raise QobraError("There already is a medium in the device")
    backend.insert(node)
    try:
        _changed(backend)
    except QobraError:
        backend.remove()
        _changed(backend)
        raise


def change_medium(
    backend: BlockBackend,
    called: str,
    filename: str,
    *,
    format: str | None = None,
    read_only_mode: str = "retain",
    force: bool = False,
) -> None:
    """Open ``filename`` and put it in the place of the medium. Nothing changes if it cannot be opened."""
    _note_mode(backend)
    if read_only_mode == "retain":
        read_only = backend.medium_read_only
    else:
        read_only = read_only_mode == "read-only"
    options: Options = {"read-only": read_only, **({"driver": format} if format else {})}
    layer = backend.layer
    holder = BlockBackend(layer, perm=0, shared=permissions.ALL, description="a new medium")
    node = layer.open_image(filename, options, root=holder)
    try:
        open_tray(backend, called, force=force)
        remove_medium(backend, called)
        insert_medium(backend, node)
    finally:
        holder.remove()
    backend.medium_read_only = read_only
    close_tray(backend, called)


def _note_mode(backend: BlockBackend) -> None:
    """Remember whether the medium in the drive is read-only, for the one that comes after it."""
    if backend.node is not None:
        backend.medium_read_only = backend.node.read_only


def eject(backend: BlockBackend, called: str, *, force: bool) -> None:
    """Open the tray and take the medium out."""
    open_tray(backend, called, force=force)
    remove_medium(backend, called)


def remove_drive(backend: BlockBackend) -> None:
    """Take the drive ``backend`` away with its device; jobs on it are cancelled."""
    layer = backend.layer
    for job in layer.jobs.block_jobs():
        if backend.node is not None and job.uses(backend.node):
            job.cancel(False)
    leave_throttle(backend)
    backend.remove()
    del layer.backends[backend.name]
    backend.name = ""


def leave_throttle(backend: BlockBackend) -> None:
    """Take ``backend`` out of its throttle group, if it is in one."""
    throttle, backend.throttle = backend.throttle, None
    if throttle is not None:
        throttle.leave()


def _changed(backend: BlockBackend) -> None:
    if backend.device is not None:
        backend.device.medium_changed()
