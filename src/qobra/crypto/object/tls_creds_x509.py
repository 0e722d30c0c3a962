"""``tls-creds-x509``: certificates in a directory (ca-cert.pem, server-cert.pem, server-key.pem, ...)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.crypto.secret import secret_bytes
from qobra.crypto.tls import LoadableTlsCreds, apply_priority, new_context
from qobra.errors import QobraError
from qobra.object.property import Bool, String
from qobra.object.types import registry

if TYPE_CHECKING:
    import ssl


@registry.register("tls-creds-x509")
class TlsCredsX509(LoadableTlsCreds):
    """Certificates of a public key infrastructure. ``passwordid`` names the secret that opens the
    private key.
    """

    type_name = "tls-creds-x509"
    user_creatable = True

    sanity_check = Bool(True)
    passwordid = String()

    def complete(self) -> None:
        if self.dir is None:
            raise QobraError("Missing 'dir' property value")
        server = self.endpoint == "server"
        ca = self.find_file("ca-cert.pem", required=True)
        self._ca = ca or ""
        self._crl = self.find_file("ca-crl.pem", required=False)
        self._dh = self.find_file("dh-params.pem", required=False) if server else None
        self._cert = self.find_file(f"{self.endpoint}-cert.pem", required=server)
        self._key = self.find_file(f"{self.endpoint}-key.pem", required=server)
        if self.sanity_check:
            from qobra.crypto.tls_sanity import check_certificates

            check_certificates(self._ca, self._cert, server=server)
        self._context = self._build()
        self.is_loaded = True

    def context(self) -> ssl.SSLContext:
        return self._context

    def _build(self) -> ssl.SSLContext:
        import ssl

        server = self.endpoint == "server"
        context = new_context(server)
        try:
            context.load_verify_locations(self._ca)
        except (OSError, ssl.SSLError) as error:
            raise QobraError(f"Cannot load CA certificate '{self._ca}': {error}")
        if self._cert is not None and self._key is not None:
            password = secret_bytes(self.tree.find, self.passwordid) if self.passwordid is not None else b""
            try:
                context.load_cert_chain(self._cert, self._key, lambda: password)
            except (OSError, ssl.SSLError) as error:
                raise QobraError(f"Cannot load certificate '{self._cert}' & key '{self._key}': {error}")
        if self._crl is not None:
            try:
                context.load_verify_locations(self._crl)
            except (OSError, ssl.SSLError) as error:
                raise QobraError(f"Cannot load CRL '{self._crl}': {error}")
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        if self._dh is not None:
            try:
                context.load_dh_params(self._dh)
            except (OSError, ssl.SSLError) as error:
                raise QobraError(f"Unable to load DH parameters from {self._dh}: {error}")
        if self.verify_peer:
            context.verify_mode = ssl.CERT_REQUIRED
            context.check_hostname = not server
        apply_priority(context, self.priority)
        return context
