"""``measure``: how large an image would be before it is made."""

from __future__ import annotations

from qobra.block.creation._image import find_format, known_options
from qobra.block.creation._options import parse_values
from qobra.block.node import drivers
from qobra.cli._img._pieces import disk_size
from qobra.cli._img._snapshot_param import SnapshotParam
from qobra.cli._img.create import creation_pairs, look_at_options
from qobra.cli._img.info import is_json
from qobra.cli._tool.opening import STORED_BITMAPS, command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError
from qobra.errors import QobraError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HELP = """\
measure [-O OUTPUT_FMT] [-o OPTIONS] [--output human|json]
        (--size N | [-f FMT | --image-opts] [-l SNAPSHOT] [-U] [--object DEF] FILENAME)

Say how many bytes a new image of OUTPUT_FMT (raw) would take: at once, and when all of it is allocated. It is made
for a disk of N bytes, or for what FILENAME, or a snapshot in it, holds.
"""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    size: int | None = None
    as_json = False
    snapshot = SnapshotParam(program)

    def look(option: str, value: str) -> None:
        nonlocal size, as_json
        look_at_options(option, value)
        if option == "size":
            size = program.number("image size", value)
        elif option == "l":
            snapshot.take(value)
        elif option == "output":
            as_json = is_json(value)

    line, images = command_line(
        program, arguments, "f:l:o:O:U", ("image-opts", "output=", "size=", "force-share|U"), look
    )
    operands = line.operands
    output_format = line.value("O", "raw")
    with images:
        if len(operands) > 1:
            raise ToolError("At most one filename argument is allowed.")
        if not operands and (line.has("f") or line.has("l") or line.has("image-opts")):
            raise ToolError("--image-opts, -f, and -l require a filename argument.")
        if not operands and size is None:
            raise ToolError("Either --size N or one filename must be specified.")
        if operands and size is not None:
            raise ToolError("--size N cannot be used together with a filename.")
        source = None
        if operands:
            source = node_of(images.open(operands[0], **opening(line), options=STORED_BITMAPS))
            if snapshot:
                snapshot.load(source)
        driver: Any = drivers.find(output_format)
        if driver is None:
            raise ToolError(f"Unknown file format '{output_format}'")
        try:
            target = find_format(output_format)
        except QobraError as error:
            raise ToolError(str(error))
        try:
            values = parse_values(known_options(output_format, "file:"), creation_pairs(line.values("o")))
        except QobraError as error:
            program.error(str(error))
            raise ToolError(f"Invalid options for file format '{output_format}'")
        values["size"] = size if size is not None else disk_size(source) if source is not None else 0
        if not hasattr(driver, "measure"):
            raise ToolError(f"Block driver '{output_format}' does not support size measurement")
        try:
            info = driver.measure(target.measured(values, images.layer), source)
        except QobraError as error:
            raise ToolError(str(error))
        except OSError as error:
            raise ToolError(strerror(error))
        _tell(info, as_json)
    return 0


def _tell(info: dict[str, Any], as_json: bool) -> None:
    """Print a BlockMeasureInfo."""
    if as_json:
        from qobra.json_text import dumps

        print(dumps(info))
    else:
        print(f"required size: {info['required']}")
        print(f"fully allocated size: {info['fully-allocated']}")
        if "bitmaps" in info:
            print(f"bitmaps size: {info['bitmaps']}")
