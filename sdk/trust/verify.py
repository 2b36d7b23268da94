"""The device's side: which releases are signed, and who may sign the stream of labels. No sockets, no clock.

python-tuf's client does the work in a scratch folder made for one message; what it found goes to the device's
database in one durable transaction (`Seen`), and nothing else is kept. So a power cut leaves the old or the new,
and no half-written metadata is ever read again.

Rules this module keeps (docs/trust.md, section 4):

- Nothing counts unless the whole chain holds: root, timestamp, snapshot, targets.
- No version lower than one ever seen is accepted, of any role.
- Time comes from outside and is believed only where it can be right: not before the last signature seen, not years
  after it. Where it is not believed, freshness is not judged, and the caller is told.
- The last signature is that of the newest version, not the latest date: a server whose clock once ran ahead has
  said a date that its next version takes back. Versions alone keep what is old from coming again.
- A release is taken only as a signed target of the device's channel, never with a lower version than one taken.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from sdk.errors import BadFormat, BadSignature, Expired, OlderVersion, RemoteWireError, Unsigned
from sdk.trust.metadata import (
    CLOCK_AHEAD_S,
    CLOCK_SLACK_S,
    HEADS_ROLE,
    SignedRelease,
    release_path,
    releases,
    signed_utc,
)
from sdk.wire import MAX_MESSAGE_BYTES, Ack, Desired, LogSegment, TrustFiles, decode_json

_S = TypeVar("_S", Root, Timestamp, Snapshot, Targets)
_TOP: Final = ("timestamp", "snapshot", "targets")
_BASE: Final = "mqtt:///"
_LIMITS: Final = UpdaterConfig(
    max_root_rotations=100,
    max_delegations=2,
    root_max_length=MAX_MESSAGE_BYTES,
    timestamp_max_length=MAX_MESSAGE_BYTES,
    snapshot_max_length=MAX_MESSAGE_BYTES,
    targets_max_length=MAX_MESSAGE_BYTES,
)
MAX_VERSION: Final = 2**63 - 1
"""Of any role. JSON has no largest number, and the device's database does."""
_RESIGN: Final = "Look at the fleet's server: `headway fleet keys show`."


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a device has accepted, and must not fall behind. It lives in the device's database.

    Attributes:
        anchor: SHA-256 of the root that the site's settings name; another one there starts anew.
        root: The newest root accepted, as bytes.
        files: Timestamp, snapshot and targets as accepted; empty before the first.
        versions: Highest version by role.
        floor_utc: When the newest accepted root or timestamp was signed, the later of the two.
        taken: Highest release version taken, by channel.
    """

    anchor: str
    root: bytes
    files: dict[str, bytes] = {}
    versions: dict[str, int] = {}
    floor_utc: float = 0.0
    taken: dict[str, int] = {}

    @classmethod
    def first(cls, anchor: bytes) -> Seen:
        """Return the beginning: a root, and nothing seen yet.

        Raises:
            BadFormat: it is no root.
            BadSignature: it is not signed by its own keys.
        """
        root = _parse(anchor, Root)
        try:
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except (RepositoryError, ValueError) as error:
            raise BadSignature("the root is not signed by its own keys", hint="Copy root.json again.") from error
        return cls(
            anchor=hashlib.sha256(anchor).hexdigest(),
            root=anchor,
            versions={"root": root.signed.version},
            floor_utc=signed_utc(root.signed),
        )

    def not_behind(self, copy: Seen) -> Seen:
        """Return the same, not to fall behind the versions of a copy that nobody vouches for.

        Its root, its files and its time are left: they would say who may sign, and what is signed.
        """
        versions = {role: max(version, copy.versions.get(role, 0)) for role, version in self.versions.items()}
        return msgspec.structs.replace(self, versions={**copy.versions, **versions}, taken=copy.taken)

    def believes(self, now_utc: float) -> bool:
        """Return whether a clock that says this may be right."""
        return self.floor_utc - CLOCK_SLACK_S <= now_utc <= self.floor_utc + CLOCK_AHEAD_S


def accept(payload: bytes, seen: Seen, now_utc: float) -> Seen:
    """Return what a device has seen after a message with metadata; the same where it says nothing new.

    Raises:
        RemoteWireError: not a metadata message.
        BadSignature: a file is missing, damaged or not signed as its delegator says, or its version is over
            `MAX_VERSION`.
        OlderVersion: a role's version is lower than one seen.
        Expired: not fresh any more, by a clock that may be believed.
    """
    files = {name: bytes(raw) for name, raw in decode_json(payload, TrustFiles).files.items()}
    with tempfile.TemporaryDirectory(prefix="headway-trust-") as name:
        folder = Path(name)
        for role, content in seen.files.items():
            (folder / f"{role}.json").write_bytes(content)
        found = _update(folder, seen, _OneMessage(files), now_utc)
    root = _parse(found["root"], Root).signed
    timestamp = _parse(found["timestamp"], Timestamp).signed
    versions = {
        "root": root.version,
        "timestamp": timestamp.version,
        "snapshot": _parse(found["snapshot"], Snapshot).signed.version,
        "targets": _parse(found["targets"], Targets).signed.version,
    }
    least = _still_binding(seen, root)
    for role, version in versions.items():
        if version > MAX_VERSION:
            raise BadSignature(f"{role} metadata has a version that nobody counts to", hint=_RESIGN)
        if version < least.get(role, 0):
            raise OlderVersion(
                f"{role} metadata {version} is older than {least[role]}, which was seen", hint=_RESIGN
            )
    return msgspec.structs.replace(
        seen,
        root=found["root"],
        files={role: found[role] for role in _TOP},
        versions=versions,
        floor_utc=max(signed_utc(root), signed_utc(timestamp)),
    )


def _update(folder: Path, seen: Seen, fetcher: _OneMessage, now_utc: float) -> dict[str, bytes]:
    """Let TUF's client take the files of one message; return those that it accepted, by role."""
    try:
        client = _Client(folder, seen.root, fetcher)
        client.judge_freshness_at(now_utc if seen.believes(now_utc) else fetcher.signed_utc())
        client.refresh()
    except ExpiredMetadataError as error:
        raise Expired(f"signed metadata has expired: {error}", hint=_RESIGN) from error
    except BadVersionNumberError as error:
        raise OlderVersion(f"signed metadata goes backwards: {error}", hint=_RESIGN) from error
    except (RepositoryError, DownloadError, ValueError) as error:
        raise BadSignature(f"signed metadata does not hold: {str(error)[:200]}", hint=_RESIGN) from error
    return {role: (folder / f"{role}.json").read_bytes() for role in ("root", *_TOP)}


def _still_binding(seen: Seen, root: Root) -> Mapping[str, int]:
    """Return the versions that may not be undercut.

    Where a new root names other keys for a role, what the old ones signed no longer binds: whoever stole them may
    have signed the highest version there is, and no honest version could follow (TUF specification 5.3.11).
    """
    before = _parse(seen.root, Root).signed
    return {
        role: version
        for role, version in seen.versions.items()
        if role == "root" or before.roles[role].keyids == root.roles[role].keyids
    }


class _Client(Updater):
    """TUF's client, with a time that is given."""

    def __init__(self, folder: Path, root: bytes, fetcher: FetcherInterface) -> None:
        super().__init__(str(folder), _BASE, fetcher=fetcher, config=_LIMITS, bootstrap=root)

    def judge_freshness_at(self, utc: float) -> None:
        """Set what counts as now. The library reads the system's clock, which a device cannot always believe."""
        self._trusted_set.reference_time = datetime.fromtimestamp(max(0.0, utc), timezone.utc)


class _OneMessage(FetcherInterface):
    """Gives TUF's client the files of one message."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        content = self._files.get(url.removeprefix(_BASE))
        if content is None:
            raise DownloadHTTPError(f"{url} is not in the message", 404)
        return iter([content])

    def signed_utc(self) -> float:
        """Return when the timestamp was signed, as it says: it counts only if the signature holds as well."""
        try:
            return signed_utc(_parse(self._files.get("timestamp.json", b""), Timestamp).signed)
        except BadFormat:
            return 0.0  # it is refused in any case


def signed_release(seen: Seen, desired: Desired, now_utc: float) -> SignedRelease:
    """Return what is signed about an assigned release, if it may be taken.

    Raises:
        Unsigned: it is no signed target of the channel.
        OlderVersion: one with a higher version was taken before.
        Expired: nobody has vouched for what is current lately: somebody may be holding back the newer.
    """
    channel, release_id = desired.channel, desired.release.release_id
    signed = _releases(seen.files["targets"]) if seen.files else {}
    found = signed.get(release_path(channel, release_id))
    if found is None:
        raise Unsigned(
            f"release {desired.release.name!r} ({release_id[:12]}) is not signed for channel {channel}",
            hint="Publish it with the targets key: `headway fleet publish --keys`.",
        )
    taken = seen.taken.get(channel, 0)
    if found.version < taken:
        raise OlderVersion(
            f"release {found.name!r} has version {found.version}, and {taken} was taken before",
            hint="To go back, publish the old bundle again: it gets a higher version.",
        )
    expires = _parse(seen.files["timestamp"], Timestamp).signed.expires
    if seen.believes(now_utc) and expires.timestamp() <= now_utc:
        raise Expired(f"signed metadata has expired on {expires:%Y-%m-%d}", hint=_RESIGN)
    return found


def is_signed(seen: Seen, channel: str, release_id: str) -> bool:
    """Return whether a release is among the channel's signed ones."""
    return bool(seen.files) and release_path(channel, release_id) in _releases(seen.files["targets"])


def take(seen: Seen, signed: SignedRelease) -> Seen:
    """Return what was seen, with a release taken: no lower version of its channel may follow."""
    version = max(signed.version, seen.taken.get(signed.channel, 0))
    return msgspec.structs.replace(seen, taken={**seen.taken, signed.channel: version})


def expires_utc(seen: Seen) -> float | None:
    """Return until when what was accepted counts as fresh; None before anything was."""
    if not seen.files:
        return None
    return _parse(seen.files["timestamp"], Timestamp).signed.expires.timestamp()


def ends_utc(seen: Seen) -> dict[str, float]:
    """Return by role until when what was accepted counts, seconds since 1970."""
    found: dict[str, Signed] = {"root": _parse(seen.root, Root).signed}
    if seen.files:
        found["targets"] = _parse(seen.files["targets"], Targets).signed
        found["timestamp"] = _parse(seen.files["timestamp"], Timestamp).signed
    return {role: signed.expires.timestamp() for role, signed in found.items()}


def heads_keys(seen: Seen) -> list[Key]:
    """Return the keys whose holder may sign the stream of labels; none before anything was accepted."""
    if not seen.files:
        return []
    delegations = _parse(seen.files["targets"], Targets).signed.delegations
    if delegations is None or delegations.roles is None or HEADS_ROLE not in delegations.roles:
        return []
    return [delegations.keys[keyid] for keyid in delegations.roles[HEADS_ROLE].keyids if keyid in delegations.keys]


def check_signed(message: LogSegment | Ack, device: str, keys: list[Key]) -> None:
    """Check the signature under a stretch of the union of labels, or under an acknowledgement to a device.

    Raises:
        RemoteWireError: no key that may do so has signed it.
    """
    if isinstance(message, Ack):
        what, signed, signature = (
            f"an acknowledgement to {device}",
            message.signed_bytes(device),
            message.signature,
        )
    else:
        what = f"a stretch of labels from position {message.first} on"
        signed, signature = message.signed_bytes(), message.signature.hex()
    for key in keys:
        try:
            key.verify_signature(Signature(key.keyid, signature), signed)
        except (UnverifiedSignatureError, VerificationError):
            continue
        return
    raise RemoteWireError(
        f"{what} is not signed by the fleet",
        hint="Somebody else publishes there, or the fleet's online key was changed just now.",
    )


@functools.lru_cache(maxsize=2)
def _releases(targets: bytes) -> dict[str, SignedRelease]:
    return releases(_parse(targets, Targets).signed)


def _parse(content: bytes, kind: type[_S]) -> Metadata[_S]:
    try:
        metadata: Metadata[_S] = Metadata.from_bytes(content)
    except DeserializationError as error:
        raise BadFormat("not TUF metadata", hint="Copy the file again.") from error
    if not isinstance(metadata.signed, kind):
        raise BadFormat(f"not TUF metadata of kind {kind.type}", hint="Is this the right file?")
    return metadata
