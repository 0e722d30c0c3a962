"""What names of images mean."""

from __future__ import annotations

import pytest

from qobra.block.filename import parse_filename
from qobra.block.layer import BlockLayer


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
