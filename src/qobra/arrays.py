"""``array`` without ``collections``, for what is imported at the start.

``array`` imports ``collections.abc``, and with it ``collections``, to be registered as a sequence. Where this module
comes first it gets what is in there without the rest.
"""

from __future__ import annotations

import _collections_abc
import sys

if "collections" not in sys.modules:
    sys.modules["collections"] = sys.modules["collections.abc"] = _collections_abc
    from array import array

    del sys.modules["collections"], sys.modules["collections.abc"]
else:
    from array import array

__all__ = ["array"]
