"""Virtio devices for people: what there is, how far device and driver are, where the queues stand."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.machine import Machine
from qobra.machine.virtio import names
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.queue import Queue
from qobra.qmp.hmp import hmp_command


@hmp_command("info virtio", help="virtio devices, by their paths", needs="board")
def info_virtio(machine: Machine, args: dict[str, Any]) -> str:
    """Each device, the last one first."""
    assert machine.board is not None
    found = [each for each in find_devices(machine.board, VirtioDevice.type_name) if isinstance(each, VirtioDevice)]
    lines = [f"{each.path()} [{names.device(each.device_number)}]\n" for each in reversed(found)]
    return "".join(lines) or "No VirtIO devices\n"


@hmp_command(
    "info virtio-status", args="path:s", params="path", help="how far a virtio device and its driver are", needs="board"
)
def info_virtio_status(machine: Machine, args: dict[str, Any]) -> str:
    """Status and features."""
    device = _find(machine, args["path"])
    offered = device.offered_features(modern=True) | device.offered_features(modern=False)
    buses = device.buses()
    values = {
        "device_name": f"{names.device(device.device_number)} ",
        "device_id": device.device_number,
        "bus_name": buses[0].bus_name if buses else "(null)",
        "broken": device.broken,
        "disable_legacy_check": device.disable_legacy_check,
        "started": device.running,
        "use_started": device.use_started,
        "vm_running": machine.run_state.running,
        "num_vqs": sum(1 for queue in device.queues if queue.max_size),
        "endianness": "little",
    }
    text = f"{args['path']}:\n" + _fields(values, 25)
    for title, words in (
        ("status", names.status(device.status)),
        ("Guest features", names.features(device.device_number, device.features)),
        ("Host features", names.features(device.device_number, offered)),
    ):
        text += f"  {title}:\n" + ",\n".join(f"\t{word}" for word in words) + "\n"
    return text


@hmp_command(
    "info virtio-queue-status", args="path:s,queue:i", params="path queue", help="a queue of a virtio device",
    needs="board",
)  # fmt: skip
def info_virtio_queue_status(machine: Machine, args: dict[str, Any]) -> str:
    """How far a queue was worked on, and where it lies."""
    device = _find(machine, args["path"])
    number = args["queue"]
    if not number < len(device.queues) or not device.queues[number].max_size:
        raise QobraError(f"Invalid virtqueue number {number}")
    queue = device.queues[number]
    values = {"device_name": names.device(device.device_number), "queue_index": number} | _progress(queue)
    ring = {
        "num": queue.size,
        "num_default": queue.max_size,
        "desc": f"0x{queue.descriptors:016x}",
        "avail": f"0x{queue.driver_area:016x}",
        "used": f"0x{queue.device_area:016x}",
    }
    return f"{args['path']}:\n{_fields(values, 22)}  VRing:\n{_fields(ring, 14, 4)}"


def _progress(queue: Queue) -> dict[str, Any]:
    position = queue.position or [0, 0, None]
    packed = len(position) > 3
    available, used, signalled = position[0] or 0, position[2 if packed else 1] or 0, position[-1]
    # In a packed ring they are places, not counts.
    inuse = {} if packed else {"inuse": (available - used) & 0xFFFF}
    return inuse | {
        "used_idx": used,
        "signalled_used": signalled or 0,
        "signalled_used_valid": signalled is not None,
        "last_avail_idx": available,
    }


def _find(machine: Machine, path: str) -> VirtioDevice:
    try:
        found = machine.objects.resolve(path)
    except QobraError:
        found = None
    if not isinstance(found, VirtioDevice) or not found.realized:
        raise QobraError(f"Path {path} is not a VirtIODevice")
    return found


def _fields(values: dict[str, Any], width: int, indent: int = 2) -> str:
    pad = " " * indent
    return "".join(f"{pad}{name + ':':<{width}}{_show(value)}\n" for name, value in values.items())


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
