"""Opening a qcow2 image: from its options and header to metadata that can be used."""

from __future__ import annotations

import errno

from qobra.block import permissions
from qobra.block.filename import parse_filename
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.header import parse_header
from qobra.block.format.qcow2.image import Image
from qobra.block.format.qcow2.options import cache_sizes, overlap_checks, take_behaviour
from qobra.block.format.qcow2.snapshots import SnapshotTable
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.node import Options
    from qobra.block.opening import Opening


def open_disk(disk: Qcow2Disk, opening: Opening) -> None:
    """Read and check the metadata of the image that the option ``file`` names. Raises QobraError."""
    options = opening.options
    opening.child("file", permissions.ROLE_IMAGE)
    disk.checking = bool(options.get("_check"))
    try:
        _read_metadata(disk, options)
        _open_data_file(disk, opening)
        if disk.header.crypt_method != layout.CRYPT_NONE and not options.get("_no-io"):
            if not options.get("_keyless"):
                from qobra.block.format.qcow2.crypt import open_crypt

                disk.image.crypt = open_crypt(disk, options)
        _load_metadata(disk)
    except OSError as error:
        raise QobraError.from_os("Could not read qcow2 header", error)


def read_anew(disk: Qcow2Disk) -> None:
    """Read the metadata again, which another process may have changed. Raises QobraError."""
    old = disk.image
    try:
        _read_metadata(disk, disk.options)
        disk.image.data, disk.image.crypt = old.data, old.crypt
        _load_metadata(disk)
    except OSError as error:
        raise QobraError.from_os("Could not reopen qcow2 layer: Could not read qcow2 header", error)
    except QobraError as error:
        raise error.prefixed("Could not reopen qcow2 layer: ")
    disk.__dict__.pop("reader", None)
    disk.moved(0, max(disk.length, 1))


def _read_metadata(disk: Qcow2Disk, options: Options) -> None:
    disk.header = parse_header(disk.read_file, check_snapshots=not disk.checking)
    if disk.header.compression:
        from qobra.block.format.qcow2 import compressed

        compressed.require(disk.header.compression)
    disk.snapshots = SnapshotTable(disk.header)
    header = disk.header
    if header.incompatible & layout.CORRUPT and not disk.read_only and not disk.checking:
        raise QobraError("qcow2: Image is corrupt; cannot be opened read/write", errno=errno.EACCES)
    if not header.reftable_clusters and not disk.checking:
        raise QobraError("Image does not contain a reference count table", errno=errno.EINVAL)
    # Of several wrong options, the first in this order is told.
    sizes = cache_sizes(header, options)
    take_behaviour(disk, options)
    checks = overlap_checks(options)
    _check_encryption(disk, options)
    disk.image = Image(disk, disk.file, header, sizes)
    disk.__dict__.pop("stored_bitmaps", None)
    disk.image.overlap.checks = checks


def _load_metadata(disk: Qcow2Disk) -> None:
    disk.image.load()
    if not disk.checking:
        disk.snapshots.load(disk.read_file)  # else the check reads them
    if disk.has_bitmaps:
        disk.stored_bitmaps.load_directory()
    disk.backing_filename = disk.header.backing_file
    disk.backing_format = disk.header.backing_format
    disk.length = disk.header.size
    disk.ready = False
    if disk.has_bitmaps and not disk.options.get("_no-io") and not disk.inactive:
        disk.stored_bitmaps.load()


def _check_encryption(disk: Qcow2Disk, options: Options) -> None:
    if disk.header.crypt_method != layout.CRYPT_NONE or options.get("encrypt") is not None:
        from qobra.block.format.qcow2.crypt import check_format

        check_format(disk.header.crypt_method, options)


def _open_data_file(disk: Qcow2Disk, opening: Opening) -> None:
    header = disk.header
    disk.data_file_raw = False
    if not header.external_data:
        if "data-file" in opening.options:
            opening.child("data-file", permissions.ROLE_DATA)  # what is the matter with that comes first
            raise QobraError("'data-file' can only be set for images with an external data file")
        return
    disk.roles["file"] = permissions.ROLE_METADATA | permissions.ROLE_PRIMARY
    disk.data_file_raw = bool(header.autoclear & layout.RAW_EXTERNAL)
    if opening.options.get("_no-io"):
        return
    if "data-file" in opening.options:
        opening.child("data-file", permissions.ROLE_DATA)
    elif header.data_file:
        # As it is: unlike a backing file's, the name does not start from where the image lies.
        opening.attach("data-file", permissions.ROLE_DATA, parse_filename(header.data_file))
    else:
        raise QobraError("'data-file' is required for this image")
    disk.image.data = disk.children["data-file"]
