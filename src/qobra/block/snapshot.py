"""Snapshots: a new overlay put over a node (external), or a state kept inside the image (internal)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.filename import parse_filename, protocol_of
from qobra.block.job.chain import chain, contains, root_node, set_read_only
from qobra.block.transaction.change import Change
from qobra.errors import DEVICE_NOT_FOUND, QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

Options = dict[str, Any]


def blockdev_snapshot(layer: BlockLayer, args: Options) -> Change:
    """Put the node ``overlay`` over ``node``, whose users use it from now on. The layer is drained."""
    old = _snapshot_source(layer, layer.find_device_or_node(args["node"]))
    overlay = layer.find_device_or_node(args["overlay"])
    return _append(layer, old, overlay, BlockBackend(layer, perm=0))


def blockdev_snapshot_sync(layer: BlockLayer, args: Options) -> Change:
    """Make a new image (or take one that exists) and put it over a node. The layer is drained."""
    old = _snapshot_source(layer, layer.find_device(args.get("device"), args.get("node-name")))
    name = args.get("snapshot-node-name")
    if "node-name" in args and name is None:
        raise QobraError("New overlay node-name missing")
    if name is not None and (layer.graph.find(name) is not None or name in layer.backends):
        raise QobraError("New overlay node-name already in use")
    fmt = args.get("format", "qcow2")
    filename = args["snapshot-file"]
    below = old if args.get("mode", "absolute-paths") != "existing" else None
    if below is not None:
        create_image(layer, filename, fmt, old.length, below)
    overlay_options: Options = {"driver": fmt, "backing": None, "read-only": old.read_only}
    if name is not None:
        overlay_options["node-name"] = name
    holder = BlockBackend(layer, perm=0, description="a snapshot that is being taken")
    overlay = open_image_over(layer, filename, overlay_options, old, holder, below)
    try:
        return _append(layer, old, overlay, holder)
    except BaseException:
        holder.remove()
        raise


def _snapshot_source(layer: BlockLayer, node: BlockNode) -> BlockNode:
    layer.check_free(node)
    if not node.read_only:
        try:
            node.flush()
        except (OSError, QobraError):
            raise QobraError("An IO error has occurred")
    return node


def _append(layer: BlockLayer, old: BlockNode, overlay: BlockNode, holder: BlockBackend) -> Change:
    if overlay.perm & permissions.CONSISTENT_READ:
        raise QobraError("The overlay is already in use")
    if overlay.is_filter:
        raise QobraError("Filters cannot be used as overlays")
    # A job that only writes to it (a mirror to a target that gets its backing file at the end) is not in the way.
    if overlay.backing is not None:
        raise QobraError("The overlay already has a backing image")
    if not overlay.supports_backing:
        raise QobraError("The overlay does not support backing images")
    layer.graph.check_replaceable(old, keep=(overlay,))
    with layer.graph.change() as change:
        change.attach(overlay, "backing", old, permissions.ROLE_COW)
        change.replace(old, overlay, keep=(overlay,))

    def undo() -> None:
        with layer.graph.change() as change:
            change.detach(overlay, "backing")
            change.replace(overlay, old, keep=(holder,))

    def commit() -> None:
        # What lies under a snapshot is not to be written; where that cannot be, it is no reason to fail.
        try:
            set_read_only(layer, old, True)
        except (OSError, QobraError):
            pass

    return Change(undo, commit, clean=holder.remove)


def open_image_over(
    layer: BlockLayer,
    filename: str,
    options: Options,
    old: BlockNode,
    holder: BlockBackend,
    below: BlockNode | None = None,
) -> BlockNode:
    """Open an image that is to be used as ``old`` is, with its cache and discard options, held by ``holder``.

    ``below`` is the node whose name :func:`create_image` recorded in it, and which is put under it later.
    """
    inherited: Options = {key: old.options[key] for key in ("cache", "discard") if key in old.options}
    protocol = parse_filename(filename)
    merged: Options = {**inherited, "read-only": False, **options, "file": protocol}
    if options.get("driver") == protocol["driver"]:
        merged = {**merged, **protocol}
        del merged["file"]
    image = layer.open(merged, root=holder)
    if below is not None and image.backing is None and image.backing_filename:
        # The header has the absolute path; the node may have been opened by a relative one, and is the same.
        image.auto_backing = image.backing_filename, below.filename
    return image


def create_image(layer: BlockLayer, filename: str, fmt: str, length: int, backing: BlockNode | None) -> None:
    """Make the image ``filename`` of ``length`` bytes in whole sectors, with ``backing`` as its backing file.

    That is recorded with its absolute path: the image need not lie where the paths of others begin.
    """
    from qobra.block.creation._image import plan

    name = backing.filename if backing is not None else None
    if name and not protocol_of(name):
        name = os.path.abspath(name)
    creation = plan(
        layer,
        filename,
        fmt,
        size=-(-length // 512) * 512,
        backing_file=name,
        backing_format=backing.driver if backing is not None else None,
        unsafe=True,
    )
    layer.say(creation.message)
    creation.run(layer)


# -- internal snapshots -------------------------------------------------------------------------------------------


def _internal_source(layer: BlockLayer, device: str) -> BlockNode:
    node = root_node(layer, device)
    layer.check_blockers(node)
    return node


def snapshot_internal(layer: BlockLayer, args: Options) -> Change:
    """Keep the state of ``device`` as the internal snapshot ``name``. The layer is drained."""
    device, name = args["device"], args["name"]
    source = _internal_source(layer, device)
    if source.read_only:
        raise QobraError(f"Device '{device}' is read only")
    node = source.snapshot_keeper()
    if node is None or node.read_only or node.inactive:
        raise QobraError(
            f"Block format '{source.driver}' used by device '{device}' does not support internal snapshots"
        )
    if not name:
        raise QobraError("Name is empty")
    if any(each["name"] == name for each in node.snapshot_list()):
        raise QobraError(f"Snapshot with name '{name}' already exists on device '{device}'")
    try:
        made = node.snapshot_create(name)
    except (OSError, QobraError) as error:
        raise QobraError(f"Failed to create snapshot '{name}' on device '{device}': {_reason(error)}")
    return Change(undo=lambda: node.snapshot_delete(made["id"], name))


def delete_internal(layer: BlockLayer, args: Options) -> Options:
    """Delete the internal snapshot with that ``id`` and ``name``, as far as given, and return its SnapshotInfo."""
    device, id, name = args["device"], args.get("id"), args.get("name")
    node = _internal_source(layer, device).snapshot_keeper()
    if id is None and name is None:
        raise QobraError("Name or id must be provided")
    if node is None:
        raise QobraError("Failed to get a snapshot list: Operation not supported")
    found: Options | None = next(
        (
            each
            for each in node.snapshot_list()
            if (id is None or each["id"] == id) and (name is None or each["name"] == name)
        ),
        None,
    )
    if found is None:
        raise QobraError(
            f"Snapshot with id '{'null' if id is None else id}' and name '{'null' if name is None else name}' "
            f"does not exist on device '{device}'"
        )
    if node.inactive:
        raise QobraError("Block node is inactive", errno=errno.EPERM)
    node.snapshot_delete(found["id"], found["name"])
    return found


def _reason(error: OSError | QobraError) -> str:
    from qobra.errors import strerror

    return strerror(error) if isinstance(error, OSError) else str(error)


def change_backing_file(layer: BlockLayer, args: Options) -> None:
    """Record another backing file in the header of an image, without looking at it. The layer is drained."""
    device = args["device"]
    top = root_node(layer, device, DEVICE_NOT_FOUND)
    image = layer.find_node(args["image-node-name"])
    if len(list(chain(image))) == 1:
        raise QobraError("not allowing backing file change on an image without a backing file")
    layer.check_blockers(top)
    if not contains(top, image):
        raise QobraError(f"'{device}' and image file are not in the same chain")
    if image.inactive:
        raise QobraError("Block node is inactive", errno=errno.EPERM)
    was_read_only = image.read_only
    set_read_only(layer, image, False)
    try:
        image.change_backing_file(args["backing-file"], image.driver)
    except (OSError, QobraError) as error:
        raise QobraError(f"Could not change backing file to '{args['backing-file']}': {_reason(error)}")
    finally:
        if was_read_only:
            set_read_only(layer, image, True)
