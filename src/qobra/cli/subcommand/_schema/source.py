"""Where a side of a comparison comes from: schema files, saved introspections, live servers."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.qapi.contract import Contract
from qobra.qapi.introspect import introspect
from qobra.qapi.load import SCHEMA_FILE, load_file
from qobra.qapi.tables import make_tables

if TYPE_CHECKING:
    from argparse import ArgumentParser

MAX_DUMP = 64 << 20

_KNOWN = {"name", "meta-type", "features", "json-type", "members", "values", "element-type", "tag", "variants"}
_KNOWN |= {"arg-type", "ret-type", "allow-oob"}


def add_reading_arguments(parser: ArgumentParser) -> None:
    """The options of actions that read schemas which are not whole."""
    parser.add_argument("--stubs", action="store_true", help="take types of missing includes for anything")
    parser.add_argument("--lenient", action="store_true", help="pass over what is no schema text")


def read_side(
    source: str, *, timeout: float = 10.0, stubs: bool = False, lenient: bool = False
) -> list[dict[str, Any]]:
    """SchemaInfo of ``source``: ``qobra`` (the whole contract), a file, or an address (unix:PATH or HOST:PORT).

    A file is a schema, or a saved ``query-qmp-schema``, with or without the ``return`` around it or an entity a line as
    ``qobra schema introspect`` prints them; ``stubs`` and ``lenient`` are :func:`qobra.qapi.load.load_file`'s, and
    ``timeout`` of a server is in seconds. Raises QobraError.
    """
    if source == "qobra":
        return introspect_file(SCHEMA_FILE)
    if os.path.isfile(source):
        return _read_dump(source) or introspect_file(source, stubs=stubs, lenient=lenient)
    return _ask(source, timeout)


def introspect_file(path: str, *, stubs: bool = False, lenient: bool = False) -> list[dict[str, Any]]:
    """Introspection of everything in a schema file, read as :func:`qobra.qapi.load.load_file` does."""
    of = Contract(*make_tables(load_file(path, stubs=stubs, lenient=lenient)))
    return introspect(of.commands, of.events, of=of)


def _read_dump(path: str) -> list[dict[str, Any]] | None:
    """The entities of a saved introspection; None if the file is no JSON, and so may be a schema."""
    if os.path.getsize(path) > MAX_DUMP:
        raise QobraError(f"{path} is larger than {MAX_DUMP} bytes")
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        try:
            content = json.loads(text)
        except ValueError:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None
    return check_entities(content.get("return") if isinstance(content, dict) else content, path)


def check_entities(content: Any, source: str) -> list[dict[str, Any]]:
    """``content`` if it has the shape of query-qmp-schema's return; else QobraError."""
    if not isinstance(content, list):
        raise QobraError(f"{source} is not what query-qmp-schema returns: expected a list of entities")
    from qobra.qapi.contract import contract

    for at, entity in enumerate(content):
        try:
            contract().check("SchemaInfo", _known_part(entity), path=f"[{at}]")
        except QobraError as error:
            raise error.prefixed(f"{source} is not what query-qmp-schema returns: ") from None
    return content


def _known_part(entity: Any) -> Any:
    """An entity without members that a later version may have added."""
    return {key: entity[key] for key in entity if key in _KNOWN} if isinstance(entity, dict) else entity


def _ask(address: str, timeout: float) -> list[dict[str, Any]]:
    from qobra.client.sync import Client

    with Client.connect(address, timeout=timeout) as client:
        return check_entities(client.execute("query-qmp-schema", timeout=timeout), address)
