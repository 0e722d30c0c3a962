"""The distinguished name in a certificate, written as GnuTLS writes it for authorization rules."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.packages import need


def distinguished_name(certificate: bytes) -> str:
    """``C=GB,O=Example,CN=client``, in the order of the certificate. Raises QobraError where that cannot be read."""
    need("cryptography", "The name in a certificate (tls-authz)")
    from cryptography import x509

    try:
        subject = x509.load_der_x509_certificate(certificate).subject
        return ",".join(each.rfc4514_string() for each in subject.rdns)
    except ValueError as error:
        raise QobraError(f"The name in a certificate cannot be read: {error}")
