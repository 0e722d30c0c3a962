"""The names of cache modes, as command lines have them."""

from __future__ import annotations

CACHE_MODES = {
    "none": (False, True, False),
    "off": (False, True, False),
    "writeback": (False, False, False),
    "writethrough": (True, False, False),
    "directsync": (True, True, False),
    "unsafe": (False, False, True),
}
"""Name to (write through, direct, no flush)."""
