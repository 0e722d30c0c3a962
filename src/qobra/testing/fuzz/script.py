"""Draw scripts: commands by weight, now and then one that is wrong in one member."""

from __future__ import annotations

import copy
from typing import Any

from qobra.testing.fuzz.values import Values
from qobra.testing.fuzz.world import ENCRYPTED, World

Step = list[Any]
"""``["qmp", command, arguments]`` or ``["io", node, command of qemu-io]``; ``DIR/`` in names is the server's
directory."""

WEIGHTS = {
    "blockdev-add": 22, "blockdev-del": 6, "blockdev-reopen": 5, "blockdev-snapshot": 4, "blockdev-snapshot-sync": 3,
    "blockdev-snapshot-internal-sync": 1, "blockdev-snapshot-delete-internal-sync": 1, "change-backing-file": 2,
    "block_resize": 3, "x-blockdev-change": 2, "block-set-write-threshold": 2, "x-blockdev-set-iothread": 0.5,
    "block-commit": 5, "block-stream": 5, "blockdev-mirror": 5, "drive-mirror": 2, "blockdev-backup": 5,
    "drive-backup": 2, "blockdev-create": 4, "x-blockdev-amend": 1, "block-job-set-speed": 1, "block-job-cancel": 2,
    "block-job-pause": 1, "block-job-resume": 1, "block-job-complete": 2, "block-job-dismiss": 1,
    "block-job-finalize": 1, "job-pause": 1, "job-resume": 1, "job-cancel": 1, "job-complete": 2, "job-dismiss": 2,
    "job-finalize": 2, "block-dirty-bitmap-add": 6, "block-dirty-bitmap-remove": 2, "block-dirty-bitmap-clear": 1,
    "block-dirty-bitmap-enable": 1, "block-dirty-bitmap-disable": 1, "block-dirty-bitmap-merge": 4,
    "x-debug-block-dirty-bitmap-sha256": 1, "transaction": 7, "block-export-add": 4, "block-export-del": 2,
    "nbd-server-start": 1, "nbd-server-stop": 0.5, "nbd-server-add": 1, "nbd-server-remove": 1,
    "query-named-block-nodes": 1, "query-block-jobs": 1, "query-jobs": 1, "query-block-exports": 1,
    "query-pr-managers": 0.1, "query-blockstats": 1, "query-block": 1, "x-debug-query-block-graph": 1, "io": 8,
    "block-latency-histogram-set": 2, "block_set_io_throttle": 3, "eject": 3, "blockdev-open-tray": 3,
    "blockdev-close-tray": 3, "blockdev-remove-medium": 3, "blockdev-insert-medium": 3, "blockdev-change-medium": 3,
    "device_add": 2, "device_del": 2,
}  # fmt: skip
ONLY_DEVICES = {
    "block-latency-histogram-set", "block_set_io_throttle", "eject", "blockdev-open-tray", "blockdev-close-tray",
    "blockdev-remove-medium", "blockdev-insert-medium", "blockdev-change-medium", "device_add", "device_del",
}  # fmt: skip
WRONG = 0.1
"""How many commands are made wrong."""
LAST = [
    ["qmp", "query-jobs", None],
    ["qmp", "query-block-jobs", None],
    ["qmp", "query-block-exports", None],
    ["qmp", "query-named-block-nodes", None],
    ["qmp", "query-block", None],
    ["qmp", "x-debug-query-block-graph", None],
]
"""What every script ends with."""


def _image(name: str, node_name: str) -> dict[str, Any]:
    file = {"driver": "file", "filename": f"DIR/{name}.qcow2"}
    return {"driver": "qcow2", "node-name": node_name, "file": file}


class Author:
    """Draws the steps of one script."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.chance
        self.values = Values(world)
        self._commands = {
            name: weight
            for name, weight in WEIGHTS.items()
            if (name == "io" or name in world.commands) and (world.devices or name not in ONLY_DEVICES)
        }

    def first(self) -> list[Step]:
        """What most scripts begin with: a server, a throttle group, a chain."""
        steps: list[Step] = []
        if self.chance.random() < 0.8:
            address = {"type": "unix", "data": {"path": "DIR/nbd"}}
            steps.append(["qmp", "nbd-server-start", {"addr": address}])
        if self.chance.random() < 0.5:
            steps.append(["qmp", "object-add", {"qom-type": "throttle-group", "id": "tg0"}])
        if self.chance.random() < 0.3:
            steps.append(["qmp", "object-add", {"qom-type": "iothread", "id": "io0"}])
        if self.chance.random() < 0.15:
            steps += [
                ["qmp", "object-add", {"qom-type": "secret", "id": f"sec{number}", "data": f"key{number}"}]
                for number in range(2)
            ]
            steps.append(
                [
                    "qmp",
                    "blockdev-add",
                    {
                        "driver": "qcow2",
                        "node-name": "n6",
                        "file": {"driver": "file", "filename": f"DIR/{ENCRYPTED}"},
                        "encrypt": {"format": "luks", "key-secret": "sec0"},
                    },
                ]
            )
        if self.chance.random() < 0.4:
            backing: Any = None
            for name, node in zip(("base", "mid", "top"), ("n2", "n1", "n0"), strict=True):
                backing = {**_image(name, node), "backing": backing}
            steps.append(["qmp", "blockdev-add", backing])
        if self.chance.random() < 0.4:
            steps.append(["qmp", "blockdev-add", _image("empty", "n3")])
        return steps

    def next(self) -> Step:
        """One more step, from how the world is now."""
        names = self._commands
        if len(self.world.nodes) < 2:
            names = {"blockdev-add": 1, "transaction": 0.02, "blockdev-create": 0.1}
        command = self.chance.choices(list(names), list(names.values()))[0]
        if command == "io":
            return ["io", self.world.root(), self._io()]
        arguments = self.values.arguments(command)
        if self.chance.random() < WRONG:
            arguments = self.wrong(arguments, typed=command != "device_add")
        return ["qmp", command, arguments]

    def _io(self) -> str:
        start = self.chance.choice((0, 0, 65536, 131072, 512, 1 << 20, 2 << 20, 100))
        length = self.chance.choice((65536, 512, 131072, 1 << 20, 4096))
        kind = self.chance.choice(
            ("write -P 7", "write -P 9", "write -z", "discard", "read -P 7", "flush", "write -z -u")
        )
        return kind if kind == "flush" else f"{kind} {start} {length}"

    def wrong(self, arguments: dict[str, Any], *, typed: bool) -> dict[str, Any]:
        """``arguments`` with one member that is missing, of another type (if ``typed``), out of range, or too many."""
        result = copy.deepcopy(arguments)
        places: list[tuple[Any, Any]] = []

        def visit(value: Any) -> None:
            pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, each in pairs:
                places.append((value, key))
                visit(each)

        visit(result)
        kind = self.chance.choice(("missing", *["type"] * typed, "value", "value", "value", "extra"))
        if not places or kind == "extra":
            where = self.chance.choice([result, *(each[key] for each, key in places if isinstance(each[key], dict))])
            where[self.chance.choice(("zz", "id", "device", "driver", "size"))] = self.chance.choice(
                (1, "x", True, None)
            )
            return result
        parent, key = self.chance.choice(places)
        if kind == "missing":
            del parent[key]
        elif kind == "type":
            parent[key] = self.chance.choice((None, 3, "x", True, [], {}, 1.5))
        elif isinstance(parent[key], bool):
            parent[key] = not parent[key]
        elif isinstance(parent[key], int):
            parent[key] = self.chance.choice(
                (-1, 0, 1, 511, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64)
            )
        else:
            parent[key] = self.chance.choice(("", "nope", "n0", "n1", "-", "a b", "9x", "x" * 40, "#n", "é"))
        return result
