"""Stub."""

from __future__ import annotations

from typing import Any


class Commands:
    async def _call(self, command: str, arguments: dict[str, Any]) -> Any:
        raise NotImplementedError
