"""Draw values of the schema's types: names and numbers that mean something, where a member's name tells what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qobra.qapi.contract import contract
from qobra.qapi.spec import ALTERNATE, ENUM, MemberSpec
from qobra.testing.fuzz import world as names
from qobra.testing.fuzz.world import World

MIB = 1 << 20
DEEPEST = 3
DRIVERS = {
    "qcow2": 10, "raw": 6, "null-co": 4, "null-aio": 1, "file": 5, "copy-on-read": 2, "throttle": 2, "quorum": 2,
    "blkdebug": 1, "compress": 1, "blkverify": 1, "blklogwrites": 1, "preallocate": 1, "snapshot-access": 1,
    "copy-before-write": 1,
}  # fmt: skip
"""Drivers that are drawn, and how often."""
LEFT_OUT = {
    "pr-manager", "encrypt", "auth", "aio-max-batch", "force-share",
}  # fmt: skip
"""Members that are not drawn: things that a script has not made, and options with which QEMU can reopen a node no more,
not even to make it read-only below a snapshot."""
LIKELY = {
    "node-name": 0.9, "job-id": 0.95, "backing": 0.4, "size": 0.9, "base": 0.1, "top": 0.1, "base-node": 0.4,
    "top-node": 0.3, "bitmap": 0.25, "speed": 0.1, "snapshot-node-name": 0.9, "format": 0.7, "mode": 0.5, "name": 0.6,
    "device": 0.6, "child": 0.5, "node": 0.6, "writable": 0.6, "id": 0.6, "auto-dismiss": 0.3, "auto-finalize": 0.25,
    "backing-fmt": 0.9, "latency-ns": 0.02, "align": 0.05, "cache": 0.05, "inject-error": 0.4,
    "read-only": 0.2, "data-file": 0.05, "offset": 0.2,
}  # fmt: skip
"""How likely an optional member is given; others at one in ten."""


class Values:
    """Draws values for a script that has the names of ``world``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.chance
        self.types = contract().types

    def arguments(self, command: str) -> dict[str, Any]:
        """Arguments of ``command``, all of whose members are of the right type."""
        if command == "blockdev-add":
            return self.options(named=True)
        drawn = self.object(contract().commands[command].arg_type, command)
        self._fit(command, drawn)
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
            result["node-name"] = self.world.free_node()
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

    def _fit(self, command: str, drawn: dict[str, Any]) -> None:
        """Make members agree that a command wants to agree."""
        if command.startswith(("block-dirty-bitmap", "x-debug-block-dirty")):
            node, bitmap = self.world.bitmap()
            if command != "block-dirty-bitmap-add":
                drawn["node"] = node
                drawn["target" if "target" in drawn else "name"] = bitmap
        elif command in ("block-commit", "block-stream", "change-backing-file"):
            self._fit_chain(command, drawn)
        elif "sync" in drawn and self.chance.random() < 0.9:
            if "target" in drawn and not command.startswith("drive") and (pair := self.world.pair()):
                drawn["device"], drawn["target"] = pair
            if drawn["sync"] in ("bitmap", "incremental") and (self.world.bitmaps or "mirror" in command):
                drawn["device"], drawn["bitmap"] = self.world.bitmap()
                if drawn["sync"] == "bitmap":
                    drawn.setdefault("bitmap-mode", self.chance.choice(("on-success", "never", "always")))
            if "mirror" in command:
                drawn.pop("bitmap", None)
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


def _actions(values: Values, depth: int) -> Any:
    return [values.object("TransactionAction", "transaction") for _ in range(values.pick(0, 1, 1, 2, 2, 3, 4))]


def _action_data(kind: str, command: str) -> Callable[[Values, int], Any]:
    def draw(values: Values, depth: int) -> Any:
        drawn = values.object(values.types[f"q_obj_{kind}-wrapper"].members[0].type, command)
        values._fit(command, drawn)
        return drawn

    return draw


def _socket(values: Values, depth: int) -> Any:
    return {"type": "unix", "data": {"path": f"DIR/{values.pick('nbd', 'nbd', 'nbd2')}"}}


def _children(values: Values, depth: int) -> Any:
    return [values.reference("BlockdevRef", "quorum", depth) for _ in range(values.pick(1, 2, 2, 3, 3))]


_FIXED = {"driver", "node-name", "filename"}


def _can_reopen(values: Values, name: str) -> bool:
    """Whether there is a node with options to give again: an image that is put into another file is none any more."""
    options = values.world.added.get(name)
    if options is None or name not in values.world.nodes:
        return False
    file = options.get("file")
    return options["driver"] != "qcow2" or not isinstance(file, dict) or "node-name" in file


def _reopen(values: Values, depth: int) -> Any:
    known = [name for name in values.world.added if _can_reopen(values, name)]
    if not known:
        return []
    result = []
    for name in values.chance.sample(known, k=min(len(known), values.pick(1, 1, 1, 2))):
        options = {**values.world.added[name]}
        for child in ("file", "image", "backing", "test", "raw", "log", "target"):
            if isinstance(options.get(child), dict):
                options[child] = options[child].get("node-name") or values.world.node()
        changed = values.options(driver=options["driver"])
        for key in values.chance.sample(list(changed), k=values.pick(0, 1, 1, 2)):
            if key not in _FIXED and not isinstance(changed[key], dict):
                options[key] = changed[key]
        if values.chance.random() < 0.3:
            options["read-only"] = values.chance.random() < 0.5
        options.setdefault("discard", "ignore")  # left out, it means different things
        result.append(options)
    return result


def _create(values: Values, depth: int) -> Any:
    driver = values.pick("file", "qcow2", "qcow2", "qcow2", "raw")
    branch = f"BlockdevCreateOptions{driver.capitalize()}"
    drawn = {"driver": driver, **values.object(branch, "create")} if driver != "raw" else None
    if drawn is None:
        return {"driver": "null-co"}
    if driver == "qcow2":
        drawn["file"] = values.reference("BlockdevRef", "create", 1)
        if isinstance(drawn["file"], dict) and drawn["file"]["driver"].startswith("null"):
            drawn["file"]["size"] = 16 * MIB  # QEMU's grow
    return drawn


def _merged(values: Values, depth: int) -> Any:
    result: list[Any] = []
    for _ in range(values.pick(1, 1, 2, 3)):
        node, name = values.world.bitmap()
        result.append({"node": node, "name": name} if values.chance.random() < 0.5 else name)
    return result


def _errors(values: Values, depth: int) -> Any:
    drawn: dict[str, Any] = {"event": values.pick("read_aio", "write_aio", "flush_to_os", "none", "pwritev", *_EVENTS)}
    if values.chance.random() < 0.5:
        drawn["errno"] = values.pick(5, 28, 12)
    if values.chance.random() < 0.3:
        drawn["iotype"] = values.pick("read", "write", "write-zeroes", "flush", "discard")
    if values.chance.random() < 0.5:
        drawn["once"] = values.chance.random() < 0.7
    if values.chance.random() < 0.3:
        drawn["sector"] = values.pick(0, 128, 1024)
    return [drawn]


_EVENTS = "cluster_alloc", "l2_load", "l2_update", "l2_alloc_write", "refblock_load", "refblock_update_part"
Hint = Callable[[Values, int], Any]

HINTS: dict[str, Hint] = {
    "filename": lambda v, d: v.file(names.FLAT + names.IMAGES + ["new0"]),
    "create.filename": lambda v, d: v.file(names.NEW_FILES),
    "create.backing-file": lambda v, d: v.file(names.IMAGES),
    "create.backing-fmt": lambda v, d: v.pick("qcow2", "qcow2", "raw", "file"),
    "create.size": lambda v, d: v.pick(MIB, 2 * MIB, 65536, 512, 1000, 0, 4 * MIB),
    "create.cluster-size": lambda v, d: v.pick(512, 4096, 65536, 2 * MIB, 100, 256),
    "create.preallocation": lambda v, d: v.pick("off", "metadata", "falloc", "full"),
    "create.refcount-bits": lambda v, d: v.pick(1, 8, 16, 64, 3),
    "create.extent-size-hint": lambda v, d: v.pick(0, MIB),
    "raw.offset": lambda v, d: v.pick(0, 512, 65536, 1000, MIB),
    "raw.size": lambda v, d: v.pick(65536, 512, MIB, 2 * MIB, 1000),
    "raw.file": lambda v, d: v.reference("BlockdevRef", "raw", d),
    "null-co.size": lambda v, d: v.pick(MIB, 2 * MIB, 65536, 1000),
    "null-aio.size": lambda v, d: v.pick(MIB, 2 * MIB, 65536, 1000),
    "latency-ns": lambda v, d: v.pick(0, 1000),
    "qcow2.file": lambda v, d: v.below_format(d),
    "qcow2.data-file": lambda v, d: v.reference("BlockdevRef", "raw", d + 1),
    "qcow2.cache-size": lambda v, d: v.pick(0, 65536, MIB),
    "qcow2.l2-cache-size": lambda v, d: v.pick(0, 65536, MIB),
    "qcow2.l2-cache-entry-size": lambda v, d: v.pick(512, 4096, 65536, 1000),
    "qcow2.refcount-cache-size": lambda v, d: v.pick(0, 65536, MIB),
    "qcow2.cache-clean-interval": lambda v, d: v.pick(0, 600, -1),
    "qcow2.lazy-refcounts": lambda v, d: v.chance.random() < 0.3,
    "quorum.children": _children,
    "vote-threshold": lambda v, d: v.pick(1, 2, 2, 3),
    "throttle-group": lambda v, d: v.pick("tg0", "tg0", "tg0", "tg1", "nope"),
    "blkdebug.inject-error": _errors,
    "blkdebug.set-state": lambda v, d: [{"event": "read_aio", "state": 1, "new_state": 2}],
    "blkdebug.align": lambda v, d: v.pick(512, 4096, 1000),
    "copy-before-write.bitmap": lambda v, d: dict(zip(("node", "name"), v.world.bitmap(), strict=True)),
    "copy-on-read.bottom": lambda v, d: v.world.node(),
    "prealloc-align": lambda v, d: v.pick(4096, 65536, MIB, 1000),
    "prealloc-size": lambda v, d: v.pick(65536, MIB, 1000),
    "log-sector-size": lambda v, d: v.pick(512, 4096, 1000),
    "blklogwrites.log": lambda v, d: {"driver": "file", "filename": "DIR/log.raw"},
    "take-child-perms[]": lambda v, d: v.pick("consistent-read", "write", "write-unchanged", "resize"),
    "unshare-child-perms[]": lambda v, d: v.pick("consistent-read", "write", "write-unchanged", "resize"),
    "aio": lambda v, d: v.pick("threads", "threads", "native", "io_uring"),
    "cache": lambda v, d: {v.pick("direct", "no-flush"): v.pick(True, False)},
    "event": lambda v, d: v.pick("read_aio", "write_aio", "flush_to_os"),
    "read-only": lambda v, d: v.chance.random() < 0.6,
    "node-name": lambda v, d: v.world.node(),
    "node": lambda v, d: v.world.node(),
    "device": lambda v, d: v.world.root(),
    "drive-mirror.node-name": lambda v, d: v.world.free_node(),
    "target": lambda v, d: v.world.node(),
    "drive-mirror.target": lambda v, d: v.file(names.NEW_FILES + ["empty.qcow2"]),
    "drive-backup.target": lambda v, d: v.file(names.NEW_FILES + ["empty.qcow2"]),
    "snapshot-file": lambda v, d: v.file(names.NEW_FILES),
    "copy-before-write.target": lambda v, d: v.reference("BlockdevRef", "", d),
    "format": lambda v, d: v.pick("qcow2", "qcow2", "raw"),
    "overlay": lambda v, d: v.world.node(),
    "parent": lambda v, d: v.world.node_of(["quorum"]),
    "child": lambda v, d: v.pick("children.0", "children.1", "children.2", "file", "backing"),
    "base-node": lambda v, d: v.world.node(),
    "top-node": lambda v, d: v.world.node(),
    "bottom": lambda v, d: v.world.node(),
    "base": lambda v, d: v.file(names.IMAGES),
    "top": lambda v, d: v.file(names.IMAGES),
    "backing-file": lambda v, d: v.pick("base.qcow2", "DIR/mid.qcow2", "", "zz"),
    "image-node-name": lambda v, d: v.world.node(),
    "replaces": lambda v, d: v.world.node(),
    "filter-node-name": lambda v, d: v.world.free_node(),
    "snapshot-node-name": lambda v, d: v.world.free_node(),
    "job-id": lambda v, d: v.world.free_job(),
    "speed": lambda v, d: v.pick(0, 1 << 32, 1 << 40),  # with less, each drained section lets QEMU's jobs go on
    "blkdebug.config": lambda v, d: v.pick("DIR/blkdebug.conf", "DIR/nope", "DIR/a.raw"),
    "cbw-timeout": lambda v, d: v.pick(0, 60),
    "locking": lambda v, d: v.pick("auto", "on", "off"),
    "iothread": lambda v, d: v.pick("io0", "io0", "io0", "nope", "tg0"),
    "granularity": lambda v, d: v.pick(512, 4096, 65536, 65536, MIB, 1000, 0, 1 << 27),
    "buf-size": lambda v, d: v.pick(0, 65536, MIB, -1),
    "max-workers": lambda v, d: v.pick(1, 4, 64, 0),
    "max-chunk": lambda v, d: v.pick(0, 65536, MIB, 4096, -1),
    "bitmap": lambda v, d: v.world.bitmap()[1],
    "block-export-add.bitmaps": lambda v, d: [v.world.bitmap()[1]],
    "block-export-add.type": lambda v, d: v.pick("nbd", "nbd", "nbd", "vhost-user-blk"),
    "block-export-add.addr": lambda v, d: {"type": "unix", "path": f"DIR/{v.pick('vu0', 'vu1')}"},
    "num-queues": lambda v, d: v.pick(1, 2, 0, 300),
    "logical-block-size": lambda v, d: v.pick(512, 4096, 100, 0),
    "block-export-add.id": lambda v, d: v.pick(*names.EXPORT_NAMES),
    "block-export-add.name": lambda v, d: v.pick(*names.EXPORT_NAMES, "x" * 300),
    "block-export-add.description": lambda v, d: v.pick("", "about", "y" * 4100),
    "block-export-del.id": lambda v, d: v.world.export(),
    "nbd-server-add.name": lambda v, d: v.pick(*names.EXPORT_NAMES),
    "nbd-server-remove.name": lambda v, d: v.world.export(),
    "nbd-server-start.addr": _socket,
    "tls-creds": lambda v, d: v.pick("nope", "tg0"),
    "tls-authz": lambda v, d: "nope",
    "max-connections": lambda v, d: v.pick(0, 1, 100),
    "name": lambda v, d: v.pick(*names.BITMAP_NAMES),
    "blockdev-snapshot-internal-sync.name": lambda v, d: v.pick(*names.SNAPSHOT_NAMES, ""),
    "blockdev-snapshot-delete-internal-sync.name": lambda v, d: v.pick(*names.SNAPSHOT_NAMES, ""),
    "blockdev-snapshot-delete-internal-sync.id": lambda v, d: v.pick("1", "2", "s0", ""),
    "block-dirty-bitmap-merge.bitmaps": _merged,
    "block_resize.size": lambda v, d: v.pick(MIB, 2 * MIB, 65536, 512, 1000, 0, -1, 3 * MIB),
    "block_resize.node-name": lambda v, d: v.world.top(),
    "block_resize.device": lambda v, d: v.world.top(),
    "write-threshold": lambda v, d: v.pick(0, 1, 65536, MIB, 1 << 40),
    "x-blockdev-set-iothread.iothread": lambda v, d: v.pick("io0", "io0", "nope", None),
    "job-pause.id": lambda v, d: v.world.job(),
    "job-resume.id": lambda v, d: v.world.job(),
    "job-cancel.id": lambda v, d: v.world.job(),
    "job-complete.id": lambda v, d: v.world.job(),
    "job-dismiss.id": lambda v, d: v.world.job(),
    "job-finalize.id": lambda v, d: v.world.job(),
    "block-job-dismiss.id": lambda v, d: v.world.job(),
    "block-job-finalize.id": lambda v, d: v.world.job(),
    "block-job-set-speed.device": lambda v, d: v.world.job(),
    "block-job-cancel.device": lambda v, d: v.world.job(),
    "block-job-pause.device": lambda v, d: v.world.job(),
    "block-job-resume.device": lambda v, d: v.world.job(),
    "block-job-complete.device": lambda v, d: v.world.job(),
    "blockdev-reopen.options": _reopen,
    "blockdev-create.options": _create,
    "x-blockdev-amend.options": lambda v, d: {"driver": v.pick("qcow2", "qcow2", "luks")},
    "transaction.actions": _actions,
    "transaction.type": lambda v, d: v.pick(
        *(k for k in v.types["TransactionAction"].branches if k != "abort"),
        *(["abort"] if v.chance.random() < 0.3 else []),
    ),
}
for _kind, _target in contract().types["TransactionAction"].branches.items():
    HINTS[f"transaction:{_kind}.data"] = _action_data(_target[6:-8], _kind)
"""How members get their values, by ``owner.name`` or by ``name``. A hint that returns None leaves it to the type."""
