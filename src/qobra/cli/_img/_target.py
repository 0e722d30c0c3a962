"""A target that is about to be written: made, opened, and taken back if the command does not get to its end."""

from __future__ import annotations

import os

from qobra.block.creation._image import ImageCreation, find_format, known_options
from qobra.block.creation._options import parse_values
from qobra.block.node import drivers
from qobra.cli._tool.opening import Images
from qobra.cli._tool.process import Terminated, Undisturbed, end_in_order
from qobra.cli._tool.report import ToolError
from qobra.errors import QobraError, errno_of, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from qobra.block.backend import BlockBackend
    from qobra.block.node import BlockNode
else:
    Any = object

Options = dict[str, Any]


def check_format(fmt: str, filename: str, *, unknown: str) -> None:
    """See that images of ``fmt`` can be made at ``filename``. Raises ToolError; ``unknown`` is for no such format."""
    if drivers.find(fmt) is None:
        raise ToolError(unknown)
    try:
        known_options(fmt, filename)
    except QobraError as error:
        raise ToolError(str(error))


def create_target(
    images: Images,
    filename: str,
    fmt: str,
    pairs: list[tuple[str, str]],
    more: Options,
    failure: str,
    guard: Guard,
) -> None:
    """Make the image, without a word, to be watched over by ``guard``, which is the caller's.

    ``more`` are options that are not texts (``size``). Raises ToolError.
    """
    known = known_options(fmt, filename)
    try:
        values = {**parse_values(known, pairs), **more}
    except QobraError as error:
        raise ToolError(str(error))
    path = filename.removeprefix("file:")
    before = _state(path)
    try:
        ImageCreation(filename, fmt, find_format(fmt), known, values).make(images.layer)
        guard.created = True
    except (Terminated, KeyboardInterrupt):
        # An image that somebody else uses has not been written to.
        if _state(path) != before:
            with Undisturbed():
                images.abandon()
                _cut_to_nothing(path)
        raise
    except QobraError as error:
        raise ToolError(f"{filename}: {failure}: {error}")
    except OSError as error:
        raise ToolError(f"{filename}: {failure}: {strerror(error)}")


def refuse_source(nodes: Sequence[BlockNode], filename: str, failure: str, *, create: bool = True) -> None:
    """The target must not be what it is made from. Raises ToolError in the words of a lock."""
    path = filename.removeprefix("file:")
    try:
        status = os.stat(path)
    except OSError:
        return
    pending = list(nodes)
    while pending:
        node = pending.pop()
        pending.extend(node.children.values())
        if node.is_leaf and node.fd >= 0 and os.path.samestat(os.fstat(node.fd), status):
            reason = f'Failed to get "write" lock\nIs another process using the image [{path}]?'
            raise ToolError(f"{filename}: {failure}: {reason}" if create else f"Could not open '{filename}': {reason}")


class Guard:
    """Sees to it that a target that was not finished is not taken for whole.

    When the command fails or is ended by a signal, the target is closed, and the file that the command made is cut to
    nothing. What was there before the command is left as it is then. The target is made inside, so that there is no
    moment at which it is there and nobody's.
    """

    def __init__(self, images: Images, filename: str) -> None:
        self._images = images
        self._path = filename.removeprefix("file:")
        self.created = False
        """Whether the command has made the target, and is to take it back."""

    def __enter__(self) -> Guard:
        end_in_order()
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        if kind is None or not self.created:
            return
        with Undisturbed():
            self._images.abandon()
            _cut_to_nothing(self._path)


def _state(path: str) -> tuple[int, int, int] | None:
    """What changes when a file is made or written to; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _cut_to_nothing(path: str) -> None:
    try:
        if os.path.isfile(path):
            os.truncate(path, 0)
    except OSError:
        pass


def open_target(
    images: Images,
    filename: str,
    fmt: str | None,
    cache: str,
    *,
    image_opts: bool = False,
    options: Options | None = None,
    resize: bool = True,
) -> BlockBackend:
    """Open the target for writing, with holes where it has zeroes. Raises ToolError."""
    return images.open(
        filename,
        fmt=fmt,
        image_opts=image_opts,
        writable=True,
        resize=resize,
        cache=cache,
        options={"discard": "unmap", **(options or {})},
    )


def write_failed(offset: int, error: OSError | QobraError) -> ToolError:
    """The error of a copy that stopped while writing."""
    return ToolError(f"error while writing at byte {offset}: {reason(error)}")


def read_failed(offset: int, error: OSError | QobraError) -> ToolError:
    """The error of a copy that stopped while reading."""
    return ToolError(f"error while reading at byte {offset}: {reason(error)}")


def reason(error: OSError | QobraError) -> str:
    """Why a request failed, as the C library words the numbers."""
    return os.strerror(errno_of(error))
