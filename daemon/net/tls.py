"""TLS of both planes: certificate and key are tried before anything listens."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a plane speaks TLS with."""

    certificate: Path
    """PEM chain, the plane's own certificate first."""
    key: Path
    """PEM private key."""


def tls_files(section: str, certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """Return the TLS files of a section's settings; None for plain HTTP.

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
    return TlsFiles(certificate, key)
