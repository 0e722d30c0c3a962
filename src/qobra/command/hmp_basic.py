"""The human monitor's commands for the monitor itself, objects and character devices."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp import dispatch, hmp
from qobra.qmp.hmp import hmp_command
from qobra.qmp.version import version_info


@hmp_command("help|?", args="name:S?", params="[cmd]", help="what commands there are, or one of them")
def help_(machine: Machine, args: dict[str, Any]) -> str:
    """What commands there are."""
    return hmp.help_text(machine, args.get("name", ""))


@hmp_command("quit|q", help="end the program")
def quit_(machine: Machine, args: dict[str, Any]) -> None:
    """End the program."""
    dispatch.call(machine, "quit", {})


@hmp_command("info history", help="the lines that were typed before", with_monitor=True)
def info_history(machine: Machine, args: dict[str, Any], monitor: hmp.HmpMonitor) -> str:
    """What this monitor was told before."""
    return "".join(f"{number}: '{line}'\n" for number, line in enumerate(monitor.history))


@hmp_command("info version", help="the version that this program answers as")
def info_version(machine: Machine, args: dict[str, Any]) -> str:
    """The version."""
    info = version_info()
    numbers = info["qemu"]
    return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}{info['package']}\n"


@hmp_command("info name", help="the machine's name")
def info_name(machine: Machine, args: dict[str, Any]) -> str:
    """The machine's name."""
    return "" if machine.name is None else f"{machine.name}\n"


@hmp_command("info uuid", help="the machine's UUID")
def info_uuid(machine: Machine, args: dict[str, Any]) -> str:
    """The machine's identity."""
    return f"{dispatch.call(machine, 'query-uuid', {})['UUID']}\n"


@hmp_command("info iothreads", help="threads that serve devices")
def info_iothreads(machine: Machine, args: dict[str, Any]) -> str:
    """The I/O threads."""
    text = ""
    for info in dispatch.call(machine, "query-iothreads", {}):
        text += f"{info['id']}:\n  thread_id={info['thread-id']}\n"
        text += "".join(f"  {key}={value}\n" for key, value in info.items() if key not in ("id", "thread-id"))
    return text


@hmp_command(
    "object_add",
    args="object:S",
    params="[qom-type=]type,id=str[,prop=value][,...]",
    help="make an object, with -object's options",
)
def object_add(machine: Machine, args: dict[str, Any]) -> str | None:
    """Create an object, or tell of types of objects."""
    from qobra.errors import QobraError
    from qobra.object.help import asks_help, object_help
    from qobra.qapi.keyval import parse

    if asks_help(args["object"]):
        return object_help(machine.objects, args["object"])
    properties = parse(args["object"], "qom-type")
    for required in ("qom-type", "id"):
        if required not in properties:
            raise QobraError(f"Parameter '{required}' is missing")
    type_name, id = properties.pop("qom-type"), properties.pop("id")
    machine.objects.create(type_name, id, properties, keyval=True)
    return None


@hmp_command("object_del", args="id:s", params="id", help="delete an object")
def object_del(machine: Machine, args: dict[str, Any]) -> None:
    """Delete an object."""
    machine.objects.delete(args["id"])


@hmp_command("info chardev", help="character devices, and what they are connected to")
def info_chardev(machine: Machine, args: dict[str, Any]) -> str:
    """The character devices."""
    return "".join(f"{device.id}: filename={device.filename()}\n" for device in machine.chardevs)


@hmp_command("chardev-add", args="args:S", params="args", help="make a character device, with -chardev's options")
def chardev_add(machine: Machine, args: dict[str, Any]) -> None:
    """Make a character device from what ``-chardev`` takes."""
    from qobra.chardev.options import parse

    id, backend = parse(args["args"], named_fds=True)
    machine.chardevs.create(id, backend, failure="")


@hmp_command("chardev-change", args="id:s,args:S", params="id args", help="give a character device another backend")
def chardev_change(machine: Machine, args: dict[str, Any]) -> None:
    """Exchange the backend of a character device."""
    from qobra.chardev.options import backend, split

    options = split(args["args"], "backend")
    kind = options.pop("backend", "")
    machine.chardevs.change(args["id"], backend(kind, options))


@hmp_command("chardev-remove", args="id:s", params="id", help="delete a character device that nothing uses")
def chardev_remove(machine: Machine, args: dict[str, Any]) -> None:
    """Remove a character device."""
    machine.chardevs.remove(args["id"])


@hmp_command(
    "chardev-send-break",
    args="id:s",
    params="id",
    help="send a break to what is at the other end of a character device",
)
def chardev_send_break(machine: Machine, args: dict[str, Any]) -> None:
    """Send a break."""
    dispatch.call(machine, "chardev-send-break", {"id": args["id"]})


@hmp_command("ringbuf_write", args="device:s,data:s", params="device data", help="put bytes into a ring buffer")
def ringbuf_write(machine: Machine, args: dict[str, Any]) -> None:
    """Put text into a ring buffer."""
    dispatch.call(machine, "ringbuf-write", {"device": args["device"], "data": args["data"]})


@hmp_command("ringbuf_read", args="device:s,size:i", params="device size", help="take bytes out of a ring buffer")
def ringbuf_read(machine: Machine, args: dict[str, Any]) -> str:
    """Take text out of a ring buffer, what is no text shown as its code."""
    text = dispatch.call(machine, "ringbuf-read", {"device": args["device"], "size": args["size"]})
    shown = ""
    for character in text:
        if character == "\\":
            shown += "\\\\"
        elif (character < " " and character != "\n") or character == "\x7f":
            shown += f"\\u{ord(character):04X}"
        else:
            shown += character
    return shown + "\n"
