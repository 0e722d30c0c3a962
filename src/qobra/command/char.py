"""Character devices."""

from __future__ import annotations

from typing import Any

from qobra.chardev.chardev import registry
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("chardev-add")
def chardev_add(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Make a character device; a pty's name is returned."""
    return machine.chardevs.create(args["id"], args["backend"]).return_info()


@command("chardev-change")
def chardev_change(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Exchange the backend under whatever uses the device."""
    return machine.chardevs.change(args["id"], args["backend"]).return_info()


@command("chardev-remove")
def chardev_remove(machine: Machine, args: dict[str, Any]) -> None:
    """Remove a device that nothing uses."""
    machine.chardevs.remove(args["id"])


@command("chardev-send-break")
def chardev_send_break(machine: Machine, args: dict[str, Any]) -> None:
    """Let the device's user (a serial port, say) see a break, as if the peer had sent it."""
    machine.chardevs.get(args["id"]).deliver_event("break")


@command("query-chardev")
def query_chardev(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """All character devices."""
    return [
        {"frontend-open": device.frontend_open, "filename": device.filename(), "label": device.id}
        for device in machine.chardevs
    ]


@command("query-chardev-backends")
def query_chardev_backends(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The kinds that chardev-add can make."""
    kinds = registry.load_all()
    return [{"name": name} for name in registry.names() if machine.board is not None or not kinds[name].needs_board]


@command("ringbuf-write")
def ringbuf_write(machine: Machine, args: dict[str, Any]) -> None:
    """Put data into a ring buffer, as if the device's user had written it."""
    ring = _ring(machine, args["device"])
    if args.get("format") == "base64":
        data = _from_base64(args["data"])
    else:
        data = args["data"].encode()
    ring.write(data)


@command("ringbuf-read")
def ringbuf_read(machine: Machine, args: dict[str, Any]) -> str:
    """Take data out of a ring buffer, the oldest first."""
    ring = _ring(machine, args["device"])
    if args["size"] <= 0:
        raise QobraError("size must be greater than zero")
    data: bytes = ring.read(args["size"])
    if args.get("format") == "base64":
        import binascii

        return binascii.b2a_base64(data, newline=False).decode()
    # Not for binary data: what is no UTF-8 gets lost.
    return data.decode("utf-8", "replace")


def _from_base64(text: str) -> bytes:
    """The bytes; what is too short at the end is taken as far as it goes."""
    import binascii

    digits = "".join(text.split("\n")).rstrip("=")
    if not all(each.isascii() and (each.isalnum() or each in "+/") for each in digits):
        raise QobraError("Base64 data contains invalid characters")
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    return binascii.a2b_base64(digits + "=" * (-len(digits) % 4))


def _ring(machine: Machine, id: str) -> Any:
    from qobra.chardev.backend.ringbuf import RingBuffer

    device = machine.chardevs.find(id)
    if device is None:
        raise QobraError(f"Device '{id}' not found")
    if not isinstance(device, RingBuffer):
        raise QobraError(f"{id} is not a ringbuf device")
    return device
