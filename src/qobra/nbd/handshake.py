"""The client's side of the handshake: from a fresh connection to an export that requests can be sent to.

:class:`Handshake` has one method an option of the protocol, for those who want to look around first (what libnbd calls
opt mode); :func:`qobra.nbd.connect` makes the usual sequence of them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NoReturn

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.export_info import BlockSizes, ExportInfo
from qobra.nbd.transport import Disconnected

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence

    from qobra.nbd.transport import Transport

_MAX_REPLY = 64 << 10
"""The longest option reply that is read: above two strings of the longest kind, and room for talkative errors."""
_MAX_LISTED = 1 << 16
_MAX_INFOS = 64
_MAX_TOLD = 16 << 20
"""Bytes of all the replies to one option."""


class OptionRefused(QobraError):
    """The server answered an option with an error; ``reply`` is its number."""

    def __init__(self, desc: str, reply: int, hint: str | None = None) -> None:
        super().__init__(desc, errno=errno.ENOENT if reply == p.REP_ERR_UNKNOWN else errno.EINVAL, hint=hint)
        self.reply = reply


class Handshake:
    """Option haggling over one connection. Every method raises QobraError when the server refuses or misbehaves."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.structured = False
        self.contexts: dict[int, str] = {}
        """The negotiated metadata contexts by id, for the export named last in :meth:`set_meta_context`."""
        self._oldstyle: ExportInfo | None = None
        self._greet()

    # What the server is -------------------------------------------------------------------------------------------

    @property
    def fixed(self) -> bool:
        """Whether the server knows options beyond EXPORT_NAME."""
        return self._oldstyle is None and bool(self._flags & p.FLAG_FIXED_NEWSTYLE)

    @property
    def oldstyle(self) -> ExportInfo | None:
        """The one export of a server without options, which has told of it at once; None for all others."""
        return self._oldstyle

    def _greet(self) -> None:
        magic, style = p.MAGICS.unpack(self._receive(16, "initial magic"))
        if magic != p.INIT_MAGIC:
            raise _misbehaved(f"Bad initial magic received: 0x{magic:016x}")
        self._flags = 0
        if style == p.OLDSTYLE_MAGIC:
            size, flags = p.OLDSTYLE_EXPORT.unpack(self._receive(12, "export length and flags"))
            self._receive(p.EXPORT_REPLY_PADDING, "reserved block")
            self._oldstyle = ExportInfo("", size, flags & 0xFFFF)
            self._no_zeroes = False
            return
        if style != p.OPTION_MAGIC:
            raise _misbehaved(f"Bad server magic received: 0x{style:016x}")
        (self._flags,) = p.U16.unpack(self._receive(2, "server flags"))
        self._no_zeroes = bool(self._flags & p.FLAG_NO_ZEROES)
        self._send("client flags", [p.CLIENT_FLAGS.pack(self._flags & (p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES))])

    # Options --------------------------------------------------------------------------------------------------------

    def start_tls(self, context: ssl.SSLContext, hostname: str | None = None) -> None:
        """Go over to TLS; ``hostname`` is what the server's certificate is checked against."""
        self._need_fixed("STARTTLS")
        self._request(p.OPT_STARTTLS)
        self._acknowledged(p.OPT_STARTTLS)
        self.transport = self.transport.start_tls(context, server_side=False, hostname=hostname)
        self.structured = False  # what was said in the clear does not count
        self.contexts = {}

    def request_structured_replies(self) -> bool:
        """Ask for structured replies; whether the server has them."""
        if not self.fixed:
            return False
        self._request(p.OPT_STRUCTURED_REPLY)
        self.structured = self._acknowledged(p.OPT_STRUCTURED_REPLY, optional=True)
        return self.structured

    def list_exports(self) -> list[tuple[str, str]]:
        """The exports that the server tells of: (name, description)."""
        self._need_fixed("listing exports")
        self._request(p.OPT_LIST)
        exports = []
        for reply, body in self._replies(p.OPT_LIST, _MAX_LISTED):
            if reply != p.REP_SERVER or len(body) < 4:
                raise _unexpected(p.OPT_LIST, reply)
            (length,) = p.U32.unpack_from(body)
            if length > min(p.MAX_STRING, len(body) - 4):
                raise _misbehaved("export name too long in a list")
            exports.append((_text(body[4 : 4 + length]), _text(body[4 + length :])))
        return exports

    def list_meta_contexts(self, export: str, queries: Sequence[str] = ()) -> list[str]:
        """The names of the contexts that match ``queries`` (all there are, for none)."""
        self._need_fixed("metadata contexts")
        return [name for _id, name in self._meta_context(p.OPT_LIST_META_CONTEXT, export, queries)]

    def set_meta_contexts(self, export: str, queries: Sequence[str]) -> dict[int, str]:
        """Select contexts for ``export``; those that the server granted, by id."""
        self._need_fixed("metadata contexts")
        try:
            self.contexts = dict(self._meta_context(p.OPT_SET_META_CONTEXT, export, queries))
        except OptionRefused as error:
            if error.reply != p.REP_ERR_UNSUP:
                raise
            self.contexts = {}
        return self.contexts

    def info(self, export: str) -> ExportInfo:
        """What ``export`` is like, without entering it. For servers without INFO see :meth:`go`."""
        self._need_fixed("export information")
        return self._info_or_go(p.OPT_INFO, export)

    def go(self, export: str) -> ExportInfo:
        """Enter ``export``; the handshake ends here. Falls back to EXPORT_NAME and to what oldstyle servers serve."""
        if self._oldstyle is not None:
            if export:
                raise QobraError("Server does not support non-empty export names", errno=errno.EINVAL)
            return self._oldstyle
        if self.fixed:
            try:
                return self._info_or_go(p.OPT_GO, export)
            except OptionRefused as error:
                if error.reply != p.REP_ERR_UNSUP:
                    raise
        self._request(p.OPT_EXPORT_NAME, p.octets(export))
        size, flags = p.EXPORT_REPLY.unpack(self._receive(p.EXPORT_REPLY.size, "export length and flags"))
        if not self._no_zeroes:
            self._receive(p.EXPORT_REPLY_PADDING, "reserved block")
        return _checked(ExportInfo(export, size, flags))

    def abort(self) -> None:
        """Leave politely. The connection is closed in any case; errors do not matter any more."""
        try:
            if self.fixed:
                self._request(p.OPT_ABORT)
        except QobraError:
            pass
        self.transport.close()

    # Messages -------------------------------------------------------------------------------------------------------

    def _info_or_go(self, option: int, export: str) -> ExportInfo:
        name = p.octets(export)
        wanted = (p.INFO_NAME, p.INFO_DESCRIPTION, p.INFO_BLOCK_SIZE)
        self._request(
            option, p.U32.pack(len(name)), name, p.U16.pack(len(wanted)), *(p.U16.pack(kind) for kind in wanted)
        )
        info: ExportInfo | None = None
        canonical, description, sizes = export, "", None
        for reply, body in self._replies(option, _MAX_INFOS):
            if reply != p.REP_INFO or len(body) < 2:
                raise _unexpected(option, reply)
            (kind,) = p.U16.unpack_from(body)
            if kind == p.INFO_EXPORT:
                if len(body) != p.INFO_EXPORT_BODY.size:
                    raise _misbehaved("export information of a wrong length")
                _kind, size, flags = p.INFO_EXPORT_BODY.unpack(body)
                info = ExportInfo(export, size, flags)
            elif kind == p.INFO_BLOCK_SIZE:
                if len(body) != p.INFO_BLOCK_SIZE_BODY.size:
                    raise _misbehaved("block sizes of a wrong length")
                sizes = BlockSizes(*p.INFO_BLOCK_SIZE_BODY.unpack(body)[1:])
            elif kind == p.INFO_NAME:
                canonical = _text(body[2:])
            elif kind == p.INFO_DESCRIPTION:
                description = _text(body[2:])
        if info is None:
            raise _misbehaved("no export information came with the acknowledgement")
        info.name, info.description, info.block_sizes = canonical, description, sizes
        return _checked(info)

    def _meta_context(self, option: int, export: str, queries: Sequence[str]) -> Iterator[tuple[int, str]]:
        parts = [p.U32.pack(len(p.octets(export))), p.octets(export), p.U32.pack(len(queries))]
        for query in queries:
            parts += [p.U32.pack(len(p.octets(query))), p.octets(query)]
        self._request(option, *parts)
        for reply, body in self._replies(option, _MAX_LISTED):
            if reply != p.REP_META_CONTEXT or len(body) < 4:
                raise _unexpected(option, reply)
            yield p.U32.unpack_from(body)[0], _text(body[4:])

    def _request(self, option: int, *parts: bytes) -> None:
        length = sum(map(len, parts))
        if any(len(part) > p.MAX_STRING for part in parts):
            raise QobraError("A name is longer than the NBD protocol allows", errno=errno.ENAMETOOLONG)
        self._send("option request", [p.OPTION.pack(p.OPTION_MAGIC, option, length), *parts])

    def _send(self, what: str, parts: list[bytes]) -> None:
        try:
            self.transport.send(parts)
        except Disconnected as error:
            raise Disconnected(f"Failed to send {what}: {error.desc}", errno=error.errno)

    def _receive(self, length: int, what: str) -> bytes:
        try:
            return self.transport.recv_exact(length)
        except Disconnected as error:
            raise Disconnected(f"Failed to read {what}: {error.desc}", errno=error.errno)

    def _reply(self, option: int) -> tuple[int, bytes]:
        magic, answered, reply, length = p.OPTION_REPLY.unpack(self._receive(p.OPTION_REPLY.size, "option reply"))
        if magic != p.OPTION_REPLY_MAGIC:
            raise _misbehaved("Unexpected option reply magic")
        if answered != option:
            raise _misbehaved(f"Unexpected option type {answered}, expected {option}")
        if length > _MAX_REPLY:
            raise _misbehaved(f"option {option} reply of {length} bytes is too long")
        return reply, self._receive(length, "option reply")

    def _replies(self, option: int, limit: int) -> Iterator[tuple[int, bytes]]:
        """Replies up to the acknowledgement; an error reply raises OptionRefused."""
        told = 0
        for _ in range(limit):
            reply, body = self._reply(option)
            if reply == p.REP_ACK:
                return
            if reply & p.REP_ERROR_BIT:
                _refuse(option, reply, body)
            told += len(body)
            if told > _MAX_TOLD:
                raise _misbehaved(f"more than {_MAX_TOLD} bytes in answer to option {option}")
            yield reply, body
        raise _misbehaved(f"more than {limit} replies to option {option}")

    def _acknowledged(self, option: int, *, optional: bool = False) -> bool:
        reply, body = self._reply(option)
        if reply == p.REP_ACK:
            return True
        if not reply & p.REP_ERROR_BIT:
            raise _unexpected(option, reply)
        if not optional:
            _refuse(option, reply, body)
        return False

    def _need_fixed(self, what: str) -> None:
        if not self.fixed:
            raise QobraError(f"Server does not support {what}", errno=errno.ENOTSUP)


def _refuse(option: int, reply: int, body: bytes) -> NoReturn:
    name = f"option {option} ({p.OPTION_NAMES.get(option, 'unknown')})"
    text = {
        p.REP_ERR_UNSUP: f"Unsupported {name}",
        p.REP_ERR_POLICY: f"Denied by server for {name}",
        p.REP_ERR_INVALID: f"Invalid parameters for {name}",
        p.REP_ERR_PLATFORM: f"Server lacks support for {name}",
        p.REP_ERR_TLS_REQD: f"TLS negotiation required before {name}",
        p.REP_ERR_UNKNOWN: "Requested export not available",
        p.REP_ERR_SHUTDOWN: f"Server shutting down before {name}",
        p.REP_ERR_BLOCK_SIZE_REQD: f"Server requires INFO_BLOCK_SIZE for {name}",
    }.get(reply, f"Unknown error code when asking for {name}")
    said = p.visible(body[: p.MAX_STRING])
    hints = ["Did you forget a valid tls-creds?"] if reply == p.REP_ERR_TLS_REQD else []
    if said:
        hints.append(f"server reported: {said}")
    raise OptionRefused(text, reply, "\n".join(hints) or None)


def _checked(info: ExportInfo) -> ExportInfo:
    if info.size >= 1 << 63:
        raise _misbehaved("export length is too large")
    sizes = info.block_sizes
    if sizes is not None:
        if not 1 <= sizes.minimum <= 64 << 10 or sizes.minimum & (sizes.minimum - 1):
            raise _misbehaved(f"minimum block size {sizes.minimum} is not a power of two up to 64 KiB")
        if sizes.preferred < sizes.minimum or sizes.preferred & (sizes.preferred - 1):
            raise _misbehaved(f"preferred block size {sizes.preferred} is not a power of two from the minimum up")
        if sizes.maximum < sizes.minimum:
            raise _misbehaved(f"maximum block size {sizes.maximum} is below the minimum of {sizes.minimum}")
        if info.size % sizes.minimum:
            raise _misbehaved(f"export length {info.size} is not a multiple of minimum block size {sizes.minimum}")
    if not info.flags & p.FLAG_HAS_FLAGS:
        info.flags = 0
    return info


def _text(data: bytes) -> str:
    if len(data) > p.MAX_STRING:
        raise _misbehaved("a string is longer than the protocol allows")
    return data.decode("utf-8", "replace")


def _unexpected(option: int, reply: int) -> QobraError:
    return _misbehaved(f"Unexpected reply type 0x{reply:x} to option {option}")


def _misbehaved(what: str) -> QobraError:
    return QobraError(f"The NBD server broke the protocol: {what}", errno=errno.EPROTO)
