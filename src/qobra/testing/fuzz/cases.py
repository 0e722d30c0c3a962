"""Commands that make sense, one or more of each: what :mod:`.members` changes member by member."""

from __future__ import annotations

import copy
from typing import Any

from qobra.testing.fuzz.script import Step

Case = tuple[list[Step], str, dict[str, Any]]
"""What comes before, a command, its arguments."""
MIB = 1 << 20


def _step(command: str, **arguments: Any) -> Step:
    return ["qmp", command, {name.replace("_", "-"): value for name, value in arguments.items()}]


def _image(name: str, node: str, **options: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": f"DIR/{name}.qcow2", "node-name": f"{node}f"}
    return {"driver": "qcow2", "node-name": node, "file": file, **options}


def _empty(node: str) -> Step:
    return ["qmp", "blockdev-add", {"driver": "null-co", "node-name": node, "size": MIB, "read-zeroes": True}]


NBD = _step("nbd-server-start", addr={"type": "unix", "data": {"path": "DIR/nbd"}})
EXPORT = _step("block-export-add", type="nbd", id="e0", node_name="n0")
IOTHREAD = _step("object-add", qom_type="iothread", id="io0")
GROUP = _step("object-add", qom_type="throttle-group", id="tg0")
CHAIN: Step = [
    "qmp", "blockdev-add", _image("top", "n0", backing=_image("mid", "n1", backing=_image("base", "n2"))),
]  # fmt: skip
NODES: list[Step] = [
    CHAIN,
    ["qmp", "blockdev-add", _image("empty", "n3")],
    ["qmp", "blockdev-add", _image("full", "n4")],
]
OVERLAY: Step = ["qmp", "blockdev-add", _image("big", "n5", backing=None)]
BITMAPS = [
    _step("block-dirty-bitmap-add", node="n0", name="b1", granularity=65536),
    _step("block-dirty-bitmap-add", node="n0", name="b2", granularity=65536, disabled=True),
    ["io", "n0", "write -P 7 0 64k"],
]
COPY = {"job-id": "j0", "device": "n0", "target": "n3", "sync": "full"}
READY: Step = ["qmp", "blockdev-mirror", COPY]
HELD: Step = ["qmp", "blockdev-backup", {**COPY, "auto-finalize": False, "auto-dismiss": False}]
DONE: Step = ["qmp", "blockdev-backup", {**COPY, "auto-dismiss": False}]
TWO = [_empty("n6"), _empty("n8")]
SNAPSHOT = {"node-name": "n0", "snapshot-file": "DIR/new0", "snapshot-node-name": "s"}
PAIR = {"sync": "bitmap", "bitmap": "b1"}

CASES: list[Case] = [
    ([NBD, *NODES], "blockdev-del", {"node-name": "n0"}),
    (NODES, "blockdev-snapshot-sync", SNAPSHOT),
    ([*NODES, OVERLAY], "blockdev-snapshot", {"node": "n0", "overlay": "n5"}),
    (NODES, "blockdev-snapshot-internal-sync", {"device": "n4", "name": "s1"}),
    (NODES, "blockdev-snapshot-delete-internal-sync", {"device": "n4", "name": "s0", "id": "1"}),
    (NODES, "change-backing-file", {"device": "n0", "image-node-name": "n0", "backing-file": "DIR/mid.qcow2"}),
    (NODES, "block-commit", {"job-id": "j0", "device": "n0", "top-node": "n1", "base-node": "n2"}),
    (NODES, "block-commit", {"job-id": "j0", "device": "n0", "top": "DIR/mid.qcow2", "base": "DIR/base.qcow2"}),
    (NODES, "block-stream", {"job-id": "j0", "device": "n0", "base-node": "n2"}),
    (NODES, "block-stream", {"job-id": "j0", "device": "n1", "bottom": "n1"}),
    ([*NODES, *BITMAPS], "drive-backup", {**COPY, "target": "DIR/new0"}),
    ([*NODES, *BITMAPS], "blockdev-backup", COPY),
    ([*NODES, *BITMAPS], "blockdev-backup", {**COPY, **PAIR, "bitmap-mode": "never"}),
    (NODES, "drive-mirror", {**COPY, "target": "DIR/new0", "node-name": "tn"}),
    (NODES, "blockdev-mirror", COPY),
    (NODES, "blockdev-mirror", {**COPY, "sync": "top", "copy-mode": "write-blocking", "filter-node-name": "f"}),
    ([*NODES, *BITMAPS], "block-dirty-bitmap-add", {"node": "n3", "name": "b0", "granularity": 65536}),
    *(
        ([*NODES, *BITMAPS], command, {"node": "n0", "name": "b1"})
        for command in (
            *(f"block-dirty-bitmap-{verb}" for verb in ("remove", "clear", "enable", "disable")),
            "x-debug-block-dirty-bitmap-sha256",
        )
    ),
    (
        [*NODES, *BITMAPS],
        "block-dirty-bitmap-merge",
        {"node": "n0", "target": "b2", "bitmaps": ["b1", {"node": "n4", "name": "b0"}]},
    ),
    (NODES, "block_resize", {"node-name": "n3", "size": 2 * MIB}),
    (NODES, "block-set-write-threshold", {"node-name": "n0", "write-threshold": 1}),
    (NODES, "query-named-block-nodes", {"flat": True}),
    (NODES, "query-blockstats", {"query-nodes": True}),
    ([IOTHREAD, _empty("n6")], "x-blockdev-set-iothread", {"node-name": "n6", "iothread": "io0"}),
    (
        [*TWO, _empty("n9"), _step("blockdev-add", driver="quorum", node_name="q", vote_threshold=1, children=["n6"])],
        "x-blockdev-change",
        {"parent": "q", "node": "n9"},
    ),
    *(
        ([*NODES, before], verb, {"device" if verb.startswith("block-job") and name == "device" else "id": "j0"})
        for before in (READY, HELD, DONE)
        for verb, name in (
            *((f"block-job-{verb}", "device") for verb in ("cancel", "pause", "resume", "complete")),
            *((f"block-job-{verb}", "id") for verb in ("dismiss", "finalize")),
            *((f"job-{verb}", "id") for verb in ("pause", "resume", "cancel", "complete", "dismiss", "finalize")),
        )
    ),
    ([], "nbd-server-start", {"addr": {"type": "unix", "data": {"path": "DIR/nbd"}}}),
    ([NBD, *NODES], "nbd-server-add", {"device": "n0", "name": "e0", "writable": True, "description": "d"}),
    ([NBD, *NODES, EXPORT], "nbd-server-remove", {"name": "e0", "mode": "safe"}),
    ([NBD, *NODES, EXPORT], "block-export-del", {"id": "e0", "mode": "safe"}),
    (
        [NBD, IOTHREAD, *NODES, *BITMAPS],
        "block-export-add",
        {"type": "nbd", "id": "e0", "node-name": "n0", "name": "x", "bitmaps": ["b2"]},
    ),
    ([], "blockdev-create", {"job-id": "j0", "options": {"driver": "file", "filename": "DIR/new0", "size": MIB}}),
    (
        [_step("blockdev-add", driver="file", filename="DIR/b.raw", node_name="n8")],
        "blockdev-create",
        {"job-id": "j0", "options": {"driver": "qcow2", "file": "n8", "size": MIB}},
    ),
]

_ACTIONS: dict[str, dict[str, Any]] = {
    "block-dirty-bitmap-add": {"node": "n0", "name": "b0", "granularity": 65536},
    **{f"block-dirty-bitmap-{verb}": {"node": "n0", "name": "b1"} for verb in ("clear", "enable", "disable")},
    "block-dirty-bitmap-merge": {"node": "n0", "target": "b2", "bitmaps": ["b1"]},
    "blockdev-backup": COPY,
    "blockdev-snapshot": {"node": "n0", "overlay": "n5"},
    "blockdev-snapshot-internal-sync": {"device": "n4", "name": "s1"},
    "blockdev-snapshot-sync": SNAPSHOT,
    "drive-backup": {**COPY, "target": "DIR/new0"},
}
CASES += [
    ([*NODES, *BITMAPS, OVERLAY], "transaction", {"actions": [{"type": kind, "data": data}, *more]})
    for kind, data in _ACTIONS.items()
    for more in ((), ({"type": "abort", "data": {}},))
]

_DRIVERS: list[tuple[list[Step], dict[str, Any]]] = [
    ([], {"driver": "file", "filename": "DIR/a.raw"}),
    ([], {"driver": "host_device", "filename": "DIR/a.raw"}),
    ([], {"driver": "null-co", "size": MIB, "read-zeroes": True}),
    ([], {"driver": "raw", "file": {"driver": "file", "filename": "DIR/a.raw", "node-name": "xf"}}),
    ([], {k: v for k, v in _image("full", "x").items() if k != "node-name"}),
    ([GROUP, _empty("n6")], {"driver": "throttle", "throttle-group": "tg0", "file": "n6"}),
    (TWO, {"driver": "quorum", "children": ["n6", "n8"], "vote-threshold": 2}),
    (TWO, {"driver": "blkverify", "test": "n6", "raw": "n8"}),
    (TWO, {"driver": "blkdebug", "image": "n6", "inject-error": [{"event": "read_aio"}]}),
    (TWO, {"driver": "copy-before-write", "file": "n6", "target": "n8"}),
    (
        TWO,
        {
            "driver": "blklogwrites",
            "file": "n6",
            "log": {"driver": "file", "filename": "DIR/log.raw", "node-name": "l"},
        },
    ),
    *((TWO, {"driver": driver, "file": "n6"}) for driver in ("copy-on-read", "preallocate")),
    *((NODES, {"driver": driver, "file": "n3"}) for driver in ("compress", "snapshot-access")),
]
CASES += [(setup, "blockdev-add", {**options, "node-name": "x"}) for setup, options in _DRIVERS]


def _reopen(setup: list[Step], options: dict[str, Any]) -> Case:
    named = {**options, "node-name": "x"}
    again = {"discard": "ignore", "read-only": False, **copy.deepcopy(named)}
    for name, value in again.items():
        if isinstance(value, dict) and "node-name" in value:
            again[name] = value["node-name"]
    return [*setup, ["qmp", "blockdev-add", named]], "blockdev-reopen", {"options": [again]}


CASES += [_reopen(setup, options) for setup, options in _DRIVERS]
