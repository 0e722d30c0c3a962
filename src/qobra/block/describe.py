"""What an image is, as lines of text for a person: the words of ``qemu-img info`` and of the monitor."""

from __future__ import annotations

from qobra.json_text import ordered
from qobra.units import size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Info = dict[str, Any]


def describe(info: Info) -> list[str]:
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
        lines.append("Snapshot list:")
        lines += snapshot_lines(info["snapshots"])
    specific = info.get("format-specific")
    if specific and specific.get("data"):
        lines.append("Format specific information:")
        lines += value_lines(specific["data"], 1)
    return lines


def value_lines(value: Any, indent: int) -> list[str]:
    """The members of an object, or the items of a list, each on its line."""
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


def snapshot_lines(snapshots: list[Info]) -> list[str]:
    """A table of SnapshotInfo, with a headline."""
    import time

    lines = [f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8} {'DATE':>19} {'VM CLOCK':>12} {'ICOUNT':>10}"]
    for each in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["date-sec"]))
        seconds = each["vm-clock-sec"]
        clock = (
            f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{each['vm-clock-nsec'] // 1000000:03d}"
        )
        icount = str(each["icount"]) if "icount" in each else ""
        size = size_text(each["vm-state-size"])
        lines.append(f"{each['id']:<9} {each['name']:<16} {size:>8} {date:>19} {clock:>12} {icount:>10}")
    return lines
