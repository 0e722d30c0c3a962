"""What names of images mean."""

from __future__ import annotations

import json
import re

import pytest

from qobra.block.filename import flatten, full_backing_filename, parse_filename, unflatten
from qobra.block.layer import BlockLayer
from qobra.block.reopen import reopen
from qobra.block.typed_options import typed
from qobra.errors import QobraError


def test_a_path_with_a_colon_stays_a_path_when_it_is_told_again():
    options = parse_filename("file:image:top")
    assert options == {"driver": "file", "filename": "./image:top"}
    assert parse_filename(options["filename"])["filename"] == options["filename"]
    assert parse_filename("file:a/b:c") == {"driver": "file", "filename": "a/b:c"}


@pytest.mark.parametrize(
    "filename, options, merged",
    [
        (
            "a",
            {"driver": "raw", "file": {"driver": "qcow2", "lazy-refcounts": True}},
            {
                "driver": "raw",
                "file": {"driver": "qcow2", "lazy-refcounts": True, "file": {"driver": "file", "filename": "a"}},
            },
        ),
        (
            "blkdebug::a",
            {"driver": "blkdebug", "image": {"driver": "qcow2"}, "align": 4096},
            {
                "driver": "blkdebug",
                "image": {"driver": "qcow2", "file": {"driver": "file", "filename": "a"}},
                "align": 4096,
            },
        ),
        ("a", {"driver": "file", "aio": "threads"}, {"driver": "file", "filename": "a", "aio": "threads"}),
        ("a", {"file": {"cache": {}}}, {"file": {"driver": "file", "filename": "a", "cache": {}}}),
    ],
)
def test_a_name_is_for_the_protocol_at_the_bottom(filename, options, merged):
    assert BlockLayer().opener.image_options(filename, options) == merged


def test_options_given_as_text_are_shown_as_they_were_given():
    layer = BlockLayer()
    options = typed({"driver": "raw", "offset": "1k", "file": {"driver": "null-co", "size": "1M", "read-zeroes": "on"}})
    node = layer.open({**options, "node-name": "n"}, monitor_owned=True)
    assert node.filename == (
        'json:{"offset": "1k", "driver": "raw", "file": {"read-zeroes": "on", "driver": "null-co", "size": "1M"}}'
    )
    assert node.length == (1 << 20) - 1024
    file = {"driver": "null-co", "size": 1 << 20, "read-zeroes": True}
    reopen(layer, [{"driver": "raw", "node-name": "n", "offset": 512, "file": file}])
    assert node.filename == (
        'json:{"offset": 512, "driver": "raw", "file": {"read-zeroes": true, "driver": "null-co", "size": 1048576}}'
    )
    layer.close()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"driver": "qcow2", "file": 1}, 'A block device must be specified for "file"'),
        ({"driver": "qcow2", "file": {"filename": 1}}, "Must specify either driver or file"),
        ({"driver": "file", "filename": 1}, "The 'file' block driver requires a file name"),
        ({"driver": 1}, "Must specify either driver or file"),
        ({"driver": "file", "filename": "a", "locking": "x"}, "invalid parameter value: x"),
        ({"driver": "file", "filename": "a", "discard": "x"}, "Invalid discard option"),
        ({"driver": "file", "filename": "a", "force-share": 1}, "Parameter 'force-share' expects 'on' or 'off'"),
        ({"driver": "raw", "file": "f", "offset": 1.5}, "Parameter 'offset' expects a non-negative number"),
        ({"driver": "raw", "file": "f", "offset": "-1"}, "Parameter 'offset' expects a non-negative number"),
        ({"driver": "qcow2", "file": "f", "cache": 1}, "Block format 'qcow2' does not support the option 'cache'"),
        ({"driver": "raw", "file": "f", "x": {"y": 1}}, "Block format 'raw' does not support the option 'x.y'"),
        ({"driver": "null-co", "x": 1}, "Block protocol 'null-co' doesn't support the option 'x'"),
        (
            {"driver": "blkdebug", "image": "f", "x": {"y": 1}},
            "Block protocol 'blkdebug' doesn't support the option 'x.y'",
        ),
        ({"driver": "nbd", "server": {"type": "unix"}}, "Parameter 'path' is missing"),
        ({"driver": "qcow2", "filename": "a"}, 'A block device must be specified for "file"'),
        (
            {"driver": "qcow2", "file": "f", "overlap-check": {"x": "on"}},
            "Block format 'qcow2' does not support the option 'overlap-check.x'",
        ),
        (
            {"driver": "blkdebug", "image": "f", "inject-error": [{"event": "none", "x": "1"}]},
            "[inject-error] section doesn't support the option 'x'",
        ),
        ({"driver": "blkdebug", "image": "f", "set-state": [{"event": "x"}]}, "invalid parameter value: x"),
        ({"driver": "blkdebug", "image": "f", "inject-error": [{"errno": 5}]}, "Missing event name for rule"),
        (
            {"driver": "blkdebug", "image": "f", "inject-error": [{"event": "none", "errno": 1.5}]},
            "Invalid parameter type for 'errno', expected: string",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_apart(options, error):
    with pytest.raises(QobraError, match=re.escape(error)):
        typed(options)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"driver": "throttle"}, 'A block device must be specified for "file"'),
        ({"driver": "throttle", "file": {"driver": "null-co"}}, "Please specify a throttle group"),
        ({"driver": "copy-before-write", "target": {"driver": "null-co"}}, "Parameter 'file' is missing"),
        ({"driver": "copy-before-write", "file": {"driver": "null-co"}}, "Parameter 'target' is missing"),
    ],
)
def test_a_filter_in_a_text_says_what_it_lacks(options, error):
    layer = BlockLayer()
    with pytest.raises(QobraError, match=f"^{re.escape(error)}$"):
        layer.open(typed(options))
    assert not layer.graph.nodes


def test_a_rule_of_blkdebug_in_a_text_may_lack_its_new_state():
    rules = [{"event": "read_aio", "state": "1"}, {"event": "none", "new_state": 2}]
    options = typed({"driver": "blkdebug", "image": "f", "set-state": rules})
    assert options["set-state"] == [{"event": "read_aio", "state": 1}, {"event": "none", "new_state": 2}]


def test_a_name_tells_rules_of_blkdebug_as_they_were_given():
    """QEMU's names have "on" and "5" for what came as text, and no state that was not given."""
    layer = BlockLayer()
    text = {"event": "none", "once": "on", "errno": "0x5"}
    node = layer.open(
        typed(
            {
                "driver": "blkdebug",
                "image": {"driver": "null-co"},
                "inject-error": [text, {"event": "none", "once": True, "errno": 5}],
                "set-state": {"0": {"event": "none"}, "1": {"event": "none", "new_state": "3"}},
            }
        )
    )
    assert flatten(json.loads(node.filename.removeprefix("json:"))) == {
        "driver": "blkdebug",
        "image.driver": "null-co",
        "inject-error.0.event": "none",
        "inject-error.0.once": "on",
        "inject-error.0.errno": "0x5",
        "inject-error.1.event": "none",
        "inject-error.1.once": True,
        "inject-error.1.errno": 5,
        "set-state.0.event": "none",
        "set-state.1.event": "none",
        "set-state.1.new_state": "3",
    }


@pytest.mark.parametrize("backing", ["x", {"driver": "file"}, {"file": {"filename": "x"}}])
def test_backing_files_are_for_drivers_that_have_them(backing):
    layer = BlockLayer()
    for driver in ("raw", "copy-on-read"):
        with pytest.raises(QobraError, match="^Driver doesn't support backing files$"):
            layer.open(typed({"driver": driver, "file": {"driver": "null-co"}, "backing": backing}))
    assert not layer.graph.nodes
    layer.open(typed({"driver": "raw", "file": {"driver": "null-co"}, "backing": None}))
    layer.close()


def test_a_child_with_a_name_alone_may_be_a_device():
    assert typed({"driver": "raw", "file": {"filename": "/dev/null"}})["file"]["driver"] == "host_device"
    assert typed({"driver": "raw", "file": {"filename": "/"}})["file"]["driver"] == "file"


def test_a_quorum_in_a_text_may_lack_its_threshold():
    layer = BlockLayer()
    with pytest.raises(QobraError, match="^Parameter 'vote-threshold' expects a value >= 1$"):
        layer.open(typed({"driver": "quorum", "children": {"0": {"driver": "null-co"}}}))
    layer.close()


def test_numbers_and_switches_stand_for_texts():
    assert typed({"driver": "file", "filename": "a", "node-name": 1, "discard": True}) == {
        "driver": "file",
        "filename": "a",
        "node-name": "1",
        "discard": "unmap",
    }


def test_a_child_has_a_name_or_options():
    for options in ({"file.filename": "a", "file": "b"}, {"file": "b", "file.filename": "a"}):
        with pytest.raises(QobraError, match="Cannot reference an existing block device"):
            unflatten(options)


@pytest.mark.parametrize(
    ("options", "nested"),
    [
        ({"a": ["x"], "a.1": "y"}, {"a": {"0": "x", "1": "y"}}),
        ({"a.0.p": 1, "a": [{"q.r": 2}]}, {"a": {"0": {"p": 1, "q": {"r": 2}}}}),
        ({"a": [{"p": 1}], "a.0.p": 2}, {"a": {"0": {"p": 1}}}),
        ({"a": {"b": 1}, "a.b": 2}, {"a": {"b": 1}}),
        ({"a.b": 2, "a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a.b": {"c": 1}, "a": {"b": {"d": 2}}}, {"a": {"b": {"c": 1, "d": 2}}}),
    ],
)
def test_objects_and_lists_go_with_dotted_keys_and_count_before_them(options, nested):
    assert unflatten(options) == nested


def test_a_list_of_rules_with_a_gap_is_refused_by_what_comes_after_it():
    rules = {"inject-error": [{"event": "read_aio"}], "inject-error.2.event": "write_aio"}
    with pytest.raises(QobraError, match=re.escape("Unused option '2.event' for [inject-error]")):
        typed(unflatten({"driver": "blkdebug", "image": "a", **rules}))
    with pytest.raises(QobraError, match=re.escape("does not support the option 'size.0'")):
        typed({"driver": "raw", "file": "a", "size": [1]})


def test_what_a_tool_adds_to_options_is_not_part_of_a_name():
    layer = BlockLayer()
    node = layer.open({"driver": "copy-on-read", "file": {"driver": "null-co"}, "_no-io": True})
    assert "_no-io" not in node.filename
    layer.close()


def test_options_of_a_window_must_be_sizes():
    layer = BlockLayer()
    with pytest.raises(QobraError, match="Parameter 'offset' expects"):
        layer.open({"driver": "raw", "file": {"driver": "null-co"}, "offset": -1})
    layer.close()


def test_overlap_checks_as_a_text_beside_members():
    both = {"overlap-check": "all", "overlap-check.main-header": "off"}
    for options in (both, dict(reversed(both.items()))):
        assert unflatten(options) == {"overlap-check": {"template": "all", "main-header": "off"}}
    same = {"overlap-check": "all", "overlap-check.template": "all"}
    assert unflatten(same) == {"overlap-check": {"template": "all"}}
    conflict = {"overlap-check": "all", "overlap-check.template": "none"}
    for options in (conflict, dict(reversed(conflict.items()))):
        text = "Conflicting values for qcow2 options 'overlap-check' ('all') and 'overlap-check.template' ('none')"
        with pytest.raises(QobraError) as caught:
            unflatten(options)
        assert caught.value.desc == text


@pytest.mark.parametrize("filename", ["nbd+foo://x", "nbd+foo:x", "file+x:y", "quorum:x", "raw:x", "what:x"])
def test_protocols_are_what_a_driver_says_its_names_begin_with(filename):
    with pytest.raises(QobraError, match=re.escape(f"Unknown protocol '{filename.partition(':')[0]}'")):
        parse_filename(filename)


def test_where_there_is_no_directory_a_backing_file_has_to_be_named_in_full():
    layer = BlockLayer()
    node = layer.open(
        {"driver": "raw", "file": {"driver": "null-co", "size": 512}, "node-name": "n"}, monitor_owned=True
    )
    for name in ("", "/images/base", "nbd://host/base"):
        node.backing_filename = name
        assert full_backing_filename(node) == name
    node.backing_filename = "base"
    with pytest.raises(QobraError, match="Cannot generate a base directory for null-co nodes"):
        full_backing_filename(node)
    layer.close()
