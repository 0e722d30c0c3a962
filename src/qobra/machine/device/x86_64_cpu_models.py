"""The CPUs of x86-64 by the names of what was sold: each model of :mod:`qobra.machine.cpu_models` is a type."""

from __future__ import annotations

from typing import Any

from qobra.machine import cpu_options
from qobra.machine.cpu_models import MODELS, version_of
from qobra.machine.device.x86_64_cpu import CommonCpu, X86Cpu
from qobra.machine.devices import registry
from qobra.object.property import Bool, Int

_WITH_CACHES = ("EPYC", "Dhyana")
"""Models that tell of caches of their own rather than of those that every model has."""


def _register_all() -> None:
    features: dict[str, frozenset[str]] = {"": frozenset()}
    for name, base, family, model, stepping, vendor, level, xlevel, model_id, changes in MODELS:
        marked = changes.split()
        added = {each[1:] for each in marked if each[0] == "+"}
        features[name] = (features[base] | added) - {each[1:] for each in marked if each[0] == "-"}
        members: dict[str, Any] = {
            "__doc__": f"{model_id or name}.",
            "__module__": __name__,
            "features": features[name],
            "family": cpu_options.identity("family", family),
            "model_number": cpu_options.identity("model", model),
            "stepping": cpu_options.identity("stepping", stepping),
            "vendor": cpu_options.vendor(vendor),
            "model_id": cpu_options.model_id(model_id),
            "legacy_cache": Bool(not name.startswith(_WITH_CACHES), name="legacy-cache", show_default=False),
            "min_level": Int(level, type="uint32"),
            "min_xlevel": Int(xlevel, type="uint32"),
        }
        version = version_of(name)
        _register(name, X86Cpu, {**members, "alias_of": version})
        if version is not None:
            _register(version, X86Cpu, members)
    _register("qemu64-v1", CommonCpu, {"__doc__": CommonCpu.__doc__, "__module__": __name__})


def _register(name: str, parent: type[X86Cpu], members: dict[str, Any]) -> None:
    type_name = f"{name}-x86_64-cpu"
    registry.register(type_name)(type(f"Cpu{name.title()}", (parent,), {**members, "type_name": type_name}))


_register_all()
