"""TLS of both planes: certificate and key tried before anything listens, and clients that know the certificate.

A command on this machine trusts the certificate whose hash stands in the run file: the same folder tells it where the
plane is and which process it is, so no authority has to vouch for a name, and a certificate renewed on disk but not yet
in use confuses nobody.
"""

import hashlib
import hmac
import http.client
import ssl
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError
from daemon.runtime.run_record import RunRecord


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a plane speaks TLS with."""

    certificate: Path
    """PEM chain, the plane's own certificate first."""
    key: Path
    """PEM private key."""
    digest: str
    """Hex SHA-256 of the plane's own certificate (DER)."""


def tls_files(section: str, certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """The files of a section's settings; none when it speaks plain HTTP.

    Raises ConfigError, naming the file, when one cannot be read, does not hold what it should, they do not belong
    together, or the key is encrypted (nobody is there to type a password).
    """
    if certificate is None or key is None:
        return None
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{section}.{name}: {path} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{section}.certificate: {certificate} and {section}.key: {key} cannot be used together: "
            f"{getattr(error, 'reason', None) or error}; give a PEM certificate and its PEM key without a password"
        ) from error
    return TlsFiles(certificate, key, _digest(_first_certificate(certificate)))


def connection_to(address: RunRecord, timeout: float) -> http.client.HTTPConnection:
    """A connection to the plane at `address`, HTTPS when it speaks that; `timeout` in seconds.

    Using it raises OSError too when another certificate is shown than the run file names: nothing was sent then.
    """
    if address.certificate is None:
        return http.client.HTTPConnection(address.reachable_host, address.port, timeout=timeout)
    return _Pinned(address, timeout)


class _Pinned(http.client.HTTPSConnection):
    """HTTPS to the one certificate that the run file names."""

    def __init__(self, address: RunRecord, timeout: float) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the certificate itself is compared, which no authority could do better
        super().__init__(address.reachable_host, address.port, timeout=timeout, context=context)
        self._wanted = address.certificate or ""

    def connect(self) -> None:
        """Connect, and hang up unless the certificate is the right one."""
        super().connect()
        shown = self.sock.getpeercert(binary_form=True)
        if shown is None or not hmac.compare_digest(_digest(shown), self._wanted):
            self.close()
            raise OSError("it shows another certificate than the run file names; is another program at that port?")


def _first_certificate(path: Path) -> bytes:
    """DER of the first certificate of a PEM file: the one that a server shows."""
    text = path.read_text(encoding="latin-1")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(begin + text.partition(begin)[2].partition(end)[0] + end)


def _digest(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()
