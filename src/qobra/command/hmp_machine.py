"""The machine for people: CPUs, memory, networks, PCI."""

from __future__ import annotations

import os
from typing import Any

from qobra.command.machine import query_memdev
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command


@hmp_command("info hotpluggable-cpus", help="places for CPUs, and which are taken", needs="board")
def info_hotpluggable_cpus(machine: Machine, args: dict[str, Any]) -> str:
    """Each place for a CPU."""
    lines = ["Hotpluggable CPUs:"]
    for place in dispatch.call(machine, "query-hotpluggable-cpus", {}):
        lines += [f'  type: "{place["type"]}"', f'  vcpus_count: "{place["vcpus-count"]}"']
        if "qom-path" in place:
            lines.append(f'  qom_path: "{place["qom-path"]}"')
        lines.append("  CPUInstance Properties:")
        for key in ("node-id", "socket-id", "die-id", "core-id", "thread-id"):
            if key in place["props"]:
                lines.append(f'    {key}: "{place["props"][key]}"')
    return "\n".join(lines) + "\n"


@hmp_command("info balloon", help="how much memory the guest gets along with", needs="board")
def info_balloon(machine: Machine, args: dict[str, Any]) -> str:
    """The guest's memory."""
    return f"balloon: actual={dispatch.call(machine, 'query-balloon', {})['actual'] >> 20}\n"


@hmp_command(
    "balloon",
    args="value:M",
    params="target",
    help="ask the guest to get along with so many MiB of memory",
    needs="board",
)
def balloon(machine: Machine, args: dict[str, Any]) -> None:
    """Ask the guest to keep so much."""
    dispatch.call(machine, "balloon", {"value": args["value"]})


@hmp_command("info memdev", help="objects that memory comes from", needs="board")
def info_memdev(machine: Machine, args: dict[str, Any]) -> str:
    """Each memory backend."""
    texts = []
    for backend in query_memdev(machine, {}):
        nodes = ",".join(str(node) for node in backend["host-nodes"])
        texts.append(f"memory backend: {backend['id']}\n  size:  {backend['size']}\n")
        for key in ("merge", "dump", "prealloc", "share", "reserve"):
            texts.append(f"  {key}: {str(backend[key]).lower()}\n")
        texts.append(f"  policy: {backend['policy']}\n  host nodes: {nodes}\n")
    return "".join(texts) + "\n"


@hmp_command("info memory_size_summary", help="memory from the start, and plugged in since", needs="board")
def info_memory_size(machine: Machine, args: dict[str, Any]) -> str:
    """How much memory there is."""
    summary = dispatch.call(machine, "query-memory-size-summary", {})
    names = (("base memory", "base-memory"), ("plugged memory", "plugged-memory"))
    return "".join(f"{title}: {summary[name]}\n" for title, name in names if name in summary)


@hmp_command("info numa", help="the nodes, with their CPUs and memory", needs="board")
def info_numa(machine: Machine, args: dict[str, Any]) -> str:
    """Each node."""
    board = machine.board
    assert board is not None
    lines = [f"{len(board.numa.nodes)} nodes"]
    present = {cpu.index for cpu in board.cpus}
    plugged = board.memory_devices()
    for number, node in sorted(board.numa.nodes.items()):
        cpus = "".join(f" {cpu}" for cpu in sorted(node.cpus & present))
        more = sum(each["size"] for each in plugged if each["info"].get("node", 0) == number)
        lines += [f"node {number} cpus:{cpus}", f"node {number} size: {(node.memory or 0) + more >> 20} MB"]
        lines.append(f"node {number} plugged: {more >> 20} MB")
    return "\n".join(lines) + "\n"


@hmp_command("info kvm", help="whether KVM runs the CPUs", needs="board")
def info_kvm(machine: Machine, args: dict[str, Any]) -> str:
    """Whether KVM runs the CPUs."""
    # It runs guests of the host's own architecture alone.
    fits = os.uname().machine == dispatch.call(machine, "query-target", {})["arch"]
    return f"kvm support: {'disabled' if fits else 'not compiled'}\n"


@hmp_command("info replay", help="whether the execution is recorded or replayed", needs="board")
def info_replay(machine: Machine, args: dict[str, Any]) -> str:
    """That it is not."""
    return "Record/replay is not active\n"


@hmp_command(
    "watchdog_action",
    args="action:s",
    params="action",
    help="choose what happens when the watchdog runs out",
    needs="board",
)
def watchdog_action(machine: Machine, args: dict[str, Any]) -> None:
    """What follows an expired watchdog."""
    from qobra.machine.watchdog import ACTIONS

    if args["action"] not in ACTIONS:
        raise QobraError(f"invalid parameter value: {args['action']}")
    dispatch.call(machine, "watchdog-set-action", {"action": args["action"]})


@hmp_command("nmi", help="interrupt the CPUs in a way that cannot be masked", needs="board")
def nmi(machine: Machine, args: dict[str, Any]) -> None:
    """Send a non-maskable interrupt."""
    dispatch.call(machine, "inject-nmi", {})


@hmp_command("dumpdtb", args="filename:F", params="filename", help="write the device tree to a file", needs="board")
def dumpdtb(machine: Machine, args: dict[str, Any]) -> str:
    """The tree that the guest was given."""
    assert machine.board is not None
    tree = machine.board.device_tree()
    if tree is None:
        raise QobraError("This machine doesn't have a FDT")
    try:
        with open(args["filename"], "wb") as stream:
            stream.write(tree)
    except OSError as error:
        raise QobraError.from_os(f"Error saving FDT to file {args['filename']}", error)
    return f"info: dtb dumped to {args['filename']}\n"


@hmp_command("info pci", help="PCI devices, with their interrupts and regions", needs="board")
def info_pci(machine: Machine, args: dict[str, Any]) -> str:
    """Each function."""
    buses = dispatch.call(machine, "query-pci", {})
    return "".join(_pci_function(function) for bus in buses for function in bus["devices"])


def _pci_function(info: dict[str, Any]) -> str:
    identity = info["id"]
    title = info["class_info"].get("desc") or f"Class {info['class_info']['class']:04d}"
    lines = [f"  Bus {info['bus']:2}, device {info['slot']:3}, function {info['function']}:"]
    lines.append(f"    {title}: PCI device {identity['vendor']:04x}:{identity['device']:04x}")
    if "subsystem" in identity:
        lines.append(f"      PCI subsystem {identity['subsystem-vendor']:04x}:{identity['subsystem']:04x}")
    if "irq" in info:
        lines.append(f"      IRQ {info['irq']}, pin {chr(ord('A') + info['irq_pin'] - 1)}")
    bridge = info.get("pci_bridge")
    if bridge is not None:
        bus = bridge["bus"]
        lines += [f"      BUS {bus['number']}.", f"      secondary bus {bus['secondary']}."]
        lines.append(f"      subordinate bus {bus['subordinate']}.")
        for text, key, digits in (
            ("IO range", "io_range", 4),
            ("memory range", "memory_range", 8),
            ("prefetchable memory range", "prefetchable_range", 8),
        ):
            lines.append(f"      {text} [0x{bus[key]['base']:0{digits}x}, 0x{bus[key]['limit']:0{digits}x}]")
    for region in info["regions"]:
        lines.append("      " + _pci_region(region))
    lines.append(f'      id "{info["qdev_id"]}"')
    below = "".join(_pci_function(each) for each in bridge.get("devices", ())) if bridge is not None else ""
    return "\n".join(lines) + "\n" + below


def _pci_region(region: dict[str, Any]) -> str:
    address, size = region["address"], region["size"]
    start = address if address >= 0 else (1 << 64) - 1
    end = address + size - 1 if address >= 0 else size - 2
    if region["type"] == "io":
        return f"BAR{region['bar']}: I/O at 0x{start:04x} [0x{end:04x}]."
    bits = 64 if region["mem_type_64"] else 32
    prefetch = " prefetchable" if region["prefetch"] else ""
    return f"BAR{region['bar']}: {bits} bit{prefetch} memory at 0x{start:08x} [0x{end:08x}]."
