"""The distinguished name in a certificate, written as GnuTLS writes it for authorization rules."""

from __future__ import annotations


def distinguished_name(certificate: bytes) -> str:
    """``CN=client,O=Example,C=GB`` for a certificate in DER. Raises ValueError where it cannot be parsed."""
    from cryptography import x509

    subject = x509.load_der_x509_certificate(certificate).subject
    return subject.rfc4514_string()
