"""The operator's page and the HTTP interface beneath it: what a person or a cell controller can do here.

`create_app` gives the ASGI application, `PageServer` runs it on a thread beside the inspection loop. There are no
accounts yet; the page binds to loopback unless told otherwise, and answers no other site's scripts: requests
must name the host they reach, and writing requests must come from the page itself or from no page at all.
"""

from device_agent.page.app import create_app
from device_agent.page.server import PageServer

__all__ = ["PageServer", "create_app"]
