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


def check_rules(rules: Any, name: str = "rules", *, keyval: bool = False) -> list[dict[str, Any]]:
    """``rules`` if it is a list of QAuthZListRule; QobraError where not. ``keyval``: from a command line."""
    from qobra.qapi.contract import contract

    checked: list[dict[str, Any]] = contract().check("[QAuthZListRule]", rules, path=name, keyval=keyval)
    return checked


def is_allowed(objects_find: Any, id: str, identity: str) -> bool:
    """Ask the authorization object ``id``; ``objects_find`` is the machine's ``objects.find``."""
    found = objects_find(id, None)
    if not isinstance(found, Authz):
        raise QobraError(f"No authorization object with id '{id}'")
    return found.is_allowed(identity)
