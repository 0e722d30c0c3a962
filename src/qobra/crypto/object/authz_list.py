"""``authz-list``: rules in order, each allowing or denying what it matches."""

from __future__ import annotations

from typing import Any

from qobra.crypto.authz import Authz, apply_rules, check_rules
from qobra.object.property import Enum, Property
from qobra.object.qom import Object
from qobra.object.types import registry


class _Rules(Property):
    def write(self, instance: Object, value: Any, *, keyval: bool = False) -> None:
        super().write(instance, check_rules(value, self.name, keyval=keyval))

    def show(self, value: Any) -> Any:
        return [{"format": "exact"} | rule for rule in value or ()]


@registry.register("authz-list")
class AuthzList(Authz):
    """Rules given with the object."""

    type_name = "authz-list"
    user_creatable = True

    policy = Enum("QAuthZListPolicy", ("deny", "allow"), "deny")
    rules = _Rules("QAuthZListRule", ())

    def is_allowed(self, identity: str) -> bool:
        return apply_rules(self.rules, self.policy, identity)
