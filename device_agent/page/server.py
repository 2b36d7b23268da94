"""Who may be served what the device's page is: beyond this machine with TLS, and where people have accounts."""

from __future__ import annotations

from device_agent.config import PageSettings
from device_agent.page.access import Access
from sdk.errors import ConfigError
from sdk.web.server import PageServer


def open_page(settings: PageSettings, access: Access) -> PageServer:
    """Return the page's server as the settings ask for it.

    Raises:
        ConfigError: the address cannot be bound, the certificate not be used, or the page would be open to others
            without TLS or without accounts.
    """
    tls = None
    if settings.cert_file is not None and settings.key_file is not None:
        tls = settings.cert_file, settings.key_file
    server = PageServer(settings.host, settings.port, tls)
    if settings.for_this_machine:
        return server
    where = settings.public_url or settings.host
    wrong: ConfigError | None = None
    if tls is None and not settings.plain_http and not settings.public_url:
        wrong = ConfigError(
            f"the page at {settings.host} would be open to the network without TLS",
            hint="Give [page] cert_file and key_file, or bind to 127.0.0.1; plain_http = true goes without.",
        )
    elif not access.in_use:
        wrong = ConfigError(
            f"the page at {where} would be open to everybody: it has no accounts",
            hint="Make the first one: headway agent user add SITE.TOML NAME --role admin.",
        )
    if wrong is not None:
        server.stop()
        raise wrong
    return server
