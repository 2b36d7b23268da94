"""Whether the places are there where verdicts go, and what a running agent says of them.

Nothing is posted and no coil is written: a service would keep it, and a PLC would act on it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from device_agent.config import HttpOutput, ModbusOutput, PluginOutput, Site
from device_agent.outputs import open_output
from device_agent.plugins import OUTPUTS, load
from device_agent.report import OutputReport, output_words
from sdk.errors import HeadwayError
from sdk.finding import Finding, Level

AREA: Final = "output"
LOG_FIX: Final = "Look at the other side, its address and the network; the agent tries again by itself."
HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443


def check_outputs(site: Site) -> Iterator[Finding]:
    """Look whether each output of the settings can be made and is there; yield what was found.

    Call it only while the device's agent does not run: a PLC may have room for one connection.
    """
    for settings in site.output:
        if isinstance(settings, PluginOutput):
            yield _plugin(settings)
            continue
        try:
            open_output(settings, site.device, "")  # connects to nothing; closing would write a coil
        except HeadwayError as error:
            yield Finding.of(AREA, error)
            continue
        yield _there(settings)


def _plugin(settings: PluginOutput) -> Finding:
    try:
        load(OUTPUTS, settings.plugin)
    except HeadwayError as error:
        return Finding.of(AREA, error)
    return Finding(AREA, Level.GOOD, f"{settings.plugin} is installed; where it goes was not tried")


def _there(settings: HttpOutput | ModbusOutput) -> Finding:
    """Connect and hang up."""
    if isinstance(settings, HttpOutput):
        url = urlsplit(settings.url)
        secure = url.scheme == "https"
        host, port = url.hostname or "", url.port or (HTTPS_PORT if secure else HTTP_PORT)
        address = f"http {host}:{port}"
    else:
        host, port, secure = settings.host, settings.port, False
        address = f"modbus {host}:{port}"
    try:
        with contextlib.ExitStack() as stack:
            link = stack.enter_context(socket.create_connection((host, port), settings.timeout_s))
            if secure:
                stack.enter_context(ssl.create_default_context().wrap_socket(link, server_hostname=host))
    except OSError as error:
        return Finding(
            AREA,
            Level.FAULT,
            f"{address}: {error.strerror or error}",
            "Check that it runs, the address in [[output]] of site.toml, and the network.",
        )
    return Finding(AREA, Level.GOOD, f"{address} takes connections; nothing was sent")


def outputs_told(outputs: Sequence[dict[str, Any]]) -> tuple[list[Finding], set[str]]:
    """Return what a running agent's state says of its outputs, and those of its faults that this tells."""
    found, told = list[Finding](), set[str]()
    for each in msgspec.convert(list(outputs), list[OutputReport]):
        what = f"{each.name}: {each.sent} delivered, {each.dropped} not delivered, {each.waiting} wait"
        if each.fault:
            words = output_words(each)
            told.add(words)
            found.append(Finding(AREA, Level.FAULT, f"{what}; {each.fault}", LOG_FIX))
        elif each.dropped:
            found.append(Finding(AREA, Level.NOTE, what, "When and why is in the log: journalctl -u headway"))
        else:
            found.append(Finding(AREA, Level.GOOD, what))
    return found, told
