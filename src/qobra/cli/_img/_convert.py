"""The work behind ``convert``: open, make the target, copy, carry bitmaps over."""

from __future__ import annotations

from qobra.block.buffers import new_buffer
from qobra.block.copy.chunk import CHUNK_SIZE
from qobra.block.copy.ranges import allocated_above, holding_data, in_chunks, widened
from qobra.block.creation._image import backing_values, known_options
from qobra.block.creation._options import parse_values
from qobra.block.job.chain import skip_filters
from qobra.block.node import drivers
from qobra.cli._img._copying import copy
from qobra.cli._img._pieces import disk_size, joined
from qobra.cli._img._resume import Journal, identity
from qobra.cli._img._salvage import mapped_parts, read_sectors
from qobra.cli._img._target import (
    Guard,
    check_format,
    create_target,
    open_target,
    read_failed,
    reason,
    refuse_source,
    write_failed,
)
from qobra.cli._img._throttle import Throttle
from qobra.cli._tool.opening import Images, node_of
from qobra.cli._tool.process import collect_garbage
from qobra.cli._tool.progress import Progress
from qobra.cli._tool.report import Program, ToolError
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from qobra.block.node import BlockNode
    from qobra.cli._img.convert import Order
else:
    Any = object

Options = dict[str, Any]


class Conversion:
    """One run of ``convert``."""

    def __init__(self, program: Program, images: Images, order: Order, filenames: list[str], output: str) -> None:
        self._program = program
        self._images = images
        self._order = order
        self._filenames = filenames
        self._output = output
        self._nodes: list[BlockNode] = []
        self._journal: Journal | None = None

    def run(self) -> None:
        """Do it all. Raises ToolError."""
        order = self._order
        for filename in self._filenames:
            backend = self._images.open(
                filename,
                fmt=order.fmt,
                image_opts=order.image_opts,
                cache=order.source_cache,
                force_share=order.force_share,
                unshared=not order.force_share,
            )
            self._nodes.append(node_of(backend))
        if order.snapshot and len(self._filenames) > 1:
            raise ToolError("No support for concatenating multiple snapshot")
        if order.snapshot:
            order.snapshot.load(self._nodes[0])
        source = joined(self._images.layer, self._nodes)
        backing = self._check_target()
        if order.target_is_zero and backing is not None:
            raise ToolError("Cannot use --target-is-zero when the destination image has a backing file")
        refuse_source(self._nodes, self._output, f"error while converting {order.output_format}", create=order.create)
        if order.resume:
            if backing is not None:
                raise ToolError("A copy onto a backing file cannot be resumed")
            self._journal = self._open_journal()
        with Guard(self._images, self._output) as guard:
            if self._journal is not None and self._journal.load():
                self._program.warning(f"going on at byte {self._journal.done} of {source.length}")
            elif order.create:
                self._create(source.length, backing, guard)
            self._fill(source)
            self._images.close()
        if self._journal is not None:
            self._journal.finish()

    def _open_journal(self) -> Journal:
        order = self._order
        return Journal(
            self._output,
            {
                "sources": identity(self._nodes),
                "format": order.output_format,
                "options": [list(pair) for pair in order.pairs],
                "backing": order.backing,
                "snapshot": order.snapshot.wanted,
            },
        )

    # -- the target -------------------------------------------------------------------------------------------

    def _check_target(self) -> str | None:
        """See that the target can be what is asked for; its backing file, if it is to have one. Raises ToolError."""
        order = self._order
        fmt = order.output_format
        backing = order.backing
        if order.create:
            check_format(fmt, self._output, unknown=f"Unknown file format '{fmt}'")
            values = dict(order.pairs)
            try:
                parse_values(known_options(fmt, self._output), order.pairs)
            except QobraError as error:
                raise ToolError(str(error))
            if backing is None:
                backing = values.get("backing_file")
            self._given_backing(backing)
        if len(self._nodes) > 1 and backing is not None:
            raise ToolError(
                "Having a backing file for the target makes no sense when concatenating multiple input images"
            )
        if order.create:
            if backing is not None and order.backing_format is None and "backing_fmt" not in dict(order.pairs):
                from qobra.block.creation._options import formats

                known = formats.find(fmt)
                if known is not None and "backing_file" in known.options:
                    raise ToolError("Use of backing file requires explicit backing format")
            if order.compress:
                self._check_compression(drivers.find(fmt), dict(order.pairs))
        driver = drivers.find(fmt)
        if order.bitmaps:
            if len(self._nodes) > 1:
                raise ToolError("Copying bitmaps only possible with single source")
            if not self._nodes[0].stores_bitmaps:
                raise ToolError("Source lacks bitmap support")
            from qobra.cli._img._bitmaps import check_bitmaps

            check_bitmaps(self._program, self._nodes[0], skip_broken=order.skip_broken_bitmaps)
            if driver is None or not driver.has_bitmap_format:
                raise ToolError(f"Format driver '{fmt}' does not support bitmaps")
        return backing

    def _check_compression(self, driver: Any, values: dict[str, str]) -> None:
        if driver is None or not driver.can_compress:
            raise ToolError("Compression not supported for this file format")
        if values.get("encryption") == "on" or "encrypt.format" in values:
            raise ToolError("Compression and encryption not supported at the same time")
        if values.get("preallocation", "off") != "off":
            raise ToolError("Compression and preallocation not supported at the same time")

    def _create(self, length: int, backing: str | None, guard: Guard) -> None:
        order = self._order
        more: Options = {"size": length}
        more.update(self._given_backing(backing))
        failure = f"error while converting {order.output_format}"
        journal = self._journal
        if journal is not None:
            journal.begin()  # before there is a target, so that it is never there without the journal and not whole
        try:
            create_target(self._images, self._output, order.output_format, order.pairs, more, failure, guard)
        except ToolError:
            if journal is not None:
                journal.finish()  # there is nothing to go on with
            raise
        if journal is not None:
            guard.created = False  # what is there is to be gone on with

    def _given_backing(self, backing: str | None) -> Options:
        """The backing file, and its format, as options. Raises ToolError where the format has none."""
        order = self._order
        try:
            known = known_options(order.output_format, self._output)
            return backing_values(known, order.output_format, backing, order.backing_format)
        except QobraError as error:
            raise ToolError(str(error))

    def _open_target(self) -> BlockNode:
        order = self._order
        fmt: str | None = order.output_format
        if order.target_image_opts and not order.output_format_given:
            fmt = None
        options: Options = {}
        encrypt = {name.removeprefix("encrypt."): value for name, value in order.pairs if name.startswith("encrypt.")}
        if "key-secret" in encrypt:
            kind = encrypt.get("format", "luks")
            options["encrypt"] = {"format": kind, "key-secret": encrypt["key-secret"]}
        backend = open_target(
            self._images,
            self._output,
            fmt,
            order.cache,
            image_opts=order.target_image_opts,
            options=options,
            resize=order.create,
        )
        return node_of(backend)

    # -- copying ----------------------------------------------------------------------------------------------

    def _fill(self, source: BlockNode) -> None:
        order = self._order
        target = self._open_target()
        if order.bitmaps and not target.stores_bitmaps:
            raise ToolError(f"Format driver '{target.driver}' does not support bitmaps")
        if order.compress and not order.create:
            self._check_compression(type(target), {})
        if order.level is not None:
            try:
                target.set_compression_level(order.level)
            except QobraError as error:
                raise ToolError(str(error))
        if not order.create and disk_size(target) < source.length:
            raise ToolError("output file is smaller than input file")
        has_backing = target.backing is not None
        is_zero = order.create and target.has_zero_init() and not has_backing
        if order.target_is_zero:
            is_zero = not has_backing
        elif not is_zero and not has_backing and order.min_sparse:
            is_zero = _make_zero(target, source.length)
        start = self._journal.done if self._journal is not None else 0
        ranges: Any = [(start, source.length - start)] if start < source.length else []
        below = target.backing
        if below is not None and (order.create or order.backing is not None):
            # What the source's own backing chain has in common with the target's is seen through the target.
            ranges = self._in_units(self._not_below(source.length, below.length), target, source.length)
        if start and hasattr(target, "check"):
            target.check(fix_leaks=True)  # what was allocated and not yet noted when the process was killed
        collect_garbage()
        shown = order.progress and not order.quiet
        total = source.length
        if shown and is_zero and order.min_sparse and self._journal is None:
            # What need not be written does not count.
            if not order.salvage:
                total = sum(length for _, length in self._in_units(holding_data(source), target, source.length))
                ranges = self._in_units(holding_data(source), target, source.length)
        if order.salvage and order.min_sparse:
            ranges = list(ranges)
            for _part in mapped_parts(source, ranges, self._no_status):
                pass  # as with QEMU, one is told of all that is wrong with the map before anything is copied
        with self._program.progress(shown) as progress:
            progress.start(total)
            progress.to(start)
            if order.min_sparse:
                if order.salvage:
                    for part in mapped_parts(source, ranges, self._no_status):
                        self._copy(source, target, [part], is_zero, progress)
                else:
                    self._copy(source, target, ranges, is_zero, progress)
            else:
                self._copy_all(source, target, ranges, progress)
            self._finish(target)
            progress.finish()
        if order.bitmaps:
            self._copy_bitmaps(target)

    def _in_units(self, ranges: Iterator[tuple[int, int]], target: BlockNode, end: int) -> Iterator[tuple[int, int]]:
        """``ranges`` as far as they must reach to be written: only whole clusters can be compressed."""
        unit = target.cluster_size() if self._order.compress else 0
        return widened(ranges, unit, end) if unit else ranges

    def _not_below(self, length: int, seen: int) -> Iterator[tuple[int, int]]:
        """What cannot be seen through the target, whose backing file has ``seen`` bytes: (offset, length).

        Past its end the target reads as zeroes, so that those of the source need not be written.
        """
        seen = -(-seen // 512) * 512
        for offset, count in self._above(length):
            inside = max(0, min(count, seen - offset))
            if inside:
                yield offset, inside
            if inside < count:
                yield from holding_data(self._nodes[0], offset + inside, offset + count)

    def _above(self, length: int) -> Iterator[tuple[int, int]]:
        """What the source does not take from the node under its top: (offset, length).

        Past that node's end, and where there is none, the source reads as zeroes; the target's backing file may not.
        """
        base = self._common_base()
        end = min(base.length, length) if base is not None else 0
        for offset, count in allocated_above(self._nodes[0], base, 0) if end else ():
            if offset < end:
                yield offset, min(count, end - offset)
        if end < length:
            yield end, length - end

    def _common_base(self) -> BlockNode | None:
        """The node in the source's chain below which nothing is copied: the one under the top."""
        node: BlockNode | None = self._nodes[0]
        while node is not None and node.is_transparent:
            node = node.children.get("file")
        return node.backing if node is not None else None

    def _copy(
        self,
        source: BlockNode,
        target: BlockNode,
        ranges: Any,
        target_is_zero: bool,
        progress: Progress,
    ) -> None:
        order = self._order
        throttle = Throttle(order.rate) if order.rate else None
        journal = self._journal

        def copied(length: int) -> None:
            progress.add(length)
            if journal is not None:
                journal.add(length, target)

        copy(
            source,
            target,
            ranges,
            salvage=(lambda offset, length: self._salvage(source, target, offset, length)) if order.salvage else None,
            compress=order.compress,
            detect_zeroes=0 if order.copy_range else order.min_sparse,
            target_is_zero=target_is_zero,
            use_copy_range=order.copy_range,
            progress=copied,
            in_order=journal is not None,
            workers=order.workers,
            throttle=throttle.wait if throttle is not None else None,
        )

    def _copy_all(self, source: BlockNode, target: BlockNode, ranges: Any, progress: Progress) -> None:
        """``-S 0``: write everything, zeroes too."""
        order = self._order
        throttle = Throttle(order.rate) if order.rate else None
        buffer = memoryview(new_buffer(CHUNK_SIZE))
        write = target.write_compressed if order.compress else target.write
        for offset, length in in_chunks(ranges, CHUNK_SIZE):
            view = buffer[:length]
            try:
                source.read_into(offset, view)
            except (OSError, QobraError) as error:
                if not order.salvage:
                    raise read_failed(offset, error)
                read_sectors(source, offset, view, self._no_data)
            try:
                write(offset, view)
            except (OSError, QobraError) as error:
                raise write_failed(offset, error)
            progress.add(len(view))
            if throttle is not None:
                throttle.wait(len(view))

    def _salvage(self, source: BlockNode, target: BlockNode, offset: int, length: int) -> None:
        """A chunk that cannot be read whole: sector by sector, with zeroes for those that are lost."""
        view = memoryview(bytearray(length))
        read_sectors(source, offset, view, self._no_data)
        try:
            if self._order.compress:
                target.write_compressed(offset, view)
            else:
                target.write(offset, view)
        except (OSError, QobraError) as error:
            raise write_failed(offset, error)

    def _no_status(self, offset: int, error: OSError | QobraError) -> None:
        self._program.warning(f"error while reading block status at offset {offset}: {reason(error)}")

    def _no_data(self, offset: int, error: OSError | QobraError) -> None:
        self._program.warning(f"error while reading offset {offset}: {reason(error)}")

    def _finish(self, target: BlockNode) -> None:
        try:
            if self._order.compress:
                # Compressed clusters are read by whole sectors, so the last one has to have its rest.
                file = skip_filters(target).file
                file.truncate(-(-file.length // 512) * 512)
            target.flush()
        except (OSError, QobraError) as error:
            raise ToolError(f"error while writing: {reason(error)}")

    def _copy_bitmaps(self, target: BlockNode) -> None:
        from qobra.cli._img._bitmaps import copy_bitmaps

        copy_bitmaps(self._program, self._nodes[0], target, skip_broken=self._order.skip_broken_bitmaps)


def _make_zero(target: BlockNode, length: int) -> bool:
    """Zero the first ``length`` bytes of an old target, where it has a quick way to. What lies past them stays."""
    unit = max(1, target.cluster_size())
    whole = length - length % unit
    try:
        if whole:
            target.write_zeroes(0, whole, may_unmap=True, no_fallback=True)
        if whole < length:
            target.write_zeroes(whole, length - whole, may_unmap=True)
    except OSError:
        return False
    return True
