"""The TLS credentials of NBD connections, by the id of the object."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from qobra.errors import QobraError

if TYPE_CHECKING:
    import ssl
    from typing import Any

    from qobra.crypto.tls import FindObject, TlsCreds


def find_tls_creds(find_object: FindObject, id: str) -> TlsCreds:
    """The object. Raises QobraError where it is not there, or something else; its ``*_context()`` checks the rest."""
    from qobra.crypto.tls import TlsCreds

    found = find_object(id, None)
    if found is None:
        raise QobraError(f"No TLS credentials with id '{id}'")
    if not isinstance(found, TlsCreds):
        raise QobraError(f"Object with id '{id}' is not TLS credentials")
    return found


def check_hostname(context: ssl.SSLContext, hostname: str | None, address: dict[str, Any]) -> None:
    """Raise QobraError where the server's certificate is to name a host, and neither user nor ``address`` tells it."""
    if context.check_hostname and hostname is None and address["type"] != "inet":
        raise QobraError("No hostname for certificate validation", errno=errno.EINVAL)
