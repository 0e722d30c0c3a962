"""The server's side of the handshake: answer options until the client enters an export or leaves."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple, Protocol

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.transport import Disconnected

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from qobra.nbd.export_info import ExportInfo
    from qobra.nbd.transport import TlsTransport, Transport

_MAX_OPTION = 1 << 20
"""The longest option payload that is kept; longer ones are read past and refused."""
_MAX_SKIPPED = 32 << 20
_SKIP = 64 << 10
_SHOWN = 80
"""Characters of an export's name in a message, as QEMU's server has it."""


class ServedExport(Protocol):
    """What the handshake has to know of an export."""

    def nbd_info(self, structured: bool) -> ExportInfo:
        """The export as it is now; its ``block_sizes`` must be there."""
        ...

    def contexts(self) -> dict[str, int]:
        """The metadata contexts that clients may select: name to id."""
        ...


class ExportDirectory(Protocol):
    """The exports of a server."""

    def listed(self) -> Sequence[tuple[str, str]]:
        """(name, description) of each export that clients may know of."""
        ...

    def lookup(self, name: str) -> ServedExport | None:
        """The export of that name."""
        ...


class Entered(NamedTuple):
    """How the handshake ended: the client is in ``export``."""

    transport: Transport
    export: ServedExport
    structured: bool
    contexts: dict[int, str]
    """The contexts that the client selected, by id."""


class Negotiation:
    """One handshake. ``tls`` makes TLS mandatory; ``authorize``, given the encrypted stream, says who may go on.

    ``enter`` is called with the export before the client is told that it is in; it may refuse with a QobraError.
    """

    def __init__(
        self,
        transport: Transport,
        directory: ExportDirectory,
        *,
        tls: ssl.SSLContext | None = None,
        authorize: Callable[[TlsTransport], bool] | None = None,
        enter: Callable[[ServedExport], None] | None = None,
    ) -> None:
        self.transport = transport
        self._directory = directory
        self._tls = tls
        self._authorize = authorize
        self._enter = enter
        self._structured = False
        self._no_zeroes = False
        self._contexts: dict[int, str] = {}
        self._contexts_of: ServedExport | None = None
        self._entered: ServedExport | None = None

    def run(self) -> Entered | None:
        """Shake hands; None if the client left. Raises QobraError where it broke the protocol or the connection."""
        self.transport.send([p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)])
        (flags,) = p.CLIENT_FLAGS.unpack(self._receive(p.CLIENT_FLAGS.size, "flags"))
        if flags & ~(p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES):
            raise _broken(f"Unknown client flags 0x{flags:x} received")
        self._no_zeroes = bool(flags & p.FLAG_NO_ZEROES)
        knows_replies = bool(flags & p.FLAG_FIXED_NEWSTYLE)
        while self._entered is None:
            magic, option, length = p.OPTION.unpack(self._receive(p.OPTION.size, "opts magic"))
            if magic != p.OPTION_MAGIC:
                raise _broken("Bad magic received")
            if not knows_replies and option != p.OPT_EXPORT_NAME:
                raise _broken(f"Unsupported option 0x{option:x} ({p.OPTION_NAMES.get(option, '<unknown>')})")
            if length > _MAX_SKIPPED:
                raise _broken(f"len ({length}) is larger than max len ({_MAX_SKIPPED})")
            if length > _MAX_OPTION:
                self._skip(length)
                self._refuse(option, p.REP_ERR_TOO_BIG, "option payload too big")
                continue
            if not self._answer(option, self.transport.recv_exact(length)):
                return None
        # Contexts selected for another export than the one entered do not count.
        contexts = self._contexts if self._contexts_of is self._entered else {}
        return Entered(self.transport, self._entered, self._structured, contexts)

    def _receive(self, size: int, what: str) -> bytes:
        try:
            return self.transport.recv_exact(size)
        except Disconnected as error:
            raise Disconnected(f"Failed to read {what}: {error}", errno=error.errno)

    def _answer(self, option: int, body: bytes) -> bool:
        """Answer one option; False when the client leaves."""
        if option == p.OPT_ABORT:
            try:
                self._reply(option, p.REP_ACK)
            except Disconnected:
                pass  # it may be gone already
            return False
        if self._tls is not None and not self.transport.tls and option != p.OPT_STARTTLS:
            if option == p.OPT_EXPORT_NAME:
                raise _broken(f"Option 0x{option:x} not permitted before TLS")
            self._refuse(option, p.REP_ERR_TLS_REQD, f"Option 0x{option:x} not permitted before TLS")
            return True
        match option:
            case p.OPT_STARTTLS:
                self._start_tls(body)
            case p.OPT_EXPORT_NAME:
                self._export_name(body)
            case p.OPT_LIST:
                self._list(body)
            case p.OPT_INFO | p.OPT_GO:
                self._info(option, body)
            case p.OPT_STRUCTURED_REPLY:
                self._structured_reply(body)
            case p.OPT_LIST_META_CONTEXT | p.OPT_SET_META_CONTEXT:
                self._meta_context(option, body)
            case _:
                name = p.OPTION_NAMES.get(option, "<unknown>")
                self._refuse(option, p.REP_ERR_UNSUP, f"Unsupported option {option} ({name})")
        return True

    def _start_tls(self, body: bytes) -> None:
        if body:
            self._refuse(p.OPT_STARTTLS, p.REP_ERR_INVALID, "option 'starttls' has unexpected length")
        elif self._tls is None:
            self._refuse(p.OPT_STARTTLS, p.REP_ERR_POLICY, "TLS not configured")
        elif self.transport.tls:
            self._refuse(p.OPT_STARTTLS, p.REP_ERR_INVALID, "TLS already enabled")
        else:
            self._reply(p.OPT_STARTTLS, p.REP_ACK)
            transport = self.transport.start_tls(self._tls, server_side=True)
            self.transport = transport
            if self._authorize is not None and not self._authorize(transport):
                raise _broken("TLS x509 authz check failed")
            self._structured = False
            self._contexts = {}

    def _export_name(self, body: bytes) -> None:
        if len(body) > p.MAX_STRING:
            raise _broken("Bad length received")
        export = self._directory.lookup(body.decode("utf-8", "surrogateescape"))
        if export is None:
            raise _broken("export not found")
        if self._enter is not None:
            self._enter(export)
        info = export.nbd_info(self._structured)
        padding = b"" if self._no_zeroes else bytes(p.EXPORT_REPLY_PADDING)
        self.transport.send([p.EXPORT_REPLY.pack(info.size, info.flags) + padding])
        self._entered = export

    def _list(self, body: bytes) -> None:
        if body:
            self._refuse(p.OPT_LIST, p.REP_ERR_INVALID, "option 'list' has unexpected length")
            return
        for name, description in self._directory.listed():
            data = p.octets(name)
            self._reply(p.OPT_LIST, p.REP_SERVER, p.U32.pack(len(data)), data, p.octets(description))
        self._reply(p.OPT_LIST, p.REP_ACK)

    def _info(self, option: int, body: bytes) -> None:
        reader = _Reader(option, body)
        try:
            name = reader.string()
            wanted = {reader.u16() for _ in range(reader.u16())}
            reader.end()
        except ValueError as error:
            self._refuse(option, p.REP_ERR_INVALID, str(error))
            return
        export = self._find(option, name)
        if export is None:
            return
        info = export.nbd_info(self._structured)
        sizes = info.block_sizes
        assert sizes is not None
        if p.INFO_NAME in wanted:
            self._reply(option, p.REP_INFO, p.U16.pack(p.INFO_NAME), p.octets(name))
        if info.description:
            self._reply(option, p.REP_INFO, p.U16.pack(p.INFO_DESCRIPTION), p.octets(info.description))
        aware = p.INFO_BLOCK_SIZE in wanted
        # A client that did not ask may send requests of any alignment, so it is told that it may (we align).
        minimum = sizes.minimum if aware or option == p.OPT_INFO else 1
        self._reply(
            option,
            p.REP_INFO,
            p.INFO_BLOCK_SIZE_BODY.pack(p.INFO_BLOCK_SIZE, minimum, sizes.preferred, sizes.maximum),
        )
        self._reply(option, p.REP_INFO, p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, info.size, info.flags))
        if option == p.OPT_INFO and not aware and sizes.minimum > 1:
            self._refuse(option, p.REP_ERR_BLOCK_SIZE_REQD, "request NBD_INFO_BLOCK_SIZE to use this export")
            return
        if option == p.OPT_GO:
            try:
                if self._enter is not None:
                    self._enter(export)
            except QobraError as error:
                self._refuse(option, p.REP_ERR_SHUTDOWN, error.desc)
                return
            self._entered = export
        self._reply(option, p.REP_ACK)

    def _structured_reply(self, body: bytes) -> None:
        option = p.OPT_STRUCTURED_REPLY
        if body:
            self._refuse(option, p.REP_ERR_INVALID, "option 'structured reply' has unexpected length")
        elif self._structured:
            self._refuse(option, p.REP_ERR_INVALID, "structured reply already negotiated")
        else:
            self._reply(option, p.REP_ACK)
            self._structured = True

    def _meta_context(self, option: int, body: bytes) -> None:
        listing = option == p.OPT_LIST_META_CONTEXT
        if not (self._structured or listing):
            self._refuse(
                option,
                p.REP_ERR_INVALID,
                f"request option '{p.OPTION_NAMES[option]}' when structured reply is not negotiated",
            )
            return
        if not listing:
            self._contexts, self._contexts_of = {}, None  # whatever was selected before
        reader = _Reader(option, body)
        try:
            name = reader.string()
            count = reader.u32()
            queries = []
            for _ in range(count):
                query = reader.string(longest=_MAX_OPTION)
                if len(query) <= p.MAX_STRING:  # nothing has a longer name
                    queries.append(query)
            reader.end()
        except ValueError as error:
            self._refuse(option, p.REP_ERR_INVALID, str(error))
            return
        export = self._find(option, name)
        if export is None:
            return
        available = export.contexts()
        everything = listing and not count
        selected = {
            number: context
            for context, number in available.items()
            if everything or any(_matches(context, query, listing) for query in queries)
        }
        for number, context in selected.items():
            self._reply(option, p.REP_META_CONTEXT, p.U32.pack(0 if listing else number), p.octets(context))
        self._reply(option, p.REP_ACK)
        if not listing:
            self._contexts, self._contexts_of = selected, export

    def _find(self, option: int, name: str) -> ServedExport | None:
        """The export of that name; where there is none the client is told, and None returned."""
        export = self._directory.lookup(name)
        if export is None:
            self._refuse(option, p.REP_ERR_UNKNOWN, f"export '{_shortened(name)}' not present")
        return export

    def _reply(self, option: int, reply: int, *parts: bytes) -> None:
        body = b"".join(parts)
        self.transport.send([p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, reply, len(body)) + body])

    def _refuse(self, option: int, reply: int, text: str) -> None:
        self._reply(option, reply, p.octets(text)[: p.MAX_STRING])

    def _skip(self, length: int) -> None:
        while length:
            length -= len(self.transport.recv_exact(min(length, _SKIP)))


class _Reader:
    """Takes an option's payload apart; ValueError where it is too short or too long."""

    def __init__(self, option: int, body: bytes) -> None:
        self._name = p.OPTION_NAMES[option]
        self._body = body
        self._position = 0

    def u16(self) -> int:
        return int.from_bytes(self._take(2))

    def u32(self) -> int:
        return int.from_bytes(self._take(4))

    def string(self, longest: int = p.MAX_STRING) -> str:
        length = self.u32()
        if length > longest:
            raise ValueError(f"Invalid name length: {length}")
        return self._take(length).decode("utf-8", "surrogateescape")

    def end(self) -> None:
        if self._position != len(self._body):
            raise ValueError(f"option '{self._name}' has unexpected length")

    def _take(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._body):
            raise ValueError(f"Inconsistent lengths in option {self._name}")
        data = self._body[self._position : end]
        self._position = end
        return data


def _matches(context: str, query: str, listing: bool) -> bool:
    """Whether ``query`` means ``context``; in a listing a query may also be a whole family, ending in ``:``."""
    return query == context or (listing and query.endswith(":") and context.startswith(query))


def _shortened(name: str) -> str:
    """``name`` as a message shows it: a message has no room for the longest."""
    return name if len(name) < _SHOWN else name[:_SHOWN] + "..."


def _broken(what: str) -> QobraError:
    return QobraError(what, errno=errno.EPROTO)
