"""`headway bundle pack` and `unpack`: a release onto a stick, and off it. A device has `headway agent update`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from sdk.errors import ConfigError, MissingExtra, Unsigned
from sdk.extras import installing
from sdk.shown import say

if TYPE_CHECKING:
    from sdk.bundle import Bundle
    from sdk.stick import StickIndex

MAX_ROOT_BYTES: Final = 1024 * 1024
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_STICK = click.argument("stick", metavar="STICK", type=click.Path(path_type=Path))


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@_STICK
@click.option("--channel", default="default", show_default=True, help="Whose devices it is for.")
@click.option(
    "--fleet",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The fleet's directory: its signed metadata goes along, fresh. Without it the stick is unsigned.",
)
@_JSON
def pack(path: Path, stick: Path, channel: str, fleet: Path | None, as_json: bool) -> None:
    """Write BUNDLE onto a stick, for devices without a network.

    STICK is a folder on it; it gets headway.json, trust.json and chunks/, in place of what an earlier `pack` wrote
    there, and nothing else in it is touched. A device that takes signed releases only wants --fleet, after the
    release was published with its keys:

    \b
      headway fleet publish my-bundle --dir fleet --keys KEYS
      headway bundle pack my-bundle /media/stick --fleet fleet
      headway agent update site.toml --from /media/stick          # on the device
    """
    from sdk.bundle import Bundle

    _needs_extra()
    from sdk.stick import pack as write

    opened = Bundle.open(path)
    trust = None if fleet is None else _metadata_of(fleet, opened, channel)
    packed = write(opened, stick, channel=channel, trust=trust)
    facts = {
        "release_id": packed.ref.release_id,
        "name": packed.ref.name,
        "size_bytes": packed.ref.size_bytes,
        "new_bytes": packed.new_bytes,
        "channel": channel,
        "signed": trust is not None,
    }
    if as_json:
        click.echo(msgspec.json.encode(facts))
        return
    say(f"{stick}: release {packed.ref.name} ({packed.ref.release_id[:12]}) for channel {channel}")
    if trust is None:
        click.echo("unsigned: devices whose settings name a root refuse it; see --fleet")


@click.command()
@_STICK
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--root",
    metavar="ROOT.JSON",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The fleet's root of trust: also check who signed it, as a device would that has seen nothing yet.",
)
@_JSON
def unpack(stick: Path, out: Path, root: Path | None, as_json: bool) -> None:
    """Make a bundle from a stick, in the new folder OUT.

    Every chunk and file is checked against its digest. Who made it is checked with --root only; an older release
    that was once signed passes, since nothing here remembers what came after it. A device remembers.
    """
    _needs_extra()
    from sdk.bundle import Bundle
    from sdk.chunks import assemble
    from sdk.stick import Stick

    if out.exists():
        raise ConfigError(f"{out} exists", hint="Name a new folder.")
    with Stick(stick) as opened:
        version = None if root is None else _signed_version(opened.trust, root, opened.index)
        release = opened.release()
        assemble(release, opened, out)
    Bundle.open(out)
    facts = {
        "release_id": release.ref.release_id,
        "name": release.ref.name,
        "channel": opened.index.channel,
        "signed_version": version,
    }
    if as_json:
        click.echo(msgspec.json.encode(facts))
        return
    say(f"{out}: release {release.ref.name} ({release.ref.release_id[:12]}), whole")
    told = "who signed it was not checked: --root" if version is None else f"signed, version {version}"
    say(f"channel {opened.index.channel}: {told}")


def _needs_extra() -> None:
    from importlib.util import find_spec

    if find_spec("tuf") is None or find_spec("paho") is None:
        raise MissingExtra(
            "headway bundle pack and unpack need the fleet or the agent extra",
            hint=installing("fleet"),
        )


def _metadata_of(fleet: Path, bundle: Bundle, channel: str) -> bytes:
    """Return a fleet's signed metadata, fresh.

    Raises:
        KeyRefused: the fleet has no keys.
        Unsigned: the release was not published with them on this channel.
    """
    from sdk.release import describe
    from sdk.trust.metadata import release_path
    from sdk.trust.repository import TRUST_FOLDER, Repository

    repository = Repository(fleet / TRUST_FOLDER)
    ref = describe(bundle.path, bundle.manifest.name, bundle.file_names()).ref
    if release_path(channel, ref.release_id) not in repository.releases():
        raise Unsigned(
            f"{ref.name!r} ({ref.release_id[:12]}) is not signed for channel {channel} in {fleet}",
            hint="Publish it with the targets key first: `headway fleet publish --keys`.",
        )
    repository.refresh()
    return repository.message()


def _signed_version(trust: bytes | None, root: Path, index: StickIndex) -> int:
    import time

    from sdk.errors import BundleError
    from sdk.trust.verify import Seen, accept, signed_release
    from sdk.wire import Desired

    try:
        first = Seen.first(root.read_bytes()[:MAX_ROOT_BYTES])
    except (OSError, BundleError) as error:
        raise ConfigError(
            f"{root} is no root of trust: {error}", hint="`headway fleet enroll` writes it."
        ) from error
    if trust is None:
        raise Unsigned("the stick has no signed metadata", hint="Pack it with --fleet.")
    seen = accept(trust, first, time.time())
    desired = Desired(release=index.release, channel=index.channel)
    return signed_release(seen, desired, time.time()).version
