"""When a certificate in a PEM file ends; looked at again only when the file has changed."""

from __future__ import annotations

import functools
from pathlib import Path


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
