"""``authz-simple``: one identity may come in."""

from __future__ import annotations

from qobra.crypto.authz import Authz
from qobra.object.property import String
from qobra.object.types import registry


@registry.register("authz-simple")
class AuthzSimple(Authz):
    """Allows exactly ``identity``."""

    type_name = "authz-simple"
    user_creatable = True
    required = ("identity",)

    identity = String()

    def is_allowed(self, identity: str) -> bool:
        return bool(identity == self.identity)
