"""When the certificates of a plane end."""

import re
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

SOON_SECONDS = 14 * 86_400.0
"""Renewal is due this long before the end (seconds)."""
RENEW = "renew it, then restart mfmd, which reads it at the start"
BLOCK = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
VALIDITY = re.compile(rb"\x30[\x1e\x20\x22](?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)")
"""The field `validity` of a certificate in DER: begin and end, with years of two digits up to 2049 (RFC 5280)."""


def first_end(path: Path) -> float | None:
    """Return when the first of the certificates in a PEM file ends (Unix, seconds); None without a readable one."""
    try:
        blocks = BLOCK.findall(path.read_text(encoding="ascii", errors="replace"))
        found = [VALIDITY.search(ssl.PEM_cert_to_DER_cert(block)) for block in blocks]
    except (OSError, ValueError):
        return None
    return min((_time(match[1] or match[2]) for match in found if match is not None), default=None)


def ending(path: Path) -> str:
    """Return that a certificate ended or soon does; empty when it does not, or has no readable end."""
    end = first_end(path)
    if end is None or end - time.time() > SOON_SECONDS:
        return ""
    days = (end - time.time()) / 86_400
    when = f"ended {-days:.0f} days ago" if days < 0 else f"ends in {days:.0f} days"
    return f"the certificate {path} {when}, on {datetime.fromtimestamp(end, UTC):%Y-%m-%d}"


def _time(text: bytes) -> float:
    year = b"" if len(text) > 12 else b"20" if text < b"50" else b"19"
    return datetime.strptime((year + text).decode() + "+0000", "%Y%m%d%H%M%S%z").timestamp()
