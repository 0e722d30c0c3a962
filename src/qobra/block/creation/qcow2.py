"""Creation and amendment options of ``qcow2``."""

from __future__ import annotations

from qobra.block.creation._options import BOOL, NUMBER, SIZE, STRING, Format, Option, Values, dashed, formats
from qobra.errors import QobraError

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

_MEMBERS = (
    "size", "cluster_size", "extended_l2", "preallocation", "compression_type", "backing_file", "backing_fmt",
    "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits",
)  # fmt: skip

_PREALLOCATION = ("off", "metadata", "falloc", "full")


def version(compat: str) -> str:
    """The schema's word for a compatibility level. Raises QobraError."""
    if compat not in _COMPAT:
        raise QobraError(f"Parameter 'version' does not accept value '{compat}'")
    return _COMPAT[compat]


def _convert(values: Values) -> Values:
    options = dashed(values, _MEMBERS)
    if "compat" in values:
        options["version"] = version(values["compat"])
    encrypt = {name.removeprefix("encrypt."): value for name, value in values.items() if name.startswith("encrypt.")}
    if values.get("encryption"):
        if encrypt.setdefault("format", "aes") != "aes":
            raise QobraError("Options encryption and encrypt.format are mutually exclusive")
    from qobra.qapi.contract import contract

    for name, allowed in (
        ("backing_fmt", contract().types["BlockdevDriver"].values),
        ("preallocation", _PREALLOCATION),
        ("compression_type", ("zlib", "zstd")),
    ):
        if name in values and values[name] not in allowed:
            raise QobraError(f"Parameter '{name.replace('_', '-')}' does not accept value '{values[name]}'")
    if encrypt:
        if "format" not in encrypt:
            raise QobraError("Parameter 'encrypt.format' is missing")
        if encrypt["format"] not in ("aes", "luks"):
            raise QobraError(f"Parameter 'encrypt.format' does not accept value '{encrypt['format']}'")
        if "key-secret" not in encrypt:
            raise QobraError("Parameter 'encrypt.key-secret' is required for cipher")
        if encrypt["format"] == "aes":
            encrypt["format"] = "qcow"  # the schema's name of the same thing
        options["encrypt"] = encrypt
    return options


def _measured(values: Values) -> Values:
    if values.get("compat", "1.1") not in ("0.10", "1.1"):
        raise QobraError(f"Invalid compatibility level: '{values['compat']}'")
    if values.get("compat") == "0.10" and values.get("refcount_bits", 16) in (1, 2, 4, 8, 32, 64):
        raise QobraError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use compat=1.1 or greater)"
        )
    if values.get("preallocation", "off") not in _PREALLOCATION:
        raise QobraError(f"invalid parameter value: {values['preallocation']}")
    return {name: value for name, value in values.items() if name not in ("compression_type", "encryption")}


formats.register("qcow2")(Format(_OPTIONS, _convert, _AMEND, _measured))
