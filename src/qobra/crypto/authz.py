"""Authorization: may this peer, known by its identity (a TLS distinguished name, a user name), connect?"""

from __future__ import annotations

import fnmatch
from typing import Any

from qobra.errors import QobraError
from qobra.object.qom import Object


class Authz(Object):
    """What every kind of authorization object answers."""

    type_name = "authz"
    abstract = True

    def is_allowed(self, identity: str) -> bool:
        """Whether ``identity`` may come in."""
        raise NotImplementedError


def apply_rules(rules: list[dict[str, Any]], policy: str, identity: str) -> bool:
    """The first rule that matches decides, else ``policy``. Rules are QAuthZListRule."""
    for rule in rules:
        match = rule["match"]
        if rule.get("format", "exact") == "glob":
            hit = fnmatch.fnmatchcase(identity, match)
        else:
            hit = identity == match
        if hit:
            return bool(rule["policy"] == "allow")
    return policy == "allow"


def check_rules(rules: Any, name: str = "rules") -> list[dict[str, Any]]:
    """``rules`` if it is a list of QAuthZListRule; QobraError where not."""
    if not isinstance(rules, list):
        raise QobraError(f"Invalid parameter type for '{name}', expected: array")
    for i, rule in enumerate(rules):
        if not isinstance(rule, dict):
            raise QobraError(f"Invalid parameter type for '{name}[{i}]', expected: object")
        for member, allowed in (
            ("match", None),
            ("policy", ("allow", "deny")),
            ("format", ("exact", "glob")),
        ):
            if member not in rule:
                if member == "format":
                    continue
                raise QobraError(f"Parameter '{name}[{i}].{member}' is missing")
            value = rule[member]
            if not isinstance(value, str):
                raise QobraError(f"Invalid parameter type for '{name}[{i}].{member}', expected: string")
            if allowed and value not in allowed:
                raise QobraError(f"Parameter '{name}[{i}].{member}' does not accept value '{value}'")
        for member in rule:
            if member not in ("match", "policy", "format"):
                raise QobraError(f"Parameter '{name}[{i}].{member}' is unexpected")
    return rules


def is_allowed(objects_find: Any, id: str, identity: str) -> bool:
    """Ask the authorization object ``id``; ``objects_find`` is the machine's ``objects.find``."""
    found = objects_find(id, None)
    if not isinstance(found, Authz):
        raise QobraError(f"No authorization object with id '{id}'")
    return found.is_allowed(identity)
