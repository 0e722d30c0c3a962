"""The machine over QMP: its type, its target, its options, its memory backends."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.launch import board_classes
from qobra.machine.machine import Machine
from qobra.machine.option_groups import GROUPS, OF_ONE_ARCHITECTURE
from qobra.qmp.registry import command


def architecture(machine: Machine) -> str:
    """The SysEmuTarget of the machine."""
    return next(each for each in ("x86_64", "riscv64") if each in machine.capabilities)


@command("query-machines", needs="board")
def query_machines(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The boards there are."""
    target = architecture(machine)
    result = []
    for cls in board_classes(target):
        info: dict[str, Any] = {
            "name": cls.machine_name,
            "cpu-max": cls.max_cpus,
            "hotpluggable-cpus": cls.hotpluggable_cpus,
            "numa-mem-supported": cls.numa_mem_supported,
            "deprecated": False,
        }
        if target in cls.default_for:
            info["is-default"] = True
        if cls.alias is not None:
            info["alias"] = cls.alias
        if cls.default_cpu_type is not None:
            info["default-cpu-type"] = cls.default_cpu_type
        if cls.default_ram_id is not None:
            info["default-ram-id"] = cls.default_ram_id
        result.append(info)
    return result


@command("query-current-machine", needs="board")
def query_current_machine(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """What the machine of this process can do."""
    return {"wakeup-suspend-support": machine.run_state.wakeup_supported}


@command("query-target", needs="board")
def query_target(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The architecture."""
    return {"arch": architecture(machine)}


@command("query-kvm", needs="board")
def query_kvm(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Whether KVM could run the CPUs, and does."""
    return {"enabled": False, "present": False}


@command("query-command-line-options", needs="board")
def query_command_line_options(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of the programs, with their parameters."""
    from qobra.machine.option_help import describe

    wanted = args.get("option")
    groups = [name for name in GROUPS if OF_ONE_ARCHITECTURE.get(name) in (None, *machine.capabilities)]
    if wanted is not None and wanted not in groups:
        raise QobraError(f"invalid option name: {wanted}")
    return [{"option": name, "parameters": describe(name)} for name in groups if wanted in (None, name)]


@command("query-memdev", needs="board")
def query_memdev(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The user's memory backends."""
    from qobra.machine.memory_backend import MemoryBackend

    backends = machine.objects.objects.children.values()
    return [backend.describe() for backend in backends if isinstance(backend, MemoryBackend)]


@command("query-memory-size-summary", needs="board")
def query_memory_size_summary(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """How much memory is there, from the start and plugged in."""
    board = machine.board
    assert board is not None
    summary = {"base-memory": board.ram_size}
    if "x86_64" in machine.capabilities:  # where memory can be plugged in at all
        summary["plugged-memory"] = sum(device["size"] for device in board.memory_devices())
    return summary


@command("query-memory-devices", needs="board")
def query_memory_devices(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The memory devices that are plugged in."""
    board = machine.board
    assert board is not None
    return [{"type": device["kind"], "data": device["info"]} for device in board.memory_devices()]


@command("query-vm-generation-id", needs="board")
def query_vm_generation_id(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The identity that a vmgenid device shows to the guest."""
    from qobra.machine.board import find_devices

    assert machine.board is not None
    for device in find_devices(machine.board, "vmgenid"):
        return {"guid": device.get("guid")}
    if machine.objects.find_type("vmgenid") is None:
        raise QobraError("this feature or command is not currently supported")
    raise QobraError("VM Generation ID device not found")


@command("query-migrate-capabilities", needs="board")
def query_migrate_capabilities(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The optional ways of migrating: there are none."""
    return []


@command("query-replay", needs="board")
def query_replay(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Whether the execution is recorded or replayed: it is not."""
    return {"mode": "none", "icount": 0}


@command("set-numa-node", needs="board")
def set_numa_node(machine: Machine, args: dict[str, Any]) -> None:
    """Configure NUMA, before the board is made."""
    board = machine.board
    assert board is not None
    if (board.topology is not None and board.cpus) or board.ready:
        raise QobraError("The command is permitted only before the machine has been created")
    board.numa.set(args)
