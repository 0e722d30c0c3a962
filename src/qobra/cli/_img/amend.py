"""``amend``: change options of an image that were chosen when it was made."""

from __future__ import annotations

from qobra.block.cache_modes import CACHE_MODES
from qobra.block.creation._options import Format, Option, formats, listed, parse_values, text_of
from qobra.block.node import drivers
from qobra.cli._img.create import creation_pairs, look_at_options, wants_help
from qobra.cli._tool.opening import command_line, node_of, opening
from qobra.cli._tool.progress import Progress
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError, strerror
from qobra.qapi.contract import contract

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HELP = """\
amend -o OPTIONS [-f FMT | --image-opts] [-t CACHE] [-p] [-q] [--force] [--object DEF] FILENAME

Change options of an image, name=value,...; '-o help' lists those that can be changed.

  --force   allow what may make data unreadable, as to remove the last key
"""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line, images = command_line(program, arguments, "o:f:t:pq", ("image-opts", "force"), look_at_options)
    operands = line.operands
    texts = line.values("o")
    fmt = line.optional("f")
    cache = line.value("t", "writeback")
    with images:
        if not texts:
            raise usage("Must specify options (-o)")
        help_wanted = any(wants_help(text) for text in texts)
        if help_wanted and fmt is not None:
            return _print_options(fmt)
        if len(operands) != 1:
            raise ToolError("Expecting one image file name")
        if cache not in CACHE_MODES:
            raise ToolError(f"Invalid cache option: {cache}")
        backend = images.open(operands[0], **opening(line), writable=True, cache=cache)
        node: Any = node_of(backend)
        if help_wanted:
            return _print_options(node.driver)
        target = _format(node.driver)
        with program.progress(line.has("p") and not line.has("q")) as progress:
            try:
                order = amendment(_values(target, creation_pairs(texts)))
                if "encrypt" in order:
                    node.require_key_slots()
                    encrypt = {"format": "luks", **order["encrypt"]}
                    order["encrypt"] = contract().check("QCryptoBlockAmendOptions", encrypt, keyval=True)
                with images.layer.drained():
                    node.amend(order, lambda done, total: _tell(progress, done, total), force=line.has("force"))
            except QobraError as error:
                if str(error) == "Cannot amend the backing file":
                    raise ToolError(f"{error}\nYou can use '{program.name} rebase' instead.")
                raise ToolError(str(error))
            except OSError as error:
                raise ToolError(strerror(error))
            progress.finish()
    return 0


def _values(target: Format, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The options of ``pairs``. Raises QobraError, which says so where they would do for a new image."""
    try:
        return parse_values(target.amend_options, pairs)
    except QobraError as error:
        try:
            parse_values({**target.options, **target.amend_options}, pairs)
        except QobraError:
            raise error
        raise QobraError(f"{error}\nThis option is only supported for image creation")


def amendment(values: dict[str, Any]) -> dict[str, Any]:
    """Option values as members of the driver's amend options, those of ``encrypt`` as texts. Raises QobraError."""
    order: dict[str, Any] = {}
    for name, value in values.items():
        if name == "compat":
            version = {"0.10": "v2", "v2": "v2", "1.1": "v3", "v3": "v3"}.get(value)
            if version is None:
                raise QobraError(f"Unknown compatibility level {value}")
            order["version"] = version
        elif name.startswith("encrypt."):
            order.setdefault("encrypt", {})[name.removeprefix("encrypt.")] = text_of(value)
        else:
            order[name.replace("_", "-")] = value
    return order


def _format(name: str) -> Format:
    driver = drivers.find(name)
    if driver is None:
        raise ToolError(f"Unknown file format '{name}'")
    target = formats.find(name)
    if target is None or not target.amend_options or not hasattr(driver, "amend"):
        raise ToolError(f"Format driver '{name}' does not support option amendment")
    return target


def _print_options(name: str) -> int:
    known: dict[str, Option] = _format(name).amend_options
    print(f"Amend options for '{name}':")
    print("\n".join(listed(known)))
    return 0


def _tell(progress: Progress, done: int, total: int) -> None:
    progress.start(total)
    progress.to(done)
