"""What is generated from the schema is current, and says what the schema says."""

from __future__ import annotations

import typing

import pytest

import qobra.model
from qobra.qapi.contract import contract
from qobra.qapi.docs import render_index, render_markdown, render_text, sections
from qobra.qapi.generate import main, sources
from qobra.qapi.load import load_qobra
from qobra.qapi.schema import Enum, Schema, Struct, Union
from qobra.qapi.spec import Types
from qobra.qapi.tables import make_tables


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_qobra()


def test_the_models_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, f"run python -m qobra.qapi.generate: {capsys.readouterr().out}"


def test_generation_is_repeatable(schema: Schema) -> None:
    assert sources(schema) == sources(load_qobra())


def test_the_tables_say_what_the_schema_says(schema: Schema) -> None:
    types = Types(make_tables(schema).types)
    for definition in schema.types():
        spec = types[definition.name]
        if isinstance(definition, Enum):
            assert list(spec.values) == [value.name for value in definition.values]
        elif isinstance(definition, (Struct, Union)) and not getattr(definition, "simple", False):
            expected = [(m.name, m.type, m.optional) for m in schema.members_of(definition.name)]
            assert [(m.name, m.type, m.optional) for m in spec.members] == expected
        elif isinstance(definition, Union):
            assert [m.name for m in spec.members] == ["type"]
            assert types[f"{definition.name}Kind"].values == tuple(branch.name for branch in definition.branches)
            first = definition.branches[0]
            assert types[spec.branches[first.name]].members[0].type == first.type
    assert len(contract().commands) == len(schema.commands())
    assert set(contract().events) == {event.name for event in schema.events()}
    with pytest.raises(KeyError):
        types["Nope"]


def test_a_model_loads_when_it_is_asked_for() -> None:
    file_options = qobra.model.BlockdevOptionsFile
    assert file_options.__required_keys__ | file_options.__optional_keys__ >= {"filename", "pr-manager", "locking"}
    assert "running" in typing.get_args(qobra.model.JobStatus)
    assert {"driver", "filename", "backing"} <= set(qobra.model.BlockdevOptions.__annotations__)
    assert {"job-id", "device"} <= set(qobra.model.BlockCommitArguments.__annotations__)
    assert set(qobra.model.BlockJobReadyEvent.__annotations__) == {"type", "device", "len", "offset", "speed"}
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = qobra.model.Nope


def test_documentation_as_text(schema: Schema) -> None:
    text = render_text(schema, "blockdev-backup")
    assert "command blockdev-backup (since 2.3" in text
    for word in ("job-id?: str", "target: str", "x-perf?: BackupPerf", "[unstable]", "returns nothing"):
        assert word in text
    text = render_text(schema, "SocketAddressLegacy")
    assert "The type of 'data' by 'type':" in text and "inet: InetSocketAddress" in text
    assert "Further members by 'driver':" in render_text(schema, "blockdev-add")


def test_documentation_as_pages(schema: Schema) -> None:
    pages = {section: render_markdown(schema, section) for section in sections(schema)}
    index = render_index(schema)
    for definition in schema:
        assert f"## `{definition.name}`\n" in pages[definition.section]
    for command in schema.commands():
        anchor = f"command-{command.name}"
        assert f"[`{command.name}`]({command.section}.md#{anchor})" in index
        assert f'<a id="{anchor}">' in pages[command.section]
    links = {
        link
        for page in pages.values()
        for link in (part.split(")")[0] for part in page.split("`](")[1:])
        if not link.startswith("#")
    }
    for link in links:
        page, _, anchor = link.partition("#")
        assert f'<a id="{anchor}">' in pages[page.removesuffix(".md")], link
