"""What a VNC server asks of its clients: passwords, TLS, SASL; and what that is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.crypto.authz import is_allowed
from qobra.crypto.secret import secret_bytes
from qobra.crypto.tls import TlsCreds, find_creds
from qobra.errors import QobraError
from qobra.packages import need

if TYPE_CHECKING:
    import ssl

    from qobra.machine.machine import Machine

PASSWORD = "vnc"


class Security:
    """The security of one server, as the options of ``-vnc`` say."""

    def __init__(self, machine: Machine, options: dict[str, Any]) -> None:
        """Raises QobraError where options do not go together, or name what is not there."""
        if options.get("password") and "password-secret" in options:
            raise QobraError("'password' flag is redundant with 'password-secret'")
        self._find = machine.objects.find
        self._clock = machine.clock
        self._password: bytes | None = None
        self._expires: float | None = None
        if "password-secret" in options:
            self._password = secret_bytes(self._find, options["password-secret"])
        self.creds: TlsCreds | None = None
        if "tls-creds" in options:
            self.creds = find_creds(self._find, options["tls-creds"], None)
            self.creds.server_context()
        elif "tls-authz" in options:
            raise QobraError("'tls-authz' provided but TLS is not enabled")
        if "sasl-authz" in options and not options.get("sasl"):
            raise QobraError("'sasl-authz' provided but SASL auth is not enabled")
        self._tls_authz: str | None = options.get("tls-authz")
        self._sasl_authz: str | None = options.get("sasl-authz")
        self.inner = "none"
        """What is asked for beneath TLS, or where there is none; for WebSockets too, as TLS is outside of these."""
        if options.get("password") or "password-secret" in options:
            need("cryptography", "A VNC password")
            self.inner = PASSWORD
        elif options.get("sasl"):
            from qobra.crypto.sasl import require

            require()
            self.inner = "sasl"

    @property
    def auth(self) -> str:
        """VncPrimaryAuth of sockets without WebSocket."""
        return "vencrypt" if self.creds is not None else self.inner

    @property
    def proves_itself(self) -> bool:
        """Whether a client knows by TLS that it talks to the server, and to nobody in between."""
        return self.creds is not None and self.creds.type_name == "tls-creds-x509"

    @property
    def vencrypt(self) -> str | None:
        """VncVencryptSubAuth of sockets without WebSocket, which one without TLS has not."""
        if self.creds is None:
            return None
        return f"{'x509' if self.proves_itself else 'tls'}-{self.inner}"

    @property
    def text(self) -> str:
        """All of it, as VncInfo has it."""
        return f"vencrypt+{self.vencrypt.replace('-', '+')}" if self.vencrypt is not None else self.auth

    def describe(self, *, websocket: bool = False) -> dict[str, Any]:
        """The members ``auth`` and ``vencrypt`` of a socket."""
        if websocket or self.vencrypt is None:
            return {"auth": self.inner}
        return {"auth": self.auth, "vencrypt": self.vencrypt}

    # -- passwords

    def set_password(self, password: str) -> None:
        """What clients must know from now on. Raises QobraError where none is asked for."""
        if self.inner != PASSWORD:
            raise QobraError("Could not set password")
        self._password = password.encode()

    def expire(self, seconds: float | None) -> None:
        """The password ends to be valid at that time (since the epoch); None: never."""
        self._expires = seconds

    def password(self) -> bytes | None:
        """The password that is valid now."""
        now = self._clock.time_ns() / 1e9
        return self._password if self._expires is None or now < self._expires else None

    # -- names

    def certified(self, session: ssl.SSLObject) -> str | None:
        """The name in the certificate of a TLS client; None without one. Raises QobraError if it may not come in."""
        from qobra.crypto.identity import distinguished_name

        certificate = session.getpeercert(True)
        name = distinguished_name(certificate) if certificate else None
        if self._tls_authz is not None and not is_allowed(self._find, self._tls_authz, name or ""):
            raise QobraError(f"TLS x509 authz check for {name} is denied")
        return name

    def may_enter(self, user: str) -> bool:
        """Whether one who is ``user`` by SASL may come in. Raises QobraError."""
        return self._sasl_authz is None or is_allowed(self._find, self._sasl_authz, user)
