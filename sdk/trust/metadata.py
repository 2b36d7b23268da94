"""How a release is written into TUF metadata, and all metadata into one message (docs/trust.md, section 2).

A release is a TUF target: its path names channel and release id, its length and SHA-256 are those of the release's
descriptor, which vouches for every byte, and `SignedRelease` is its custom data. The metadata files travel
together in one retained message, `sdk.wire.TrustFiles`, so what a device sees is always consistent.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from tuf.api.metadata import Signed, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer

from sdk.errors import BadFormat
from sdk.structs import prepare
from sdk.wire import ChannelName, Count, Sha256Hex, Text

RELEASE_PATH: Final = "release"
"""First part of a release's target path. No channel is called so here: the delegated role's paths stay apart."""
HEADS_ROLE: Final = "heads"
HEADS_PATHS: Final = "heads/*"
SIGNED_UTC: Final = "x-headway-signed-utc"
"""When a root or timestamp was signed, seconds since 1970: what a device's clock may not be behind of."""
CLOCK_SLACK_S: Final = 24 * 3600.0
"""A clock may be this much behind the last signature: server and device are not set by one clock."""
CLOCK_AHEAD_S: Final = 2 * 366 * 24 * 3600.0
"""A clock further ahead of the last signature is taken to be wrong: no device, no server was away so long, and a
battery-less clock may come up anywhere. Lower would let a long-stored device miss no attack that this one lets it
miss: in both cases it takes only what is signed and newer than what it has."""
COMPACT: Final = JSONSerializer(compact=True)


class SignedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed about a release, beside its id.

    Attributes:
        channel: Whose devices may run it.
        version: Counts the channel's releases. A device never takes a lower one than it has taken.
        name: What people call it.
        space: The feature space that its devices learn in.
        feature_size: Length of a code there.
        fallback: What the channel ran when this version was published in waves: devices on which it fails go back
            to it. Signed with that same version, so that going back needs no key, and goes no further.
    """

    channel: ChannelName
    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    name: Text
    space: Sha256Hex
    feature_size: Count
    fallback: bool = False


prepare(SignedRelease)


def release_path(channel: str, release_id: str) -> str:
    """Return a release's target path.

    >>> release_path("default", "ab" * 32)[:18]
    'release/default/ab'
    """
    return f"{RELEASE_PATH}/{channel}/{release_id}"


def to_target(release_id: str, descriptor_bytes: int, signed: SignedRelease) -> TargetFile:
    """Return the TUF target that a release is."""
    return TargetFile(
        length=descriptor_bytes,
        hashes={"sha256": release_id},
        path=release_path(signed.channel, release_id),
        unrecognized_fields={"custom": msgspec.to_builtins(signed)},
    )


def from_target(target: TargetFile) -> SignedRelease:
    """Return what is signed about a target.

    Raises:
        BadFormat: it is no release's target.
    """
    try:
        return msgspec.convert(target.custom, SignedRelease)
    except msgspec.ValidationError as error:
        raise BadFormat(
            f"signed target {target.path[:80]!r} is no release: {error}",
            hint="Publish with this Headway.",
        ) from error


def releases(targets: Targets) -> dict[str, SignedRelease]:
    """Return the signed releases by target path; targets that are none are left out."""
    found = {}
    for path, target in targets.targets.items():
        if path.startswith(f"{RELEASE_PATH}/"):
            signed = from_target(target)
            if path == release_path(signed.channel, target.hashes.get("sha256", "")):
                found[path] = signed
    return found


def signed_utc(signed: Signed) -> float:
    """Return when metadata says that it was signed; never later than it expires, 0 where it does not say."""
    utc = signed.unrecognized_fields.get(SIGNED_UTC, 0)
    return float(max(0, min(utc, signed.expires.timestamp()))) if isinstance(utc, int | float) else 0.0
