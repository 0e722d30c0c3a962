"""How fast the guest changes its memory, over QMP and for people."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command


@command("calc-dirty-rate", needs="board")
def calc_dirty_rate(machine: Machine, args: dict[str, Any]) -> None:
    """Begin to measure."""
    assert machine.board is not None
    mode = args.get("mode", "page-sampling")
    machine.migration.dirty_rate.start(machine.board, args["calc-time"], args.get("sample-pages"), mode)


@hmp_command(
    "calc_dirty_rate",
    args="dirty_ring:-r,dirty_bitmap:-b,second:l,sample_pages_per_GB:l?",
    params="[-r] [-b] second [sample_pages_per_GB]",
    help="begin to measure how fast memory changes (-r and -b: other ways to)",
    needs="board",
)
def hmp_calc_dirty_rate(machine: Machine, args: dict[str, Any]) -> str:
    """Begin to measure."""
    ways = [way for way in ("dirty-ring", "dirty-bitmap") if args.get(way.replace("-", "_"))]
    if len(ways) > 1:
        return "Either dirty ring or dirty bitmap can be specified!\n"
    if not args["second"]:
        return "Incorrect period length specified!\n"
    options = {"calc-time": args["second"], **({"mode": ways[0]} if ways else {})}
    if "sample_pages_per_GB" in args:
        options["sample-pages"] = args["sample_pages_per_GB"]
    dispatch.call(machine, "calc-dirty-rate", options)
    return (
        f"Starting dirty rate measurement with period {args['second']} seconds\n"
        "[Please use 'info dirty_rate' to check results]\n"
    )


@command("query-dirty-rate", needs="board")
def query_dirty_rate(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """What was measured."""
    return machine.migration.dirty_rate.query()


@hmp_command("info dirty_rate", help="how fast memory changed when it was last looked at", needs="board")
def info_dirty_rate(machine: Machine, args: dict[str, Any]) -> str:
    """What was measured."""
    info = dispatch.call(machine, "query-dirty-rate", {})
    rate = f"{info['dirty-rate']} (MB/s)" if "dirty-rate" in info else "(not ready)"
    return (
        f"Status: {info['status']}\nStart Time: {info['start-time']} (ms)\n"
        f"Sample Pages: {info['sample-pages']} (per GB)\nPeriod: {info['calc-time']} (sec)\n"
        f"Mode: {info['mode']}\nDirty rate: {rate}\n"
    )
