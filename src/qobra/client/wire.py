"""The bytes of QMP: JSON objects one after another (QMP specification, section 2)."""

from __future__ import annotations

import json
from typing import Any

from qobra.client.errors import ProtocolError

# Longer than any answer that is known: query-qmp-schema is a few hundred KiB. A server that sends more without
# an end is broken or hostile.
MAX_MESSAGE = 64 * 1024 * 1024


class MessageReader:
    """Cuts a stream of bytes into messages.

    A message is a line, except from a server that prints prettily: there it begins with a line that is only ``{``
    and ends with one that is only ``}``.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take what came in and return the messages that it completes. ProtocolError if it cannot be QMP."""
        messages: list[dict[str, Any]] = []
        self._buffer += data
        if len(self._buffer) + self._held > MAX_MESSAGE:
            raise ProtocolError(f"the server sent a message longer than {MAX_MESSAGE} bytes")
        if b"\n" not in data:
            return messages
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            message = self._complete(bytes(line).rstrip())
            if message is not None:
                messages.append(message)
        return messages

    def _complete(self, line: bytes) -> dict[str, Any] | None:
        if self._lines or line == b"{":
            self._lines.append(line)
            self._held += len(line)
            if line != b"}":
                return None
            line = b"\n".join(self._lines)
            self._lines.clear()
            self._held = 0
        if not line:
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"the server sent {line[:60]!r}, which is not JSON: {error}") from None
        if not isinstance(message, dict):
            raise ProtocolError(f"the server sent {line[:60]!r}, which is not a JSON object")
        return message


def encode(command: str, arguments: Any, request_id: int, oob: bool) -> bytes:
    """One request, ready to be sent."""
    request: dict[str, Any] = {"exec-oob" if oob else "execute": command}
    if arguments:
        request["arguments"] = arguments
    request["id"] = request_id
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"
