"""Creation options of a regular file, which formats that are made in one have as well."""

from __future__ import annotations

from qobra.block.creation._options import BOOL, SIZE, STRING, Format, Option, Values, dashed, formats


def _convert(values: Values) -> Values:
    return {"size": values["size"], **dashed(values, ("preallocation", "nocow", "extent_size_hint"))}


formats.register("file")(
    Format(
        (
            Option("size", SIZE, "virtual size of the disk"),
            Option("nocow", BOOL, "no copy-on-write on the host (btrfs only)"),
            Option("preallocation", STRING, "space to reserve (off, falloc, full)"),
            Option("extent_size_hint", SIZE, "extent size hint of the host's file system, 0 for none"),
        ),
        _convert,
    )
)
