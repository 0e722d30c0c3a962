"""``--image-opts``: a node described as ``key=value,...`` in the older syntax of QemuOpts."""

from __future__ import annotations

from qobra.block.filename import unflatten
from qobra.block.typed_options import typed
from qobra.cli._tool.report import Program
from qobra.option_list import option_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object


Options = dict[str, Any]


def parse_image_opts(text: str, program: Program) -> Options:
    """The options of a node, typed as its driver's schema says. Raises QobraError."""
    return node_options(option_pairs(text, "file", program.warning))


def node_options(pairs: list[tuple[str, str]], *, file_follows: bool = False) -> Options:
    """The same of pairs; the last of a key counts. ``file_follows``: they go with a file name."""
    options: Options = {}
    for key, value in pairs:
        options.pop(key, None)
        options[key] = value
    return typed(unflatten(options), file_follows=file_follows)
