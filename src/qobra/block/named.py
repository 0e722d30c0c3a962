"""Drives without a device: the backends that ``blockdev-add`` of QEMU 1.7 to 2.8 made besides a node, by ``id``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block.backend import BlockBackend
from qobra.block.error_policy import ErrorPolicy
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import Options


def add_drive(layer: BlockLayer, name: str, options: Options, policy: dict[str, str], *, writeback: bool) -> None:
    """Open the node that ``options`` describe into a drive called ``name``, for a device or a user to take.

    ``policy`` may hold ``rerror`` and ``werror``. Raises QobraError where the name is malformed or taken.
    """
    from qobra.block.opener import valid_id

    if not valid_id(name):
        raise QobraError("Parameter 'id' expects an identifier")
    if name in layer.backends:
        raise QobraError(f"Device with id '{name}' already exists")
    if layer.graph.find(name) is not None:
        raise QobraError(f"Device name '{name}' conflicts with an existing node name")
    backend = BlockBackend(layer, name)
    backend.writeback = writeback
    backend.on_error = policy
    backend.policy = ErrorPolicy(
        backend, on_read_error=policy.get("rerror", "auto"), on_write_error=policy.get("werror", "auto")
    )
    backend.medium_read_only = bool(options.get("read-only", False))
    layer.open(options, root=backend)
    layer.backends[name] = backend


def split_old_options(options: dict[str, Any]) -> tuple[str | None, Options, dict[str, str], bool]:
    """What ``options`` in the older form say: a drive's id, a node's options, ``rerror`` and ``werror``, write-back.

    ``aio``, which stood beside a format's options, is the file's.
    """
    node = dict(options)
    name = node.pop("id", None)
    if name is not None and not isinstance(name, str):
        raise QobraError("Invalid parameter type for 'options.id', expected: string")
    policy: dict[str, str] = {key: node.pop(key) for key in ("rerror", "werror") if key in node}
    for key, value in policy.items():
        if value not in ("report", "ignore", "enospc", "stop", "auto"):
            raise QobraError(f"Parameter '{key}' does not accept value '{value}'")
    cache = node.get("cache")
    writeback = True
    if isinstance(cache, dict) and "writeback" in cache:
        writeback = bool(cache["writeback"])
        node["cache"] = {key: value for key, value in cache.items() if key != "writeback"}
    file = node.get("file")
    if "aio" in node and isinstance(file, dict):
        aio = node.pop("aio")
        if file.get("driver") in ("file", "host_device", "host_cdrom"):
            node["file"] = {"aio": aio, **file}
    return name, node, policy, writeback
