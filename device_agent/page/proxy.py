"""A proxy on this machine that answers for the page under a name of its own: `[page] public_url`.

The page stays on loopback; the proxy has the certificate. What it says of who asks is believed there and only
there: without `public_url` a forwarding header is anybody's to write.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Proxy:
    """What people call the page.

    Attributes:
        origin: As browsers write it, such as `https://line-1.plant` or `https://line-1.plant:8443`.
        host: Its name alone.
    """

    origin: str
    host: str

    @classmethod
    def at(cls, public_url: str) -> Proxy:
        """Return the proxy of an address that `PageSettings` has checked."""
        parts = urlsplit(public_url.lower())
        return cls(f"https://{parts.netloc.removesuffix(':443')}", parts.hostname or "")

    @staticmethod
    def client(forwarded_for: Sequence[str]) -> str | None:
        """Return who asked the proxy, None where it does not say: what stands last, for what stands before came
        with the request.

        Args:
            forwarded_for: The values of all X-Forwarded-For headers, in their order.

        >>> Proxy.client(["10.0.0.9, 10.0.0.7"]), Proxy.client(["somebody"]), Proxy.client([])
        ('10.0.0.7', None, None)
        """
        last = forwarded_for[-1].rpartition(",")[2].strip() if forwarded_for else ""
        try:
            return str(ipaddress.ip_address(last))
        except ValueError:
            return None
