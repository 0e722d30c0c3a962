"""TLS credentials: what every kind has, and how a priority string limits a context."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError, strerror
from qobra.object.property import Bool, Enum, String
from qobra.object.qom import Object

if TYPE_CHECKING:
    import ssl

FindObject = Callable[[str, str | None], "Object | None"]

_VERSIONS = ("TLS1.0", "TLS1.1", "TLS1.2", "TLS1.3")
_LEVELS = {
    "NORMAL": "DEFAULT",
    "SECURE128": "HIGH:!aNULL:!eNULL",
    "SECURE192": "AES256:CHACHA20:!aNULL",
    "SECURE256": "AES256:CHACHA20:!aNULL",
    "PERFORMANCE": "DEFAULT",
    "PFS": "kECDHE:kDHE:!aNULL",
    "@SYSTEM": "DEFAULT",
}


class TlsCreds(Object):
    """What the kinds of credentials have in common.

    ``dir`` holds the files, ``endpoint`` says which side they are for, ``verify_peer`` whether the other
    side must prove itself, ``priority`` which versions and ciphers may be used (the keywords of GnuTLS).
    """

    type_name = "tls-creds"
    abstract = True

    verify_peer = Bool(True)
    dir = String()
    endpoint = Enum("QCryptoTLSCredsEndpoint", ("client", "server"), "client")
    priority = String()

    def context(self) -> ssl.SSLContext:
        """A context for this endpoint. Raises QobraError where a file does not fit."""
        raise NotImplementedError

    def server_context(self) -> ssl.SSLContext:
        """A context to accept connections with; QobraError where the credentials are a client's."""
        self.check_endpoint("server")
        return self.context()

    def client_context(self) -> ssl.SSLContext:
        """A context to connect with; QobraError where the credentials are a server's."""
        self.check_endpoint("client")
        return self.context()

    def find_file(self, name: str, *, required: bool) -> str | None:
        """The path of a credentials file, or None where an optional one is not there."""
        path = f"{self.dir}/{name}"
        try:
            os.stat(path)
        except FileNotFoundError as error:
            if not required:
                return None
            raise QobraError(f"Unable to access credentials {path}: {strerror(error)}", errno=error.errno)
        except OSError as error:
            raise QobraError(f"Unable to access credentials {path}: {strerror(error)}", errno=error.errno)
        return path

    def check_endpoint(self, expected: str) -> None:
        """Raise QobraError where these are for another endpoint than ``client`` or ``server``."""
        if self.endpoint != expected:
            raise QobraError(f"Expected TLS credentials for a {expected} endpoint")


class LoadableTlsCreds(TlsCreds):
    """Credentials with a ``loaded`` property."""

    loaded = Bool(get=lambda self: self.is_loaded, writable=False)
    is_loaded = False


def find_creds(find_object: FindObject, id: str, endpoint: str | None) -> TlsCreds:
    """The credentials ``id`` for ``endpoint`` (``client`` or ``server``; None: any)."""
    found = find_object(id, None)
    if found is None:
        raise QobraError(f"No TLS credentials with id '{id}'")
    if not isinstance(found, TlsCreds):
        raise QobraError(f"Object with id '{id}' is not TLS credentials")
    if endpoint is not None:
        found.check_endpoint(endpoint)
    return found


def new_context(server: bool) -> ssl.SSLContext:
    """An empty context that takes any peer, of a class that may carry callbacks."""
    import ssl

    class Context(ssl.SSLContext):
        """A context that may carry attributes: what must live as long as it does."""

    context = Context(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def apply_priority(context: ssl.SSLContext, priority: str | None) -> None:
    """Limit ``context`` as a GnuTLS priority string says: a level, then ``-VERS-...`` and ``+VERS-...``.

    The names of single ciphers differ between the TLS libraries, so they are refused rather than guessed at.
    """
    import ssl

    if priority is None:
        return
    level, *modifiers = priority.split(":")
    if level not in _LEVELS and level != "NONE":
        raise QobraError(f"Unable to set TLS session priority {priority}: unknown level '{level}'")
    if level in _LEVELS:
        context.set_ciphers(_LEVELS[level])
    allowed = set(_VERSIONS) if level != "NONE" else set()
    for modifier in modifiers:
        sign, keyword = modifier[:1], modifier[1:]
        if keyword == "VERS-ALL" or keyword == "VERS-TLS-ALL":
            named = set(_VERSIONS)
        elif keyword.startswith("VERS-") and keyword[5:] in _VERSIONS:
            named = {keyword[5:]}
        elif modifier.startswith("%"):
            continue  # compatibility switches of GnuTLS that have no meaning here
        else:
            raise QobraError(f"Unable to set TLS session priority {priority}: unknown keyword '{modifier}'")
        if sign == "+":
            allowed |= named
        elif sign in ("-", "!"):
            allowed -= named
        else:
            raise QobraError(f"Unable to set TLS session priority {priority}: unknown keyword '{modifier}'")
    if not allowed & {"TLS1.2", "TLS1.3"}:
        raise QobraError(f"Unable to set TLS session priority {priority}: no protocol version is left")
    # OpenSSL itself no longer offers what is older than 1.2, whatever the priority allows.
    if "TLS1.2" not in allowed:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    if "TLS1.3" not in allowed:
        context.maximum_version = ssl.TLSVersion.TLSv1_2


def require_tls12(context: ssl.SSLContext, priority: str | None) -> None:
    """Hold ``context`` to TLS 1.2, for key exchanges that 1.3 has not; QobraError where ``priority`` forbids that."""
    import ssl

    if context.minimum_version == ssl.TLSVersion.TLSv1_3:
        raise QobraError(f"Unable to set TLS session priority {priority}: this kind of credentials needs TLS1.2")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
