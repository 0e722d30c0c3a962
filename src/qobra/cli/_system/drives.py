"""``-drive`` and the short options for disks: an image, the backend that users name, and the device that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block.backend import BlockBackend
from qobra.chardev.options import split
from qobra.errors import QobraError
from qobra.machine.option_groups import boolean, number

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_CACHE_MODES = {
    "none": (True, True, False),
    "off": (True, True, False),
    "directsync": (False, True, False),
    "writeback": (True, False, False),
    "unsafe": (True, False, True),
    "writethrough": (False, False, False),
}
_UNITS = {"ide": 2, "scsi": 7, "floppy": 0, "pflash": 0, "mtd": 0, "sd": 0, "virtio": 0, "xen": 0, "none": 0}
_ON_ERROR = ("ignore", "enospc", "stop", "report", "auto")
# For the front end or the drive itself; whatever else is the block driver's.
_OWN = frozenset(
    ("id", "if", "bus", "unit", "index", "media", "file", "format", "snapshot", "cache", "werror", "rerror", "readonly")
    + ("read-only", "aio", "copy-on-read", "cache.writeback", "stats-account-invalid", "stats-account-failed")
    + ("stats-intervals", "throttling", "driver")
)


class DriveInfo:
    """A drive: its backend, and where the board is to show it."""

    def __init__(self, backend: BlockBackend, interface: str, bus: int, unit: int, media: str) -> None:
        self.backend = backend
        self.interface = interface
        self.bus = bus
        self.unit = unit
        self.media = media
        self.on_error: dict[str, str] = {}
        self.claimed = False

    @property
    def index(self) -> int:
        """The number among the drives of the interface."""
        per_bus = _UNITS[self.interface]
        return self.bus * per_bus + self.unit if per_bus else self.unit


class Drives:
    """The drives of the command line."""

    def __init__(self, machine: Machine, *, default_interface: str, snapshot: bool = False) -> None:
        self._machine = machine
        self._default_interface = default_interface
        self._snapshot = snapshot
        self.drives: list[DriveInfo] = []

    def add_text(self, text: str) -> DriveInfo:
        """A ``-drive`` option."""
        return self.add(split(text, "file"))

    def add(self, options: dict[str, str]) -> DriveInfo:
        """A drive from its options. Raises QobraError in QEMU's words."""
        options = dict(options)
        interface = options.get("if", self._default_interface)
        if interface not in _UNITS:
            raise QobraError(f"unsupported bus type '{interface}'")
        media = options.get("media", "disk")
        if media not in ("disk", "cdrom"):
            raise QobraError("Invalid parameter 'media'" if media != "" else f"'{media}' invalid media")
        bus, unit = self._place(options, interface)
        name = options.get("id") or _default_id(interface, media, bus, unit)
        layer = self._machine.block
        if name in layer.backends:
            raise QobraError(f"Duplicate ID '{name}' for drive")
        backend = BlockBackend(layer, name, perm=0)
        node_options = self._node_options(options, backend, media)
        file = options.get("file", "")
        throttling = None
        if file or "driver" in options or any(key not in _OWN for key in options):
            throttling = self._open(backend, file, node_options, options)
        layer.backends[name] = backend
        if throttling is not None:
            _throttle(self._machine, name, throttling)
        drive = DriveInfo(backend, interface, bus, unit, media)
        for key in ("werror", "rerror"):
            if key in options:
                if options[key] not in _ON_ERROR:
                    raise QobraError(f"'{options[key]}' invalid {'write' if key == 'werror' else 'read'} error action")
                drive.on_error[key] = options[key]
        self.drives.append(drive)
        return drive

    def _place(self, options: dict[str, str], interface: str) -> tuple[int, int]:
        per_bus = _UNITS[interface]
        bus = number("bus", options.get("bus", "0"))
        if "index" in options:
            if "bus" in options or "unit" in options:
                raise QobraError("index cannot be used with bus and unit")
            index = number("index", options["index"])
            return divmod(index, per_bus) if per_bus else (0, index)
        taken = {(d.bus, d.unit) for d in self.drives if d.interface == interface}
        if "unit" in options:
            unit = number("unit", options["unit"])
        else:
            unit = 0
            while (bus, unit) in taken:
                unit += 1
                if per_bus and unit >= per_bus:
                    bus, unit = bus + 1, 0
        if per_bus and unit >= per_bus:
            raise QobraError(f"unit {unit} too big (max is {per_bus - 1})")
        if (bus, unit) in taken and interface != "none":
            raise QobraError(f"drive with bus={bus}, unit={unit} (index={bus * per_bus + unit}) exists")
        return bus, unit

    def _node_options(self, options: dict[str, str], backend: BlockBackend, media: str) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        mode = options.get("cache")
        if mode is not None:
            if mode not in _CACHE_MODES:
                raise QobraError("invalid cache option")
            backend.writeback, direct, no_flush = _CACHE_MODES[mode]
            nodes["cache"] = {"direct": direct, "no-flush": no_flush}
        if "cache.writeback" in options:
            backend.writeback = boolean("cache.writeback", options["cache.writeback"])
        read_only = options.get("read-only", options.get("readonly"))
        if read_only is not None:
            nodes["read-only"] = boolean("read-only", read_only)
        elif media == "cdrom":
            nodes["read-only"] = True
        if "aio" in options and options["aio"] not in ("threads", "native", "io_uring"):
            raise QobraError("invalid aio option")
        return nodes

    def _open(self, backend: BlockBackend, file: str, nodes: dict[str, Any], options: dict[str, str]) -> Any:
        from qobra.qapi.keyval import parse

        rest = {key: value for key, value in options.items() if key not in _OWN}
        # Options with dots nest, as in -blockdev.
        nested: dict[str, Any] = parse(",".join(f"{k}={v.replace(',', ',,')}" for k, v in rest.items())) if rest else {}
        throttling = nested.pop("throttling", None)
        merged: dict[str, Any] = _merge(nodes, nested)
        driver = options.get("format") or options.get("driver")
        if driver is not None:
            merged["driver"] = driver
        layer = self._machine.block
        snapshot = boolean("snapshot", options["snapshot"]) if "snapshot" in options else self._snapshot
        if file:
            layer.open_image(file, merged, root=backend)
        else:
            from qobra.qapi.contract import contract

            layer.open(contract().check("BlockdevOptions", merged, keyval=True), root=backend)
        if snapshot:
            raise QobraError("snapshot=on is not supported")
        return throttling


def _throttle(machine: Machine, name: str, limits: dict[str, str]) -> None:
    from qobra.qmp import dispatch

    arguments: dict[str, Any] = {"id": name}
    for old, new in (("bps", "bps-total"), ("iops", "iops-total")):
        for suffix, old_suffix in (("total", ""), ("read", "_rd"), ("write", "_wr")):
            stem = new.replace("total", suffix)
            for extra in ("", "-max", "-max-length"):
                if stem + extra in limits:
                    arguments[old + old_suffix + extra.replace("-", "_")] = number(stem, limits[stem + extra])
    for key in ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"):
        arguments.setdefault(key, 0)
    if "iops-size" in limits:
        arguments["iops_size"] = number("throttling.iops-size", limits["iops-size"])
    if "group" in limits:
        arguments["group"] = limits["group"]
    dispatch.call(machine, "block_set_io_throttle", arguments | {"device": arguments.pop("id")})


def _merge(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _default_id(interface: str, media: str, bus: int, unit: int) -> str:
    kind = {"cdrom": "-cd", "disk": "-hd"}[media] if interface in ("ide", "scsi") else ""
    if _UNITS[interface]:
        return f"{interface}{bus}{kind}{unit}"
    return f"{interface}{kind}{unit}"
