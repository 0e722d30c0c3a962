"""Trace events of the block layer and its jobs, at the calls that go through nodes and backends.

What moves data from descriptor to descriptor, as the copy engine does and the loops of exports, makes no such calls.
"""

from __future__ import annotations

from qobra.block.backend import BlockBackend
from qobra.block.graph import GraphChange
from qobra.block.job.job import Job
from qobra.block.node import BlockNode
from qobra.block.opener import Opener
from qobra.trace import event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.buffers import Buffer

_READ_WRITE = 0x2
_NO_CACHE = 0x20
_NO_FLUSH = 0x200

_ZERO_WRITE = 0x2
_MAY_UNMAP = 0x4
_FUA = 0x10
_WRITE_COMPRESSED = 0x20

_REQUEST = "offset %d bytes %d flags 0x%x"


def _flags(fua: bool = False, may_unmap: bool = False) -> int:
    return (_FUA if fua else 0) | (_MAY_UNMAP if may_unmap else 0)


@event("bdrv_open_common", 'bs %p filename "%s" flags 0x%x format_name "%s"', (Opener, "_open_new"), after=True)
def _opened(node: BlockNode, *_args: Any) -> tuple[Any, ...]:
    flags = (0 if node.read_only else _READ_WRITE) | (_NO_CACHE if node.cache_direct else 0)
    return node, node.filename, flags | (_NO_FLUSH if node.cache_no_flush else 0), node.driver


@event("blk_root_attach", "blk %p bs %p", (GraphChange, "set_root"))
def _attached(_change: GraphChange, root: Any, node: BlockNode | None, *_args: Any) -> tuple[Any, ...] | None:
    return (root, node) if node is not None else None


@event("blk_root_detach", "blk %p bs %p", (GraphChange, "set_root"))
def _detached(_change: GraphChange, root: Any, node: BlockNode | None, *_args: Any) -> tuple[Any, ...] | None:
    return (root, root.node) if node is None and root.node is not None else None


@event("blk_co_preadv", f"blk %p bs %p {_REQUEST}", (BlockBackend, "read"))
def _read_by_root(root: BlockBackend, offset: int, length: int) -> tuple[Any, ...]:
    return root, root.node, offset, length, 0


@event("blk_co_preadv", f"blk %p bs %p {_REQUEST}", (BlockBackend, "read_into"))
def _read_into_by_root(root: BlockBackend, offset: int, view: memoryview, **_more: Any) -> tuple[Any, ...]:
    return root, root.node, offset, len(view), 0


@event("blk_co_pwritev", f"blk %p bs %p {_REQUEST}", (BlockBackend, "write"))
def _written_by_root(
    root: BlockBackend, offset: int, data: Buffer, *, fua: bool = False, **_more: Any
) -> tuple[Any, ...]:
    return root, root.node, offset, len(data), _flags(fua or not root.writeback)


@event("blk_co_pwritev", f"blk %p bs %p {_REQUEST}", (BlockBackend, "write_zeroes"))
def _zeroed_by_root(
    root: BlockBackend, offset: int, length: int, *, may_unmap: bool = False, fua: bool = False, **_more: Any
) -> tuple[Any, ...]:
    return root, root.node, offset, length, _ZERO_WRITE | _flags(fua or not root.writeback, may_unmap)


@event("bdrv_co_preadv_part", f"bs %p {_REQUEST}", (BlockNode, "read_into"))
def _read(node: BlockNode, offset: int, view: memoryview) -> tuple[Any, ...]:
    return node, offset, len(view), 0


@event("bdrv_co_pwritev_part", f"bs %p {_REQUEST}", (BlockNode, "write"))
def _written(node: BlockNode, offset: int, data: Buffer, *, fua: bool = False) -> tuple[Any, ...]:
    return node, offset, len(data), _flags(fua)


@event("bdrv_co_pwritev_part", f"bs %p {_REQUEST}", (BlockNode, "write_compressed"))
def _compressed(node: BlockNode, offset: int, data: Buffer) -> tuple[Any, ...]:
    return node, offset, len(data), _WRITE_COMPRESSED


@event("bdrv_co_pwrite_zeroes", f"bs %p {_REQUEST}", (BlockNode, "write_zeroes"))
def _zeroed(
    node: BlockNode, offset: int, length: int, *, may_unmap: bool = False, fua: bool = False, **_more: Any
) -> tuple[Any, ...]:
    return node, offset, length, _ZERO_WRITE | _flags(fua, may_unmap)


@event("job_state_transition", "job %p (ret: %d) attempting allowed transition (%s-->%s)", (Job, "transition"))
def _moved_on(job: Job, status: str) -> tuple[Any, ...] | None:
    error = job.error
    return job, -(error.errno or 5) if error is not None else 0, job.status, status
