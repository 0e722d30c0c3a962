"""``memory`` is the old name of ``ringbuf``, which registers both."""

from __future__ import annotations

import qobra.chardev.backend.ringbuf  # noqa: F401
