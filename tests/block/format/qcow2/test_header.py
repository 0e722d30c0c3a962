"""The header: what is taken from it, what is refused and in which words, and that it survives being written."""

from __future__ import annotations

import struct

import pytest

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.header import Header, parse_header
from qobra.errors import QobraError


def _header(**fields):
    header = Header()
    header.l1_entries, header.l1_offset = 1, 3 << 16
    header.reftable_offset, header.reftable_clusters = 1 << 16, 1
    header.size = 1 << 20
    for name, value in fields.items():
        setattr(header, name, value)
    return header


def _parse(data):
    return parse_header(lambda offset, length: data[offset : offset + length].ljust(length, b"\0"))


def test_all_that_is_known_survives():
    header = _header(backing_file="base.img", backing_format="raw", refcount_order=3, compression=1)
    header.incompatible = layout.COMPRESSION | layout.EXTENDED_L2
    header.compatible = layout.LAZY_REFCOUNTS
    header.autoclear = layout.BITMAPS_VALID
    header.bitmaps = (2, 5 << 16, 64)
    header.snapshot_count, header.snapshot_offset = 1, 7 << 16
    found = _parse(header.pack())
    for name, value in vars(header).items():
        if name != "feature_names":
            assert getattr(found, name) == value, name
    assert found.feature_names[0, 4] == "extended L2 entries"
    assert found.pack() == header.pack()


def test_what_is_not_known_survives_too():
    header = _header(unknown_fields=b"future??")
    header.unknown_extensions = [(0x12345678, b"odd length!")]
    found = _parse(header.pack())
    assert found.unknown_fields == b"future??" and found.unknown_extensions == [(0x12345678, b"odd length!")]


def test_version_2_ends_after_72_bytes():
    data = _header(version=2, backing_file="b").pack()
    assert data[72:80] == bytes(8) and data[80:81] == b"b"
    assert _parse(data).refcount_order == 4


def _patched(at, form, *values):
    data = bytearray(_header().pack())
    struct.pack_into(form, data, at, *values)
    return bytes(data)


REFUSED = [
    (0, ">I", (0,), "Image is not in qcow2 format"),
    (4, ">I", (4,), "Unsupported qcow2 version 4"),
    (20, ">I", (8,), "Unsupported cluster size: 2^8"),
    (20, ">I", (22,), "Unsupported cluster size: 2^22"),
    (100, ">I", (96,), "qcow2 header too short"),
    (100, ">I", (1 << 17,), "qcow2 header exceeds cluster size"),
    (8, ">Q", (1 << 20,), "Invalid backing file offset"),
    (8, ">QI", (1 << 15, 1024), "Backing file name too long"),
    (32, ">I", (3,), "Unsupported encryption method 3"),
    (32, ">I", (0xFFFFFFFF,), "Unsupported encryption method -1"),
    (32, ">II", (3, 0xFFFFFFFF), "Active L1 table too large"),
    (36, ">I", (0xFFFFFFFF,), "Active L1 table too large"),
    (36, ">I", (0,), "L1 table is too small"),
    (40, ">Q", (513,), "Active L1 table offset invalid"),
    (40, ">Q", (0xFFFFFFFFFFFF0000,), "Active L1 table offset invalid"),
    (48, ">Q", (513,), "Reference count table offset invalid"),
    (56, ">I", (0xFFFFFFFF,), "Reference count table too large"),
    (60, ">I", (65537,), "Snapshot table too large"),
    (60, ">IQ", (1, 512), "Snapshot table offset invalid"),
    (96, ">I", (7,), "Reference count entry width too large; may not exceed 64 bits"),
    (104, ">B", (1,), "qcow2: Compression type incompatible feature bit must be set"),
    (104, ">B", (7,), "qcow2: unknown compression type: 7"),
    (72, ">Q", (1 << 40 | layout.COMPRESSION,), "qcow2: Compression type incompatible feature bit must not be set"),
    (
        72,
        ">Q",
        (1 << 40,),
        "Unsupported qcow2 feature(s): Unknown incompatible feature: 10000000000",
    ),
    (112, ">II", (layout.EXT_FEATURE_NAMES, 1 << 30), "Header extension too large"),
    (112, ">II", (layout.EXT_BITMAPS, 3), "bitmaps_ext: Invalid extension length"),
]


@pytest.mark.parametrize(("at", "form", "values", "text"), REFUSED, ids=[each[3] for each in REFUSED])
def test_refusals(at, form, values, text):
    with pytest.raises(QobraError) as error:
        _parse(_patched(at, form, *values))
    assert str(error.value) == text


def test_an_unknown_feature_is_called_by_its_name():
    data = bytearray(_header(incompatible=1 << 6 | 1 << 9).pack())
    # The first entry of the name table becomes that of incompatible bit 6.
    struct.pack_into(">BB46s", data, 112 + 8, 0, 6, b"time travel")
    with pytest.raises(QobraError) as error:
        _parse(bytes(data))
    assert str(error.value) == "Unsupported qcow2 feature(s): time travel, Unknown incompatible feature: 200"


def test_a_header_that_does_not_fit_is_refused():
    header = _header(cluster_bits=9, backing_file="x" * 500)
    with pytest.raises(QobraError, match="does not fit"):
        header.pack()


def test_stale_bitmaps_are_not_taken():
    header = _header()
    header.bitmaps = (1, 5 << 16, 32)
    found = _parse(header.pack())
    assert found.bitmaps is None and found.stale_bitmaps


def test_a_name_of_a_feature_that_is_cut_short_counts():
    header = _header(incompatible=3 << 60)
    data = header.pack()
    names = b"\x00\x3cfirst\0".ljust(48, b" ") + b"\x00\x3dlast"
    data = data[: layout.FULL_LENGTH] + struct.pack(">II", layout.EXT_FEATURE_NAMES, len(names)) + names
    with pytest.raises(QobraError, match=r"Unsupported qcow2 feature\(s\): first, last$"):
        _parse(data)


def test_more_guest_data_than_any_table_can_index():
    with pytest.raises(QobraError, match="Image is too big"):
        _parse(_header(size=1 << 61).pack())
