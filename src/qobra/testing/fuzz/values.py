"""Draw values of the schema's types: names and numbers that mean something, where a member's name tells what it is."""

from __future__ import annotations

import json
import random
from typing import Any

from qobra.qapi.contract import contract
from qobra.qapi.spec import ALTERNATE, ENUM, MemberSpec, Types
from qobra.testing.fuzz import world as names
from qobra.testing.fuzz.hints import HINTS, MIB
from qobra.testing.fuzz.world import World

DEEPEST = 3
DRIVERS = {
    "qcow2": 10, "raw": 6, "null-co": 4, "null-aio": 1, "file": 5, "copy-on-read": 2, "throttle": 2, "quorum": 2,
    "blkdebug": 1, "compress": 1, "blkverify": 1, "blklogwrites": 1, "preallocate": 1, "snapshot-access": 1,
    "copy-before-write": 1,
}  # fmt: skip
"""Drivers that are drawn, and how often."""
LEFT_OUT = {
    "pr-manager", "auth", "aio-max-batch", "force-share",
}  # fmt: skip
"""Members that are not drawn: things that a script has not made, and options with which QEMU can reopen a node no more,
not even to make it read-only below a snapshot."""
LIKELY = {
    "node-name": 0.9, "job-id": 0.95, "backing": 0.4, "size": 0.9, "base": 0.1, "top": 0.1, "base-node": 0.4,
    "top-node": 0.3, "bitmap": 0.25, "speed": 0.1, "snapshot-node-name": 0.9, "format": 0.7, "mode": 0.5, "name": 0.6,
    "device": 0.6, "child": 0.5, "node": 0.6, "writable": 0.6, "id": 0.6, "auto-dismiss": 0.3, "auto-finalize": 0.25,
    "backing-fmt": 0.9, "latency-ns": 0.02, "align": 0.05, "cache": 0.05, "inject-error": 0.4,
    "read-only": 0.2, "data-file": 0.05, "offset": 0.2, "persistent": 0.4, "properties": 0.5, "completion-mode": 0.9,
    "on-error": 0.3, "on-source-error": 0.3, "on-target-error": 0.3, "encrypt": 0.02, "bitmaps": 0.3, "force": 0.3,
}  # fmt: skip
"""How likely an optional member is given; others at one in ten."""


class Values:
    """Draws values for a script that has the names of ``world``."""

    def __init__(self, world: World) -> None:
        self.world: World = world
        self.chance: random.Random = world.chance
        self.types: Types = contract().types

    def arguments(self, command: str) -> dict[str, Any]:
        """Arguments of ``command``, all of whose members are of the right type."""
        if command == "blockdev-add":
            if (lost := self.world.lost()) and self.chance.random() < 0.3:
                return lost
            return self.encrypted() if self.chance.random() < 0.03 else self.options(named=True)
        drawn = self.object(contract().commands[command].arg_type, command)
        self.fit(command, drawn)
        return drawn

    def object(self, type_name: str, owner: str, depth: int = 0) -> dict[str, Any]:
        """A value of an object type; ``owner`` is where hints are looked up."""
        spec = self.types[type_name]
        result: dict[str, Any] = {}
        for member in spec.members:
            self._member(result, member, owner, depth)
        if spec.tag and (branch := spec.branches.get(result.get(spec.tag, ""))):
            tag = result[spec.tag]
            for member in self.types[branch].members:
                self._member(result, member, f"{owner}:{tag}" if owner == "transaction" else owner, depth)
        return result

    def options(self, *, named: bool = False, driver: str | None = None, depth: int = 0) -> dict[str, Any]:
        """BlockdevOptions that fit each other, mostly: a format on a file that holds it."""
        if driver is None:
            driver = self.chance.choices(list(DRIVERS), list(DRIVERS.values()))[0]
        result: dict[str, Any] = {"driver": driver}
        spec = self.types["BlockdevOptions"]
        for member in spec.members[1:]:
            if member.name != "node-name":
                self._member(result, member, "BlockdevOptions", depth)
        for member in self.types[spec.branches[driver]].members:
            self._member(result, member, driver, depth)
        if named or self.chance.random() < 0.5:
            result["node-name"] = self.world.free_node(but=json.dumps(result))
        if driver.startswith("null"):
            result["read-zeroes"] = True  # otherwise it counts as not allocated
        if driver == "quorum":
            result["vote-threshold"] = min(result["vote-threshold"], max(len(result["children"]), 1))
        return result

    def value(self, type_name: str, owner: str, name: str, depth: int = 0) -> Any:
        """A value for the member ``name`` of ``owner``."""
        if hint := HINTS.get(f"{owner}.{name}") or HINTS.get(name):
            drawn = hint(self, depth)
            if drawn is not None:
                return drawn
        if type_name.startswith("["):
            # Lists without members are in QEMU's way once they are options.
            count = self.chance.choice((1, 1, 1, 2, 2, 3, 0) if depth == 0 and owner not in DRIVERS else (1, 1, 2))
            return [self.value(type_name[1:-1], owner, name + "[]", depth) for _ in range(count)]
        if type_name in ("BlockdevRef", "BlockdevRefOrNull"):
            return self.reference(type_name, owner, depth)
        if type_name == "BlockdevOptions":
            return self.options(depth=depth + 1)
        if type_name not in self.types and not type_name.endswith(("Kind", "-wrapper")):
            return self._builtin(type_name)
        spec = self.types[type_name]
        if spec.kind == ENUM:
            return self.chance.choice(spec.values)
        if spec.kind == ALTERNATE:
            chosen = self.chance.choice(spec.members)
            return self.value(chosen.type, owner, chosen.name, depth)
        return self.object(type_name, owner, depth)

    def reference(self, type_name: str, owner: str, depth: int) -> Any:
        """A child: a node's name, or options for a new node."""
        if type_name == "BlockdevRefOrNull" and self.chance.random() < 0.2:
            return None
        if depth >= DEEPEST or type_name == "BlockdevRefOrNull" or (self.world.nodes and self.chance.random() < 0.6):
            return (
                self.world.node_of(["file"]) if owner in ("raw",) and self.chance.random() < 0.5 else self.world.node()
            )
        return self.options(depth=depth + 1)

    def below_format(self, depth: int) -> Any:
        """The file of a format driver."""
        if self.chance.random() < 0.1:
            return self.reference("BlockdevRef", "", depth + 1)
        if self.chance.random() < 0.2:
            return self.world.node_of(["file"])
        options = self.options(driver="file", depth=depth + 1)
        options["filename"] = self.file(names.IMAGES)
        return options

    def encrypted(self) -> dict[str, Any]:
        """A qcow2 node on the image that is encrypted, mostly with the right key."""
        file = {"driver": "file", "filename": f"DIR/{names.ENCRYPTED}"}
        key = self.pick("sec0", "sec0", "sec0", "sec1", "nope")
        encrypt = {"format": self.pick("luks", "luks", "luks", "aes"), "key-secret": key}
        return {"driver": "qcow2", "node-name": self.world.free_node(), "file": file, "encrypt": encrypt}

    def file(self, likely: list[str]) -> str:
        """A file name, of one of these files or of another."""
        name = self.chance.choice(likely if self.chance.random() < 0.9 else names.IMAGES + names.FLAT + names.NEW_FILES)
        return f"DIR/{name}"

    def pick(self, *choices: Any) -> Any:
        """One of ``choices``."""
        return self.chance.choice(choices)

    def _member(self, result: dict[str, Any], member: MemberSpec, owner: str, depth: int) -> None:
        if member.name in LEFT_OUT:
            return
        likely = LIKELY.get(member.name, 0.1)
        if depth:
            likely /= 2
        if not member.optional or self.chance.random() < likely:
            result[member.name] = self.value(member.type, owner, member.name, depth)

    def _builtin(self, name: str) -> Any:
        if name == "bool":
            return self.chance.random() < 0.5
        if name == "str":
            return self.chance.choice(("", "x", "n0", "nope"))
        if name == "null":
            return None
        return self.chance.choice((0, 1, 2, 3, 512, 4096, 65536, MIB))

    def fit(self, command: str, drawn: dict[str, Any]) -> None:
        """Make members agree that a command wants to agree, and leave out what the manual and QEMU see otherwise."""
        if command == "block-dirty-bitmap-add":
            drawn.setdefault("granularity", 65536)
        elif command == "block-job-cancel" and drawn["device"] in self.world.paused:
            drawn["force"] = True
        elif "device" in drawn and "node-name" in drawn and "mirror" not in command:
            del drawn["device"]
        if command.startswith(("block-dirty-bitmap", "x-debug-block-dirty")):
            node, bitmap = self.world.bitmap()
            if command == "x-debug-block-dirty-bitmap-sha256":
                node, bitmap = self.world.bitmap(plain=True)
            if command != "block-dirty-bitmap-add":
                drawn["node"] = node
                drawn["target" if "target" in drawn else "name"] = bitmap
        elif command in ("block-commit", "block-stream", "change-backing-file"):
            self._fit_chain(command, drawn)
            drawn.pop("auto-dismiss", None)  # QEMU's job keeps the nodes that it has taken out
        elif command.startswith("blockdev-snapshot"):
            for name in drawn.keys() & {"node", "node-name", "overlay"}:
                if self.world.is_below(drawn[name]):
                    drawn[name] = self.world.node_of(["qcow2", "raw", "null-co"])  # not within another image
        elif "sync" in drawn and self.chance.random() < 0.9:
            if self.world.is_below(drawn["device"]):
                drawn["device"] = self.world.node_of(["qcow2", "raw", "null-co"])  # when metadata are written differs
            if drawn.get("target") in self.world.nodes and self.world.nodes[drawn["target"]]["encrypted"]:
                drawn.pop("compress", None)  # which QEMU writes unencrypted
            if "target" in drawn and not command.startswith("drive") and (pair := self.world.pair()):
                drawn["device"], drawn["target"] = pair
            if drawn["sync"] in ("bitmap", "incremental") and (self.world.bitmaps or "mirror" in command):
                drawn["device"], drawn["bitmap"] = self.world.bitmap()
                if drawn["sync"] == "bitmap":
                    drawn.setdefault("bitmap-mode", self.chance.choice(("on-success", "never", "always")))
            if "mirror" in command:
                drawn.pop("bitmap", None)
                drawn.pop("bitmap-mode", None)
                drawn["sync"] = self.chance.choice(("top", "full", "none"))
            elif drawn["sync"] not in ("bitmap", "incremental"):
                drawn.pop("bitmap", None)
                drawn.pop("bitmap-mode", None)

    def _fit_chain(self, command: str, drawn: dict[str, Any]) -> None:
        """Name images of one chain, mostly in the right order."""
        chain = self.world.chain()
        if chain is None or self.chance.random() < 0.1:
            return
        drawn["device"] = chain[0]
        lower = chain[1:] or chain
        for name in drawn.keys() & {"base", "base-node", "top", "top-node", "bottom", "image-node-name"}:
            drawn[name] = self.chance.choice(lower) if name not in ("base", "top") else drawn[name]
        if {"base-node", "top-node"} <= drawn.keys():
            drawn["top-node"], drawn["base-node"] = chain[0], lower[-1]
