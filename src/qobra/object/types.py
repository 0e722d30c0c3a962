"""The types that users create with object-add: one module each, found by name."""

from __future__ import annotations

from qobra.object.qom import Container, Object
from qobra.registry import Registry

__all__ = ["Container", "Object", "registry"]

registry: Registry[type[Object]] = Registry(
    "object",
    [
        "qobra.object.user",
        "qobra.crypto.object",
        "qobra.block.object",
        "qobra.chardev.object",
        "qobra.net.object",
        "qobra.machine.object",
    ],
)
