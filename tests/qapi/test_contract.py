"""Checks of values against types, in QEMU's words (5.2's where they differ from 7.2's)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import COMMAND_NOT_FOUND, QobraError
from qobra.qapi.contract import Contract, contract

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("query-block", {}),
    ("block-commit", {"device": "d", "speed": 5, "auto-dismiss": False}),
    ("blockdev-add", {"driver": "qcow2", "file": {"driver": "file", "filename": "a"}, "backing": None}),
    ("blockdev-add", {"driver": "raw", "file": "node0", "size": -(2**63)}),
    ("blockdev-add", {"driver": "null-co", "latency-ns": 2**64 - 1}),
    ("blockdev-add", {"driver": "null-co", "latency-ns": -1}),
    ("transaction", {"actions": [{"type": "abort", "data": {}}]}),
    ("migrate-set-parameters", {"tls-creds": None}),
    ("migrate_set_downtime", {"value": 1}),
    ("migrate_set_downtime", {"value": 1.5}),
    ("device_add", {"driver": "virtio-blk", "bus": "pci.0", "anything": [1, {"x": None}]}),
    ("object-add", {"qom-type": "secret", "id": "s", "data": "x"}),
    ("qom-set", {"path": "/x", "property": "y", "value": {"any": ["thing", 1.5]}}),
    ("send-key", {"keys": [{"type": "number", "data": 3}, {"type": "qcode", "data": "ret"}]}),
    ("block-dirty-bitmap-merge", {"node": "n", "target": "t", "bitmaps": ["a", {"node": "m", "name": "b"}]}),
]

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("query-block", {"a": 1}, "Parameter 'a' is unexpected"),
    ("blockdev-add", {}, "Parameter 'driver' is missing"),
    ("blockdev-add", {"driver": 1}, "Invalid parameter type for 'driver', expected: string"),
    ("blockdev-add", {"driver": "zz"}, "Invalid parameter 'zz'"),
    ("blockdev-add", {"driver": "100%s"}, "Invalid parameter '100%s'"),
    ("blockdev-add", {"driver": "file"}, "Parameter 'filename' is missing"),
    ("blockdev-add", {"driver": "file", "filename": "a", "zz": 1}, "Parameter 'zz' is unexpected"),
    ("blockdev-add", {"driver": "file", "filename": "a", "%s": 1}, "Parameter '%s' is unexpected"),
    ("blockdev-add", {"driver": "file", "filename": None}, "Invalid parameter type for 'filename', expected: string"),
    (
        "blockdev-add",
        {"driver": "file", "filename": "a", "cache": {"direct": 1}},
        "Invalid parameter type for 'cache.direct', expected: boolean",
    ),
    ("blockdev-add", {"driver": "file", "filename": "a", "cache": {"z": 1}}, "Parameter 'cache.z' is unexpected"),
    ("blockdev-add", {"driver": "file", "cache": 3}, "Invalid parameter type for 'cache', expected: object"),
    ("blockdev-add", {"driver": "raw", "file": 3}, "Invalid parameter type for 'file', expected: BlockdevRef"),
    ("blockdev-add", {"driver": "raw", "file": {"driver": "file"}}, "Parameter 'file.filename' is missing"),
    (
        "blockdev-add",
        {"driver": "raw", "file": {"driver": "raw", "file": None}},
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    (
        "blockdev-add",
        {"driver": "quorum", "vote-threshold": 1, "children": ["a", {"driver": "file"}]},
        "Parameter 'children[1].filename' is missing",
    ),
    (
        "blockdev-add",
        {"driver": "quorum", "vote-threshold": 1, "children": "a"},
        "Invalid parameter type for 'children', expected: array",
    ),
    (
        "blockdev-add",
        {"driver": "quorum", "vote-threshold": 1, "children": [3]},
        "Invalid parameter type for 'null', expected: BlockdevRef",
    ),
    ("block_resize", {"size": 1.0}, "Invalid parameter type for 'size', expected: integer"),
    ("block_resize", {"size": 2**63}, "Invalid parameter type for 'size', expected: integer"),
    ("block_resize", {"size": True}, "Invalid parameter type for 'size', expected: integer"),
    ("blockdev-add", {"driver": "null-co", "latency-ns": "a"}, "Parameter 'latency-ns' expects uint64"),
    ("blockdev-add", {"driver": "null-co", "latency-ns": 2**64}, "Parameter 'latency-ns' expects uint64"),
    ("block-dirty-bitmap-add", {"node": "a", "name": "b", "granularity": -1},
     "Parameter 'granularity' expects uint32_t"),
    (
        "transaction",
        {"actions": [{"type": "block-dirty-bitmap-add", "data": {"node": "a", "name": "b", "granularity": 2**32}}]},
        "Parameter 'granularity' expects uint32_t",
    ),
    ("transaction", {"actions": [{"type": "abort"}]}, "Parameter 'actions[0].data' is missing"),
    ("transaction", {"actions": [{"type": "abort", "data": {"x": 1}}]}, "Parameter 'actions[0].data.x' is unexpected"),
    ("transaction", {"actions": [{"type": "zz", "data": {}}]}, "Invalid parameter 'zz'"),
    ("blockdev-create", {"job-id": "a", "options": {"driver": "qcow2", "file": "x", "size": "1M"}},
     "Parameter 'options.size' expects uint64"),
    ("block-latency-histogram-set", {"id": "a", "boundaries": [1, "x"]}, "Parameter 'boundaries[1]' expects uint64"),
    ("set-numa-node", {"type": "node", "cpus": [70000]}, "Parameter 'null' expects uint16_t"),
    ("migrate-set-parameters", {"tls-creds": 4}, "Invalid parameter type for 'tls-creds', expected: StrOrNull"),
    ("migrate_set_downtime", {"value": "1"}, "Invalid parameter type for 'value', expected: number"),
    ("qom-set", {"path": "a", "property": "b"}, "Parameter 'value' is missing"),
    ("device_add", {"bus": "x"}, "Parameter 'driver' is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "arguments"), GOOD)
def test_what_fits_is_returned_as_it_is(command: str, arguments: dict[str, Any]) -> None:
    assert contract().check_arguments(command, arguments) is arguments


@pytest.mark.parametrize(("command", "arguments", "text"), BAD)
def test_what_does_not_fit_is_refused_in_qemus_words(command: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        contract().check_arguments(command, arguments)
    assert caught.value.desc == text
    assert caught.value.error_class == "GenericError"


def test_an_unknown_command() -> None:
    with pytest.raises(QobraError, match="The command nope has not been found") as caught:
        contract().check_arguments("nope", {})
    assert caught.value.error_class == COMMAND_NOT_FOUND


def test_a_type_is_checked_below_a_path() -> None:
    with pytest.raises(QobraError, match=r"^Parameter 'export\.addr\.path' is missing$"):
        contract().check("SocketAddress", {"type": "unix"}, path="export.addr")
    assert contract().check("[uint8]", [0, 255]) == [0, 255]


def test_what_the_commands_declare() -> None:
    commands = contract().commands
    assert (commands["query-block"].ret_type, commands["query-block"].section) == ("[BlockInfo]", "block-info")
    assert commands["migrate-pause"].oob and not commands["stop"].oob
    assert commands["query-status"].allow_preconfig and not commands["cont"].allow_preconfig
    assert commands["change"].deprecated and not commands["eject"].deprecated
    assert commands["device_add"].open_arguments and not commands["netdev_add"].open_arguments
    assert commands["stop"].arg_type == "q_empty"
    assert commands["human-monitor-command"].features == ["savevm-monitor-nodes"]


def test_every_type_has_a_checker() -> None:
    for name in contract().types:
        with pytest.raises(QobraError):
            contract().check(name, object())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["file", "raw", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["driver", "file", "filename", "type", "data", "x"]), inner, max_size=4)
    ),
)


@given(st.sampled_from(sorted(contract().commands)), st.dictionaries(st.text(max_size=3), _JSON, max_size=4), _JSON)
def test_garbage_is_refused_and_never_more(command: str, arguments: dict[str, Any], value: Any) -> None:
    try:
        contract().check_arguments(command, {**arguments, **(value if isinstance(value, dict) else {})})
    except QobraError as error:
        assert error.desc


def test_recursive_data_is_bounded_by_the_reader_and_checked_to_its_end() -> None:
    options: dict[str, Any] = {"driver": "file"}
    for _ in range(100):
        options = {"driver": "raw", "file": options}
    with pytest.raises(QobraError, match=r"^Parameter '(file\.){100}filename' is missing$"):
        contract().check("BlockdevOptions", options)


def test_a_contract_of_another_schema() -> None:
    other = Contract({"Kind": "e a b", "U": "u k k:Kind | a=A", "A": "o ?n:uint8"}, {"do": "s U - -"}, {}, {})
    assert other.check_arguments("do", {"k": "a", "n": 3})
    assert other.check_arguments("do", {"k": "b"})
    with pytest.raises(QobraError, match="Parameter 'n' is unexpected"):
        other.check_arguments("do", {"k": "b", "n": 3})


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_integers_have_the_width_that_they_are_declared_with(width: int) -> None:
    other = Contract({"A": f"o ?s:int{width} ?u:uint{width}"}, {"do": "s A - -"}, {}, {})
    most = 2**width - 1
    good = [("s", -(2 ** (width - 1))), ("s", 2 ** (width - 1) - 1), ("u", 0), ("u", most)]
    bad = [("s", -(2 ** (width - 1)) - 1), ("s", 2 ** (width - 1)), ("u", most + 1)]
    if width < 64:
        bad.append(("u", -1))  # as QEMU has it, 64 bits may be written either way
    for name, value in good:
        assert other.check_arguments("do", {name: value}) == {name: value}
        assert other.check("A", {name: str(value)}, keyval=True) == {name: value}
    for name, value in bad:
        with pytest.raises(QobraError, match=f"'{name}'.*expect"):
            other.check_arguments("do", {name: value})
        with pytest.raises(QobraError, match=f"Parameter '{name}' expects"):
            other.check("A", {name: str(value)}, keyval=True)


def test_values_of_odd_types_given_as_text() -> None:
    other = Contract({"A": "o ?f:number ?z:null ?a:any ?l:[A] ?t:str"}, {"do": "s A - -"}, {}, {})

    def checked(**values: Any) -> Any:
        return other.check("A", values, keyval=True)

    assert checked(f="-1.5e3", z="", a={"x": "y"}, l=[{"t": "1"}]) == {
        "f": -1500.0,
        "z": None,
        "a": {"x": "y"},
        "l": [{"t": "1"}],
    }
    for value in ("x", "", "nan", "inf", "-inf", "1e999"):
        with pytest.raises(QobraError, match="Parameter 'f' expects number"):
            checked(f=value)
    with pytest.raises(QobraError, match="Invalid parameter type for 'z', expected: null"):
        checked(z="0")
    with pytest.raises(QobraError, match=r"Parameters 't\.\*' are unexpected"):
        checked(t={"x": "1"})
    with pytest.raises(QobraError, match="Invalid parameter type for 'l', expected: array"):
        checked(l="x")


def test_the_import_is_light() -> None:
    """The contract is on the way to a server's first breath: nothing heavy may come with it."""
    heavy = {"json", "asyncio", "logging", "argparse", "dataclasses", "inspect", "qobra.qapi.schema"}
    code = (
        "import sys; before = set(sys.modules); from qobra.qapi.contract import contract;"
        "contract().check_arguments('job-pause', {'id': 'x'});"
        "print(*sorted((set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=_path())
    assert heavy & set(run.stdout.split()) == set()


def _path() -> dict[str, str]:
    import qobra

    return {"PYTHONPATH": qobra.__path__[0].removesuffix("/qobra")}
