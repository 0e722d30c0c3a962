"""CPUs over QMP: which there are, which could be plugged in, which models there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qobra.command.machine import architecture
from qobra.errors import QobraError
from qobra.machine.cpu import Cpu
from qobra.machine.cpu_features import FEATURES
from qobra.machine.device.x86_64_cpu import X86Cpu
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp.registry import command

_OF_A_STATIC_MODEL = ("family", "model", "stepping", "vendor", "model-id", "min-level", "min-xlevel")
_NOT_OF_A_MODEL = frozenset(("type", "parent_bus", "hotplugged", "hotpluggable"))

_SUFFIXES = {"x86_64": "-x86_64-cpu", "riscv64": "-riscv-cpu"}


@command("query-cpus-fast", needs="board")
def query_cpus_fast(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The CPUs, without disturbing them."""
    assert machine.board is not None
    return [cpu.describe_fast() for cpu in machine.board.cpus]


@command("query-cpus", needs="board")
def query_cpus(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The CPUs, with their state."""
    from qobra.machine import registers

    assert machine.board is not None
    return [
        {
            "CPU": cpu.index,
            "current": cpu.index == 0,
            "halted": registers.is_halted(cpu),
            "qom_path": cpu.path(),
            "thread_id": cpu.thread_id,
            "props": cpu.properties_of_place(),
            "arch": cpu.base_architecture,
            "pc": registers.program_counter(cpu),
        }
        for cpu in machine.board.cpus
    ]


@command("cpu", needs="board")
def cpu(machine: Machine, args: dict[str, Any]) -> None:
    """Long without effect: the monitor's current CPU is a matter of each command."""


@command("cpu-add", needs="board")
def cpu_add(machine: Machine, args: dict[str, Any]) -> None:
    """Plug in the CPU of that number."""
    board = machine.board
    assert board is not None
    if not board.hotpluggable_cpus or board.topology is None:
        raise QobraError("Not supported")
    number = args["id"]
    if not 0 <= number < board.topology.max_cpus:
        raise QobraError(f"Unable to add CPU: {number}, max allowed: {board.topology.max_cpus - 1}")
    if any(each.index == number for each in board.cpus):
        raise QobraError(f"Unable to add CPU: {number}, it already exists")
    add_device(machine, {"driver": board.cpu_type} | board.topology.place(number), keyval=False)


@command("query-hotpluggable-cpus", needs="board")
def query_hotpluggable_cpus(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """Every place for a CPU, filled or free."""
    board = machine.board
    assert board is not None
    if not board.hotpluggable_cpus or board.topology is None:
        raise QobraError("The feature 'query-hotpluggable-cpus' is not enabled")
    result = []
    for index in reversed(range(board.topology.max_cpus)):
        place: dict[str, Any] = {"type": board.cpu_type, "vcpus-count": 1, "props": board.place_of_cpu(index)}
        present = next((cpu for cpu in board.cpus if cpu.index == index), None)
        if present is not None:
            place["qom-path"] = present.path()
        result.append(place)
    return result


@command("query-cpu-definitions", needs="board")
def query_cpu_definitions(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The models that ``-cpu`` takes."""
    suffix = _SUFFIXES[architecture(machine)]
    assert machine.board is not None
    result: list[dict[str, Any]] = []
    for name, cls in sorted(machine.objects.all_types().items()):
        if issubclass(cls, Cpu) and not cls.abstract and name.endswith(suffix):
            definition: dict[str, Any] = {
                "name": name.removesuffix(suffix),
                "typename": name,
                "static": getattr(cls, "static", False),
                "migration-safe": getattr(cls, "migration_safe", True),
                "unavailable-features": [],  # nothing runs a CPU, and so nothing lacks a feature
                "deprecated": False,
            }
            alias_of = getattr(cls, "alias_of", None)
            if alias_of is not None and machine.board.cpu_models_have_versions:
                definition["alias-of"] = alias_of
            result.append(definition)
    return result


@command("query-cpu-model-expansion", needs="x86_64")
def query_cpu_model_expansion(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """What a CPU model with changed properties comes to."""
    cpu = _made(machine, args["model"])
    if args["type"] == "full":
        chosen = {key for key, prop in cpu.properties().items() if prop.writable} - _NOT_OF_A_MODEL
        return {"model": {"name": args["model"]["name"], "props": _properties(cpu, chosen)}}
    return {"model": _static(cpu)}


@command("query-cpu-model-comparison", needs="x86_64")
def query_cpu_model_comparison(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Which of two models has more features: what decides where a model can run."""
    first, second = (_features(_made(machine, args[which])) for which in ("modela", "modelb"))
    result = "incompatible"
    if first == second:
        result = "identical"
    elif first > second:
        result = "superset"
    elif first < second:
        result = "subset"
    return {"result": result, "responsible-properties": sorted(first ^ second)}


@command("query-cpu-model-baseline", needs="x86_64")
def query_cpu_model_baseline(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """A model that runs wherever one of the two does: the first one, without what the second lacks."""
    cpu = _made(machine, args["modela"])
    common = _features(cpu) & _features(_made(machine, args["modelb"]))
    model = _static(cpu)
    model["props"] |= {name: name in common for name in FEATURES if name in model["props"]}
    return {"model": model}


def _made(machine: Machine, model: dict[str, Any]) -> X86Cpu:
    """A CPU of ``model`` (CpuModelInfo) that belongs to no board. Raises QobraError."""
    name = model["name"]
    cls = machine.objects.find_type(name + _SUFFIXES["x86_64"])
    if cls is None or cls.abstract or not issubclass(cls, X86Cpu):
        raise QobraError(f"CPU model '{name}' not found")
    cpu = cls(machine.objects)
    changes = model.get("props")
    for key, value in changes.items() if isinstance(changes, dict) else ():
        cpu.set(cls.find_feature(key), value)
    cpu.expand()
    return cpu


def _properties(cpu: X86Cpu, chosen: Iterable[str]) -> dict[str, Any]:
    names = set(chosen)
    return {key: prop.read(cpu) for key, prop in cpu.properties().items() if key in names}


def _static(cpu: X86Cpu) -> dict[str, Any]:
    """CpuModelInfo in terms of the model that never changes."""
    return {"name": "base", "props": _properties(cpu, (*FEATURES, *_OF_A_STATIC_MODEL))}


def _features(cpu: X86Cpu) -> frozenset[str]:
    return frozenset(name for name, value in _properties(cpu, FEATURES).items() if value)
