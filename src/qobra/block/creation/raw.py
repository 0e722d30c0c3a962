"""Creation options of ``raw``: a size; whatever else there is, the protocol below has."""

from __future__ import annotations

from qobra.block.creation._options import SIZE, Format, Option, formats

formats.register("raw")(
    Format((Option("size", SIZE, "virtual size of the disk"),), lambda values: {"size": values["size"]})
)
