"""``--list``: what another server has to offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.nbd import protocol as p
from qobra.nbd.connection import list_exports
from qobra.report import visible

if TYPE_CHECKING:
    import ssl

_FLAGS = (
    (p.FLAG_READ_ONLY, "readonly"),
    (p.FLAG_SEND_FLUSH, "flush"),
    (p.FLAG_SEND_FUA, "fua"),
    (p.FLAG_ROTATIONAL, "rotational"),
    (p.FLAG_SEND_TRIM, "trim"),
    (p.FLAG_SEND_WRITE_ZEROES, "zeroes"),
    (p.FLAG_SEND_DF, "df"),
    (p.FLAG_CAN_MULTI_CONN, "multi"),
    (p.FLAG_SEND_RESIZE, "resize"),
    (p.FLAG_SEND_CACHE, "cache"),
    (p.FLAG_SEND_FAST_ZERO, "fast-zero"),
)


def print_list(address: dict[str, Any], tls: ssl.SSLContext | None, hostname: str | None) -> None:
    """Print every export of the server at ``address``. Raises QobraError."""
    found = list_exports(address, tls=tls, tls_hostname=hostname)
    print(f"exports available: {len(found)}")
    for info, contexts in found:
        print(f" export: '{visible(info.name)}'")
        if info.description:
            print(f"  description: {visible(info.description)}")
        if info.size < 0:
            continue
        print(f"  size:  {info.size}")
        if info.flags & p.FLAG_HAS_FLAGS:
            words = "".join(f" {word}" for flag, word in _FLAGS if info.flags & flag)
            print(f"  flags: 0x{info.flags:x} ({words} )")
        if info.block_sizes is not None:
            print(f"  min block: {info.block_sizes.minimum}")
            print(f"  opt block: {info.block_sizes.preferred}")
            print(f"  max block: {info.block_sizes.maximum}")
        if contexts:
            print(f"  available meta contexts: {len(contexts)}")
            for context in contexts:
                print(f"   {visible(context)}")
