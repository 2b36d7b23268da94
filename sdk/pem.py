"""When a certificate in a PEM file ends, looked at again only when the file has changed; and whose it is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final, NamedTuple

AUTHORITY_NAME: Final = "Headway fleet"
"""Common name of every fleet's own authority: what it signs names a session as the broker takes it."""
SESSIONS: Final = ("", ".chunks", ".trigger")
"""A device's sessions by what follows its id: labels and all else, releases' chunks, triggers of its line."""


class Names(NamedTuple):
    """Common names in a certificate: whose it is, and who signed it; empty where it has none."""

    subject: str
    issuer: str


def names_in(file: Path) -> Names:
    """Return the names in the certificate of a file; in the first where there are several, as TLS uses it.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no certificate.
    """
    from cryptography.x509 import load_pem_x509_certificates
    from cryptography.x509.oid import NameOID

    one = load_pem_x509_certificates(file.read_bytes())[0]
    found = (name.get_attributes_for_oid(NameOID.COMMON_NAME) for name in (one.subject, one.issuer))
    return Names(*(str(names[0].value) if names else "" for names in found))


def ends_utc(file: Path) -> float:
    """Return the last second, since 1970, of the certificate in a file; of the newest where there are several.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no certificate.
    """
    age = file.stat()
    return _read(file, age.st_mtime_ns, age.st_size)


@functools.lru_cache(maxsize=20_000)
def _read(file: Path, _mtime_ns: int, _size: int) -> float:
    from cryptography.x509 import load_pem_x509_certificates

    return max(one.not_valid_after_utc.timestamp() for one in load_pem_x509_certificates(file.read_bytes()))
