"""``qobra img inspect``: whether an image from a stranger may be used, before anything opens what it points to.

The image is looked at in a child process with little time and memory, read-only, and alone: its backing file and
whatever else it names is reported and never opened.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from qobra.block.format._magic import others
from qobra.cli._img.info import check_output
from qobra.cli._tool.opening import Images, node_of
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError, strerror
from qobra.getopt import parse_command
from qobra.report import visible
from qobra.units import size_text

HELP = """\
inspect [--untrusted] [-f FMT] [--output human|json] [--max-size SIZE] [--check] FILENAME

Say what an image is, which other files it would make a program open, and what is wrong with it, without opening any
of them. With --untrusted the image is looked at in a process of its own with little time and memory.
Exit status: 0 nothing to object to, 1 it cannot be inspected, 2 damaged, 3 it refers to other files, 4 it is not of
the format FMT, or could be taken for another, 5 larger than SIZE.

  -f FMT           the format that it should be
  --max-size SIZE  the largest virtual size to accept
  --check          check the metadata too
"""

OK, FAILED, DAMAGED, REFERS, MISTAKEN, TOO_LARGE = range(6)
CPU_SECONDS = 20
WALL_SECONDS = 60
MEMORY = 1 << 30
"""Address space of the child, in bytes; an interpreter takes a part of it."""
MAX_ANSWER = 1 << 20

_SIGNATURES = (
    # What a guest could turn a raw disk into, or a file that is several things at once.
    ("iso9660", 0x8001, b"CD001"),
    ("gpt", 512, b"EFI PART"),
    ("mbr", 510, b"\x55\xaa"),
)


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line = parse_command(arguments, "f:", ("format=|f", "output=", "untrusted", "max-size=", "check"))
    if len(line.operands) != 1:
        raise usage("Expecting one image file name")
    is_json = check_output(line)
    largest = line.optional("max-size")
    limit = program.number("maximum size", largest) if largest is not None else None
    look = confined if line.has("untrusted") else examine
    report = look(line.operands[0], line.has("check"))
    judge(report, line.optional("f"), limit)
    if is_json:
        from qobra.json_text import dumps

        print(dumps(report))
    else:
        print("\n".join(describe(report)))
    return int(report["status"])


def confined(filename: str, check: bool) -> dict[str, Any]:
    """:func:`examine` in a child process that can do no harm to this one."""
    import json
    import resource
    import select
    import signal
    import time

    sys.stdout.flush()
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            answer = json.dumps(examine(filename, check)).encode()[:MAX_ANSWER]
            # A pipe is no file: the limit on files does not touch it.
            while answer:
                answer = answer[os.write(send, answer) :]
        finally:
            os._exit(0)
    os.close(send)
    deadline = time.monotonic() + WALL_SECONDS
    data = b""
    try:
        while len(data) <= MAX_ANSWER:
            ready, _, _ = select.select([receive], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(receive, 65536) if ready else b""
            if not part:
                break
            data += part
    finally:
        os.close(receive)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        report = json.loads(data)
    except ValueError:
        report = _empty(filename)
        report["problems"].append("it could not be examined within the limits of time and memory")
        report["failed"] = True
    return dict(report)


def _empty(filename: str) -> dict[str, Any]:
    return {
        "filename": filename,
        "format": None,
        "virtual-size": None,
        "actual-size": None,
        "references": [],
        "also-looks-like": [],
        "problems": [],
        "damaged": False,
        "failed": False,
    }


def examine(filename: str, check: bool) -> dict[str, Any]:
    """What can be said of an image by looking at it alone."""
    report = _empty(filename)
    try:
        with Images(Program("inspect")) as images:
            _examine(images, filename, check, report)
    except ToolError as error:
        path = _plain(filename)
        text = error.text.removeprefix(f"Could not open '{path}': ").replace(f"'{path}'", f"'{filename}'")
        report["problems"].append(text)
        report["damaged"] = report["format"] is not None
        report["failed"] = report["format"] is None
    except (OSError, QobraError) as error:
        report["problems"].append(strerror(error) if isinstance(error, OSError) else str(error))
        report["damaged"] = True
    except (MemoryError, RecursionError):
        report["problems"].append("it asks for more memory than there is to look at it")
        report["damaged"] = True
    return report


def _plain(filename: str) -> str:
    """A plain path is meant, whatever it looks like: nobody's image decides which protocol is spoken."""
    return filename if os.path.isabs(filename) else os.path.join(os.curdir, filename)


def _examine(images: Images, filename: str, check: bool, report: dict[str, Any]) -> None:
    path = _plain(filename)
    file = node_of(images.open(path, fmt="file"))
    report["actual-size"] = file.allocated_size()
    head = file.read(0, min(file.length, 0x8006))
    fmt = images.layer.opener.format_of(head[:2048], path)
    report["format"] = fmt
    report["also-looks-like"] = [
        # Also formats that are not known here: another program may open what such an image names.
        *others(head[:2048], path, fmt),
        *(name for name, offset, magic in _SIGNATURES if head[offset : offset + len(magic)] == magic and fmt != "raw"),
    ]
    node = node_of(images.open(path, fmt=fmt, backing=False, metadata_only=True, options={"_check": True}))
    report["virtual-size"] = node.length
    info = node.info()
    report["info"] = info.get("format-specific")
    report["encrypted"] = bool(info.get("encrypted"))
    name = node.backing_filename
    if name:
        report["references"].append({"kind": "backing file", "name": name, **_reach(name, path)})
    data = ((info.get("format-specific") or {}).get("data") or {}).get("data-file")
    if data:
        report["references"].append({"kind": "data file", "name": data, **_reach(data, path, "")})
    for extent in ((info.get("format-specific") or {}).get("data") or {}).get("extents", ()):
        other = extent.get("filename", "")
        if other and os.path.realpath(other) != os.path.realpath(path):
            report["references"].append({"kind": "extent", "name": other, **_reach(other, path)})
    if info.get("dirty-flag"):
        report["problems"].append("it was not closed properly, and is repaired when it is opened for writing")
    if ((info.get("format-specific") or {}).get("data") or {}).get("corrupt"):
        report["problems"].append("it is marked as corrupt")
        report["damaged"] = True
    if check and hasattr(node, "check"):
        texts: list[str] = []
        try:
            result = node.check(report=texts.append)
        except (OSError, QobraError) as error:
            for note in getattr(error, "__notes__", ()):
                report["problems"] += note.splitlines()
            raise
        report["check"] = result
        if result.get("corruptions") or result.get("check-errors"):
            report["damaged"] = True
            report["problems"] += texts[:10]


def _reach(name: str, path: str, start: str | None = None) -> dict[str, Any]:
    """What opening a name in the image ``path`` would mean; it is relative to that, or to ``start``."""
    from qobra.block.filename import protocol_of, relative_to

    protocol = protocol_of(name)
    if protocol:
        return {"protocol": protocol}
    full = os.path.realpath(relative_to(name, path if start is None else start))
    inside = os.path.dirname(full) == os.path.dirname(os.path.realpath(path))
    return {"path": full, "same-directory": inside}


def judge(report: dict[str, Any], fmt: str | None, limit: int | None) -> None:
    """Settle ``status`` and say why."""
    problems = report["problems"]
    status = OK
    if report.pop("failed"):
        status = FAILED
    elif report["damaged"]:
        status = DAMAGED
    elif report["references"]:
        status = REFERS
        problems += [
            f"it would make a program open the {each['kind']} '{each['name']}'" for each in report["references"]
        ]
    elif fmt is not None and report["format"] != fmt:
        status = MISTAKEN
        problems.append(f"it is {report['format']}, not {fmt}")
    elif report["also-looks-like"]:
        status = MISTAKEN
        problems.append(f"it could be taken for {' or '.join(report['also-looks-like'])} as well")
    elif limit is not None and (report["virtual-size"] or 0) > limit:
        status = TOO_LARGE
        problems.append(f"it has {report['virtual-size']} bytes, more than {limit}")
    report["status"] = status
    report["safe"] = status == OK


def describe(report: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    size, actual = report["virtual-size"], report["actual-size"]
    lines = [
        f"image: {report['filename']}",
        f"format: {report['format'] or 'unknown'}",
        f"virtual size: {'unknown' if size is None else f'{size_text(size)} ({size} bytes)'}",
        f"disk size: {'unknown' if actual is None else size_text(actual)}",
    ]
    if report.get("encrypted"):
        lines.append("encrypted: yes")
    lines += [f"would open: {each['kind']} {each['name']}" for each in report["references"]] or [
        "would open: nothing else"
    ]
    lines += [f"problem: {each}" for each in report["problems"]]
    lines.append("verdict: " + ("nothing to object to" if report["safe"] else "do not use it as it is"))
    return [visible(line) for line in lines]
