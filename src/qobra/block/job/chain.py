"""Backing chains as jobs see them: past filters, by file name, and with read-only images made writable for a time."""

from __future__ import annotations

import os

from qobra.block.filename import name_as_backing, protocol_of, relative_to
from qobra.errors import GENERIC_ERROR, QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode


def root_node(layer: BlockLayer, device: str, error_class: str = GENERIC_ERROR) -> BlockNode:
    """The node that ``device`` means, which no other node and no job may use.

    Raises QobraError in QEMU's words; of the class ``error_class`` where there is no such device or node.
    """
    node = layer.find_device_or_node(device, error_class)
    if layer.graph.parents(node) or any(root.job for root in layer.graph.roots_of(node)):
        raise QobraError("Need a root block node")
    return node


def skip_filters(node: BlockNode) -> BlockNode:
    """``node``, or the first below it that is no filter."""
    while node.is_filter and node.filtered is not None:
        node = node.filtered
    return node


def skip_implicit(node: BlockNode) -> BlockNode:
    """``node``, or the first below it that no job put in unasked."""
    while node.implicit and node.filtered is not None:
        node = node.filtered
    return node


def next_below(node: BlockNode) -> BlockNode | None:
    """The child that holds what ``node`` does not: a filter's only one, or the backing node."""
    return node.filtered if node.is_filter else node.backing


def backing_of(node: BlockNode) -> BlockNode | None:
    """The next image of the chain below ``node``, past filters on both sides."""
    below = skip_filters(node).backing
    return skip_filters(below) if below is not None else None


def chain(node: BlockNode | None) -> Iterator[BlockNode]:
    """``node`` and all below it, filters too."""
    while node is not None:
        yield node
        node = next_below(node)


def contains(top: BlockNode, node: BlockNode | None) -> bool:
    """Whether ``node`` is ``top`` or lies in its chain."""
    return any(each is node for each in chain(top))


def find_overlay(top: BlockNode, node: BlockNode | None) -> BlockNode | None:
    """The node of the chain of ``top`` that lies right on ``node`` (None: the last one)."""
    for each in chain(top):
        if next_below(each) is node:
            return each
    return None


def can_replace(node: BlockNode, wanted: BlockNode) -> bool:
    """Whether ``wanted`` shows what ``node`` does, so that a copy of one may take the place of the other."""
    if node is wanted:
        return True
    if node.driver == "blkverify":
        return any(can_replace(child, wanted) for child in node.children.values())
    if node.is_filter and node.filtered is not None:
        return can_replace(node.filtered, wanted)
    if node.driver == "quorum":
        # A vote hides what one child has of its own, but only from the quorum's users.
        return any(
            can_replace(child, wanted) and not node.layer.graph.is_read(child, beside=node)
            for child in node.children.values()
        )
    return False


def check_freezable(top: BlockNode, bottom: BlockNode) -> None:
    """Raise QobraError where a job cannot rely on the links from ``top`` down to ``bottom`` staying as they are."""
    for node in chain(top):
        if node is bottom:
            return
        below = next_below(node)
        if below is not None and below.driver == "commit_top":
            # The commit takes its filter out when it ends, whoever else is still busy.
            name = next(name for name, child in node.children.items() if child is below)
            raise QobraError(f"Cannot freeze '{name}' link to '{below.node_name}'")


def find_by_name(top: BlockNode, filename: str) -> BlockNode | None:
    """The image below ``top`` that ``filename`` names, as seen from the directory of the image above it."""
    current = skip_filters(top)
    while (below := current.backing) is not None:
        image = skip_filters(below)
        if _names(filename, image, current):
            return image
        current = image
    return None


def _names(filename: str, image: BlockNode, above: BlockNode) -> bool:
    if protocol_of(filename) or image.filename.startswith("json:"):
        return filename in (image.filename, above.backing_filename)
    try:
        full = relative_to(filename, above.filename)
    except QobraError:  # the image above has no directory
        full = filename
    return os.path.realpath(full) == os.path.realpath(image.filename)


def record_backing(overlay: BlockNode, backing: BlockNode, name: str | None = None) -> None:
    """Write the name of ``backing`` into the header of ``overlay``: ``name``, or one by which it is found again."""
    if name is not None:
        overlay.change_backing_file(name, backing.driver)
        return
    name = name_as_backing(overlay, backing)
    overlay.change_backing_file(name, backing.driver)
    if name != backing.filename:
        # The same file, if by another name.
        overlay.auto_backing = overlay.backing_filename, backing.filename
        overlay.layer.changed()


def set_read_only(layer: BlockLayer, node: BlockNode, read_only: bool) -> None:
    """Reopen ``node``, with the files that are its own, read-only or writable. Raises QobraError."""
    from qobra.block.reopen import reopen

    if node.read_only == read_only:
        return
    options = {key: value for key, value in node.options.items() if key not in node.children}
    options.update({"driver": node.driver, "node-name": node.node_name, "read-only": read_only})
    options["auto-read-only"] = False
    for name, child in node.children.items():
        options[name] = child.node_name
    if node.supports_backing and node.backing is None:
        options["backing"] = None
    reopen(layer, [options])


def make_read_only_again(layer: BlockLayer, node: BlockNode) -> None:
    """Give back a node that was made writable for a job. It stays writable if it has got other users that write."""
    try:
        set_read_only(layer, node, True)
    except (QobraError, OSError):
        return
