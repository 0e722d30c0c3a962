"""The rules that make a schema one of today's: how names are spelled, and what flags, conditions and pragmas may say.

From QEMU's docs/devel/qapi-code-gen ("Naming rules and reserved names", "Pragma directives", "Configuring the schema").
Older schemas break them and are good schemas all the same, so a breach is no error here: it is collected, and
:mod:`qobra.qapi.load` says whether it counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from qobra.qapi.error import Position, QapiError
from qobra.qapi.parser import Expression, Value
from qobra.qapi.schema import Alternate, Command, Definition, Enum, Event, Member, Schema, Struct, Union, element_type

_DOWNSTREAM = r"(?:__[A-Za-z0-9.-]+_)?(?:x-)?"
_TYPE_NAME = re.compile(_DOWNSTREAM + r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")
_EVENT_NAME = re.compile(r"(?:__[A-Z0-9.-]+_)?(?:X-)?[A-Z][A-Z0-9_]*")
_NAME = re.compile(_DOWNSTREAM + r"[A-Za-z][A-Za-z0-9_-]*")
_VALUE_NAME = re.compile(_DOWNSTREAM + r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SYMBOL = re.compile(r"[A-Z][A-Z0-9_]*")
_OLD_CONDITION = re.compile(r".*\bdefined\s*\(.*")

_ONLY_TRUE = ("boxed", "allow-oob", "allow-preconfig", "coroutine")
_ONLY_FALSE = ("gen", "success-response")
_NOT_FOR_TYPES = ("deprecated", "unstable")

_LISTS = ("command-name-exceptions", "command-returns-exceptions", "documentation-exceptions", "member-name-exceptions")
_OLD_LISTS = ("returns-whitelist", "name-case-whitelist")


class Rules:
    """What was found to break a rule, in the order of reading, and what a schema's pragmas say.

    ``is_old``: something is written as only older schemas have it.
    """

    def __init__(self) -> None:
        self.breaches: list[QapiError] = []
        self.is_old = False
        self.doc_required = False
        self._exceptions: dict[str, set[str]] = {name: set() for name in (*_LISTS, *_OLD_LISTS)}

    def read_pragma(self, expression: Expression) -> None:
        """Take in a pragma. Raises QapiError for one that there is not."""
        position = expression.keys["pragma"]
        pragma = expression.data["pragma"]
        if len(expression.data) != 1 or not isinstance(pragma, dict):
            raise QapiError(position, "expected an object as 'pragma', and no other member")
        for name, value in pragma.items():
            if name == "doc-required":
                if not isinstance(value, bool):
                    raise QapiError(position, "expected true or false as pragma 'doc-required'")
                self.doc_required = value
            elif name in self._exceptions:
                if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                    raise QapiError(position, f"expected a list of names as pragma '{name}'")
                self._exceptions[name].update(str(item) for item in value)
                self.is_old |= name in _OLD_LISTS
            else:
                raise QapiError(
                    position, f"expected one of the pragmas {', '.join(('doc-required', *_LISTS))}, got '{name}'"
                )

    def check_expression(self, expression: Expression, definition: Definition) -> None:
        """Check what is written: flags, conditions, features, names."""
        data = expression.data
        self.is_old |= (
            "type" in data
            or data.get("discriminator") == {}
            or any(data.get(flag) in ("no", "yes") for flag in (*_ONLY_TRUE, *_ONLY_FALSE))
        )
        for key, problem in _written(data):
            if problem is None:
                self.is_old = True
            else:
                self._breach(expression.keys.get(key, expression.position), f"{problem} in {_what(definition)}")
        self.breaches += self._names(definition)
        self.breaches += self._comment(expression, definition)

    def enforce(self, schema: Schema) -> None:
        """Raise the first breach, if the schema is not an old one. Raises QapiError."""
        if self.is_old:
            return
        for definition in schema:
            self._check_definition(schema, definition)
        for breach in self.breaches:
            raise breach

    def _check_definition(self, schema: Schema, definition: Definition) -> None:
        """Check what takes more than one definition."""
        if isinstance(definition, (Struct, Union)):
            self.breaches += _collisions(schema.members_of(definition.name), definition)
        if isinstance(definition, Command) and definition.returns:
            self._returns(schema, definition)
        if isinstance(definition, Union):
            tag = next((m for m in schema.members_of(definition.name) if m.name == definition.tag), None)
            values = schema.definitions.get(tag.type) if tag else None
            if not definition.branches and not (isinstance(values, Enum) and values.values):
                self._breach(definition.position, f"expected branches in {_what(definition)}")
            elif definition.simple and (definition.base or definition.members):
                self._breach(
                    definition.position, f"expected a 'discriminator' in {_what(definition)}, which has a base"
                )
            elif tag and tag.condition:
                self._breach(
                    definition.position, f"expected the discriminator of {_what(definition)} without condition"
                )

    def _breach(self, position: Position, problem: str) -> None:
        self.breaches.append(QapiError(position, problem))

    def _returns(self, schema: Schema, command: Command) -> None:
        returned = schema.definitions.get(element_type(command.returns))
        if isinstance(returned, Alternate):
            self._breach(command.position, f"expected no alternate as what {_what(command)} returns")
        elif not isinstance(returned, (Struct, Union)) and not self._excepted(
            command.name, "command-returns-exceptions"
        ):
            self._breach(
                command.position,
                f"expected an object or a list of them as what {_what(command)} returns, or a pragma for it",
            )

    def _excepted(self, name: str, pragma: str) -> bool:
        return name in self._exceptions[pragma]

    # -- names ------------------------------------------------------------------------------------------------

    def _names(self, definition: Definition) -> Iterator[QapiError]:
        name = definition.name
        what = _what(definition)
        if isinstance(definition, Command):
            if not _NAME.fullmatch(name) or _reserved(name):
                yield QapiError(
                    definition.position, f"expected a name that begins with a letter, and not with 'q_': {what}"
                )
            elif _is_loud(name) and not self._excepted(name, "command-name-exceptions"):
                yield QapiError(
                    definition.position, f"expected small letters and '-' in the name of {what}, or a pragma for it"
                )
        elif isinstance(definition, Event):
            if not _EVENT_NAME.fullmatch(name):
                yield QapiError(definition.position, f"expected capitals and '_' in the name of {what}")
        elif not _TYPE_NAME.fullmatch(name):
            yield QapiError(definition.position, f"expected the name of {what} in CamelCase")
        elif name.endswith("List"):
            yield QapiError(
                definition.position, f"expected a name that does not end in 'List', which is kept for lists: {what}"
            )
        is_enum = isinstance(definition, Enum)
        members = definition.values if isinstance(definition, Enum) else getattr(definition, "members", [])
        loud_allowed = not isinstance(definition, Alternate) and self._excepted(name, "member-name-exceptions")
        for member in members:
            pattern = _VALUE_NAME if is_enum else _NAME
            if not pattern.fullmatch(member.name) or _reserved(member.name):
                yield QapiError(member.position, f"expected a name that may be used for '{member.name}' of {what}")
            elif not is_enum and (member.name == "u" or member.name.startswith(("has-", "has_"))):
                yield QapiError(member.position, f"expected a name that is not reserved for '{member.name}' of {what}")
            elif _is_loud(member.name) and not loud_allowed:
                yield QapiError(
                    member.position, f"expected small letters and '-' in '{member.name}' of {what}, or a pragma for it"
                )
            yield from _repeated(member.features, member.position, what)
        if is_enum:
            yield from _collisions(members, definition)
        yield from _repeated(definition.features, definition.position, what)
        if not isinstance(definition, (Command, Event)):
            for feature in _NOT_FOR_TYPES:
                if feature in definition.features:
                    yield QapiError(definition.position, f"expected no feature '{feature}' of a type, as {what} is")

    # -- comments -----------------------------------------------------------------------------------------------

    def _comment(self, expression: Expression, definition: Definition) -> Iterator[QapiError]:
        facts = expression.facts
        what = _what(definition)
        if facts is None:
            if self.doc_required and not self._excepted(definition.name, "documentation-exceptions"):
                yield QapiError(expression.position, f"expected a comment that documents {what}")
            return
        if facts.name != definition.name:
            found = f"that is for '{facts.name}'" if facts.name else "that names nothing"
            yield QapiError(expression.position, f"expected a comment for {what} before it, got one {found}")
            return
        members: Iterable[Member] = getattr(definition, "members", [])
        if isinstance(definition, Enum):
            members = definition.values
        members = list(members)
        known = {member.name for member in members}
        features = set(definition.features).union(*(member.features for member in members))
        for name in facts.members:
            if name not in known:
                yield QapiError(facts.position, f"expected comments on members of {what} only, '{name}' is none")
        for name in facts.features:
            if name not in features:
                yield QapiError(facts.position, f"expected comments on features of {what} only, '{name}' is none")
        for name in sorted(features - set(facts.features)):
            yield QapiError(expression.position, f"expected a comment on feature '{name}' of {what}")
        if facts.returns and not isinstance(definition, Command):
            yield QapiError(facts.position, f"expected no 'Returns' for {what}, only commands return something")


def _what(definition: Definition) -> str:
    return f"{definition.kind} '{definition.name}'"


def _plain(name: str) -> str:
    """The name without the prefix of a downstream extension or an experiment."""
    return re.sub("^" + _DOWNSTREAM, "", name)


def _reserved(name: str) -> bool:
    return _plain(name).startswith(("q_", "q-"))


def _is_loud(name: str) -> bool:
    plain = _plain(name)
    return plain != plain.lower() or "_" in plain


def _repeated(features: list[str], position: Position, what: str) -> Iterator[QapiError]:
    for index, feature in enumerate(features):
        if feature in features[:index]:
            yield QapiError(position, f"expected each feature of {what} once, '{feature}' comes twice")


def _collisions(members: Iterable[Member], definition: Definition) -> Iterator[QapiError]:
    """Names that are the same once they are made names of a programming language."""
    taken: dict[str, str] = {}
    for member in members:
        first = taken.setdefault(re.sub("[-.]", "_", member.name), member.name)
        if first != member.name:
            yield QapiError(
                member.position,
                f"expected names in {_what(definition)} that differ beyond '-', got '{first}' and '{member.name}'",
            )


def _written(data: dict[str, Value]) -> Iterator[tuple[str, str | None]]:
    """The key and the problem of what no schema of today says; no problem where an old one does."""
    for flag in _ONLY_TRUE:
        if data.get(flag) is False:
            yield flag, f"expected true as '{flag}', or nothing,"
    for flag in _ONLY_FALSE:
        if data.get(flag) is True:
            yield flag, f"expected false as '{flag}', or nothing,"
    if data.get("allow-oob") and data.get("coroutine"):
        yield "coroutine", "expected only one of 'allow-oob' and 'coroutine'"
    if data.get("boxed") and not isinstance(data.get("data"), str):
        yield "boxed", "expected a type's name as 'data' with 'boxed'"
    if not isinstance(data.get("prefix", ""), str):
        yield "prefix", "expected a string as 'prefix'"
    yield from _conditional("if", data)
    yield from _features("features", data)
    content = data.get("data")
    base = data.get("base")
    for key, details in (*_items(content), *_items(base)):
        yield from _conditional(key, details)
        yield from _features(key, details)


def _items(content: Value | None) -> Iterator[tuple[str, dict[str, Value]]]:
    """Members that are written out, with the keys under which their places are known."""
    if isinstance(content, dict):
        yield from ((key, value) for key, value in content.items() if isinstance(value, dict))
    elif isinstance(content, list):
        yield from (("data", value) for value in content if isinstance(value, dict))


def _features(key: str, holder: dict[str, Value]) -> Iterator[tuple[str, str | None]]:
    features = holder.get("features", [])
    for feature in features if isinstance(features, list) else []:
        if isinstance(feature, dict):
            if not feature.keys() <= {"name", "if"}:
                yield key, "expected 'name' and 'if' only of a feature"
            yield from _conditional(key, feature)


def _conditional(key: str, holder: dict[str, Value]) -> Iterator[tuple[str, str | None]]:
    if "if" in holder:
        yield from ((key, problem) for problem in _condition(holder["if"]))


def _condition(value: Value) -> Iterator[str | None]:
    if isinstance(value, str):
        if not _SYMBOL.fullmatch(value):
            yield (
                None
                if _OLD_CONDITION.fullmatch(value)
                else f"expected a symbol in capitals as condition, got '{value}'"
            )
    elif isinstance(value, dict):
        for operator, operand in value.items():
            operands = operand if operator != "not" and isinstance(operand, list) else [operand]
            if not operands:
                yield f"expected conditions in '{operator}'"
            for each in operands:
                yield from _condition(each)
    elif (
        isinstance(value, list)
        and value
        and all(isinstance(each, str) and _OLD_CONDITION.fullmatch(each) for each in value)
    ):
        yield None
    else:
        yield "expected a symbol or an object as condition"
