"""blockdev-reopen: options and children of open nodes."""

from __future__ import annotations

import errno

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.creation._image import plan
from qobra.block.layer import BlockLayer
from qobra.block.reopen import reopen
from qobra.errors import QobraError


@pytest.fixture
def layer(tmp_path):
    made = BlockLayer()
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    made.add_node({"driver": "file", "node-name": "f", "filename": str(path)})
    made.add_node({"driver": "raw", "node-name": "disk", "file": "f"})
    yield made
    made.close()


def test_generic_options_change_and_go_back_to_their_defaults(layer):
    node = layer.find_node("disk")
    reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "f", "discard": "unmap", "detect-zeroes": "unmap"}])
    assert node.discard_unmap and node.detect_zeroes == "unmap"
    reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "f"}])
    assert not node.discard_unmap and node.detect_zeroes == "off"


def test_all_or_nothing(layer):
    with pytest.raises(QobraError, match="Failed to find node with node-name='x'"):
        reopen(
            layer,
            [
                {"driver": "raw", "node-name": "disk", "file": "f", "read-only": True},
                {"driver": "raw", "node-name": "x", "file": "f"},
            ],
        )
    assert not layer.find_node("disk").read_only


def test_a_writer_keeps_a_node_writable(layer):
    backend = BlockBackend(layer, "d", perm=permissions.WRITE)
    backend.insert(layer.find_node("disk"))
    with pytest.raises(QobraError, match="Read-only block node 'disk' cannot support read-write users"):
        reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "f", "read-only": True}])
    backend.write(0, b"still")
    backend.remove()
    reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "f", "read-only": True}])
    assert layer.find_node("disk").read_only


def test_a_node_that_is_read_only_from_now_on_has_no_writers_of_any_kind(layer):
    backend = BlockBackend(layer, perm=permissions.WRITE_UNCHANGED)
    backend.insert(layer.find_node("disk"))
    with pytest.raises(QobraError, match="Read-only block node 'disk' cannot support read-write users"):
        reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "f", "read-only": True}])
    backend.remove()


def test_the_file_child_is_replaced_and_cycles_are_refused(layer, tmp_path):
    (tmp_path / "other.img").write_bytes(b"o" * 512)
    layer.add_node({"driver": "file", "node-name": "g", "filename": str(tmp_path / "other.img")})
    reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "g"}])
    assert layer.find_node("disk").file.node_name == "g"
    layer.add_node({"driver": "raw", "node-name": "top", "file": "disk"})
    with pytest.raises(QobraError, match="Making 'top' a file child of 'disk' would create a cycle"):
        reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "top"}])


def test_over_another_child_a_node_has_the_length_of_that(layer):
    layer.add_node({"driver": "copy-on-read", "node-name": "above", "file": "disk"})
    layer.add_node({"driver": "null-co", "node-name": "longer", "size": 1 << 20, "read-zeroes": True})
    backend = BlockBackend(layer, "d")
    backend.insert(layer.find_node("above"))
    reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "longer"}])
    assert layer.find_node("disk").length == layer.find_node("above").length == 1 << 20
    assert backend.read((1 << 20) - 1, 1) == bytes(1)
    backend.remove()


def test_of_several_overlays_the_last_to_come_is_the_one_that_keeps_a_node_busy(layer, tmp_path):
    for name in ("base", "first", "second"):
        plan(layer, str(tmp_path / name), "qcow2", size=1 << 20).run(layer)
    options = {
        name: {"driver": "qcow2", "node-name": name, "file": f"{name}-file", "backing": backing}
        for name, backing in [("base", None), ("first", "base"), ("second", "base")]
    }
    for name in options:
        layer.add_node({"driver": "file", "filename": str(tmp_path / name), "node-name": f"{name}-file"})
        layer.add_node(options[name])

    def named():
        with pytest.raises(QobraError, match="Node 'base' is busy: node is used as backing hd of") as refused:
            layer.delete_node("base")
        return str(refused.value).split("'")[-2]

    assert named() == "second"
    reopen(layer, [{**options["first"], "backing": None}])
    reopen(layer, [options["first"]])
    assert named() == "first"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"driver": "qcow2"}, "Cannot change the option 'driver'"),
        ({"offset": 1 << 40}, "cannot be greater than size of the containing file"),
        ({"force-share": True}, "Cannot change the option 'force-share'"),
        ({"detect-zeroes": "unmap"}, "setting detect-zeroes to unmap is not allowed"),
        ({"file": "nope"}, "Cannot find device='' nor node-name='nope'"),
        ({"file": {"driver": "null-co"}}, "Cannot change the option 'file.driver'"),
    ],
)
def test_what_cannot_change_is_refused(layer, change, text):
    with pytest.raises(QobraError, match=text):
        reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "f", **change}])
    assert layer.find_node("disk").file.node_name == "f"


def test_what_has_no_default_to_go_back_to_has_to_be_given(layer, tmp_path):
    path = str(tmp_path / "other.img")
    (tmp_path / "other.img").write_bytes(bytes(512))
    file = {"driver": "file", "filename": path, "locking": "off", "x-check-cache-dropped": True}
    layer.add_node({"driver": "raw", "node-name": "top", "file": file})
    reopen(layer, [{"driver": "raw", "node-name": "top", "file": {"filename": path, "locking": "off"}}])
    with pytest.raises(QobraError, match="Option 'locking' cannot be reset to its default value"):
        reopen(layer, [{"driver": "raw", "node-name": "top", "file": {"filename": path}}])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"node-name": "new"}, "node-name"),
        (
            {"driver": "qcow2", "node-name": "new", "backing": {"driver": "raw", "file": {"driver": "file"}}},
            "backing.driver",
        ),
        (
            {"backing": {"driver": "raw", "backing": {"driver": "qcow2", "file": {"node-name": "f"}}}},
            "backing.backing.file.node-name",
        ),
    ],
)
def test_of_several_options_the_one_is_named_that_qemu_comes_to_first(layer, tmp_path, options, named):
    from qobra.cli import img

    for name in ("base", "top"):
        img.main(["create", "-q", "-f", "qcow2", str(tmp_path / name), "1M"])
    file = {"driver": "file", "filename": str(tmp_path / "top")}
    base = {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / "base")}}
    layer.add_node({"driver": "qcow2", "node-name": "top", "file": file, "backing": base})
    with pytest.raises(QobraError, match=f"^Cannot change the option '{named}'$"):
        reopen(layer, [{"driver": "qcow2", "node-name": "top", "file": file, "backing": {**base, **options}}])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image": "b", "inject-error": []}, "inject-error"),
        ({"image": "b", "align": 4096}, "image"),
        ({"image": "b", "config": "x"}, "image"),
        ({"image": "b"}, "image"),
        ({"image": "none"}, "image"),
    ],
)
def test_a_child_that_cannot_change_has_its_turn_among_the_options(layer, options, named):
    for name in "ab":
        layer.add_node({"driver": "null-co", "node-name": name})
    layer.add_node({"driver": "blkdebug", "node-name": "top", "image": "a"})
    with pytest.raises(QobraError, match=f"^Cannot change the option '{named}'$"):
        reopen(layer, [{"driver": "blkdebug", "node-name": "top", **options}])


def test_a_qcow2_goes_on_in_the_file_that_it_is_given(layer, tmp_path):
    from qobra.cli import img

    backends = {}
    for name, pattern in (("one", b"1"), ("two", b"2")):
        img.main(["create", "-q", "-f", "qcow2", str(tmp_path / name), "1M"])
        file = {"driver": "file", "node-name": f"{name}-file", "filename": str(tmp_path / name)}
        layer.add_node({"driver": "qcow2", "node-name": name, "file": file})
        backend = backends[name] = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
        backend.insert(layer.find_node(name))
        backend.write(0, pattern * 512)
    swapped = [{"driver": "qcow2", "node-name": "one", "file": "two-file"},
               {"driver": "qcow2", "node-name": "two", "file": "one-file"}]  # fmt: skip
    reopen(layer, swapped)
    assert backends["one"].read(0, 512) == b"2" * 512
    backends["one"].write(512, b"x" * 512)
    backends["one"].flush()
    assert b"x" * 512 in (tmp_path / "two").read_bytes()
    assert b"x" * 512 not in (tmp_path / "one").read_bytes()
    for backend in backends.values():
        backend.remove()


def test_an_empty_name_is_no_node(layer):
    with pytest.raises(QobraError, match="Cannot find device='' nor node-name=''"):
        reopen(layer, [{"driver": "raw", "node-name": "disk", "file": ""}])


def test_a_raw_node_of_a_given_size_is_full_there(layer):
    reopen(layer, [{"driver": "raw", "node-name": "disk", "file": "f", "size": 4096}])
    backend = BlockBackend(layer, perm=permissions.WRITE | permissions.RESIZE)
    backend.insert(layer.find_node("disk"))
    with pytest.raises(OSError) as error:
        backend.write(4096, b"x" * 512)
    assert error.value.errno == errno.ENOSPC
    backend.remove()


def test_bitmaps_can_be_changed_once_their_image_is_writable(layer, tmp_path):
    from qobra.cli import img

    path = str(tmp_path / "q")
    img.main(["create", "-q", "-f", "qcow2", path, "1M"])
    img.main(["bitmap", "--add", path, "b"])
    options = {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": path}, "read-only": True}
    bitmap = layer.add_node(options).bitmaps["b"]
    assert bitmap.read_only
    reopen(layer, [{**options, "read-only": False}])
    assert not bitmap.read_only


def test_a_new_backing_file_in_the_header_shows_in_the_name(layer, tmp_path):
    from qobra.cli import img

    base, top = str(tmp_path / "base"), str(tmp_path / "top")
    img.main(["create", "-q", "-f", "qcow2", base, "1M"])
    img.main(["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top])
    node = layer.add_node({"driver": "qcow2", "node-name": "t", "file": {"driver": "file", "filename": top}})
    assert node.filename == top
    node.change_backing_file("null-co://", "raw")
    assert node.filename.startswith("json:")


def test_a_backing_file_that_only_the_header_names_is_not_forgotten(layer, tmp_path):
    from qobra.cli import img

    base, top = str(tmp_path / "base"), str(tmp_path / "top")
    img.main(["create", "-q", "-f", "qcow2", base, "1M"])
    img.main(["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top])
    options = {"driver": "qcow2", "node-name": "t", "file": {"driver": "file", "filename": top}}
    layer.add_node({**options, "backing": None})
    with pytest.raises(QobraError, match="backing is missing for 't'"):
        reopen(layer, [options])
    reopen(layer, [{**options, "backing": None}])
    assert layer.find_node("t").backing is None


def test_a_child_that_cannot_be_replaced_may_be_named_as_it_is(layer):
    for name in ("image", "other"):
        layer.add_node({"driver": "null-co", "node-name": name, "size": 1 << 16})
    options = {"driver": "blkdebug", "node-name": "b", "image": "image"}
    layer.add_node(options)
    reopen(layer, [options])
    with pytest.raises(QobraError, match="Cannot change the option 'image'"):
        reopen(layer, [{**options, "image": "other"}])


def test_a_file_that_is_its_image_s_backing_file_too_stays_writable(layer, tmp_path):
    path = tmp_path / "a.qcow2"
    plan(layer, str(path), "qcow2", size=1 << 20).run(layer)
    file = {"driver": "file", "node-name": "both", "filename": str(path)}
    layer.add_node({"driver": "qcow2", "node-name": "image", "file": file, "backing": "both"})
    options = {"driver": "qcow2", "node-name": "image", "file": "both", "backing": "both"}
    reopen(layer, [options])
    both = layer.find_node("both")
    assert not both.read_only
    reopen(layer, [{**options, "read-only": True}])
    assert both.read_only
    reopen(layer, [options])
    assert not both.read_only


def test_a_file_that_cannot_be_opened_for_writing_is_named(layer, monkeypatch):
    node = layer.find_node("f")
    options = {"driver": "file", "node-name": "f", "filename": node.path}
    reopen(layer, [{**options, "read-only": True}])

    def refuse(*_args):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(node, "_host_open", refuse)
    with pytest.raises(QobraError) as caught:
        reopen(layer, [options])
    assert caught.value.desc == f"Could not open '{node.path}': Read-only file system"
    assert node.read_only
