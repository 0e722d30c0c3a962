"""``bitmap``: change the persistent dirty bitmaps of an image."""

from __future__ import annotations

from qobra.block import bitmap_changes as changes
from qobra.block.bitmap import DEFAULT_GRANULARITY
from qobra.cli._tool.opening import STORED_BITMAPS, command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError
from qobra.errors import QobraError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.node import BlockNode
    from qobra.model import BlockDirtyBitmapAdd

HELP = """\
bitmap (--add [-g GRANULARITY] | --remove | --clear | --enable | --disable | --merge SOURCE)...
       [-b SOURCE_FILE [-F SOURCE_FMT]] [-f FMT | --image-opts] [--object DEF] FILENAME BITMAP

Change a persistent bitmap of an image; several actions are done one after another.

  -g GRANULARITY   bytes that a bit stands for, with --add
  --merge SOURCE   add what the bitmap SOURCE has, of the same image or, with -b, of another
"""

LEAST_DEFAULT = 4096
"""Bytes that a bit of a new bitmap stands for at least, where clusters are smaller and nothing was said."""

ACTIONS = ("add", "remove", "clear", "enable", "disable", "merge")


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    granularity = 0

    def look(option: str, value: str) -> None:
        nonlocal granularity
        if option == "g":
            granularity = program.number("granularity", value)

    line, images = command_line(
        program,
        arguments,
        "b:f:F:g:",
        (
            "image-opts", "add", "remove", "clear", "enable", "disable", "merge=", "source-file=|b",
            "source-format=|F", "granularity=|g",
        ),
        look,
    )  # fmt: skip
    operands = line.operands
    source_file, source_format = line.optional("b"), line.optional("F")
    actions = [(option, value) for option, value in line.options if option in ACTIONS]
    with images:
        kinds = {action for action, _value in actions}
        if not actions:
            raise ToolError("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
        if granularity and "add" not in kinds:
            raise ToolError("granularity only supported with --add")
        if source_format is not None and source_file is None:
            raise ToolError("-F only supported with -b")
        if source_file is not None and "merge" not in kinds:
            raise ToolError("Merge bitmap source file only supported with --merge")
        if len(operands) != 2:
            raise ToolError("Expecting filename and bitmap name")
        filename, name = operands
        # No data is touched, but where bitmaps are kept is.
        node = node_of(images.open(filename, **opening(line), writable=True, backing=False, options=STORED_BITMAPS))
        source = node
        if source_file is not None:
            source = node_of(images.open(source_file, fmt=source_format, backing=False, options=STORED_BITMAPS))
        for action, value in actions:
            try:
                _act(node, source, action, name, value, granularity)
            except QobraError as error:
                raise ToolError(f"Operation {action} on bitmap {name} failed: {error}")
            except OSError as error:
                raise ToolError(f"Operation {action} on bitmap {name} failed: {strerror(error)}")
    return 0


def _act(node: BlockNode, source: BlockNode, action: str, name: str, value: str, granularity: int) -> None:
    layer = node.layer
    if action == "add":
        cluster = node.cluster_size() or DEFAULT_GRANULARITY
        chosen = granularity or max(LEAST_DEFAULT, min(cluster, DEFAULT_GRANULARITY))
        order: BlockDirtyBitmapAdd = {"node": node.node_name, "name": name, "granularity": chosen, "persistent": True}
        changes.add_bitmap(layer, order).settle()
    elif action == "merge":
        changes.merge_bitmaps(layer, node.node_name, name, [{"node": source.node_name, "name": value}]).settle()
    else:
        change = {
            "remove": changes.remove_bitmap,
            "clear": changes.clear_bitmap,
            "enable": changes.enable_bitmap,
            "disable": changes.disable_bitmap,
        }[action]
        change(layer, node.node_name, name).settle()
