"""Accelerators: what may run the CPUs. ``-accel NAME`` chooses the type ``NAME-accel``."""

from __future__ import annotations

from qobra.object.qom import Object
from qobra.registry import Registry

registry: Registry[type[Object]] = Registry("accelerator", ["qobra.machine.accel"])


class Accelerator(Object):
    """An accelerator. With ``drives_clock`` time stands still but for what a test says."""

    type_name = "accel"
    drives_clock = False


def names() -> list[str]:
    """The accelerators that there are, as ``-accel`` takes them."""
    return [name.removesuffix("-accel") for name in registry.names()]


def find(name: str) -> type[Accelerator] | None:
    """The accelerator of that name."""
    found = registry.find(f"{name}-accel")
    return found if found is not None and issubclass(found, Accelerator) else None
