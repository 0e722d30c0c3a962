"""``authz-listfile``: the rules of authz-list, kept in a JSON file that may change."""

from __future__ import annotations

import os
from typing import Any

from qobra.crypto.authz import Authz, apply_rules, check_rules
from qobra.errors import QobraError, strerror
from qobra.object.property import Bool, String
from qobra.object.types import registry

_MAX_LENGTH = 16 << 20


@registry.register("authz-listfile", "authz-list-file")
class AuthzListFile(Authz):
    """Rules from ``filename``. With ``refresh`` a changed file is read again before the next decision; one
    that cannot be read then denies all."""

    type_name = "authz-list-file"
    user_creatable = True

    filename = String()
    refresh = Bool(True)

    def complete(self) -> None:
        if self.filename is None:
            raise QobraError("filename not provided")
        self._seen = _stamp(self.filename)
        self._acl: dict[str, Any] | None = _load(self.filename)

    def is_allowed(self, identity: str) -> bool:
        if self.refresh:
            stamp = _stamp(self.filename)
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._acl = _load(self.filename)
                except QobraError:
                    self._acl = None
        if self._acl is None:
            return False
        return apply_rules(self._acl.get("rules", []), self._acl.get("policy", "deny"), identity)


def _stamp(filename: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(filename)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _load(filename: str) -> dict[str, Any]:
    import json

    try:
        with open(filename, "rb") as stream:
            text = stream.read(_MAX_LENGTH)
    except OSError as error:
        raise QobraError(f"Unable to read '{filename}': {strerror(error)}", errno=error.errno)
    try:
        acl = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QobraError(f"JSON parse error, {error}")
    if not isinstance(acl, dict):
        raise QobraError(f"File '{filename}' must contain a JSON object")
    if acl.get("policy", "deny") not in ("allow", "deny"):
        raise QobraError(f"Parameter 'policy' does not accept value '{acl['policy']}'")
    for member in acl:
        if member not in ("policy", "rules"):
            raise QobraError(f"Parameter '{member}' is unexpected")
    check_rules(acl.get("rules", []))
    return acl
