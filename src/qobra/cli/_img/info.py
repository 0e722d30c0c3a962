"""``info``: what an image is, as text or as the reference's ImageInfo."""

from __future__ import annotations

from typing import Any

from qobra.block.query import image_info
from qobra.cli._tool.getopt import parse_command
from qobra.cli._tool.opening import Images, node_of
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.units import size_text

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
    options, operands = parse_command(
        arguments, "f:U", ("format=|f", "output=", "backing-chain", "object=", "image-opts", "force-share|U")
    )
    fmt = output = None
    chain = image_opts = force_share = False
    with Images(program) as images:
        for option, value in options:
            if option == "f":
                fmt = value
            elif option == "U":
                force_share = True
            elif option == "output":
                output = value
            elif option == "backing-chain":
                chain = True
            elif option == "object":
                images.add_object(value)
            elif option == "image-opts":
                image_opts = True
        if len(operands) != 1:
            raise usage("Expecting one image file name")
        is_json = check_output(output)
        images.create_objects()
        infos = collect(images, operands[0], fmt, image_opts, chain, force_share)
        if is_json:
            from qobra.json_text import dumps

            print(dumps(infos if chain else infos[0]))
        else:
            print("\n\n".join("\n".join(human_lines(info)) for info in infos))
    return 0


def check_output(output: str | None) -> bool:
    """Whether ``--output`` asks for JSON. Raises ToolError for another word."""
    if output not in (None, "human", "json"):
        raise ToolError("--output must be used with human or json as argument.")
    return output == "json"


def collect(
    images: Images, filename: str, fmt: str | None, image_opts: bool, chain: bool, force_share: bool
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
        info = image_info(node_of(backend))
        backend.remove()
        infos.append(info)
        image_opts = False
        if not chain or "backing-filename" not in info:
            return infos
        if "full-backing-filename" not in info:
            raise ToolError("Could not determine the backing file's full name")
        filename = info["full-backing-filename"]
        fmt = info.get("backing-filename-format")


def human_lines(info: Info) -> list[str]:
    """The text for a person, as QEMU has it."""
    size = info["virtual-size"]
    actual = info.get("actual-size")
    lines = [
        f"image: {info['filename']}",
        f"file format: {info['format']}",
        f"virtual size: {size_text(size)} ({size} bytes)",
        f"disk size: {'unavailable' if actual is None else size_text(actual)}",
    ]
    if info.get("encrypted"):
        lines.append("encrypted: yes")
    if "cluster-size" in info:
        lines.append(f"cluster_size: {info['cluster-size']}")
    if info.get("dirty-flag"):
        lines.append("cleanly shut down: no")
    if "backing-filename" in info:
        name = info["backing-filename"]
        full = info.get("full-backing-filename")
        if full is None:
            note = " (cannot determine actual path)"
        else:
            note = f" (actual path: {full})" if full != name else ""
        lines.append(f"backing file: {name}{note}")
        if "backing-filename-format" in info:
            lines.append(f"backing file format: {info['backing-filename-format']}")
    if info.get("snapshots"):
        from qobra.cli._img.snapshot import snapshot_lines

        lines.append("Snapshot list:")
        lines += snapshot_lines(info["snapshots"])
    specific = info.get("format-specific")
    if specific and specific.get("data"):
        lines.append("Format specific information:")
        lines += value_lines(specific["data"], 1)
    return lines


def value_lines(value: Any, indent: int) -> list[str]:
    """The members of an object, or the items of a list, each on its line."""
    from qobra.json_text import ordered

    if isinstance(value, dict):
        items = [(key.replace("-", " "), each) for key, each in ordered(value)]
    else:
        items = [(f"[{number}]", each) for number, each in enumerate(value)]
    lines = []
    for key, each in items:
        text = "    " * indent + key + ":"
        if isinstance(each, dict | list):
            lines.append(text)
            lines += value_lines(each, indent + 1)
        else:
            shown = ("true" if each else "false") if isinstance(each, bool) else each
            lines.append(f"{text} {shown}")
    return lines
