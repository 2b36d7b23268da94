"""What each party may say and hear at the broker: Mosquitto's configuration and access list for a plant's network.

Text in, text out. Everything that is not listed is refused. Topics are named one by one where a device writes: a
wildcard would let it fill the broker with retained messages of its own invention.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sdk.fleet.broker import BrokerLimits, limit_lines
from sdk.fleet.certificates import SERVICE_NAME
from sdk.pem import SESSIONS
from sdk.wire import Topics

DEFAULT_LIMITS: Final = BrokerLimits()
MAX_CONNECTIONS: Final = 5000
"""Two for each device of a large plant, and file descriptors to spare."""


def access_list(topics: Topics, channels: Mapping[str, str], more: str = "") -> str:
    """Return the text of Mosquitto's acl_file.

    Args:
        topics: Names of topics.
        channels: The enrolled devices and the channel of each.
        more: A plant's own entries, for what else speaks there: controllers that send triggers.

    >>> "topic write headway/v1/dev/line-1/up/label" in access_list(Topics(), {"line-1": "default"})
    True
    """
    t = topics
    service_writes = [t.trust(), t.chunk("+"), t.meta("+"), t.log("+")]
    service_writes += [t.desired("+"), t.ack("+"), t.down_log("+")]
    service_reads = [t.state("+"), t.up_label("+"), t.up_want("+"), t.up_event("+")]
    blocks = [_block(SERVICE_NAME, service_reads, service_writes)]
    for device, channel in sorted(channels.items()):
        reads = [t.trust(), t.meta(channel), t.log(channel), t.desired(device), t.ack(device), t.down_log(device)]
        writes = [t.up_label(device), t.up_event(device), t.up_result(device), t.up_want(device), t.state(device)]
        # `headway doctor` measures the way to the broker and back on its own telemetry.
        _, chunks, trigger = (device + session for session in SESSIONS)
        blocks.append(_block(device, [*reads, t.up_tele(device)], [*writes, t.up_tele(device)]))
        blocks.append(_block(chunks, [t.chunk("+")], [t.up_want(device)]))
        blocks.append(_block(trigger, [trigger_topic(t, device)], []))
    if more:
        blocks.append(more)
    return "# Written by Headway: `headway fleet enroll` and `revoke` keep it.\n\n" + "\n".join(blocks)


def trigger_topic(topics: Topics, device: str) -> str:
    """Return the topic on which an enrolled device may be triggered."""
    return f"{topics.prefix}/dev/{device}/down/trigger"


def _block(user: str, reads: list[str], writes: list[str]) -> str:
    lines = [f"user {user}"]
    lines += [f"topic readwrite {topic}" for topic in reads if topic in writes]
    lines += [f"topic read {topic}" for topic in reads if topic not in writes]
    lines += [f"topic write {topic}" for topic in writes if topic not in reads]
    return "\n".join(lines) + "\n"


FILES: Final = {
    "cafile": "ca.pem",
    "certfile": "broker.pem",
    "keyfile": "broker.key",
    "crlfile": "crl.pem",
    "acl_file": "acl",
}
"""Which setting of Mosquitto's names which file of the fleet's `tls/`."""


def elsewhere(text: str, folder: Path) -> list[str]:
    """Return the paths in a mosquitto.conf of ours that are not in this folder, as in one that was moved."""
    return [path for line in text.splitlines() if (path := _elsewhere(line, folder)) is not None]


def _elsewhere(line: str, folder: Path) -> str | None:
    key, _, path = line.strip().partition(" ")
    named = Path(path.strip())
    if named.name != FILES.get(key) or named.parent == folder.resolve():
        return None
    return str(named)


def adjusted(text: str, folder: Path | None, ports: tuple[int, int]) -> str:
    """Return a mosquitto.conf of ours with another folder or port, and all else as somebody may have edited it.

    Args:
        text: It.
        folder: The fleet's `tls/`, where it has moved.
        ports: Where the broker listened, and where it is to listen.

    >>> adjusted("listener 8883\\nlog_type all\\n", None, (8883, 9999)).splitlines()
    ['listener 9999', 'log_type all']
    """
    lines = text.splitlines()
    for i, line in enumerate(lines):
        words = line.split()
        if words[:2] == ["listener", str(ports[0])]:
            lines[i] = " ".join(["listener", str(ports[1]), *words[2:]])
        elif folder is not None and _elsewhere(line, folder) is not None:
            lines[i] = f"{words[0]} {folder.resolve() / FILES[words[0]]}"
    return "\n".join(lines) + "\n"


def secure_config(
    port: int,
    folder: Path,
    *,
    limits: BrokerLimits = DEFAULT_LIMITS,
    host: str | None = None,
    user: str | None = None,
) -> str:
    """Return the text of a mosquitto.conf for a network: TLS, certificates, access list, limits.

    Args:
        port: Where to listen.
        folder: The fleet's `tls/`.
        limits: What the broker may use.
        host: Listen on this address only.
        user: Whom Mosquitto becomes when it is started by root; its own user by default, who must be able to read
            the folder.
    """
    folder = folder.resolve()
    lines = [
        "# Written by Headway; docs/protocol.md, section 8, and docs/fleet.md say why.",
        f"listener {port}" + (f" {host}" if host else ""),
        "# Nobody without a certificate of this fleet; the name in it is the user and the session.",
        "allow_anonymous false",
        *(f"{key} {folder / FILES[key]}" for key in ("cafile", "certfile", "keyfile", "crlfile")),
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "# Else a valid certificate with another's client id throws that other off.",
        "use_username_as_clientid true",
        f"acl_file {folder / FILES['acl_file']}",
        f"max_connections {MAX_CONNECTIONS}",
        *limit_lines(limits),
    ]
    if user is not None:
        lines.append(f"user {user}")
    return "\n".join(lines) + "\n"
