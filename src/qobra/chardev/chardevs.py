"""The character devices of a machine, by id: create, find, exchange, remove."""

from __future__ import annotations

from qobra.chardev.chardev import Chardev, registry
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.machine.machine import Machine
    from qobra.object.tree import ObjectTree


class Chardevs:
    """The owner of a machine's character devices."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._devices: dict[str, Chardev] = {}
        self._tree: ObjectTree | None = None
        self.escape = 0x01
        """The key (Ctrl-A) by which a user reaches a device that is shared, rather than who has it."""

    def __iter__(self) -> Any:
        return iter(tuple(self._devices.values()))

    def create(self, id: str, backend: dict[str, Any], *, failure: str | None = None, asked_by: str = "") -> Chardev:
        """Make the device that ``backend``, a ChardevBackend, describes.

        ``failure`` begins the error text instead of chardev-add's words. ``asked_by`` is the option of the command line
        that asks for it, as it was given.
        """
        if id in self._devices:
            if failure is not None:
                raise QobraError(f"{failure}attempt to add duplicate property '{id}' to object (type 'container')")
            raise QobraError(f"Chardev with id '{id}' already exists")
        failure = f"Failed to add chardev '{id}': " if failure is None else failure
        device = self._open(id, backend, failure, asked_by)
        self._keep(device)
        return device

    def _open(self, id: str, backend: dict[str, Any], failure: str, asked_by: str = "") -> Chardev:
        kind = registry.find(backend["type"])
        if kind is None:
            raise QobraError(f"{failure}'{backend['type']}' is not a valid char driver name")
        options = backend.get("data", {})
        device = kind(self._machine, id, options)
        device.kind = backend["type"]  # a kind may have an older name
        device.asked_by = asked_by
        try:
            if "logfile" in options:
                from qobra.chardev.log import Log

                device.log = Log(options["logfile"], options.get("logappend", False))
            device.start()
        except QobraError as error:
            device.close()
            raise error.prefixed(failure)
        return device

    def adopt(self, device: Chardev) -> None:
        """Own ``device``, which someone else made and started, until it ends by itself."""
        if device.id in self._devices:
            raise QobraError(f"Chardev with id '{device.id}' already exists")
        self._keep(device)
        device.when_over = lambda: self._machine.control.post(self._forget, device)

    def _keep(self, device: Chardev) -> None:
        self._devices[device.id] = device
        if self._tree is not None:
            from qobra.chardev import qom

            qom.show(self._tree, device)

    def _forget(self, device: Chardev) -> None:
        if self._devices.get(device.id) is device:
            del self._devices[device.id]
            if self._tree is not None:
                from qobra.chardev import qom

                qom.hide(self._tree, device.id)

    def show_in(self, tree: ObjectTree) -> None:
        """Show all devices, of now and later, in ``tree``."""
        from qobra.chardev import qom

        tree.registries.append(qom.types)
        self._tree = tree
        for device in self:
            self._keep(device)

    def get(self, id: str) -> Chardev:
        """The device ``id``; QobraError if there is none."""
        if id not in self._devices:
            raise QobraError(f"Chardev '{id}' not found")
        return self._devices[id]

    def find(self, id: str) -> Chardev | None:
        """The device ``id``, or None."""
        return self._devices.get(id)

    def remove(self, id: str) -> None:
        """Remove the device ``id``; QobraError while something uses it."""
        device = self.get(id)
        if device.busy:
            raise QobraError(f"Chardev '{id}' is busy")
        self._forget(device)
        device.close()

    def change(self, id: str, backend: dict[str, Any]) -> Chardev:
        """Put another backend under the front end of the device ``id``."""
        old = self._devices.get(id)
        if old is None:
            raise QobraError(f"Chardev '{id}' does not exist")
        if not old.hotswap:
            raise QobraError("Mux device hotswap not supported yet")
        frontend = old.frontend
        if (old.busy and frontend is None) or (frontend is not None and not frontend.hotswap):
            raise QobraError("Chardev user does not support chardev hotswap")
        # The new one may want what the old one holds (an address, a file): the old goes first only if it must.
        new = self._open(id, backend, f"Failed to add chardev '{id}': " if frontend is None else "")
        self._keep(new)
        if frontend is not None:
            old.detach()
        old.close()
        if frontend is not None:
            new.attach(frontend)
        return new

    def close(self) -> None:
        """Close every device, muxes before what they multiplex, once their front ends have sent what waits."""
        for device in tuple(self._devices.values()):
            device.deliver_event("ending")
        for device in reversed(tuple(self._devices.values())):
            device.close()
        self._devices.clear()
