"""TLS contexts for NBD connections, from the files that GnuTLS-based peers (qemu, libnbd, nbdkit) are set up with."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from qobra.errors import QobraError, strerror

if TYPE_CHECKING:
    import ssl

_MAX_PSK_FILE = 1 << 20


def client_context(
    certificates: str | None = None,
    *,
    verify: bool = True,
    psk_file: str | None = None,
    username: str | None = None,
) -> ssl.SSLContext:
    """A client's context.

    ``certificates`` is a directory with ``ca-cert.pem`` and, where the server asks for one, ``client-cert.pem`` and
    ``client-key.pem``; without it the system's authorities are trusted. ``verify=False`` takes any certificate.
    ``psk_file`` has lines ``user:hexkey``; ``username`` picks one. Raises QobraError.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if psk_file is not None:
        _use_psk(context, psk_file, username or os.environ.get("USER", ""))
        return context
    try:
        if certificates is None:
            context.load_default_certs()
        else:
            authority = os.path.join(certificates, "ca-cert.pem")
            if verify or os.path.exists(authority):
                context.load_verify_locations(authority)
            certificate = os.path.join(certificates, "client-cert.pem")
            if os.path.exists(certificate):
                context.load_cert_chain(certificate, os.path.join(certificates, "client-key.pem"))
    except OSError as error:
        reason = getattr(error, "reason", None) or strerror(error)
        raise QobraError(
            f"Unable to load TLS certificates from '{certificates}': {reason}",
            errno=error.errno or errno.EINVAL,
        )
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _use_psk(context: ssl.SSLContext, path: str, username: str) -> None:
    import ssl

    from qobra.psk import offer_key

    key = _find_key(path, username)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # OpenSSL's callback speaks TLS 1.2's pre-shared keys, which every peer with PSK has.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("PSK")
    offer_key(context, username, key)


def _find_key(path: str, username: str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_PSK_FILE).decode("utf-8", "replace")
    except OSError as error:
        raise QobraError.from_os(f"Unable to read the PSK file '{path}'", error)
    for line in text.splitlines():
        user, colon, key = line.strip().rpartition(":")
        if colon and user == username:
            try:
                return bytes.fromhex(key)
            except ValueError:
                break
    raise QobraError(f"No key for user '{username}' in the PSK file '{path}'", errno=errno.ENOENT)
