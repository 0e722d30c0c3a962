"""Creation and amendment options of ``qcow2``."""

from __future__ import annotations

from qobra.block.creation._options import BOOL, NUMBER, SIZE, STRING, Format, Option, Values, dashed, formats, text_of
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer

_COMPAT = {"0.10": "v2", "v2": "v2", "1.1": "v3", "v3": "v3"}

_BACKING_FILE = Option("backing_file", STRING, "image that this one lies on")
_BACKING_FORMAT = Option("backing_fmt", STRING, "format of that image")
_COMPATIBILITY = Option("compat", STRING, "version of the format: v2 (0.10) or v3 (1.1)")
_DATA_FILE = Option("data_file", STRING, "file that holds the data, apart from the metadata")
_DATA_FILE_RAW = Option("data_file_raw", BOOL, "keep that file readable as a raw image")
_LAZY = Option("lazy_refcounts", BOOL, "write reference counts late", False)
_REFCOUNT_BITS = Option("refcount_bits", NUMBER, "width of a reference count in bits", 16)
_SIZE = Option("size", SIZE, "virtual size of the disk")
_ITERATIONS = Option("encrypt.iter-time", NUMBER, "milliseconds to spend on deriving the key")

_OPTIONS = (
    Option("encryption", BOOL, "encrypt with AES-CBC (deprecated; encrypt.format=aes)"),
    Option("encrypt.format", STRING, "encrypt the data: aes or luks"),
    Option("encrypt.key-secret", STRING, "id of the secret object with the passphrase"),
    Option("encrypt.cipher-alg", STRING, "cipher"),
    Option("encrypt.cipher-mode", STRING, "mode of the cipher"),
    Option("encrypt.ivgen-alg", STRING, "how initialisation vectors are made"),
    Option("encrypt.ivgen-hash-alg", STRING, "hash for making them"),
    Option("encrypt.hash-alg", STRING, "hash of the key derivation"),
    _ITERATIONS,
    Option("cluster_size", SIZE, "size of a cluster", 65536),
    Option("extended_l2", BOOL, "allocate in 32nds of a cluster", False),
    Option("preallocation", STRING, "space to reserve (off, metadata, falloc, full)"),
    Option("compression_type", STRING, "zlib or zstd, for compressed clusters", "zlib"),
    _SIZE,
    _COMPATIBILITY,
    _BACKING_FILE,
    _BACKING_FORMAT,
    _DATA_FILE,
    _DATA_FILE_RAW,
    _LAZY,
    _REFCOUNT_BITS,
)

_AMEND = (
    Option("encrypt.state", STRING, "make key slots active or inactive"),
    Option("encrypt.keyslot", NUMBER, "the one key slot that is meant"),
    Option("encrypt.old-secret", STRING, "id of the secret whose key slots are meant"),
    Option("encrypt.new-secret", STRING, "id of the secret to put into the key slot; empty to clear it"),
    _ITERATIONS,
    _SIZE,
    _COMPATIBILITY,
    _BACKING_FILE,
    _BACKING_FORMAT,
    _DATA_FILE,
    _DATA_FILE_RAW,
    _LAZY._replace(default=None),
    _REFCOUNT_BITS._replace(default=None),
)

_PREALLOCATION = ("off", "metadata", "falloc", "full")

_MEMBERS = (
    "size", "cluster_size", "extended_l2", "preallocation", "compression_type", "backing_file", "backing_fmt",
    "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits",
)  # fmt: skip


def _convert(values: Values) -> Values:
    """BlockdevCreateOptionsQcow2 without its file. Raises QobraError in QEMU's words."""
    from qobra.qapi.contract import contract

    texts: Values = {name: text_of(value) for name, value in dashed(values, _MEMBERS).items()}
    if "compat" in values:
        texts["version"] = _COMPAT.get(values["compat"], values["compat"])
    encrypt = _encryption(values)
    if values.get("encryption"):
        if "format" in encrypt:
            raise QobraError("'encrypt.format' and its alias 'encryption' can't be used at the same time")
        encrypt["format"] = "aes"
    if encrypt:
        if encrypt.get("format") == "aes":
            encrypt["format"] = "qcow"  # the schema's name of the same thing
        texts["encrypt"] = encrypt
    options: Values = contract().check("BlockdevCreateOptionsQcow2", {"file": "", **texts}, keyval=True)
    del options["file"]
    if encrypt and "key-secret" not in encrypt:
        raise QobraError("Parameter 'encrypt.key-secret' is required for cipher")
    return options


def _encryption(values: Values) -> Values:
    """What is said of encryption, as texts."""
    return {name.removeprefix("encrypt."): text_of(values[name]) for name in values if name.startswith("encrypt.")}


def _measured(values: Values, layer: BlockLayer) -> Values:
    """What of the options the size of an image depends on, looked at in QEMU's order. Raises QobraError."""
    from qobra.block.format.qcow2.create import cluster_bits, refcount_order

    options = dashed(values, ("size", "cluster_size", "extended_l2", "preallocation", "refcount_bits", "backing_file"))
    cluster_bits(options.get("cluster-size", 65536), options.get("extended-l2", False))
    compat, width = values.get("compat", "1.1"), options.get("refcount-bits", 16)
    if compat not in ("0.10", "1.1"):
        raise QobraError(f"Invalid compatibility level: '{compat}'")
    refcount_order(width, 3)
    if compat == "0.10" and width != 16:
        raise QobraError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use compat=1.1 or greater)"
        )
    options["version"] = _COMPAT[compat]
    if options.get("preallocation", "off") not in _PREALLOCATION:
        raise QobraError(f"invalid parameter value: {options['preallocation']}")
    encrypt = _encryption(values)
    if encrypt.get("format") == "luks":
        from qobra.crypto.secret import secret_bytes
        from qobra.qapi.contract import contract

        options["encrypt"] = contract().check("QCryptoBlockCreateOptions", encrypt, path="encrypt", keyval=True)
        if "key-secret" not in encrypt:
            raise QobraError("Parameter 'encrypt.key-secret' is required for cipher")
        secret_bytes(layer.find_object, encrypt["key-secret"])
    return options


formats.register("qcow2")(Format(_OPTIONS, _convert, _AMEND, _measured))
