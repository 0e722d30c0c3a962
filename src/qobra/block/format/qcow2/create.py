"""Making a new image: blockdev-create for qcow2, and the checks of its options."""

from __future__ import annotations

import errno
from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.header import Header, l1_entries_for
from qobra.block.format.qcow2.refcount import pack_counts, unpack_counts
from qobra.block.format.qcow2.writeback import words_to_bytes
from qobra.block.node import check_size
from qobra.block.opening import Opening
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.buffers import Buffer
    from qobra.block.node import BlockNode, Options


def create(options: Options, file: BlockNode, data_file: BlockNode | None) -> None:
    """Write an empty image as ``options`` (a BlockdevCreateOptionsQcow2) describe into ``file``, and preallocate.

    Raises QobraError in QEMU's words for options that cannot be.
    """
    header = header_for(options)
    if data_file is not None:
        header.data_file = data_file.filename
    area = b""
    if options.get("encrypt") is not None:
        from qobra.block.format.qcow2.crypt import create_area

        header.crypt_method, area = create_area(file.layer, options["encrypt"])
    preallocation = options.get("preallocation", "off")
    refused = None
    if preallocation != "off":
        try:
            file.truncate(0, exact=False)  # what is allocated unwritten has to read as zeroes
        except QobraError as error:
            refused = error
    _write_empty(header, file, area)
    _check_written(file, data_file)
    if refused is not None:
        raise refused.prefixed(
            f"Could not resize image: {'Failed to resize underlying file: ' if preallocation != 'metadata' else ''}"
        )
    if data_file is not None:
        if preallocation == "off" and options.get("data-file-raw"):
            # Whoever reads the image through its metadata must see what the raw file holds.
            preallocation = "metadata"
        whole = -(-header.size // header.cluster_size) * header.cluster_size  # what is mapped is there to be read
        data_file.truncate(
            header.size if preallocation == "off" else whole,
            preallocation=preallocation if preallocation in ("falloc", "full") else "off",
        )
    if preallocation != "off" and header.size:
        _preallocate(file, data_file, preallocation, header.size)


def _preallocate(file: BlockNode, data_file: BlockNode | None, mode: str, size: int) -> None:
    from qobra.block.format.qcow2.node import Qcow2Node
    from qobra.block.format.qcow2.preallocation import preallocate

    layer = file.layer
    options: Options = {"driver": "qcow2", "file": file.node_name, "backing": None, "_keyless": True}
    if data_file is not None:
        options["data-file"] = data_file.node_name
    node = Qcow2Node(layer, layer.opener.new_node_name(), options)
    node.open(Opening(node, layer, options, []))
    try:
        node.activate()
        preallocate(node, 0, size, mode)
    except QobraError as error:
        raise error.prefixed("Could not resize image: ")
    finally:
        node.close_node()


def _check_written(file: BlockNode, data_file: BlockNode | None) -> None:
    """Raise QobraError where the image could not be opened again."""
    try:
        magic = file.read(0, 4)
    except OSError as error:
        raise QobraError.from_os("Could not read qcow2 header", error)
    if magic != layout.MAGIC:
        raise QobraError("Image is not in qcow2 format", errno=errno.EINVAL)  # a null node keeps nothing
    if file is data_file:
        image, uses = file.layer.opener.new_node_name(), f"(uses node '{file.node_name}' as"
        raise QobraError(
            f"Permission conflict on node '{file.node_name}': permissions 'resize' are both required by node "
            f"'{image}' {uses} 'file' child) and unshared by node '{image}' {uses} 'data-file' child)."
        )


def header_for(options: Options) -> Header:
    """The header of the image that ``options`` ask for, with no table placed yet and no name of a data file.

    Raises QobraError in QEMU's words for options that cannot be.
    """
    header = Header()
    size = options["size"]
    if size % 512:
        raise QobraError("Image size must be a multiple of 512 bytes", errno=errno.EINVAL)
    header.size = size
    header.version = 2 if options.get("version", "v3") == "v2" else 3
    extended = bool(options.get("extended-l2", False))
    if extended:
        _need_version_3(header, "Extended L2 entries are")
        header.incompatible |= layout.EXTENDED_L2
    header.cluster_bits = cluster_bits(options.get("cluster-size", 65536), extended)
    preallocation = options.get("preallocation", "off")
    backing = options.get("backing-file")
    if preallocation != "off" and backing is not None and not extended:
        raise QobraError(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            errno=errno.EINVAL,
        )
    if options.get("backing-fmt") is not None and backing is None:
        raise QobraError("Backing format cannot be used without backing file", errno=errno.EINVAL)
    if options.get("lazy-refcounts"):
        _need_version_3(header, "Lazy refcounts")
        header.compatible |= layout.LAZY_REFCOUNTS
    header.refcount_order = refcount_order(options.get("refcount-bits", 16), header.version)
    _set_data_file(header, options)
    _set_compression(header, options.get("compression-type", "zlib"))
    try:
        check_size(size)
    except QobraError as error:
        raise error.prefixed("Could not resize image: ")
    if l1_entries_for(header, size) * 8 > layout.MAX_L1_BYTES:
        raise QobraError("Could not resize image: Failed to grow the L1 table: File too large", errno=errno.EFBIG)
    if backing and len(backing.encode("utf-8", "surrogateescape")) > layout.MAX_BACKING_NAME:
        raise QobraError(
            f"Could not assign backing file '{backing}' with format '{options.get('backing-fmt') or '(null)'}': "
            "Invalid argument",
            errno=errno.EINVAL,
        )
    header.backing_file = backing or ""
    header.backing_format = (options.get("backing-fmt") or "")[: layout.MAX_BACKING_FORMAT]
    return header


def _need_version_3(header: Header, what: str) -> None:
    if header.version < 3:
        raise QobraError(
            f"{what} only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            errno=errno.EINVAL,
        )


def _set_data_file(header: Header, options: Options) -> None:
    is_raw = options.get("data-file-raw")
    if options.get("data-file") is None:
        if is_raw:
            raise QobraError("data-file-raw requires data-file", errno=errno.EINVAL)
        return
    if is_raw and options.get("backing-file") is not None:
        raise QobraError("Backing file and data-file-raw cannot be used at the same time", errno=errno.EINVAL)
    _need_version_3(header, "External data files are")
    header.incompatible |= layout.EXTERNAL_DATA
    if is_raw:
        header.autoclear |= layout.RAW_EXTERNAL


def _set_compression(header: Header, name: str) -> None:
    if name == "zlib":
        return
    _need_version_3(header, "Non-zlib compression type is")
    from qobra.block.format.qcow2 import compressed

    header.compression = layout.COMPRESSION_TYPES.index(name)
    compressed.require(header.compression)
    header.incompatible |= layout.COMPRESSION


def cluster_bits(size: int, extended: bool) -> int:
    """log2 of a cluster size that the user asked for. Raises QobraError."""
    bits = size.bit_length() - 1
    if size <= 0 or size & (size - 1) or not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
        raise QobraError(
            f"Cluster size must be a power of two between {1 << layout.MIN_CLUSTER_BITS} and "
            f"{1 << (layout.MAX_CLUSTER_BITS - 10)}k",
            errno=errno.EINVAL,
        )
    if extended and bits < layout.MIN_EXTENDED_CLUSTER_BITS:
        raise QobraError(
            f"Extended L2 entries are only supported with cluster sizes of at least "
            f"{1 << layout.MIN_EXTENDED_CLUSTER_BITS} bytes",
            errno=errno.EINVAL,
        )
    return bits


def refcount_order(bits: int, version: int) -> int:
    """log2 of a refcount width in bits that the user asked for. Raises QobraError."""
    if not 1 <= bits <= 64 or bits & (bits - 1):
        raise QobraError("Refcount width must be a power of two and may not exceed 64 bits", errno=errno.EINVAL)
    if version < 3 and bits != 16:
        raise QobraError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or "
            "greater)",
            errno=errno.EINVAL,
        )
    return bits.bit_length() - 1


def _write_empty(header: Header, file: BlockNode, crypto: bytes) -> None:
    """Lay out header, refcount table, its first blocks, L1 and the encryption header, in this order; write them."""
    bits = header.cluster_bits
    size = header.cluster_size
    header.l1_entries = l1_entries_for(header, header.size)
    l1_clusters = -(-header.l1_entries * 8 >> bits)
    crypto_clusters = -(-len(crypto) >> bits)
    entries = (size * 8) >> header.refcount_order
    blocks, table = 1, 1
    while True:
        total = 1 + table + blocks + l1_clusters + crypto_clusters
        need_blocks = -(-total // entries)
        need_table = -(-need_blocks * 8 >> bits)
        if need_blocks <= blocks and need_table <= table:
            break
        blocks, table = max(blocks, need_blocks), max(table, need_table)
    header.reftable_offset, header.reftable_clusters = size, table
    first_block = (1 + table) << bits
    header.l1_offset = first_block + (blocks << bits) if l1_clusters else 0
    reftable = array("Q", [first_block + (number << bits) for number in range(blocks)])
    counts = unpack_counts(bytes(blocks << bits), header.refcount_order)
    for cluster in range(total):
        counts[cluster] = 1
    end = total << bits
    if not file.is_leaf and file.length < end:
        # Unlike a file, a disk in an image does not grow by being written to.
        try:
            file.truncate(end, exact=False)
        except QobraError as error:
            if error.errno != errno.ENOTSUP:
                raise
    if crypto:
        header.crypto = (end - (crypto_clusters << bits), len(crypto))
    head = header.pack()
    # What the file was until now it no longer is, and it is an image only when all else is there.
    _write(file, 0, bytes(size), "Could not write qcow2 header")
    place = "Could not write refcount table"
    _write(file, size, words_to_bytes(reftable) + bytes((table << bits) - 8 * blocks), place)
    _write(file, first_block, pack_counts(counts, header.refcount_order), place)
    place = "Could not resize image: Failed to grow the L1 table"
    if header.l1_entries:
        # The file ends with the table, where nothing follows it. It is no hole, so that a full disk leaves room for it.
        _write(file, header.l1_offset, bytes(8 * header.l1_entries), place)
    if header.crypto is not None:
        _write(file, header.crypto[0], crypto, "Could not set up encryption")
    _write(file, 0, head, "Could not write qcow2 header")
    try:
        file.flush()
    except OSError as error:
        raise QobraError.from_os(place, error)


def _write(file: BlockNode, offset: int, data: Buffer, failed: str) -> None:
    """Write; ``failed`` is what an error begins with."""
    try:
        file.write(offset, data)
    except OSError as error:
        raise QobraError.from_os(failed, error)
