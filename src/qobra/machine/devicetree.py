"""Flattened device trees (Devicetree Specification 0.4, chapter 5): written for a board, or read from a user's file."""

from __future__ import annotations

from struct import pack, unpack_from

from qobra.errors import QobraError

_MAGIC, _VERSION, _COMPATIBLE_VERSION = 0xD00DFEED, 17, 16
_HEADER_SIZE = 40
_BEGIN, _END, _PROPERTY, _NOP, _FINISH = 1, 2, 3, 4, 9
_MAX_DEPTH = 64
MAX_SIZE = 1 << 20

Cells = int | tuple[int, ...]


class Node:
    """A node: properties as bytes, and nodes below, both in their order."""

    def __init__(self) -> None:
        self.properties: dict[str, bytes] = {}
        self.children: dict[str, Node] = {}

    def child(self, name: str) -> Node:
        """The node of that name below, made if need be."""
        return self.children.setdefault(name, Node())

    def text(self, name: str, *values: str) -> None:
        """A property of one or more strings."""
        self.properties[name] = b"".join(value.encode() + b"\0" for value in values)

    def cells(self, name: str, *values: Cells) -> None:
        """A property of 32-bit numbers."""
        flat = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
        self.properties[name] = pack(f">{len(flat)}I", *flat)

    def flag(self, name: str) -> None:
        """A property that says something by being there."""
        self.properties[name] = b""


def wide(value: int) -> tuple[int, int]:
    """A 64-bit number as two cells."""
    return value >> 32, value & 0xFFFFFFFF


def flatten(root: Node) -> bytes:
    """The blob of a tree."""
    strings: dict[str, int] = {}
    names = bytearray()
    body = bytearray()

    def write(name: str, node: Node) -> None:
        body.extend(pack(">I", _BEGIN) + _padded(name.encode() + b"\0"))
        for key, value in node.properties.items():
            if key not in strings:
                strings[key] = len(names)
                names.extend(key.encode() + b"\0")
            body.extend(pack(">III", _PROPERTY, len(value), strings[key]) + _padded(value))
        for child_name, child in node.children.items():
            write(child_name, child)
        body.extend(pack(">I", _END))

    write("", root)
    body.extend(pack(">I", _FINISH))
    structure = _HEADER_SIZE + 16  # after an empty list of reserved memory
    text = structure + len(body)
    header = pack(
        ">10I", _MAGIC, text + len(names), structure, text, _HEADER_SIZE, _VERSION, _COMPATIBLE_VERSION, 0,
        len(names), len(body),
    )  # fmt: skip
    return header + bytes(16) + bytes(body) + bytes(names)


def parse(blob: bytes) -> Node:
    """The tree of a blob. Raises QobraError, with libfdt's words for what is wrong."""
    if len(blob) < _HEADER_SIZE:
        raise QobraError("FDT_ERR_TRUNCATED")
    magic, total, structure, text, _reserved, _version, compatible = unpack_from(">7I", blob)
    names_size, body_size = unpack_from(">II", blob, 32)
    if magic != _MAGIC:
        raise QobraError("FDT_ERR_BADMAGIC")
    if compatible > _VERSION:
        raise QobraError("FDT_ERR_BADVERSION")
    if total > len(blob) or structure + body_size > total or text + names_size > total:
        raise QobraError("FDT_ERR_TRUNCATED")
    names, body = blob[text : text + names_size], blob[structure : structure + body_size]
    top, position = Node(), 0
    path = [top]
    while position + 4 <= len(body):
        (token,) = unpack_from(">I", body, position)
        position += 4
        if token == _BEGIN:
            end = body.find(b"\0", position)
            if end < 0 or len(path) > _MAX_DEPTH:
                raise QobraError("FDT_ERR_BADSTRUCTURE")
            path.append(path[-1].child(body[position:end].decode("latin-1")))
            position = (end + 4) & ~3
        elif token == _PROPERTY and position + 8 <= len(body) and len(path) > 1:
            length, at = unpack_from(">II", body, position)
            position += 8
            if length > len(body) - position or at >= len(names):
                raise QobraError("FDT_ERR_BADSTRUCTURE")
            name = names[at : names.find(b"\0", at) if b"\0" in names[at:] else None]
            path[-1].properties[name.decode("latin-1")] = body[position : position + length]
            position = (position + length + 3) & ~3
        elif token == _END and len(path) > 1:
            path.pop()
        elif token == _FINISH and len(path) == 1 and "" in top.children:
            return top.children[""]
        elif token != _NOP:
            break
    raise QobraError("FDT_ERR_BADSTRUCTURE")


def load(path: str) -> Node:
    """The tree in a user's file. Raises QobraError."""
    try:
        with open(path, "rb") as stream:
            blob = stream.read(MAX_SIZE + 1)
    except OSError:
        raise QobraError(f"Unable to get size of device tree file '{path}'")
    try:
        if len(blob) > MAX_SIZE:
            raise QobraError("FDT_ERR_NOSPACE")
        return parse(blob)
    except QobraError as error:
        raise error.prefixed("load_device_tree: Unable to copy device tree into memory: ")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
