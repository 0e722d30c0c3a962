"""Create an image by file name, format and ``name=value`` options, as qemu-img create and legacy QMP commands do."""

from __future__ import annotations

import errno

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.creation._options import Format, Option, Values, formats, parse_values, told
from qobra.block.filename import parse_filename, protocol_driver, protocol_of, relative_to
from qobra.block.node import BlockNode, drivers
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from qobra.block.layer import BlockLayer
else:
    Any = object

Options = dict[str, Any]

PREALLOCATION_MODES = ("off", "metadata", "falloc", "full")

FORMAT_MEMBERS_OF_FILE = ("preallocation", "nocow", "extent_size_hint")


class BackingError(QobraError):
    """The backing file of a new image cannot be opened, or its format was not said; ``hint`` is a line to add."""

    def __init__(self, error: QobraError | str, hint: str) -> None:
        super().__init__(str(error), hint=hint)


class ImageCreation:
    """A checked order for a new image: made from what the user said, then carried out by :meth:`run`.

    ``message`` is what QEMU prints before it begins.
    """

    def __init__(self, filename: str, fmt: str, target: Format, known: dict[str, Option], values: Values) -> None:
        self.filename = filename
        self.fmt = fmt
        self._format = target
        self._known = known
        self.values = values

    @property
    def message(self) -> str:
        """``Formatting 'x', fmt=raw size=1048576``."""
        return f"Formatting '{self.filename}', fmt={self.fmt} {told(self._known, self.values)}"

    def make(self, layer: BlockLayer) -> None:
        """Create it. Raises QobraError or OSError."""
        create_in_protocol(layer, self.filename, self.fmt, self._format, self.values)

    def run(self, layer: BlockLayer) -> None:
        """Create it for somebody who chose the size. Raises QobraError or OSError."""
        try:
            self.make(layer)
        except (QobraError, OSError) as error:
            if error.errno != errno.EFBIG:
                raise
            larger = " (try using a larger cluster size)" if "cluster_size" in self._known else ""
            raise QobraError(f"The image size is too large for file format '{self.fmt}'{larger}", errno=errno.EFBIG)


def find_format(fmt: str) -> Format:
    """Creation options of ``fmt``. Raises QobraError in QEMU's words."""
    driver = drivers.find(fmt)
    if driver is None:
        raise QobraError(f"Unknown file format '{fmt}'")
    target = formats.find(fmt)
    if target is None:
        raise QobraError(f"Format driver '{fmt}' does not support image creation")
    return target


def known_options(fmt: str, filename: str | None) -> dict[str, Option]:
    """The options of ``fmt``, with those of the protocol that ``filename`` (if there is one) stands for."""
    known = dict(find_format(fmt).options)
    if filename is not None:
        protocol = protocol_of(filename) or "file"
        driver = protocol_driver(protocol)
        below = formats.find(driver.driver)
        if below is None:
            raise QobraError(f"Protocol driver '{protocol}' does not support image creation")
        for name, option in below.options.items():
            known.setdefault(name, option)
    return known


def plan(
    layer: BlockLayer,
    filename: str,
    fmt: str,
    pairs: Iterable[tuple[str, str]] = (),
    *,
    size: int | None = None,
    backing_file: str | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
) -> ImageCreation:
    """Check an order for a new image; with ``unsafe`` the backing file is not looked at. Raises QobraError."""
    target = find_format(fmt)
    known = known_options(fmt, filename)
    values = parse_values(known, pairs)
    if size is not None:
        if "size" in values:
            raise QobraError("The image size must be specified only once")
        values["size"] = size
    values.update(backing_values(known, fmt, backing_file, backing_format))
    backing = values.get("backing_file")
    if backing is not None:
        if not backing:
            raise QobraError("Expected backing file name, got empty string")
        if backing == filename:
            raise QobraError("Error: Trying to create an image with the same filename as the backing file")
        if not unsafe:
            length = _backing_length(layer, filename, backing, values.get("backing_fmt"))
            values.setdefault("size", length)
        elif "backing_fmt" not in values:
            raise QobraError("Backing file specified without backing format")
    if "size" not in values:
        raise QobraError("Image creation needs a size parameter")
    return ImageCreation(filename, fmt, target, known, values)


def backing_values(known: dict[str, Option], fmt: str, backing_file: str | None, backing_format: str | None) -> Values:
    """The backing file of a new image, and its format, as options. Raises QobraError where ``fmt`` has none."""
    values: Values = {}
    for name, value, what in (
        ("backing_file", backing_file, "Backing file"),
        ("backing_fmt", backing_format, "Backing file format"),
    ):
        if value is not None:
            if name not in known:
                raise QobraError(f"{what} not supported for file format '{fmt}'")
            values[name] = value
    return values


def _backing_length(layer: BlockLayer, filename: str, backing: str, backing_format: str | None) -> int:
    full = relative_to(backing, filename)
    # Only its size is asked for, whoever may be writing to it.
    options: Options = {"read-only": True, "force-share": True, "_no-io": True}
    if backing_format is not None:
        options["driver"] = backing_format
    backend = BlockBackend(layer, perm=0)
    try:
        node = layer.open_image(full, options, root=backend)
    except QobraError as error:
        raise BackingError(error, "Could not open backing image.\n")
    try:
        if backing_format is None:
            raise BackingError("Backing file specified without backing format", f"Detected format of {node.driver}.")
        return node.virtual_size
    finally:
        backend.remove()


def _protocol_options(filename: str) -> Options:
    """What ``filename`` says; of a protocol that cannot create, an error tells that as well."""
    try:
        return parse_filename(filename)
    except QobraError as error:
        protocol = protocol_of(filename)
        if not protocol or (driver := protocol_driver(protocol)).creatable:
            raise
        raise _not_created(driver.driver, error)


def _not_created(driver: str, error: QobraError) -> QobraError:
    return QobraError(
        f"Protocol driver '{driver}' does not support image creation, and opening the image failed: {error}"
    )


def create_in_protocol(layer: BlockLayer, filename: str, fmt: str, target: Format, values: Values) -> None:
    """Make the file, then the format in it."""
    protocol = _protocol_options(filename)
    named = drivers.find(fmt)
    if named is not None and not named.is_format and protocol["driver"] != fmt:
        protocol = {"driver": fmt, "filename": filename.removeprefix("file:")}
    driver = drivers.find(protocol["driver"])
    assert driver is not None
    mode = values.get("preallocation", "off") if fmt in ("raw", driver.driver) else "off"
    if mode not in PREALLOCATION_MODES:
        raise QobraError(f"invalid parameter value: {mode}")
    if mode != "off" and not driver.creatable:
        raise QobraError(f"Unsupported preallocation mode '{mode}'")
    create_file: Callable[[Options], None] | None = driver.create if driver.creatable else None
    # A disk is allocated in whole sectors, whatever the user asked for.
    values = {**values, "size": -(-values["size"] // 512) * 512}
    below = formats.find(driver.driver)
    bare = fmt in ("raw", driver.driver)  # the file is all there is
    file_values: Values = {"size": values["size"] if bare else 0}
    if below is not None:
        # A format sees to preallocation itself; raw has nothing but its file.
        names = FORMAT_MEMBERS_OF_FILE if bare else FORMAT_MEMBERS_OF_FILE[1:]
        file_values.update({name: values[name] for name in names if name in values})
    if create_file is None:
        _require_existing(layer, filename, driver.driver, file_values["size"])
    else:
        create_file({**protocol, **(below.convert(file_values) if below is not None else file_values)})
    if not bare:
        made = [protocol]
        try:
            _format(layer, protocol, fmt, target.convert(values), made)
        except BaseException:
            for each in made:
                _delete(each)
            raise


def _delete(protocol: Options) -> None:
    """What a format could not be made in is no image: it goes, where a protocol can delete."""
    driver = drivers.find(protocol["driver"])
    if driver is not None:
        try:
            driver.delete(protocol)
        except OSError:
            pass  # what went wrong before is told


def _format(layer: BlockLayer, protocol: Options, fmt: str, options: Options, made: list[Options]) -> None:
    """Make the format in the file; a data file of its own is added to what was ``made``."""
    driver = drivers.find(fmt)
    assert driver is not None
    roots: list[BlockBackend] = []
    try:
        file = _open_for_creation(layer, protocol, roots)
        if "data-file" in options:
            name = options["data-file"]
            path = parse_filename(name)
            data_driver = drivers.find(path["driver"])
            if data_driver is not None and data_driver.creatable:
                data_driver.create({**path, "size": 0})
                made.append(path)
            data_file = _open_for_creation(layer, path, roots)
            options["data-file"] = data_file.node_name
            driver.create({"driver": fmt, "file": file.node_name, **options}, file, data_file)
        else:
            driver.create({"driver": fmt, "file": file.node_name, **options}, file)
    except BaseException:
        for root in roots:
            try:
                root.remove()
            except (OSError, QobraError):
                pass  # what went wrong before is told
        raise
    for root in roots:
        root.remove()


def _open_for_creation(layer: BlockLayer, options: Options, roots: list[BlockBackend]) -> BlockNode:
    everything = permissions.ALL & ~permissions.GRAPH_MOD
    root = BlockBackend(layer, perm=everything, shared=permissions.CONSISTENT_READ | permissions.WRITE_UNCHANGED)
    node = layer.open({**options, "read-only": False, "discard": "unmap"}, root=root, active=True)
    roots.append(root)
    return node


def _require_existing(layer: BlockLayer, filename: str, driver: str, size: int) -> None:
    """A protocol that cannot create serves if its image is there and large enough; its first sector is cleared."""
    root = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE | permissions.RESIZE)
    try:
        node = layer.open_image(filename, {"driver": driver, "read-only": False}, root=root)
    except QobraError as error:
        raise _not_created(driver, error)
    try:
        if node.length < size:
            try:
                node.truncate(size, exact=False)
            except (QobraError, OSError) as error:
                if error.errno != errno.ENOTSUP:
                    raise
                raise QobraError(f"The image file '{filename}' is too small: {node.length} bytes, {size} are needed")
        root.write_zeroes(0, min(512, node.length))
    finally:
        root.remove()
