"""Which formats an image may be of, by what stands at its beginning: so that probing imports only those drivers.

The driver itself has the last word (:meth:`BlockNode.probe`); a format that is not listed here is still asked once
something has imported it.
"""

from __future__ import annotations

_MAGICS = (
    (0, b"QFI\xfb", ("qcow2", "qcow")),
    (0, b"QED\0", ("qed",)),
    (0, b"KDMV", ("vmdk",)),
    (0, b"COWD", ("vmdk",)),
    (0, b"conectix", ("vpc",)),
    (0, b"vhdxfile", ("vhdx",)),
    (0, b"LUKS\xba\xbe", ("luks",)),
    (0, b"WithoutFreeSpace", ("parallels",)),
    (0, b"WithouFreSpacExt", ("parallels",)),
    (0, b"Bochs Virtual HD Image", ("bochs",)),
    (0, b"#!/bin/sh\n#V2.0 Format", ("cloop",)),
    (64, b"\x7f\x10\xda\xbe", ("vdi",)),
)


def candidates(data: bytes, filename: str) -> list[str]:
    """The names of formats that ``data``, the beginning of an image, may be; most images have one or none."""
    return [name for names in _groups(data, filename) for name in names]


def others(data: bytes, filename: str, fmt: str) -> list[str]:
    """The names of formats that some program may take ``data`` for, though it is an image of ``fmt``."""
    return [name for names in _groups(data, filename) if fmt not in names for name in names]


def _groups(data: bytes, filename: str) -> list[tuple[str, ...]]:
    """Formats by what speaks for them: those that have it in common are told apart by what follows."""
    found: list[tuple[str, ...]] = [names for at, magic, names in _MAGICS if data.startswith(magic, at)]
    if b"# Disk DescriptorFile" in data[:512] or b"# disk descriptorfile" in data[:512].lower():
        found.append(("vmdk",))  # a descriptor is text, and may begin with comments
    if filename.endswith(".dmg"):
        found.append(("dmg",))
    return found
