"""Filters and drivers that stand between a user and an image."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from qobra.block import change_children, permissions
from qobra.block.backend import BlockBackend
from qobra.block.extents import read_run, resolve
from qobra.block.filter.placing import insert_filter
from qobra.block.layer import BlockLayer
from qobra.block.typed_options import typed
from qobra.errors import QobraError
from qobra.testing.images import ImageLab

SIZE = 1 << 20


@pytest.fixture
def events():
    return []


@pytest.fixture
def layer(events):
    made = BlockLayer(emit=lambda name, data: events.append((name, data)))
    yield made
    made.close()


@pytest.fixture
def make_file(tmp_path):
    def make(name: str, fill: bytes = b"") -> dict:
        path = tmp_path / name
        with open(path, "wb") as file:
            file.write(fill)
            file.truncate(SIZE)
        return {"driver": "file", "filename": str(path)}

    return make


def _enter(layer, node):
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(node)
    return backend


# -- blkdebug ---------------------------------------------------------------------------------------------------


def test_blkdebug_fails_the_requests_it_is_told_to(layer, make_file):
    node = layer.add_node(
        {
            "driver": "blkdebug",
            "node-name": "d",
            "image": make_file("a"),
            "inject-error": [
                {"event": "none", "iotype": "write", "errno": errno.ENOSPC, "sector": 8, "once": True},
                {"event": "none", "iotype": "read", "sector": 100},
            ],
        }
    )
    backend = _enter(layer, node)
    backend.write(0, bytes(4096))
    with pytest.raises(OSError) as error:
        backend.write(4096, bytes(512))
    assert error.value.errno == errno.ENOSPC
    backend.write(4096, bytes(512))  # once
    with pytest.raises(OSError) as error:
        backend.read(0, SIZE)
    assert error.value.errno == errno.EIO
    assert backend.read(0, 51200) == bytes(51200)
    backend.remove()


def test_blkdebug_zeroes_whole_units_only(layer, make_file):
    node = layer.add_node({"driver": "blkdebug", "node-name": "d", "image": make_file("a"), "opt-write-zero": 8192})
    backend = _enter(layer, node)
    backend.write(0, b"x" * 32768)
    with pytest.raises(OSError):
        node.write_zeroes(4096, 4096, no_fallback=True)
    backend.write_zeroes(4096, 16384)
    assert backend.read(0, 32768) == b"x" * 4096 + bytes(16384) + b"x" * 12288
    backend.remove()


def test_blkdebug_states_decide_when_an_event_counts(layer, make_file):
    node = layer.add_node(
        {
            "driver": "blkdebug",
            "node-name": "d",
            "image": make_file("a"),
            "set-state": [{"event": "l2_load", "state": 1, "new_state": 2}],
            "inject-error": [{"event": "l2_update", "state": 2}],
        }
    )
    backend = _enter(layer, node)
    node.debug_event("l2_update")
    backend.read(0, 512)
    node.debug_event("l2_load")
    backend.read(0, 512)
    node.debug_event("l2_update")
    with pytest.raises(OSError):
        backend.read(0, 512)
    backend.remove()


def test_blkdebug_hears_of_flushes_and_of_reads_that_a_copy_resolved(layer, tmp_path):
    path = ImageLab(tmp_path).create("a", size=SIZE)
    node = layer.add_node(
        {
            "driver": "qcow2",
            "node-name": "q",
            "file": {
                "driver": "blkdebug",
                "image": {"driver": "file", "filename": path},
                "set-state": [{"event": "flush_to_disk", "state": 1, "new_state": 2}],
                "inject-error": [{"event": "read_aio", "state": 2, "once": True}],
            },
        }
    )
    backend = _enter(layer, node)
    backend.write(0, b"x" * 65536)
    backend.read(0, 512)
    backend.flush()
    view = memoryview(bytearray(512))
    (run,) = resolve(node, 0, 512)
    with pytest.raises(OSError):
        read_run(run, 0, view)
    read_run(run, 0, view)
    assert view == b"x" * 512
    backend.remove()


def test_blkdebug_reads_rules_from_a_file(layer, make_file, tmp_path):
    config = tmp_path / "rules"
    config.write_text('[inject-error]\nevent = "none"\niotype = "flush"\nerrno = "28"\nonce = "on"\n')
    node = layer.open_image(f"blkdebug:{config}:{make_file('a')['filename']}", {"node-name": "d"}, monitor_owned=True)
    assert node.file.driver == "blkdebug"
    with pytest.raises(OSError) as error:
        node.flush()
    assert error.value.errno == errno.ENOSPC
    node.flush()
    config.write_text("rubbish\n")
    with pytest.raises(QobraError, match="no group defined"):
        layer.open_image(f"blkdebug:{config}:{make_file('b')['filename']}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (' \n[inject-error]\nevent = "none"\n', "parse error"),
        ("[nope]\n", "There is no option group 'nope'"),
        ('[inject-error "9"]\n', "Parameter 'id' expects an identifier"),
        ('[set-state "a"]\n[set-state "a"\n', "Duplicate ID 'a' for set-state"),
        ('[inject-error]\nevent="none"\n', "Invalid parameter 'event=\"none\"'"),
        ('[inject-error]\nerrno = "5"\n', "Missing event name for rule"),
        ('[inject-error]\nevent = "none\n', "invalid parameter value: none\n"),
        ('[inject-error]\nevent = "none"\niotype = "seek"\n', "invalid parameter value: seek"),
        ('[inject-error]\nevent = "none"\nonce = "1"\n', "Parameter 'once' expects 'on' or 'off'"),
        ('[set-state]\nevent = "none"\nstate = "1k"\n', "Parameter 'state' expects a number"),
        ('[set-state]\nstate = "99999999999999999999"\n', "Value '99999999999999999999' is too large for"),
    ],
)
def test_blkdebug_says_what_is_wrong_with_a_config_file(layer, make_file, tmp_path, text, told):
    config = tmp_path / "rules"
    config.write_text(text)
    with pytest.raises(QobraError) as failure:
        layer.open_image(f"blkdebug:{config}:{make_file('a')['filename']}")
    assert str(failure.value).startswith(told)


def test_blkdebug_holds_a_request_at_a_breakpoint(layer, make_file):
    node = layer.add_node({"driver": "blkdebug", "node-name": "d", "image": make_file("a")})
    node.set_breakpoint("write_aio", "tag")
    thread = threading.Thread(target=node.debug_event, args=("write_aio",))
    thread.start()
    node.wait_suspended("tag")
    node.debug_event("write_aio")  # a breakpoint is for one request
    assert node.is_suspended("tag") and node.resume("tag") and not node.resume("tag")
    thread.join(10)
    assert not thread.is_alive()


def test_blkdebug_fills_unaligned_writes_up(layer, make_file):
    node = layer.add_node({"driver": "blkdebug", "node-name": "d", "image": make_file("a", b"o" * SIZE), "align": 4096})
    backend = _enter(layer, node)
    seen = []
    put = type(node)._write_whole
    told = []
    node.debug_event = told.append
    node._write_whole = lambda offset, data: (seen.append((offset, len(data))), put(node, offset, data))
    whole = bytearray(b"o" * SIZE)
    for offset, length, events in (
        (512, 512, ["head", "tail", "after_head", "after_tail"]),
        (4096, 8192, []),
        (4096, 100, ["tail", "after_tail"]),
        (5000, 8192 - 904, ["head", "after_head"]),
        (5000, 8192, ["head", "after_head", "tail", "after_tail"]),
        (6000, 4096, ["head", "tail", "after_head", "after_tail"]),
    ):
        told.clear()
        backend.write(offset, b"n" * length)
        whole[offset : offset + length] = b"n" * length
        assert told == [f"pwritev_rmw_{name}" for name in events] + ["pwritev", "pwritev_done"]
    assert seen == [(0, 4096), (4096, 8192), (4096, 4096), (4096, 8192), (4096, 12288), (4096, 8192)]
    del node.debug_event
    assert backend.read(0, SIZE) == bytes(whole)


def test_blkdebug_has_writes_that_share_a_block_one_after_another(layer, make_file):
    node = layer.add_node({"driver": "blkdebug", "node-name": "d", "image": make_file("a"), "align": 4096})
    backend = _enter(layer, node)
    node.set_breakpoint("pwritev_rmw_after_head", "held")
    first = threading.Thread(target=backend.write, args=(512, b"1" * 512))
    first.start()
    node.wait_suspended("held")
    second = threading.Thread(target=backend.write, args=(1024, b"2" * 512))
    second.start()
    backend.write(8192, b"3")  # in nobody's way
    second.join(0.02)
    assert second.is_alive()
    node.resume("held")
    first.join(10)
    second.join(10)
    assert backend.read(0, 2048) == bytes(512) + b"1" * 512 + b"2" * 512 + bytes(512)


@pytest.mark.parametrize(
    "name", ["align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"]
)
def test_limits_below_zero(layer, name):
    layer.add_node({"driver": "null-co", "node-name": "n", "size": 1 << 20})
    with pytest.raises(QobraError, match=f"Parameter '{name}' expects a non-negative number below"):
        layer.add_node({"driver": "blkdebug", "node-name": "b", "image": "n", name: -1})


@pytest.mark.parametrize(
    "options",
    [
        {"align": 3},
        {"align": 512, "max-transfer": 100},
        {"align": 1 << 31},
        {"max-discard": (1 << 31) - 1},
        {"opt-write-zero": (1 << 31) - 1},
    ],
)
def test_blkdebug_refuses_limits_that_do_not_fit(layer, make_file, options):
    with pytest.raises(QobraError, match="Cannot meet constraints with"):
        layer.add_node({"driver": "blkdebug", "node-name": "d", "image": make_file("a"), **options})


# -- copy-on-read -----------------------------------------------------------------------------------------------


def test_copy_on_read_leaves_an_image_without_a_backing_file_alone(layer, make_file):
    node = layer.add_node({"driver": "copy-on-read", "node-name": "c", "file": make_file("a", b"x" * 100)})
    backend = _enter(layer, node)
    assert backend.read(50, 100) == b"x" * 50 + bytes(50)
    backend.remove()


@pytest.mark.parametrize("bottom", [None, "base"])
def test_copy_on_read_holds_what_nobody_holds_unless_it_has_a_bottom(layer, tmp_path, bottom):
    from qobra.block.extents import resolve
    from qobra.cli import img

    options = None
    for name in ("base", "top"):
        img.main(["create", "-q", "-f", "qcow2", str(tmp_path / name), "1M"])
        options = {"driver": "qcow2", "node-name": name, "backing": options,
                   "file": {"driver": "file", "filename": str(tmp_path / name)}}  # fmt: skip
    more = {"bottom": bottom} if bottom else {}
    backend = _enter(layer, layer.add_node({"driver": "copy-on-read", "node-name": "c", "file": options, **more}))
    assert backend.read(70000, 2) == bytes(2)
    depths = [(run.length, run.depth) for run in resolve(layer.find_node("top"), 0, 1 << 20)]
    assert depths == ([(1 << 20, -1)] if bottom else [(65536, -1), (65536, 0), (14 * 65536, -1)])
    backend.remove()


def test_copy_on_read_copies_down_to_a_bottom_that_is_opened_with_it(layer, tmp_path):
    from qobra.cli import img

    paths = [str(tmp_path / name) for name in ("base", "mid", "top")]
    for path, backing in zip(paths, (None, *paths), strict=False):
        more = ["-b", backing, "-F", "qcow2"] if backing else ["1M"]
        img.main(["create", "-q", "-f", "qcow2", path, *more])
    options = None
    for path in paths:
        name = path.rpartition("/")[2]
        options = {"driver": "qcow2", "node-name": name, "backing": options,
                   "file": {"driver": "file", "filename": path}}  # fmt: skip
    node = layer.add_node({"driver": "copy-on-read", "node-name": "c", "bottom": "mid", "file": options})
    backend = _enter(layer, node)
    assert node.base is layer.find_node("base")
    backend.remove()


# -- quorum -----------------------------------------------------------------------------------------------------


def _quorum(layer, make_file, fills, threshold=2, **options):
    return layer.add_node(
        {
            "driver": "quorum",
            "node-name": "q",
            "vote-threshold": threshold,
            "children": [make_file(f"child{index}", fill) for index, fill in enumerate(fills)],
            **options,
        }
    )


def test_quorum_votes_and_reports_who_was_wrong(layer, make_file, events):
    node = _quorum(layer, make_file, [b"right", b"wrong", b"right"])
    backend = _enter(layer, node)
    assert backend.read(0, 5) == b"right"
    with layer.control:
        pass
    bad = node.children["children.1"].node_name
    assert events == [("QUORUM_REPORT_BAD", {"type": "read", "node-name": bad, "sector-num": 0, "sectors-count": 1})]
    backend.remove()


def test_of_a_quorum_is_zero_what_all_children_say_is_zero(layer, make_file):
    from qobra.block.extents import ZERO

    node = _quorum(layer, make_file, [b"", b"", b""])
    for number, (start, length) in enumerate([(1, 1), (1, 3), (2, 4)]):
        path = node.children[f"children.{number}"].filename
        with open(path, "r+b") as file:
            file.seek(start * 65536)
            file.write(b"x" * length * 65536)
            file.truncate(8 * 65536)
        node.children[f"children.{number}"].length = 8 * 65536
    extents = node.map(0, 8 * 65536)
    assert [(each.length // 65536, each.kind == ZERO) for each in extents] == [
        (1, True), (1, False), (2, False), (2, False), (2, True)
    ]  # fmt: skip


def test_quorum_mends_what_was_outvoted(layer, make_file):
    node = _quorum(layer, make_file, [b"right", b"wrong", b"right"], **{"rewrite-corrupted": True})
    backend = _enter(layer, node)
    backend.read(0, 5)
    assert node.children["children.1"].read(0, 5) == b"right"
    backend.remove()


def test_quorum_without_a_majority_fails(layer, make_file, events):
    node = _quorum(layer, make_file, [b"a", b"b", b"c"])
    backend = _enter(layer, node)
    with pytest.raises(OSError):
        backend.read(0, 1)
    with layer.control:
        pass
    assert ("QUORUM_FAILURE", {"reference": "q", "sector-num": 0, "sectors-count": 1}) in events
    assert backend.read(512, 512) == bytes(512)
    backend.remove()


def test_quorum_children_come_and_go(layer, make_file):
    node = _quorum(layer, make_file, [b"a", b"a"], threshold=2)
    with pytest.raises(QobraError, match="cannot be lower than the vote threshold 2"):
        change_children.remove(layer, node, "children.0")
    spare = layer.add_node({**make_file("spare", b"a"), "node-name": "spare"})
    change_children.add(layer, node, spare)
    assert list(node.children) == ["children.0", "children.1", "children.2"]
    change_children.remove(layer, node, "children.0")
    assert list(node.children) == ["children.1", "children.2"]
    with pytest.raises(QobraError, match="does not support adding a child"):
        change_children.add(layer, spare, layer.add_node({"driver": "null-co", "node-name": "n"}))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vote-threshold": 3}, "threshold may not exceed children count"),
        ({"vote-threshold": 0}, "Parameter 'vote-threshold' expects a value >= 1"),
        ({"blkverify": True, "rewrite-corrupted": True}, "rewrite-corrupted=on cannot be used with blkverify=on"),
    ],
)
def test_quorum_options_that_make_no_sense(layer, make_file, options, text):
    with pytest.raises(QobraError, match=text):
        _quorum(layer, make_file, [b"", b""], **options)


def test_quorum_that_reads_in_turn_has_no_use_for_options_about_votes(layer, make_file):
    options = {"read-pattern": "fifo", "blkverify": True, "rewrite-corrupted": True}
    node = _quorum(layer, make_file, [b"right"], threshold=1, **options)
    # A quorum that compares two files takes no third.
    change_children.add(layer, node, layer.add_node({**make_file("spare", b"right"), "node-name": "spare"}))
    assert len(node.children) == 2


# -- blklogwrites -----------------------------------------------------------------------------------------------


def test_blklogwrites_logs_and_appends(layer, make_file):
    log = make_file("log")
    options = {"driver": "blklogwrites", "node-name": "l", "file": make_file("a"), "log": log}
    node = layer.add_node(options)
    backend = _enter(layer, node)
    backend.write(1024, b"x" * 1000)
    backend.flush()
    backend.remove()
    layer.delete_node("l")
    data = open(log["filename"], "rb").read()
    assert int.from_bytes(data[0:8], "little") == 0x6A736677736872
    assert int.from_bytes(data[16:24], "little") == 2
    assert [int.from_bytes(data[512 + 8 * i : 520 + 8 * i], "little") for i in range(3)] == [2, 2, 0]
    assert data[1024:2024] == b"x" * 1000
    assert int.from_bytes(data[2048 + 16 : 2048 + 24], "little") == 1  # the flush
    again = layer.add_node({**options, "log-append": True})
    backend = _enter(layer, again)
    backend.write(0, b"y" * 512)
    backend.flush()
    backend.remove()
    layer.delete_node("l")
    data = open(log["filename"], "rb").read()
    assert int.from_bytes(data[16:24], "little") == 4
    assert data[2560 + 512 : 2560 + 1024] == b"y" * 512


def test_blklogwrites_fills_up_sectors(layer, make_file):
    """The log is made of whole ones: replayed, it has no bytes that were not the disk's."""
    length = 8 * 512 + 100
    before = bytes(range(1, 201)) * 21
    log, file = make_file("log"), make_file("a", before)
    os.truncate(file["filename"], length)
    node = layer.add_node({"driver": "blklogwrites", "node-name": "l", "file": file, "log": log})
    assert node.request_alignment == 512
    backend = _enter(layer, node)
    backend.write(100, b"x" * 100)
    backend.write(1000, b"y" * 100)
    backend.write_zeroes(1500, 1000)
    backend.write_zeroes(2600, 10)
    backend.write(length - 50, b"z" * 50)
    backend.remove()
    layer.delete_node("l")
    data, disk = open(log["filename"], "rb").read(), open(file["filename"], "rb").read()
    assert disk[:1000] == before[:100] + b"x" * 100 + before[200:1000]
    assert disk[1500:2500] == bytes(1000)
    replayed = bytearray(before[:length].ljust(9 * 512, b"\0"))
    place = 512
    for _ in range(int.from_bytes(data[16:24], "little")):
        sector, sectors, flags, _size = (
            int.from_bytes(data[place + 8 * i : place + 8 * i + 8], "little") for i in range(4)
        )
        assert not flags & 4
        replayed[sector * 512 : (sector + sectors) * 512] = data[place + 512 : place + (1 + sectors) * 512]
        place += (1 + sectors) * 512
    assert replayed[:length] == disk


def test_blklogwrites_tells_of_discarded_sectors_only_where_they_are_whole(layer, make_file):
    log = make_file("log")
    options = {"driver": "blklogwrites", "node-name": "l", "discard": "unmap"}
    node = layer.add_node({**options, "file": make_file("a"), "log": log})
    backend = _enter(layer, node)
    backend.discard(100, 1000)
    backend.discard(10, 20)
    backend.remove()
    layer.delete_node("l")
    data = open(log["filename"], "rb").read()
    assert int.from_bytes(data[16:24], "little") == 1
    assert [int.from_bytes(data[512 + 8 * i : 520 + 8 * i], "little") for i in range(3)] == [1, 1, 4]


def test_blklogwrites_passes_zeroes_on_as_zeroes(layer, make_file):
    log = make_file("log", b"x" * 4096)
    below = {"driver": "blkdebug", "node-name": "below", "image": make_file("a", b"x" * 4096)}
    node = layer.add_node({"driver": "blklogwrites", "node-name": "l", "file": below, "log": log})
    written = []
    layer.find_node("below")._write = lambda offset, data: written.append(offset)
    backend = _enter(layer, node)
    backend.write_zeroes(1024, 1024)
    assert backend.read(512, 2048) == b"x" * 512 + bytes(1024) + b"x" * 512
    backend.remove()
    layer.delete_node("l")
    assert not written
    data = open(log["filename"], "rb").read()
    assert [int.from_bytes(data[512 + 8 * i : 520 + 8 * i], "little") for i in range(3)] == [2, 2, 0]
    assert data[1024:2560] == bytes(1024) + b"x" * 512


@pytest.mark.parametrize("driver", ["blkverify", "quorum"])
def test_images_that_read_differently_end_the_process(tmp_path, driver):
    (tmp_path / "a").write_bytes(b"x" * 1024)
    (tmp_path / "b").write_bytes(b"x" * 700 + b"y" + b"x" * 323)
    a, b = ({"driver": "file", "filename": str(tmp_path / name)} for name in "ab")
    nodes = {
        "blkverify": {"driver": "blkverify", "test": a, "raw": b},
        "quorum": {"driver": "quorum", "children": [a, b], "vote-threshold": 2, "blkverify": True},
    }
    program = (
        "from qobra.block.layer import BlockLayer\n"
        f"node = BlockLayer().add_node({nodes[driver] | {'node-name': 'n'}!r})\n"
        "assert node.read(0, 512) == b'x' * 512\n"
        "node.read(512, 512)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("offset=512 bytes=512 contents mismatch at offset 700\n")


def test_blkdebug_knows_the_older_spelling_of_events(layer):
    rules = [{"event": "l2_alloc.write", "iotype": "read"}]
    node = layer.add_node(
        {"driver": "blkdebug", "node-name": "d", "image": {"driver": "null-co"}, "inject-error": rules}
    )
    node.read(0, 512)
    node.debug_event("l2_alloc_write")
    with pytest.raises(OSError):
        node.read(0, 512)


def test_blkdebug_takes_a_file_name_for_its_image_and_a_rule_without_a_number(layer, make_file):
    path = make_file("a")["filename"]
    debug = {"driver": "blkdebug", "inject-error": {"event": "read_aio", "errno": "28"}}
    node = layer.open_image(path, {"driver": "raw", "file": debug}, monitor_owned=True)
    with pytest.raises(OSError, match="No space left"):
        _enter(layer, node).read(0, 512)


def test_options_of_a_file_that_its_name_tells_the_driver_of_have_their_types(layer, make_file):
    path = make_file("a")["filename"]
    node = layer.open_image(f"blkdebug::{path}", {"driver": "raw", "file": {"align": "4k"}}, monitor_owned=True)
    assert node.file.request_alignment == 4096


def test_blkverify_takes_a_file_name_for_the_image_under_test(layer, make_file):
    path = make_file("a", b"x")["filename"]
    verify = {"driver": "blkverify", "raw": make_file("b", b"x")}
    node = layer.open_image(path, {"driver": "raw", "file": verify, "read-only": True}, monitor_owned=True)
    assert _enter_reader(layer, node).read(0, 1) == b"x"


def _enter_reader(layer, node):
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ)
    backend.insert(node)
    return backend


def test_blkdebug_tells_of_what_it_holds(layer, make_file):
    told = []
    layer.tell_held = told.append
    node = layer.add_node({"driver": "blkdebug", "node-name": "d", "image": make_file("a")})
    node.set_breakpoint("write_aio", "x")
    thread = threading.Thread(target=node.debug_event, args=("write_aio",))
    thread.start()
    node.wait_suspended("x")
    assert told == ["blkdebug: Suspended request 'x'"]
    node.resume("x")
    thread.join(10)
    assert told[1:] == ["blkdebug: Resuming request 'x'"]


def test_children_of_a_quorum_may_be_numbered(layer, make_file):
    children = {"1": make_file("b", b"two"), "0": make_file("a", b"one")}
    quorum = {"driver": "quorum", "vote-threshold": "1", "read-pattern": "fifo", "children": children}
    node = layer.open(typed({"driver": "raw", "read-only": True, "file": quorum}), monitor_owned=True)
    assert _enter_reader(layer, node).read(0, 3) == b"one"
    with pytest.raises(QobraError, match="Invalid parameter 'children'"):
        typed({"driver": "quorum", "children": {"0": {}, "2": {}}})


def test_a_quorum_that_compares_two_takes_no_third(layer, make_file):
    children = [make_file("a"), make_file("b")]
    quorum = {"driver": "quorum", "node-name": "q", "vote-threshold": 2, "blkverify": True, "children": children}
    node = layer.add_node(quorum)
    other = layer.add_node({**make_file("c"), "node-name": "c"})
    with pytest.raises(QobraError, match="Cannot add a child to a quorum in blkverify mode"):
        change_children.add(layer, node, other)


def test_a_file_that_turns_writable_on_demand_can_be_resized(layer, make_file):
    options = {**make_file("a"), "node-name": "f", "read-only": False, "auto-read-only": True}
    layer.resize(layer.add_node(options), SIZE // 2)
    assert layer.graph.find("f").length == SIZE // 2


def test_copy_on_read_keeps_the_chain_down_to_its_bottom(layer, make_file):
    layer.add_node({**make_file("a"), "node-name": "a"})
    layer.add_node({"driver": "copy-on-read", "node-name": "c", "file": "a", "bottom": "a"})
    a = layer.graph.find("a")
    with pytest.raises(QobraError, match="^Cannot change 'file' link to 'a'$"):
        insert_filter(layer, a, {"driver": "copy-on-read", "file": "a"})
    layer.delete_node("c")
    node, holder = insert_filter(layer, a, {"driver": "copy-on-read", "file": "a"})
    assert node.file is a
    holder.remove()


def test_children_of_a_quorum_are_as_long_as_one_another_in_sectors(layer, tmp_path):
    for name, length in (("a", 1000), ("b", 1024), ("c", 1025)):
        (tmp_path / name).write_bytes(bytes(length))
        layer.add_node({"driver": "file", "node-name": name, "filename": str(tmp_path / name)})
    quorum = {"driver": "quorum", "vote-threshold": 1}
    assert layer.add_node({**quorum, "node-name": "q", "children": ["a", "b"]}).length == 1000
    layer.delete_node("q")
    with pytest.raises(QobraError, match="Could not refresh total sector count"):
        layer.add_node({**quorum, "node-name": "q", "children": ["a", "c"]})
