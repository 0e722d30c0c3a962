"""What names of images mean."""

from __future__ import annotations

import pytest

from qobra.block.filename import parse_filename
from qobra.block.layer import BlockLayer
from qobra.block.reopen import reopen
from qobra.block.typed_options import typed


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
