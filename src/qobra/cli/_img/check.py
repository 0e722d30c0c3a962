"""``check``: see whether an image is consistent, and repair it."""

from __future__ import annotations

import errno
import sys

from qobra.block.cache_modes import CACHE_MODES
from qobra.cli._img.info import check_output
from qobra.cli._tool.opening import STORED_BITMAPS, command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError, flush_output, usage
from qobra.errors import QobraError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Examine = Callable[..., dict[str, Any]]

HELP = """\
check [-f FMT | --image-opts] [-T CACHE] [-r leaks|all] [--output human|json] [-q] [-U] [--object DEF] FILENAME

See whether the metadata of an image is consistent.
Exit status: 0 it is, 1 the check itself failed, 2 it is corrupt, 3 it has leaked clusters only, 63 its format cannot
be checked.

  -r leaks   give leaked clusters back
  -r all     repair whatever can be repaired; what the image means may change where it was damaged
"""

CORRUPT, LEAKED, UNSUPPORTED = 2, 3, 63
_FIXED = ("corruptions-fixed", "leaks-fixed")


def _look(option: str, value: str) -> None:
    if option == "r" and value not in ("leaks", "all"):
        raise usage(f"Unknown option value for -r (expecting 'leaks' or 'all'): {value}")


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line, images = command_line(
        program,
        arguments,
        "f:r:T:qU",
        ("format=|f", "repair=|r", "output=", "image-opts", "force-share|U"),
        _look,
    )
    repair = line.optional("r")
    cache = line.value("T", "writeback")
    quiet = line.has("q")
    with images:
        if len(line.operands) != 1:
            raise usage("Expecting one image file name")
        is_json = check_output(line)
        if cache not in CACHE_MODES:
            raise ToolError(f"Invalid source cache option: {cache}")
        backend = images.open(
            line.operands[0],
            **opening(line),
            writable=repair is not None,
            cache=cache,
            options={"_check": True, **STORED_BITMAPS},
        )
        node = node_of(backend)
        examine: Examine | None = getattr(node, "check", None)
        if examine is None:
            program.error("This image format does not support checks")
            return UNSUPPORTED
        result = _run(program, examine, leaks=repair is not None, errors=repair == "all")
        fixed = {name: count for name in _FIXED if (count := result.pop(name, 0))}
        if fixed and not (is_json or quiet):
            print(
                "The following inconsistencies were found and repaired:\n\n"
                f"    {fixed.get('leaks-fixed', 0)} leaked clusters\n"
                f"    {fixed.get('corruptions-fixed', 0)} corruptions\n\n"
                "Double checking the fixed image now..."
            )
        if fixed:
            result = _run(program, examine, leaks=False, errors=False)
        if is_json and not quiet:
            from qobra.json_text import dumps

            print(dumps({"filename": line.operands[0], "format": node.driver, **result, **fixed}))
        elif not quiet:
            print("\n".join(summary(result)))
    if result.get("corruptions"):
        return CORRUPT
    if result.get("leaks"):
        return LEAKED
    return 1 if result["check-errors"] else 0


def _run(program: Program, examine: Examine, *, leaks: bool, errors: bool) -> dict[str, Any]:
    """ImageCheck of the image, with its ``leaks`` and ``errors`` repaired. Raises ToolError."""
    try:
        return dict(examine(fix_leaks=leaks, fix_errors=errors, report=_report))
    except QobraError as error:
        if error.errno == errno.ENOTSUP:
            raise ToolError("This image format does not support checks", status=UNSUPPORTED)
        raise ToolError(f"Check failed: {error}")
    except OSError as error:
        for note in getattr(error, "__notes__", ()):
            program.error(note)
        raise ToolError(f"Check failed: {strerror(error)}")


def _report(text: str) -> None:
    flush_output()
    sys.stderr.write(text + "\n")


def summary(result: dict[str, Any]) -> list[str]:
    """What ImageCheck says, as lines for a person."""
    lines = []
    corruptions, leaks, errors = (result.get(name, 0) for name in ("corruptions", "leaks", "check-errors"))
    if not (corruptions or leaks or errors):
        lines.append("No errors were found on the image.")
    if corruptions:
        lines += [
            f"\n{corruptions} errors were found on the image.",
            "Data may be corrupted, or further writes to the image may corrupt it.",
        ]
    if leaks:
        lines += [
            f"\n{leaks} leaked clusters were found on the image.",
            "This means waste of disk space, but no harm to data.",
        ]
    if errors:
        lines.append(f"\n{errors} internal errors have occurred during the check.")
    total, allocated = result.get("total-clusters", 0), result.get("allocated-clusters", 0)
    if total and allocated:
        fragmented = 100 * result.get("fragmented-clusters", 0) / allocated
        compressed = 100 * result.get("compressed-clusters", 0) / allocated
        lines.append(
            f"{allocated}/{total} = {100 * allocated / total:.2f}% allocated, {fragmented:.2f}% fragmented, "
            f"{compressed:.2f}% compressed clusters"
        )
    if result.get("image-end-offset"):
        lines.append(f"Image end offset: {result['image-end-offset']}")
    return lines
