"""Filters of a backend: they see each packet that passes, in order, and may keep it.

The directions have QEMU's names, from the backend's side: ``tx`` is what the backend sends to its peer (it came from
outside), ``rx`` is what the peer sends to it. Packets of ``tx`` pass the filters from the first to the last, packets of
``rx`` from the last to the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.object.property import Bool, Enum, String
from qobra.object.qom import Object

if TYPE_CHECKING:
    from qobra.net.netdev import Direction, Netdev

_PLACE = "Parameter 'position' expects 'head', 'tail' or 'id=<id>'"


def _set_insert(filter: NetFilter, value: str) -> None:
    if value not in ("before", "behind"):
        if filter.backend is None:
            raise QobraError(f"Parameter 'insert' does not accept value '{value}'")
        raise QobraError("Invalid value for netfilter insert, should be 'before' or 'behind'")
    filter.values["insert"] = value


def _set_status(filter: NetFilter, value: str) -> None:
    if value not in ("on", "off"):
        raise QobraError("Invalid value for netfilter status, should be 'on' or 'off'")
    changed = filter.values.get("status", "on") != value
    filter.values["status"] = value
    if changed and filter.backend is not None:
        filter.status_changed()


class NetFilter(Object):
    """What passes the backend ``netdev``, in the directions ``queue``. Types implement :meth:`takes`."""

    type_name = "netfilter"
    interfaces = ("user-creatable",)
    abstract = True
    required: tuple[str, ...] = ("netdev",)

    queue = Enum("NetFilterDirection", ("all", "rx", "tx"), "all")
    netdev = String("")
    insert = String("behind", set=_set_insert)
    status = String("on", set=_set_status)
    position = String("tail")

    backend: Netdev | None = None

    @property
    def on(self) -> bool:
        """Whether it looks at packets."""
        return bool(self.status == "on")

    def complete(self) -> None:
        backend = self.machine.netdevs.find(self.netdev)
        if backend is None:
            raise QobraError("Parameter 'netdev' expects a network backend id")
        if backend.front_end is not None:
            raise QobraError("vhost is not supported")
        index = self._index(backend)
        self.setup()
        chain = list(backend.filters)
        chain.insert(index, self)
        backend.filters = tuple(chain)
        self.backend = backend

    def _index(self, backend: Netdev) -> int:
        chain = backend.filters
        if self.position == "head":
            return 0
        if self.position == "tail":
            return len(chain)
        if not self.position.startswith("id="):
            raise QobraError(_PLACE)
        id = self.position[3:]
        other = self.tree.find(id)
        if other is None:
            raise QobraError(f"filter '{id}' not found")
        if not isinstance(other, NetFilter):
            raise QobraError(f"'{id}' is not a netfilter")
        if other not in chain:
            raise QobraError(f"filter '{id}' belongs to a different netdev")
        return chain.index(other) + (1 if self.insert == "behind" else 0)

    def finalize(self) -> None:
        backend, self.backend = self.backend, None
        if backend is not None:
            backend.filters = tuple(each for each in backend.filters if each is not self)
            self.let_go(backend)

    def inject(self, packet: bytes, direction: Direction) -> None:
        """Have a packet go on from here."""
        if self.backend is not None:
            self.backend.pass_on(packet, direction, self)

    def description(self) -> str:
        """The properties with their values, as people read them."""
        shown = [f"type={self.type_name}"]
        for name, prop in reversed(self.properties().items()):
            if name != "type":
                value = self.get(name)
                shown.append(f"{name}={str(value).lower() if isinstance(prop, Bool) else value}")
        return ",".join(shown)

    # -- for the types to fill in

    def setup(self) -> None:
        """Check what the type needs, and get ready. Raises QobraError."""

    def let_go(self, backend: Netdev) -> None:
        """Let go of what :meth:`setup` took. The filter sees no more packets of ``backend``."""

    def status_changed(self) -> None:
        """The filter was switched on or off."""

    def takes(self, packet: bytes, direction: Direction) -> bool:
        """Whether the filter keeps the packet, so that nobody after it sees it. From any thread."""
        raise NotImplementedError
