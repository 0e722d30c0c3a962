"""``throttle-group``: limits that the ``throttle`` nodes and the devices in it share."""

from __future__ import annotations

from typing import Any

from qobra.block.throttle import MEMBERS, Limits, ThrottleGroup
from qobra.errors import QobraError
from qobra.object.property import Int, Property
from qobra.object.qom import Object
from qobra.object.types import registry


class _LimitsProperty(Property):
    """``limits``: a ThrottleLimits; members that are absent keep their value."""

    expected = "object"

    def check(self, value: Any) -> dict[str, int]:
        from qobra.qapi.contract import contract

        if not isinstance(value, dict):
            raise self.mismatch()
        limits: dict[str, int] = contract().check("ThrottleLimits", value, path=self.name)
        return limits

    def write(self, instance: Object, value: Any, *, keyval: bool = False) -> None:
        if keyval and isinstance(value, dict):
            from qobra.qapi.contract import contract

            value = contract().check("ThrottleLimits", value, path=self.name, keyval=True)
        super().write(instance, value)


def _keep(group: ThrottleGroupObject) -> None:
    if group.group is not None:
        raise QobraError("Property cannot be set after initialization")


class _Member(Int):
    """``x-NAME``: one member of the limits, as options set them one by one."""

    def __init__(self, member: str) -> None:
        super().__init__(name=f"x-{member}", get=self._get_member, set=self._set_member, guard=_keep)
        self._member = member

    def _get_member(self, group: ThrottleGroupObject) -> Any:
        return group.group_limits().get(self._member)

    def _set_member(self, group: Object, value: int) -> None:
        assert isinstance(group, ThrottleGroupObject)
        if value < 0:
            raise QobraError("Property values cannot be negative")
        group.pending.set(self._member, value)


@registry.register("throttle-group")
class ThrottleGroupObject(Object):
    """A throttle group that object-add made. ``group`` is what members join."""

    type_name = "throttle-group"
    user_creatable = True

    limits = _LimitsProperty(
        "ThrottleLimits",
        get=lambda self: self.group_limits().as_dict(),
        set=lambda self, value: self.set_limits(value),
    )

    def __init__(self, tree: Any) -> None:
        super().__init__(tree)
        self.group: ThrottleGroup | None = None
        self.pending = Limits()
        for member in MEMBERS:
            self.add_property(_Member(member))

    def group_limits(self) -> Limits:
        """The limits in force, or those set so far."""
        return self.group.limits if self.group is not None else self.pending

    def set_limits(self, members: dict[str, int]) -> None:
        """Set some members, all others as they are."""
        updated = self.group_limits().updated(members)
        if self.group is not None:
            self.group.set_limits(updated)
        else:
            self.pending = updated

    def can_be_deleted(self) -> bool:
        return super().can_be_deleted() and (self.group is None or not self.group.members)

    def complete(self) -> None:
        self.pending.check()
        group = ThrottleGroup(self.name, self.machine.clock)
        group.set_limits(self.pending)
        self.group = group
