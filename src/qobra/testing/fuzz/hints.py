"""What members of the schema's types get as values, by their names: those that mean something to a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.qapi.contract import contract
from qobra.testing.fuzz import world as names

if TYPE_CHECKING:
    from qobra.testing.fuzz.values import Values

MIB = 1 << 20


def _actions(values: Values, depth: int) -> Any:
    return [values.object("TransactionAction", "transaction") for _ in range(values.pick(0, 1, 1, 2, 2, 3, 4))]


def _action_data(kind: str, command: str) -> Callable[[Values, int], Any]:
    def draw(values: Values, depth: int) -> Any:
        drawn = values.object(values.types[f"q_obj_{kind}-wrapper"].members[0].type, command)
        values.fit(command, drawn)
        return drawn

    return draw


def _socket(values: Values, depth: int) -> Any:
    return {"type": "unix", "data": {"path": f"DIR/{values.pick('nbd', 'nbd', 'nbd2')}"}}


def _children(values: Values, depth: int) -> Any:
    return [values.reference("BlockdevRef", "quorum", depth) for _ in range(values.pick(1, 2, 2, 3, 3))]


_CHILDREN = ("file", "image", "backing", "test", "raw", "log", "target")
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
        for child in _CHILDREN:
            if isinstance(options.get(child), dict):
                options[child] = options[child].get("node-name") or values.world.like(name)
        changed = values.options(driver=options["driver"])
        for key in values.chance.sample(list(changed), k=values.pick(0, 1, 1, 2)):
            if key in _CHILDREN and isinstance(options.get(key), str):
                if options["driver"] != "qcow2":  # an image stays in its file
                    options[key] = values.world.like(options[key])
            elif key not in _FIXED and not isinstance(changed[key], dict):
                options[key] = changed[key]
        if values.chance.random() < 0.3:
            options["read-only"] = values.chance.random() < 0.5
        # Left out, they mean different things.
        options.setdefault("discard", "ignore")
        options.setdefault("read-only", False)
        result.append(options)
    return result


def _create(values: Values, depth: int) -> Any:
    driver = values.pick("file", "qcow2", "qcow2", "qcow2", "nbd", "host_device", "null-co")
    if driver == "null-co":
        return {"driver": driver}
    if driver in ("nbd", "host_device"):
        return {"driver": driver, **({"location": {}} if values.pick(True, False) else {})}
    drawn = {"driver": driver, **values.object(f"BlockdevCreateOptions{driver.capitalize()}", "create")}
    if driver == "qcow2":
        # An image in the disk of another is longer than that.
        drawn["file"] = _plain_file(values)
        if "data-file" in drawn:
            drawn["data-file"] = _plain_file(values)
            if drawn["data-file"] == drawn["file"]:
                del drawn["data-file"]
    return drawn


def _plain_file(values: Values) -> Any:
    """A file that is no image's disk."""
    if values.chance.random() < 0.5:
        return values.world.node_of(["file", "null-co", "null-aio"])
    return {"driver": "file", "filename": f"DIR/{values.pick(*names.NEW_FILES, *names.FLAT)}"}


def _amend(values: Values, depth: int) -> Any:
    if values.chance.random() < 0.1:
        return {"driver": values.pick("luks", "file", "raw", "qcow2")}
    encrypt: dict[str, Any] = {"format": values.pick("luks", "luks", "luks", "qcow")}
    if values.chance.random() < 0.95:
        encrypt["state"] = values.pick("active", "active", "inactive")
        chosen = {
            "new-secret": values.pick("sec0", "sec1", "nope"), "old-secret": values.pick("sec0", "sec1", "nope"),
            "keyslot": values.pick(0, 1, 7, 8, -1), "iter-time": values.pick(10, 10, 0), "secret": "sec0",
        }  # fmt: skip
        encrypt |= {name: each for name, each in chosen.items() if values.chance.random() < 0.4}
        if encrypt["state"] == "active":
            encrypt |= {"new-secret": chosen["new-secret"], "iter-time": chosen["iter-time"]}
    return {"driver": "qcow2", "encrypt": encrypt}


def _creation_encryption(values: Values, depth: int) -> Any:
    encrypt = {"format": values.pick("luks", "luks", "qcow"), "key-secret": values.pick("sec0", "sec1", "nope")}
    return {**encrypt, "iter-time": 10} if encrypt["format"] == "luks" else encrypt


def _grouped(values: Values, depth: int) -> Any:
    return {"completion-mode": values.pick("grouped", "grouped", "individual")}


def _merged(values: Values, depth: int) -> Any:
    result: list[Any] = []
    for _ in range(values.pick(1, 1, 2, 3)):
        node, name = values.world.bitmap()
        result.append({"node": node, "name": name} if values.chance.random() < 0.5 else name)
    return result


def _below_raw(values: Values, depth: int) -> Any:
    """No image with a backing file, what lies in which QEMU takes for not allocated in the raw node."""
    drawn = values.reference("BlockdevRef", "raw", depth)
    if isinstance(drawn, str):
        deep = values.world.nodes.get(drawn, {}).get("backing_file_depth", 0)
        return values.world.node_of(["file", "null-co"]) if deep else drawn
    if drawn["driver"] == "qcow2":
        drawn["backing"] = None
    return drawn


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
Hint = Callable[["Values", int], Any]

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
    "raw.file": _below_raw,
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
    "max-transfer": lambda v, d: v.pick(512, 4096, 65536),  # with less QEMU mirrors without an end
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
    "job-complete.id": lambda v, d: v.world.going_job(),
    "job-dismiss.id": lambda v, d: v.world.job(),
    "job-finalize.id": lambda v, d: v.world.job(),
    "block-job-dismiss.id": lambda v, d: v.world.job(),
    "block-job-finalize.id": lambda v, d: v.world.job(),
    "block-job-set-speed.device": lambda v, d: v.world.job(),
    "block-job-cancel.device": lambda v, d: v.world.job(),
    "block-job-pause.device": lambda v, d: v.world.job(),
    "block-job-resume.device": lambda v, d: v.world.job(),
    "block-job-complete.device": lambda v, d: v.world.going_job(),
    "blockdev-reopen.options": _reopen,
    "blockdev-create.options": _create,
    "x-blockdev-amend.options": _amend,
    "x-blockdev-amend.node-name": lambda v, d: v.world.encrypted(),
    "create.encrypt": _creation_encryption,
    "encrypt": lambda v, d: {"format": v.pick("luks", "aes"), "key-secret": v.pick("sec0", "sec1", "nope")},
    "properties": _grouped,
    "transaction.actions": _actions,
    "transaction.type": lambda v, d: v.pick(
        *(k for k in v.types["TransactionAction"].branches if k != "abort"),
        *(["abort"] if v.chance.random() < 0.3 else []),
    ),
}
for _kind, _target in contract().types["TransactionAction"].branches.items():
    HINTS[f"transaction:{_kind}.data"] = _action_data(_target[6:-8], _kind)
"""How members get their values, by ``owner.name`` or by ``name``. A hint that returns None leaves it to the type."""
