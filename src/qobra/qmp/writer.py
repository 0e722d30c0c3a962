"""Write QMP output: JSON in QEMU's layout (``", "`` and ``": "``, ASCII only; indented by four if pretty, with a
monitor's line ends).

JSON gives the order of an object's members no meaning, but scripts compare QEMU's replies as text, so the order is
QEMU's too: that of the hash table which its dictionaries are (bucket by bucket, the latest member of a bucket first).
"""

from __future__ import annotations

from qobra.json_text import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


class Encoded:
    """A value that is JSON text already (compact, without line end): a large reply that is made once."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


def plain(value: Any) -> Any:
    """``value`` itself, or what an :class:`Encoded` is the text of."""
    if not isinstance(value, Encoded):
        return value
    from qobra.json_reader import Reader

    return Reader().feed(b'{"value":' + value.text + b"}")[0]["value"]


class _Buckets(dict[str, int]):
    """The bucket of each name, remembered: nearly all names are the schema's."""

    def __missing__(self, name: str) -> int:
        octets = name.encode("utf-8", "surrogatepass")
        mixed = 0x238F13AF * len(octets) + sum(octet << index * 5 % 24 for index, octet in enumerate(octets))
        bucket = (1103515243 * mixed + 12345) % 512
        if len(self) < 4096:  # clients may send what they like to have repeated
            self[name] = bucket
        return bucket


_bucket = _Buckets().__getitem__


def _names(members: dict[Any, Any]) -> list[str]:
    """The names of an object's members in QEMU's order."""
    return sorted(reversed(members), key=_bucket)


def _arrange(value: Any) -> Any:
    """``value`` with the members of every object in QEMU's order."""
    kind = type(value)
    if kind is dict:
        names = _names(value) if len(value) > 1 else value
        return {name: _arrange(member) if type(member := value[name]) in _LOOKED_AT else member for name in names}
    if kind is float:
        if repr(value) != _float(value) or value - value:  # the latter: infinite
            raise _WrittenOtherwise
        return value
    if kind in _LOOKED_AT:
        return [_arrange(element) if type(element) in _LOOKED_AT else element for element in value]
    return value


_LOOKED_AT = frozenset((dict, list, tuple, float))


class _WrittenOtherwise(Exception):
    """The value has something in it that QEMU writes otherwise than Python's encoder."""


def _float(value: float) -> str:
    return f"{value:.17g}"


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is no JSON value")


_encode: Callable[[Any, int], Iterable[str]] | None = None
"""Python's encoder. A greeting is sent sooner than it is loaded."""


def _load_encoder() -> Callable[[Any, int], Iterable[str]]:
    global _encode
    try:
        from _json import encode_basestring_ascii, make_encoder
    except ImportError:  # not CPython
        _encode = lambda value, _depth: (_walk(value, pretty=False),)  # noqa: E731
    else:
        _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
    return _encode


def encode(value: Any, *, pretty: bool = False, arrange: bool = True) -> bytes:
    """The JSON text of ``value``, which is made of dict, list, str, int, float, bool, None or is :class:`Encoded`.

    ``arrange`` as false leaves the members of objects in the order that they have, which is faster.
    """
    if isinstance(value, Encoded):
        if not pretty:
            return value.text
        value = plain(value)
    if not pretty:
        try:
            text = "".join((_encode or _load_encoder())(_arrange(value) if arrange else value, 0))
            if "\\u" not in text and "\x7f" not in text:
                return text.encode("ascii")  # else there are characters that QEMU escapes in its own way
        except (_WrittenOtherwise, RecursionError):
            pass  # the reader lets in more depth than Python's stack has
    return encode_without_loading(value, pretty=pretty)


def encode_without_loading(value: Any, *, pretty: bool = False) -> bytes:
    """The same as :func:`encode`, for a value that is small and the first: Python's encoder takes longer to load."""
    return _walk(value, pretty).encode("ascii")


def _walk(value: Any, pretty: bool) -> str:
    """Encode without recursion."""
    parts: list[str] = []
    # What is still to write: text, or a value with the depth that it stands at.
    stack: list[str | tuple[Any, int]] = [(value, 0)]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        current, depth = item
        if not isinstance(current, (dict, list, tuple)):
            parts.append(_scalar(current))
            continue
        is_dict = isinstance(current, dict)
        newline = "\r\n" + "    " * (depth + 1) if pretty else ""
        between = "," + newline if pretty else ", "
        pending: list[str | tuple[Any, int]] = ["{" if is_dict else "["]
        for index, element in enumerate(_names(current) if isinstance(current, dict) else current):
            prefix = between if index else newline
            pending.append(f"{prefix}{quoted(element)}: " if is_dict else prefix)
            pending.append((current[element] if is_dict else element, depth + 1))
        close = "}" if is_dict else "]"
        pending.append("\r\n" + "    " * depth + close if pretty else close)
        stack.extend(reversed(pending))
    return "".join(parts)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, int):
        return repr(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
