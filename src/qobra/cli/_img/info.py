"""``info``: what an image is, as text or as the reference's ImageInfo."""

from __future__ import annotations

from qobra.block.describe import describe
from qobra.block.query import image_info
from qobra.cli._tool.opening import Images, command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.getopt import CommandLine

    Info = dict[str, Any]

HELP = """\
info [-f FMT | --image-opts] [--output human|json] [--backing-chain] [-U] [--object DEF] FILENAME

Say what an image is: its format, its virtual size and what it takes on the host, its backing file, snapshots and
what the format has to tell. The image is only read.

  -f FMT             the format, rather than to tell it from the first bytes
  --image-opts       FILENAME is a list of options (driver=qcow2,file.filename=...)
  --output human|json
  --backing-chain    go on with the backing file, to the end of the chain
  -U, --force-share  look at it even if another process is writing to it
  --object DEF       create an object first, as a secret
"""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line, images = command_line(
        program, arguments, "f:U", ("format=|f", "output=", "backing-chain", "image-opts", "force-share|U")
    )
    chain = line.has("backing-chain")
    with images:
        if len(line.operands) != 1:
            raise usage("Expecting one image file name")
        is_json = check_output(line)
        infos = collect(images, line.operands[0], chain, **opening(line))
        if is_json:
            from qobra.json_text import dumps

            print(dumps(infos if chain else infos[0]))
        else:
            print("\n\n".join("\n".join(describe(info)) for info in infos))
    return 0


def check_output(line: CommandLine) -> bool:
    """Whether ``--output`` asks for JSON. Raises ToolError for another word."""
    return is_json(line.value("output", "human"))


def is_json(output: str) -> bool:
    """Whether the form ``output`` is JSON. Raises ToolError if it is none of the two."""
    if output not in ("human", "json"):
        raise ToolError("--output must be used with human or json as argument.")
    return output == "json"


def collect(
    images: Images,
    filename: str,
    chain: bool,
    *,
    fmt: str | None = None,
    image_opts: bool = False,
    force_share: bool = False,
) -> list[Info]:
    """ImageInfo of the image and, with ``chain``, of all that it lies on. Raises ToolError."""
    infos: list[Info] = []
    seen: set[str] = set()
    while True:
        if filename in seen:
            raise ToolError(f"Backing file '{filename}' creates an infinite loop.")
        seen.add(filename)
        backend = images.open(
            filename,
            fmt=fmt,
            image_opts=image_opts,
            force_share=force_share,
            backing=False,
            metadata_only=True,
        )
        try:
            info = image_info(node_of(backend))
        except QobraError as error:  # what is in a header is looked at when it is asked for
            raise ToolError(f"Could not open '{filename}': {error}")
        backend.remove()
        infos.append(info)
        image_opts = False
        if not chain or "backing-filename" not in info:
            return infos
        if "full-backing-filename" not in info:
            raise ToolError("Could not determine the backing file's full name")
        filename = info["full-backing-filename"]
        fmt = info.get("backing-filename-format")
