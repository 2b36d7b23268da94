"""Private keys in files: PKCS#8 PEM, encrypted with a passphrase where there is one, readable by their owner only.

Ed25519 throughout: short, deterministic, and one key signs in some 50 microseconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from sdk.errors import KeyRefused

MAX_KEY_BYTES: Final = 64 * 1024


def make_key(file: Path, passphrase: bytes | None) -> CryptoSigner:
    """Make a key, store it in a file that was not there, and return it.

    Raises:
        KeyRefused: the file is there already, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    write_private(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    return CryptoSigner(key)


def load_key(file: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """Return the key in a file.

    Raises:
        KeyRefused: there is none, it is locked with another passphrase, or of another kind.
    """
    try:
        pem = file.read_bytes()[:MAX_KEY_BYTES]
    except OSError as error:
        raise KeyRefused(
            f"{file}: {error.strerror}", hint="Name the folder of the keys that `headway fleet keys init` made."
        ) from error
    try:
        # cryptography refuses a passphrase for a key that has none.
        key = load_pem_private_key(pem, passphrase if is_locked(pem) else None)
    except (ValueError, TypeError) as error:
        locked = is_locked(pem)
        raise KeyRefused(
            f"{file} is {'locked with another passphrase' if locked and passphrase else 'no key that opens'}",
            hint="Give its passphrase with --passphrase-file." if locked else "Take it from your backup.",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRefused(f"{file} is not an Ed25519 key", hint="`headway fleet keys init` makes the right kind.")
    return CryptoSigner(key)


def is_locked(pem: bytes) -> bool:
    """Return whether a PEM file's key is encrypted."""
    return b"ENCRYPTED PRIVATE KEY" in pem


def write_private(file: Path, content: bytes) -> None:
    """Write a new file that only its owner may read, durably.

    Raises:
        KeyRefused: it is there already, or cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise KeyRefused(
            f"{file} is there already", hint="Keys are never overwritten; name another folder."
        ) from error
    except OSError as error:
        raise KeyRefused(f"{file}: {error.strerror}", hint="Name a folder you may write to.") from error
