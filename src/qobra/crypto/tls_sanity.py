"""Whether X.509 files can do what they are for, said before the first handshake fails for no visible
reason.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.packages import need

if TYPE_CHECKING:
    from cryptography import x509


def check_certificates(ca_file: str, cert_file: str | None, *, server: bool) -> None:
    """Check the CA's certificates and our own against times, constraints and usages of RFC 5280."""
    authorities = _load(ca_file, "CA certificate list")
    own = _load(cert_file, "client certificate" if not server else "server certificate") if cert_file else []
    if own:
        _check(own[0], cert_file or "", server=server, authority=False)
    for certificate in authorities:
        _check(certificate, ca_file, server=server, authority=True)
    if own:
        _check_chain(own, authorities, cert_file or "", ca_file)


def _load(path: str, what: str) -> list[x509.Certificate]:
    need("cryptography", "A look into certificates (sanity-check)")
    from cryptography import x509

    try:
        with open(path, "rb") as stream:
            return x509.load_pem_x509_certificates(stream.read(1 << 20))
    except (OSError, ValueError) as error:
        raise QobraError(f"Unable to import {what} {path}: {error}")


def _check(certificate: x509.Certificate, path: str, *, server: bool, authority: bool) -> None:
    kind = "CA" if authority else "server" if server else "client"
    now = datetime.datetime.now(datetime.UTC)
    if certificate.not_valid_after_utc < now:
        raise QobraError(f"The {kind} certificate {path} has expired")
    if certificate.not_valid_before_utc > now:
        raise QobraError(f"The {kind} certificate {path} is not yet active")
    _check_constraints(certificate, path, authority=authority)
    _check_usage(certificate, path, authority=authority)
    _check_purpose(certificate, path, server=server, authority=authority)


def _check_constraints(certificate: x509.Certificate, path: str, *, authority: bool) -> None:
    from cryptography import x509

    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        if authority:
            raise QobraError(f"The certificate {path} is missing basic constraints for a CA")
        return
    if authority and not is_authority:
        raise QobraError(f"The certificate {path} basic constraints do not show a CA")
    if not authority and is_authority:
        raise QobraError(f"The certificate {path} basic constraints show a CA")


def _check_usage(certificate: x509.Certificate, path: str, *, authority: bool) -> None:
    from cryptography import x509

    try:
        extension = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        return
    usage = extension.value
    # Only a critical extension forbids; otherwise it is advice.
    if not extension.critical:
        return
    if authority:
        if not usage.key_cert_sign:
            raise QobraError(f"Certificate {path} usage does not permit certificate signing")
        return
    if not usage.digital_signature:
        raise QobraError(f"Certificate {path} usage does not permit digital signature")
    # Keys of elliptic curves cannot encipher, and nothing newer than TLS 1.2 has them do so.


def _check_purpose(certificate: x509.Certificate, path: str, *, server: bool, authority: bool) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if authority:
        return
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    purposes = list(extension.value)
    if wanted not in purposes and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in purposes:
        if extension.critical:
            side = "server" if server else "client"
            raise QobraError(f"Certificate {path} purpose does not allow use with a TLS {side}")


def _check_chain(own: list[x509.Certificate], authorities: list[x509.Certificate], path: str, ca_path: str) -> None:
    prefix = f"Our own certificate {path} failed validation against {ca_path}: "
    issuers = {certificate.subject: certificate for certificate in (*own[1:], *authorities)}
    here = own[0]
    for _ in range(len(issuers) + 1):
        issuer = issuers.get(here.issuer)
        if issuer is None:
            raise QobraError(prefix + "The certificate hasn't got a known issuer")
        try:
            here.verify_directly_issued_by(issuer)
        except Exception:
            raise QobraError(prefix + "The certificate is not trusted.")
        if issuer in authorities:
            return
        here = issuer
    raise QobraError(prefix + "The certificate is not trusted.")
