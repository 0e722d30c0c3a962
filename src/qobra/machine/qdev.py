"""Devices and buses: what every device model has in common, and how they plug into each other.

A device is an :class:`~qobra.object.qom.Object` that is *realized*: its properties are set first, then
:meth:`Device.realize` makes it work, on a bus or on the board itself.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from qobra.errors import QobraError
from qobra.machine.irq import Line
from qobra.machine.vmstate import is_declared
from qobra.object.property import Bool, Link, Property
from qobra.object.qom import Object

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.object.tree import ObjectTree


class Device(Object):
    """A device model.

    ``bus_type`` is the type of bus that it plugs into (None: straight onto the board). ``pluggable`` says whether
    users may create it, ``hotpluggable_class`` whether they may while the machine exists already.
    ``gpio_in`` and ``gpio_out`` are its lines; the list under None is the unnamed one.
    """

    type_name = "device"
    interfaces: tuple[str, ...] = ("resettable", "vmstate-if")
    abstract = True
    bus_type: str | None = None
    pluggable = True
    hotpluggable_class = True
    description: str | None = None
    category: str | None = None
    """Under what ``-device help`` lists it."""
    backend_type: ClassVar[str] = ""
    """The type of the device that a function of PCI carries, where it does."""
    bootindex: Any = None
    """Its place among what is booted from; None: it is not booted from."""

    parent_bus = Property(
        "link<bus>", name="parent_bus", get=lambda self: self.bus.path() if self.bus else "", writable=False
    )
    realized_property = Bool(
        name="realized",
        get=lambda self: self.realized,
        set=lambda self, value: self.set_realized(value),
        show_default=False,
    )
    hotplugged_property = Bool(name="hotplugged", get=lambda self: self.hotplugged, writable=False, show_default=False)
    hotpluggable = Bool(get=lambda self: self.is_hotpluggable(), writable=False, show_default=False)

    BASE_PROPERTIES = frozenset(("type", "realized", "hotpluggable", "hotplugged", "parent_bus"))
    shown_first: tuple[str, ...] = ()
    """Properties that lists have before the inherited ones."""

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.bus: Bus | None = None
        self.realized = False
        self.hotplugged = False
        self.user_id: str | None = None
        self.unplug_pending = False
        self.unplug_again_ns: int | None = None
        """From when on (of the guest's time) a guest that does not react may be asked again; None: never."""
        self._was_realized = False
        self.tells_deletion = True
        """Whether DEVICE_DELETED says that the device has left."""
        self.gpio_in: dict[str | None, list[Line]] = {}
        self.gpio_out: dict[str | None, list[Line]] = {}

    @property
    def board(self) -> Board:
        """The board of the machine."""
        board = self.tree.machine.board
        assert board is not None
        return board

    @property
    def carrier(self) -> Device | None:
        """The function that carries the device, where one does."""
        return self.parent if isinstance(self.parent, Device) and self.parent.backend_type else None

    @property
    def given_id(self) -> str | None:
        """The id that the user gave the device, or the function that carries it."""
        return self.user_id or (self.carrier.user_id if self.carrier is not None else None)

    def buses(self) -> list[Bus]:
        """The buses that this device provides."""
        return [child for child in self.children.values() if isinstance(child, Bus)] if self.children else []

    def add_bus(self, bus: Bus, name: str | None = None) -> None:
        """Provide ``bus``: called ``name``, or after this device's id, or else by its type and the next number."""
        if name is None:
            name = f"{self.user_id}.{len(self.buses())}" if self.user_id else self.board.next_bus_name(bus.type_name)
        self.add_child(name, bus)

    def describe(self) -> str:
        """How error texts call the device: its id, or its path."""
        return self.user_id or self.path()

    def add_inputs(self, handler: Any, count: int, name: str | None = None) -> None:
        """Give the device ``count`` input lines; ``handler(n, level)`` is called when one is driven."""
        lines = self.gpio_in.setdefault(name, [])
        for n in range(len(lines), len(lines) + count):
            lines.append(Line(partial(handler, n)))

    def add_outputs(self, count: int, name: str | None = None) -> list[Line]:
        """Give the device ``count`` output lines."""
        lines = [Line() for _ in range(count)]
        self.gpio_out.setdefault(name, []).extend(lines)
        return lines

    def set(self, name: str, value: Any, *, keyval: bool = False) -> None:
        if self.realized and name not in self.BASE_PROPERTIES and not self.settable_when_realized(name):
            prop = None if name in self.children else self.find_property(name)
            if prop is None or prop.forwarded or not prop.writable or prop.live:
                super().set(name, value, keyval=keyval)
                return
            if isinstance(prop, Link):
                prop.resolve(self, value)
                raise QobraError(
                    f"Attempt to set link property '{name}' on device '{self.user_id or '(null)'}' "
                    f"(type '{self.type_name}') after it was realized"
                )
            who = f"device '{self.user_id}'" if self.user_id else "anonymous device"
            raise QobraError(
                f"Attempt to set property '{name}' on {who} (type '{self.type_name}') after it was realized"
            )
        super().set(name, value, keyval=keyval)

    def settable_when_realized(self, name: str) -> bool:
        """Whether the property may change while the device works."""
        return False

    def is_hotpluggable(self) -> bool:
        """Whether the device could be unplugged now."""
        return self.hotpluggable_class and (self.bus is None or self.bus.hotplug)

    def set_realized(self, value: bool) -> None:
        """Make the device work, or stop it. What fails leaves it as it was."""
        if value == self.realized:
            return
        if value:
            if self.bus is not None:
                self.bus.check(self)
            self.realize()
            try:
                if self.board.only_migratable and not self.migrates:
                    raise QobraError(f"Device {self.type_name} is not migratable, but --only-migratable was specified")
                blocker = self.migration_blocker() if self.board.only_migratable else None
                if blocker is not None:
                    raise QobraError(f"disallowing migration blocker (--only-migratable) for: {blocker}")
                if self.bus is not None:
                    self.bus.admit(self)
            except QobraError:
                self.unrealize()
                raise
            self.realized = True
            for bus in self.buses():
                bus.realized = True
            if self.bus is not None:
                self.bus.plugged(self)
            if self.hotplugged:
                self.reset_tree()
        else:
            for bus in self.buses():
                for device in list(bus.devices):
                    device.set_realized(False)
            self.unrealize()
            self.realized = False
            self._was_realized = True
            if self.bus is not None:
                self.bus.unplugged(self)

    def unparent(self) -> None:
        """Stop working, leave the bus and the tree, and say so (DEVICE_DELETED)."""
        self.set_realized(False)
        path = self.path()
        for bus in list(self.buses()):
            for device in list(bus.devices):
                device.unparent()
        if self.bus is not None:
            self.bus.remove(self)
        super().unparent()
        if self._was_realized and self.tells_deletion and not self.tree.closing:
            data = {"path": path}
            if self.user_id is not None:
                data["device"] = self.user_id
            self.machine.events.emit("DEVICE_DELETED", data)

    def reset_tree(self) -> None:
        """Reset what is on the device's buses, then the device."""
        for bus in self.buses():
            bus.reset()
        self.reset()

    # -- state

    def state_id(self) -> str:
        """How a saved state calls the device: its place, which is the same in a machine that was made alike."""
        if self.bus is None or not isinstance(self.bus.parent, Device):
            return self.path()
        buses = self.bus.parent.buses()
        which = f"{buses.index(self.bus)}/" if len(buses) > 1 else ""
        return f"{self.bus.parent.state_id()}/{which}{self.bus.place_of(self)}"

    @property
    def migrates(self) -> bool:
        """Whether the state can go into a stream: all of it is declared, and no other process has some of it."""
        return is_declared(type(self))

    def state_loaded(self) -> None:
        """All the machine's state was loaded: work out what follows from it. Raises QobraError where it cannot be."""

    def state_blocked(self) -> str | None:
        """Why the state cannot be saved right now, or None."""
        return None

    def migration_blocker(self) -> str | None:
        """Why the machine stays where it is as long as the device is there, or None."""
        return None

    @property
    def working(self) -> bool:
        """Whether something is under way that ends by itself in a moment, though the guest stands still."""
        return False

    # -- for device models to fill in

    def check_unplug(self) -> None:
        """Whether users may have the device out, as far as it can tell. Raises QobraError."""

    def realize(self) -> None:
        """Start to work: check the properties, take back ends, map registers. Raises QobraError to refuse."""

    def unrealize(self) -> None:
        """Undo what :meth:`realize` did."""

    def reset(self) -> None:
        """Back to the state at power-on."""


class Bus(Object):
    """Where devices plug in. ``limit`` is how many fit; ``hotplug`` whether they may come and go later."""

    type_name = "bus"
    provided = True
    interfaces: tuple[str, ...] = ("resettable",)
    abstract = True
    limit: int | None = None
    hotplug = False
    bus_name_given: str | None = None

    realized_property = Bool(name="realized", get=lambda self: self.realized, writable=False)
    hotplug_handler_property = Property(
        "link<hotplug-handler>",
        name="hotplug-handler",
        get=lambda self: handler.path() if (handler := self.hotplug_handler()) is not None else "",
        writable=False,
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.devices: list[Device] = []
        self.realized = False
        self._plugged_count = 0

    @property
    def bus_name(self) -> str:
        """The name that users give for the bus."""
        return self.bus_name_given or self.name

    @property
    def owner(self) -> Device:
        """The device that provides the bus."""
        assert isinstance(self.parent, Device)
        return self.parent

    @property
    def full(self) -> bool:
        """Whether nothing more fits."""
        return self.limit is not None and len(self.devices) >= self.limit

    def insert(self, device: Device) -> None:
        """Let ``device`` onto the bus, not yet realized."""
        device.bus = self
        self.devices.append(device)
        number = self._plugged_count
        self._plugged_count += 1
        device.values["_bus_child"] = f"child[{number}]"
        self.add_property(
            Property(
                f"link<{device.type_name}>", name=f"child[{number}]", get=lambda _bus: device.path(), writable=False
            )
        )

    def remove(self, device: Device) -> None:
        """Forget ``device``."""
        if device in self.devices:
            self.devices.remove(device)
            (self._instance_properties or {}).pop(device.values.pop("_bus_child"), None)
        device.bus = None

    def place_of(self, device: Device) -> str:
        """How a saved state calls the place of ``device`` on the bus."""
        return device.user_id or f"{device.type_name}.{[d for d in self.devices if not d.user_id].index(device)}"

    def reset(self) -> None:
        """Reset every device on the bus."""
        for device in list(self.devices):
            if device.bus is self:  # it may have been unplugged by the reset of another
                device.reset_tree()

    # -- for bus types to fill in

    def hotplug_handler(self) -> Object | None:
        """Who sees to devices that come and go here: the device that provides the bus, if it does such a thing."""
        if self.hotplug and isinstance(self.parent, Device) and self.parent.implements("hotplug-handler"):
            return self.parent
        return None

    def accepts(self, device: Device) -> bool:
        """Whether the device has a place here as far as the bus can tell before it is set up (its address is free)."""
        return not self.full

    def check(self, device: Device) -> None:
        """Raises QobraError where ``device``, with the properties it has now, cannot work on this bus."""

    def admit(self, device: Device) -> None:
        """``device`` is set up: raises QobraError where it cannot be here nevertheless."""

    def plugged(self, device: Device) -> None:
        """``device`` works now."""

    def unplugged(self, device: Device) -> None:
        """``device`` has stopped."""

    def request_unplug(self, device: Device) -> None:
        """A user wants ``device`` out: unplug it now, or ask the guest first."""
        device.unparent()


class SystemBus(Bus):
    """The board itself, for devices at fixed addresses."""

    type_name = "System"


class SysBusDevice(Device):
    """A device with registers at an address of the board, and interrupt lines to its controller."""

    type_name = "sys-bus-device"
    abstract = True
    bus_type = "System"
    pluggable = False
