"""What clients set about migrations: capabilities and parameters, checked as the reference and QEMU say."""

from __future__ import annotations

from typing import Any

from qobra.block.bitmap import MAX_NAME
from qobra.errors import QobraError
from qobra.object.tree import is_identifier

CAPABILITIES = (
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "compress",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "block",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
)
"""In the order in which queries list them."""

MATCHED = ("postcopy-ram", "multifd", "x-ignore-shared")
"""Capabilities that are to be on at both sides or at neither."""

_REFUSED = {
    "x-colo": "COLO is not supported",
    "rdma-pin-all": "RDMA is not supported",
}

_APART = (
    ("postcopy-ram", "x-ignore-shared", "Postcopy is not compatible with ignore-shared"),
    ("multifd", "compress", "Multifd is not compatible with compress"),
)
"""Of two capabilities that cannot both be on, why."""

DEFAULTS: dict[str, Any] = {
    "announce-initial": 50,
    "announce-max": 550,
    "announce-rounds": 5,
    "announce-step": 100,
    "compress-level": 1,
    "compress-threads": 8,
    "compress-wait-thread": True,
    "decompress-threads": 2,
    "throttle-trigger-threshold": 50,
    "cpu-throttle-initial": 20,
    "cpu-throttle-increment": 10,
    "cpu-throttle-tailslow": False,
    "max-cpu-throttle": 99,
    "tls-creds": "",
    "tls-hostname": "",
    "max-bandwidth": 128 << 20,
    "downtime-limit": 300,
    "x-checkpoint-delay": 20000,
    "block-incremental": False,
    "multifd-channels": 2,
    "multifd-compression": "none",
    "multifd-zlib-level": 1,
    "multifd-zstd-level": 1,
    "xbzrle-cache-size": 64 << 20,
    "max-postcopy-bandwidth": 0,
    "tls-authz": "",
}
"""The parameters, in the order in which people are shown them."""

_SIZE_MAX = (1 << 64) - 1
_RANGES: dict[str, tuple[int, int, str]] = {
    "compress-level": (0, 9, "a value between 0 and 9"),
    "compress-threads": (1, 255, "a value between 1 and 255"),
    "decompress-threads": (1, 255, "a value between 1 and 255"),
    "throttle-trigger-threshold": (1, 100, "an integer in the range of 1 to 100"),
    "cpu-throttle-initial": (1, 99, "an integer in the range of 1 to 99"),
    "cpu-throttle-increment": (1, 99, "an integer in the range of 1 to 99"),
    "max-bandwidth": (0, _SIZE_MAX, f"an integer in the range of 0 to {_SIZE_MAX} bytes/second"),
    "downtime-limit": (0, 2_000_000, "an integer in the range of 0 to (2000 * 1000) ms"),
    "multifd-channels": (1, 255, "a value between 1 and 255"),
    "multifd-zlib-level": (0, 9, "a value between 0 and 9"),
    "multifd-zstd-level": (0, 20, "a value between 0 and 20"),
    "announce-initial": (0, 100_000, "a value between 0 and 100000"),
    "announce-max": (0, 100_000, "a value between 0 and 100000"),
    "announce-rounds": (0, 1000, "a value between 0 and 1000"),
    "announce-step": (1, 10_000, "a value between 0 and 10000"),
}
_PAGE = 4096
_MAX_ALIAS, _MAX_NODE_NAME = 255, 31


class Settings:
    """The capabilities and parameters of one machine."""

    def __init__(self) -> None:
        self.capabilities = dict.fromkeys(CAPABILITIES, False)
        self.parameters = dict(DEFAULTS)
        self.mapping: list[dict[str, Any]] | None = None
        """``block-bitmap-mapping``, or None while it was never set."""

    # -- capabilities

    def set_capabilities(self, changes: list[dict[str, Any]]) -> None:
        """Switch capabilities, all or none. Raises QobraError for what does not exist here."""
        for change in changes:
            if change["state"] and change["capability"] in _REFUSED:
                raise QobraError(_REFUSED[change["capability"]])
        changed = {**self.capabilities, **{change["capability"]: change["state"] for change in changes}}
        for one, other, why in _APART:
            if changed[one] and changed[other]:
                raise QobraError(why)
        self.capabilities = changed

    def describe_capabilities(self) -> list[dict[str, Any]]:
        """MigrationCapabilityStatus of each."""
        return [{"state": state, "capability": name} for name, state in self.capabilities.items()]

    # -- parameters

    def set_parameters(self, changes: dict[str, Any]) -> None:
        """Set parameters, all or none. Raises QobraError in QEMU's words."""
        checked: dict[str, Any] = {}
        for name, value in changes.items():
            if name in ("tls-creds", "tls-hostname", "tls-authz"):
                checked[name] = value or ""
            elif name == "block-bitmap-mapping":
                check_mapping(value)
            else:
                # What is negative in a number without sign is a large one.
                checked[name] = value + (1 << 64) if name == "max-bandwidth" and value < 0 else value
                self._check(name, checked[name])
        merged = {**self.parameters, **checked}
        if not merged["cpu-throttle-initial"] <= merged["max-cpu-throttle"] <= 99:
            raise QobraError(
                "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99"
            )
        self.parameters = merged
        if "block-bitmap-mapping" in changes:
            self.mapping = changes["block-bitmap-mapping"]

    def _check(self, name: str, value: Any) -> None:
        shown = name.replace("-", "_")
        if name in _RANGES:
            low, high, text = _RANGES[name]
            if not low <= value <= high:
                raise QobraError(f"Parameter '{shown}' expects {text}")
        elif name == "xbzrle-cache-size" and (value < _PAGE or value & (value - 1)):
            raise QobraError(f"Parameter '{shown}' expects a power of two no less than the target page size")
        elif name == "x-checkpoint-delay" and not 0 <= value < 1 << 32:
            raise QobraError(f"Parameter '{name}' expects uint32_t")

    def describe_parameters(self) -> dict[str, Any]:
        """MigrationParameters."""
        if self.mapping is None:
            return dict(self.parameters)
        return {**self.parameters, "block-bitmap-mapping": self.mapping}


def check_mapping(mapping: list[dict[str, Any]]) -> None:
    """Raise QobraError unless ``block-bitmap-mapping`` is one-to-one, and its names can be names."""

    def refuse(why: str) -> None:
        raise QobraError(f"Invalid mapping given for block-bitmap-mapping: {why}")

    aliases: set[str] = set()
    names: set[str] = set()
    for node in mapping:
        name, alias = node["node-name"], node["alias"]
        if not is_identifier(alias):
            refuse(f"The node alias '{alias}' is not well-formed")
        if len(alias.encode()) > _MAX_ALIAS:
            refuse(f"The node alias '{alias}' is longer than {_MAX_ALIAS} bytes")
        if len(name.encode()) > _MAX_NODE_NAME:
            refuse(f"The node name '{name}' is longer than {_MAX_NODE_NAME} bytes")
        if name in names:
            refuse(f"The node name '{name}' is mapped twice")
        if alias in aliases:
            refuse(f"The node alias '{alias}' is used twice")
        names.add(name)
        aliases.add(alias)
        bitmap_aliases: set[str] = set()
        bitmap_names: set[str] = set()
        for bitmap in node["bitmaps"]:
            if len(bitmap["alias"].encode()) > _MAX_ALIAS:
                refuse(f"The bitmap alias '{bitmap['alias']}' is longer than {_MAX_ALIAS} bytes")
            if len(bitmap["name"].encode()) > MAX_NAME:
                refuse(f"The bitmap name '{bitmap['name']}' is longer than {MAX_NAME} bytes")
            if bitmap["name"] in bitmap_names:
                refuse(f"The bitmap '{name}'/'{bitmap['name']}' is mapped twice")
            if bitmap["alias"] in bitmap_aliases:
                refuse(f"The bitmap alias '{alias}'/'{bitmap['alias']}' is used twice")
            bitmap_names.add(bitmap["name"])
            bitmap_aliases.add(bitmap["alias"])
