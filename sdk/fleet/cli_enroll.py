"""`headway fleet tls`, `enroll`, `renew`, `revoke` and `forget`: who may speak at the broker, and until when."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from sdk.durable import PARTIAL, sync_path, write_whole
from sdk.errors import KeyRefused
from sdk.fleet.cli_trust import dir_option, has_trust, open_trust
from sdk.fleet.enrolment import PLACE_NAME, TLS_FOLDER, TLS_PORT, Place, no_broker, read_place
from sdk.labels import FLEET_LOG_PREFIX, RELEASE_DEVICE, DeviceId
from sdk.wire import DEFAULT_PREFIX, ChannelName

if TYPE_CHECKING:
    from sdk.fleet.broker import Mosquitto
    from sdk.fleet.certificates import Authority
    from sdk.fleet.store import Ledger
    from sdk.mqtt import MqttSettings

CONFIG_NAME: Final = "mosquitto.conf"
"""For a Mosquitto of the plant's own: ours is started with one made on the spot."""
PID_NAME: Final = "broker.pid"
"""There while a broker of ours runs with these certificates."""
CERTIFICATE_NAMES: Final = ("device.pem", "device-chunks.pem", "device-trigger.pem")
"""What a device's certificates are called on it, in the order of its sessions."""
OWN_ACCESS_NAME: Final = "acl.local"
"""A plant's own entries, taken over into the access list."""


@click.command(short_help="Make a broker's certificates and settings.")
@dir_option
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Name or address by which devices reach the broker. May be given several times; devices use the first.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help=f"Where the broker listens; {TLS_PORT} where nothing is said."
)
@click.option("--prefix", help=f"First part of every topic; {DEFAULT_PREFIX} where nothing is said.")
@click.option(
    "--renew", "renew_servers", is_flag=True, help="Only new certificates for the keys that are there, for longer."
)
@click.option(
    "--moved", is_flag=True, help="With --renew: the directory has moved; name its place in mosquitto.conf."
)
def tls(
    directory: Path, hosts: tuple[str, ...], port: int | None, prefix: str | None, renew_servers: bool, moved: bool
) -> None:
    """Make the certificates and the configuration of a broker for a plant's network.

    Afterwards `headway fleet serve --start-broker` runs that broker, open to the network for devices with a
    certificate of this fleet, and for nobody else.

    Certificates of broker and service last five years; `headway fleet doctor` says when they end. --renew gives
    both new ones, and the authority where its own end, after twenty years, comes near. No device notices.

    With --renew, --host and --port say where the broker is from now on. Its certificate keeps the names that it
    had, so a device may come by the old address for as long as that leads there.
    """
    if renew_servers:
        if prefix is not None:
            raise click.UsageError("--prefix cannot change: every device that is enrolled has it.")
        _renew_servers(directory, hosts, port, moved=moved)
        return
    if moved:
        raise click.UsageError("--moved is for --renew.")
    if not hosts:
        raise click.UsageError("Missing option '--host'.")
    port, prefix = port or TLS_PORT, prefix or DEFAULT_PREFIX
    from sdk.fleet.access import secure_config
    from sdk.fleet.certificates import Authority, changing
    from sdk.wire import Topics

    Topics(prefix)
    folder = tls_folder(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KeyRefused(f"{folder}: {error.strerror}", hint="Name a folder you may write to.") from error
    with changing(folder):
        if (folder / PLACE_NAME).exists():
            raise KeyRefused(
                f"{folder} has certificates already",
                hint="`headway fleet enroll` adds devices. With --renew the "
                "broker gets another address: --host, --port.",
            )
        with _all_or_nothing_new(folder):
            Authority.create(folder, hosts)
            (folder / CONFIG_NAME).write_text(secure_config(port, folder), encoding="utf-8")
            _write_place(folder, Place(host=hosts[0], port=port, prefix=prefix))
    click.echo(f"""\
{folder}/ca.key            stays here, readable by its owner only: who has it enrols devices
{folder}/mosquitto.conf    the broker's configuration, with its access list and certificates beside it
Run broker and service:    headway fleet serve --dir {directory} --start-broker
Or run your own Mosquitto with that configuration; its user must be able to read the folder.
Enrol a device:            headway fleet enroll NAME --dir {directory} --out NAME""")


def _renew_servers(directory: Path, hosts: tuple[str, ...], port: int | None, *, moved: bool) -> None:
    from sdk.fleet.access import adjusted
    from sdk.fleet.certificates import write_for_broker
    from sdk.fleet.expiry import expiries

    folder = tls_folder(directory)
    with _changing(folder) as authority:
        before = read_place(folder) if hosts or port is not None or moved else None
        renewed = authority.renew_servers(hosts)
        if before is not None:
            host = hosts[0] if hosts else before.host
            place = msgspec.structs.replace(before, host=host, port=port or before.port)
            config = folder / CONFIG_NAME
            text = adjusted(_config_text(folder, before), folder if moved else None, (before.port, place.port))
            write_for_broker(config, text.encode(), mode=0o600)
            _write_place(folder, place)
            if (before.host, before.port) != (place.host, place.port):
                click.echo(
                    f"the broker is at {place.host}, port {place.port}, for devices that are enrolled from now on"
                )
                click.echo(
                    "others: set host and port in [mqtt] of their site.toml, and url in [chunks] where it is"
                )
    for one in expiries(directory):
        if one.kind in renewed:
            click.echo(f"{one.what} until {datetime.fromtimestamp(one.expires_utc, timezone.utc):%Y-%m-%d}")
    with _changing(folder):
        _tell_broker(directory)
    if port is not None:
        click.echo("a broker that runs elsewhere takes its port when it is started anew")
    click.echo("start `headway fleet serve` anew: until then it shows the broker its old certificate")


@click.command(short_help="Make new certificates for enrolled devices.")
@click.argument("devices", nargs=-1)
@dir_option
@click.option("--ending", is_flag=True, help="All devices whose certificates end within ninety days.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to make, with one folder in it for each device.",
)
def renew(devices: tuple[str, ...], directory: Path, ending: bool, out: Path) -> None:
    """Make new certificates for DEVICES, for the keys that they have: nothing secret is carried.

    Copy OUT/DEVICE/*.pem over the files of the same names on the device and start its agent anew. Until then, and
    until their end, the old certificates are good.
    """
    folder = tls_folder(directory)
    names = [*dict.fromkeys([*devices, *(_ending(directory) if ending else [])])]
    if not names:
        if ending:
            click.echo("no device's certificate ends soon")
            return
        raise click.UsageError("name the devices, or give --ending")
    if out.exists():
        raise KeyRefused(f"{out} is there already", hint="Name a new folder.")
    with _changing(folder) as authority:
        unknown = sorted({*names} - {*authority.enrolled()})
        if unknown:
            raise KeyRefused(
                f"{unknown[0]} is not enrolled here", hint="`headway fleet devices` lists the known ones."
            )
        made = {device: authority.renew(device) for device in names}
        with _appearing(out) as draft:
            for device, certificates in made.items():
                (draft / device).mkdir(mode=0o700)
                for name, content in zip(CERTIFICATE_NAMES, certificates, strict=True):
                    write_whole(draft / device / name, content)
                write_whole(draft / device / "ca.pem", (folder / "ca.pem").read_bytes())
            # Only now: a device whose new ones were not written would count as one whose end is far.
            for device, certificates in made.items():
                authority.keep(device, certificates)
    for device in names:
        click.echo(f"{device}: copy {out / device}/*.pem over its files of these names, and start its agent anew")


def _ending(directory: Path) -> list[str]:
    from sdk.expiry import Standing
    from sdk.fleet.expiry import expiries

    now_utc = time.time()
    found = [one for one in expiries(directory) if one.device]
    return [one.device for one in found if one.standing(now_utc) is not Standing.GOOD]


@click.command(short_help="Make the folder that makes a device.")
@click.argument("device")
@dir_option
@click.option("--channel", default="default", show_default=True, help="The product line it belongs to.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to make, and to carry to the device.",
)
def enroll(device: str, directory: Path, channel: str, out: Path) -> None:
    """Make a folder that makes a machine into DEVICE: certificate, key, the fleet's root, site.toml.

    Carry it there by hand or over ssh, then delete it here: the key is in it. Where OUT cannot be written whole,
    nobody is enrolled.
    """
    _check(device, DeviceId, "device id", "a-z, 0-9 and '-'")
    if device.startswith(FLEET_LOG_PREFIX) or device == RELEASE_DEVICE:
        raise KeyRefused(
            f"{device} is a name that Headway keeps for itself", hint="Name the device after its line."
        )
    _check(channel, ChannelName, "channel name", "a-z, 0-9, '.', '_' and '-'")
    folder = tls_folder(directory)
    if out.exists():
        raise KeyRefused(f"{out} is there already", hint="Name a new folder.")
    with _changing(folder) as authority:
        place = read_place(folder)
        trusted = has_trust(directory)
        files = {"ca.pem": (folder / "ca.pem").read_bytes()}
        if trusted:
            files["root.json"] = open_trust(directory).root_file().read_bytes()
        files["site.toml"] = site_text(device, channel, place, trusted=trusted).encode()
        issued = authority.prepare(device)
        files |= zip(CERTIFICATE_NAMES, issued.certificates, strict=True)
        files["device.key"] = issued.key
        channels = {**place.channels, device: channel}
        try:
            with _appearing(out) as draft:
                for name, content in files.items():
                    write_whole(draft / name, content, mode=0o600)
                # The list first: where it cannot be written nobody is enrolled. A name without certificates is
                # nobody.
                _write_place(folder, msgspec.structs.replace(place, channels=channels))
                authority.keep(device, issued.certificates)
        except BaseException:
            # Nobody is enrolled whose folder is not there, or the same command could not be given again.
            with contextlib.suppress(KeyRefused, OSError):
                authority.forget(device)
                _write_place(folder, place)
                authority.discard(issued)
            raise
    _note(directory, lambda ledger: ledger.note_enrolled(device))
    click.echo(
        f"{device} is enrolled on channel {channel}; carry {out}/ to it, set [camera] in site.toml, then there:"
    )
    click.echo("  headway agent run site.toml")
    click.echo(f"and delete {out}/ here: its key is in it")
    if not trusted:
        click.echo("releases are not signed in this fleet; see `headway fleet keys init`")
    with _changing(folder):
        _tell_broker(directory)


@click.command()
@click.argument("device")
@dir_option
def revoke(device: str, directory: Path) -> None:
    """Let DEVICE's certificates count no more. What it labelled stays; the id can be enrolled anew.

    No release waits for it from then on. `headway fleet forget` takes it off the list of devices too.
    """
    folder = tls_folder(directory)
    with _changing(folder) as authority:
        place = read_place(folder)
        known = device in authority.enrolled()
        if not known and device not in place.channels:
            raise KeyRefused(
                f"{device} is not enrolled here", hint="`headway fleet devices` lists the known ones."
            )
        # It is forgotten when all of it is done: until then the same command goes on with it.
        channels = {name: channel for name, channel in place.channels.items() if name != device}
        _write_place(folder, msgspec.structs.replace(place, channels=channels))
        if known:
            authority.revoke(device)
        told = _tell_broker(directory)
        _note(directory, lambda ledger: ledger.note_revoked(device, time.time()))
        authority.forget(device)
    click.echo(f"{device} is revoked; what it labelled stays")
    if told:
        click.echo("the broker takes nothing from it any more")


@click.command(short_help="Take a scrapped device off the list.")
@click.argument("device")
@dir_option
def forget(device: str, directory: Path) -> None:
    """Show DEVICE no more: it is scrapped. What it labelled stays; if it still speaks, it is shown again."""
    from sdk.fleet.cli import open_fleet

    folder = tls_folder(directory)
    if (folder / PLACE_NAME).exists() and device in read_place(folder).channels:
        raise KeyRefused(
            f"{device} has certificates that count", hint=f"First: headway fleet revoke {device} --dir {directory}"
        )
    with open_fleet(directory) as store, store.write() as ledger:
        ledger.forget(device)
    click.echo(f"{device} is not shown any more; what it labelled stays")


def _note(directory: Path, what: Callable[[Ledger], None]) -> None:
    """Write down what becomes of a device where the fleet has a database already."""
    from sdk.fleet.database import holds_fleet
    from sdk.fleet.store import FleetStore

    if holds_fleet(directory):
        with FleetStore(directory) as store, store.write() as ledger:
            what(ledger)


def site_text(device: str, channel: str, place: Place, *, trusted: bool) -> str:
    """Return the settings file of an enrolled device."""
    trust = '\n[trust]\nroot = "root.json"\n' if trusted else ""
    return f"""\
# Settings of {device}. `headway agent init other.toml` writes an example with every key.

device = "{device}"
channel = "{channel}"

[camera]
kind = "folder"               # folder, video, watch, opencv, gstreamer, or a plug-in's
path = "images"

[part]
good = ["good"]               # classes that pass: any other, and unknown, rejects the part

[mqtt]
host = "{place.host}"
port = {place.port}
prefix = "{place.prefix}"
ca_file = "ca.pem"
cert_file = "device.pem"
key_file = "device.key"
chunks_cert_file = "device-chunks.pem"
trigger_cert_file = "device-trigger.pem"
{trust}"""


# -- what `serve` uses ---------------------------------------------------------------------------------------


def tls_folder(directory: Path) -> Path:
    """Return the folder of a fleet's certificates, there or not."""
    return directory / TLS_FOLDER


def service_settings(directory: Path, *, here: bool) -> MqttSettings | None:
    """Return how the fleet's service reaches the broker that `headway fleet tls` set up; None if it did not.

    Args:
        directory: The fleet's.
        here: The broker is on this machine.
    """
    from sdk.mqtt import MqttSettings

    folder = tls_folder(directory)
    if not (folder / PLACE_NAME).exists():
        return None
    place = read_place(folder)
    return MqttSettings(
        host="127.0.0.1" if here else place.host,
        port=place.port,
        prefix=place.prefix,
        ca_file=folder / "ca.pem",
        cert_file=folder / "service.pem",
        key_file=folder / "service.key",
    )


def secure_broker(directory: Path, *, port: int | None = None, host: str | None = None) -> Mosquitto:
    """Return the broker that `headway fleet tls` set up, not started yet; by default open to the network."""
    from sdk.fleet.access import secure_config
    from sdk.fleet.broker import Mosquitto

    folder = tls_folder(directory)
    place = read_place(folder)
    return Mosquitto(
        place.port if port is None else port,
        config=lambda chosen: secure_config(chosen, folder, host=host, user=_broker_user()),
        pid_file=folder / PID_NAME,
    )


def _broker_user() -> str | None:
    # Mosquitto started by root becomes another user, who cannot read our keys.
    return "root" if os.geteuid() == 0 else None


def _config_text(folder: Path, place: Place) -> str:
    """Return the configuration for a Mosquitto of the plant's own, as it is or as it is made."""
    from sdk.fleet.access import secure_config

    try:
        return (folder / CONFIG_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return secure_config(place.port, folder)
    except (OSError, UnicodeDecodeError) as error:
        raise KeyRefused(
            f"{folder / CONFIG_NAME} cannot be read: {error}",
            hint="Mend it, or take it away to have it made anew.",
        ) from error


def _write_place(folder: Path, place: Place) -> None:
    """Write where the broker is, and before it the access list that follows; both appear whole."""
    from sdk.fleet.access import access_list
    from sdk.fleet.certificates import write_for_broker
    from sdk.wire import Topics

    own = folder / OWN_ACCESS_NAME
    more = own.read_text(encoding="utf-8") if own.is_file() else ""
    contents = {
        "acl": access_list(Topics(place.prefix), place.channels, more).encode(),
        PLACE_NAME: msgspec.json.format(msgspec.json.encode(place)),
    }
    for name, content in contents.items():
        write_for_broker(folder / name, content, mode=0o600)


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[Authority]:
    """Return a fleet's authority, for as long as nobody else changes its certificates and access list."""
    from sdk.fleet.certificates import Authority, changing

    if not folder.is_dir():
        raise no_broker(folder)
    with changing(folder):
        yield Authority(folder)


@contextlib.contextmanager
def _all_or_nothing_new(folder: Path) -> Iterator[None]:
    """Take out what the block put into a folder where it fails: keys are never overwritten, so they would be in
    the way of the same command.

    Raises:
        KeyRefused: the disk does not take it.
    """
    before = {*folder.iterdir()}
    try:
        yield
    except BaseException as error:
        for made in {*folder.iterdir()} - before:
            if made.is_dir():
                shutil.rmtree(made, ignore_errors=True)
            else:
                made.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise KeyRefused(
                f"{error.filename or folder}: {error.strerror}", hint="Check the disk and its space."
            ) from error
        raise


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Return a folder to fill, of this user alone, which is `out` after the block: all of it or nothing.

    Raises:
        KeyRefused: it cannot be made or filled.
    """
    draft = out.with_name(f".{out.name}{PARTIAL}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if draft.exists():  # of a command that was killed
            shutil.rmtree(draft)
        draft.mkdir(mode=0o700)
        yield draft
        sync_path(draft)
        draft.rename(out)
        sync_path(out.parent)
    except OSError as error:
        raise KeyRefused(
            f"{error.filename or out}: {error.strerror}",
            hint="Name a new folder that you may write to, on a disk with space, then the same command again.",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _tell_broker(directory: Path) -> bool:
    """Let a broker of ours be started anew with what has changed; return whether one is.

    Only while nobody else changes that: two at once would not know whose broker is the newer.

    Raises:
        BrokerError: it is there and cannot be.
    """
    from sdk.fleet.access import elsewhere, secure_config
    from sdk.fleet.broker import restart_broker

    folder = tls_folder(directory)
    told = restart_broker(
        folder / PID_NAME, lambda port: secure_config(port, folder, host="127.0.0.1", user=_broker_user())
    )
    if not told and shutil.which("systemctl") is not None:
        click.echo("if the broker runs elsewhere, start it anew: systemctl restart mosquitto (not reload)")
    # Not changed by itself: where this runs in a container, the broker may know the folder by that other name.
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if not told and (paths := elsewhere((folder / CONFIG_NAME).read_text(encoding="utf-8"), folder)):
            click.echo(f"{folder / CONFIG_NAME} names files elsewhere, such as {paths[0]};")
            click.echo(f"if this directory has moved, first: headway fleet tls --renew --moved --dir {directory}")
    return told


def _check(text: str, kind: type, what: str, allowed: str) -> None:
    try:
        msgspec.convert(text, kind)
    except msgspec.ValidationError as error:
        raise KeyRefused(f"{text[:80]!r} is no {what}", hint=f"Use up to 63 of {allowed}.") from error
