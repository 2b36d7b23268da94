"""Who may connect to a server of ours by certificate, revocation included, without starting it again.

OpenSSL reads a list of those revoked into a context and never looks again. So each connection is given the context
of the list as it is on disk now, made anew when the file has changed. Nothing may let a client past the check of
its certificate: no session is resumed (RFC 8446, section 2.2), which TLS 1.2 would allow by number as well.

TLS does not ask an open connection again, so the server asks here whose certificate still counts.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

_log = logging.getLogger(__name__)


class CheckedClients:
    """Gives each connection to a server the certificates that count now.

    Args:
        cert: The server's certificate, PEM.
        key: Its private key, PEM.
        authority: Whose certificates may connect, PEM.
        revoked: The authority's list of those revoked, PEM.
    """

    def __init__(self, cert: Path, key: Path, authority: Path, revoked: Path) -> None:
        self._files = (cert, key, authority, revoked)
        self._stamp: tuple[int, int, int] | None = None
        self._newest = self._read()
        self._seen: tuple[int, int, int] | None = None
        self._revoked: frozenset[int] | None = frozenset()

    def context(self) -> ssl.SSLContext:
        """Return the context to listen with; what it says of clients is looked up at each connection."""
        first = self._made()
        first.sni_callback = self._came
        return first

    def may_stay(self, certificate: Mapping[str, object] | None) -> bool:
        """Return whether an open connection's certificate still counts; none does while the list cannot be read.

        Args:
            certificate: As `ssl.SSLSocket.getpeercert` says it.
        """
        try:
            stamp = self._stamp_now()
            if stamp != self._seen:
                from cryptography.x509 import load_pem_x509_crl  # an agent's page has no such clients

                found = load_pem_x509_crl(self._files[3].read_bytes())
                self._revoked, self._seen = frozenset(one.serial_number for one in found), stamp
        except (OSError, ValueError) as error:
            if self._revoked is not None:
                _log.warning("%s cannot be read, all connections end: %s", self._files[3], error)
            self._revoked = self._seen = None
        number = (certificate or {}).get("serialNumber")
        return self._revoked is not None and isinstance(number, str) and int(number, 16) not in self._revoked

    def _came(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _first: ssl.SSLContext) -> None:
        # Called by OpenSSL at every ClientHello, with or without a name, before certificates are asked for.
        connection.context = self._read()

    def _read(self) -> ssl.SSLContext:
        stamp = self._stamp_now()
        if stamp != self._stamp:
            self._newest, self._stamp = self._made(), stamp
        return self._newest

    def _stamp_now(self) -> tuple[int, int, int]:
        found = os.stat(self._files[3])
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _made(self) -> ssl.SSLContext:
        cert, key, authority, revoked = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(cert, key)
        context.load_verify_locations(authority)
        context.load_verify_locations(revoked)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context
