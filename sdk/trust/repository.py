"""The signing side: a fleet's TUF metadata in a folder, made, staged, signed and put into force (docs/trust.md).

    DIR/trust/          on the fleet's server: all public metadata, and online.pem
    KEYS/               elsewhere, offline: root-1.pem, root-2.pem, ..., targets.pem

The server alone can keep what is in force fresh (`refresh`), and sign the stream of labels. A new release, or new
keys, take the offline keys: `stage_*` writes what is to be signed, `sign` signs it wherever the keys are, and
`put_into_force` checks it as a device would and makes it current.

Rules this module keeps:

- What is in force is always whole: files are written beside and renamed, the timestamp last, and each is synced.
- Versions only rise, and nothing comes into force that is not signed as the metadata before it demands.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from sdk.durable import write_whole
from sdk.errors import KeyRefused, LocalWireError
from sdk.trust.keys import load_key, make_key
from sdk.trust.metadata import (
    CLOCK_AHEAD_S,
    CLOCK_SLACK_S,
    COMPACT,
    HEADS_PATHS,
    HEADS_ROLE,
    SIGNED_UTC,
    SignedRelease,
    from_target,
    release_path,
    releases,
    signed_utc,
    to_target,
)
from sdk.wire import MAX_MESSAGE_BYTES, Ack, LogSegment, TrustFiles, encode_json

TRUST_FOLDER: Final = "trust"
ONLINE_KEY: Final = "online.pem"
ROOT_LIFE: Final = timedelta(days=5 * 366)
TARGETS_LIFE: Final = timedelta(days=3 * 366)
"""Offline signatures outlive a line's usual service interval: renewing them takes people and a journey."""
SNAPSHOT_LIFE: Final = timedelta(days=30)
TIMESTAMP_LIFE: Final = timedelta(days=14)
"""How long a device believes that nothing newer was published: a server out of order over the holidays stops no
release, and whoever holds back newer ones is noticed within two weeks."""
REFRESH_AFTER: Final = timedelta(days=1)
LOOK_EVERY_S: Final = 60.0
KEPT_RELEASES: Final = 16
"""Of each channel, the newest: older ones are no longer signed, and the message stays small."""
ROOT_ROOM_BYTES: Final = 16 * 1024
"""What releases leave free of a message: room to change keys six times before one of them gives way to a root."""
SIGNATURES_BYTES: Final = 1024
"""What signing adds to staged metadata, and another version to snapshot and timestamp, at most."""
MAX_ROOT_KEYS: Final = 9

_T = TypeVar("_T", Root, Targets, Snapshot, Timestamp)
Staged = Metadata[Root] | Metadata[Targets]
Clock = Callable[[], datetime]


def now_utc() -> datetime:
    """Return now, with its time zone."""
    return datetime.now(timezone.utc)


class Repository:
    """A fleet's trust folder.

    Args:
        folder: `trust/` in the fleet's directory.
        clock: Now, with a time zone.

    Raises:
        KeyRefused: the folder holds no signed metadata.
    """

    def __init__(self, folder: Path, *, clock: Clock = now_utc) -> None:
        self.folder = folder
        self._clock = clock
        if not exists(folder):
            raise KeyRefused(f"{folder} holds no keys", hint="`headway fleet keys init` makes them.")

    @classmethod
    def create(
        cls,
        folder: Path,
        keys: Path,
        *,
        root_keys: int = 3,
        threshold: int = 2,
        passphrase: bytes | None = None,
        clock: Clock = now_utc,
    ) -> Repository:
        """Make all keys and the first metadata.

        Args:
            folder: Of the public metadata and the online key.
            keys: Folder of the offline keys, made where it is missing.
            root_keys: How many root keys.
            threshold: How many of them must sign a new root.
            passphrase: Locks the offline keys.
            clock: Now.

        Raises:
            KeyRefused: there are keys already, or the numbers make no sense.
        """
        if not 1 <= threshold <= root_keys <= MAX_ROOT_KEYS:
            raise KeyRefused(
                f"{threshold} of {root_keys} root keys cannot be", hint="Usual is --threshold 2 --root-keys 3."
            )
        if exists(folder):
            raise KeyRefused(f"{folder} holds keys already", hint="`headway fleet keys rotate` changes them.")
        roots = [make_key(keys / f"root-{n}.pem", passphrase) for n in range(1, root_keys + 1)]
        targets = make_key(keys / "targets.pem", passphrase)
        online = make_key(folder / ONLINE_KEY, None)
        now = clock()
        root = Root(version=1, expires=_days(now, ROOT_LIFE), consistent_snapshot=False)
        for signer in roots:
            root.add_key(signer.public_key, "root")
        root.roles["root"].threshold = threshold
        root.add_key(targets.public_key, "targets")
        for role in ("snapshot", "timestamp"):
            root.add_key(online.public_key, role)
        first = Targets(version=1, expires=_days(now, TARGETS_LIFE), delegations=_delegate(online.public_key))
        _stamp(root, now)
        signed_root, signed_targets = Metadata(root), Metadata(first)
        for signer in roots:
            signed_root.sign(signer, append=True)
        signed_targets.sign(targets)
        _write(folder / "targets.json", signed_targets)
        _write(folder / "1.root.json", signed_root)
        repository = cls(folder, clock=clock)
        repository.refresh(force=True)
        return repository

    # -- what is in force ----------------------------------------------------------------------------------------

    def root(self) -> Metadata[Root]:
        """Return the root in force."""
        return _read(self._roots()[-1], Root)

    def root_file(self) -> Path:
        """Return the file of the root in force: what devices are given."""
        return self._roots()[-1]

    def targets(self) -> Metadata[Targets]:
        """Return the targets in force."""
        return _read(self.folder / "targets.json", Targets)

    def snapshot(self) -> Metadata[Snapshot]:
        """Return the snapshot in force."""
        return _read(self.folder / "snapshot.json", Snapshot)

    def timestamp(self) -> Metadata[Timestamp]:
        """Return the timestamp in force."""
        return _read(self.folder / "timestamp.json", Timestamp)

    def releases(self) -> dict[str, SignedRelease]:
        """Return the signed releases by target path."""
        return releases(self.targets().signed)

    def _roots(self) -> list[Path]:
        return sorted(self.folder.glob("*.root.json"), key=lambda file: int(file.name.partition(".")[0]))

    def message(self) -> bytes:
        """Return all of it as the one message that devices read.

        Raises:
            KeyRefused: it is too large, as an earlier Headway let it grow.
        """
        with self._lock():
            files = self._files()
        return _message_of(files)

    def _files(self) -> dict[str, bytes]:
        names = [file.name for file in self._roots()] + ["targets.json", "snapshot.json", "timestamp.json"]
        return {name: (self.folder / name).read_bytes() for name in names if (self.folder / name).is_file()}

    def _check_fits(self, *new: Staged, spare_bytes: int = SIGNATURES_BYTES) -> None:
        """Say that the message with these in force leaves so much room.

        Raises:
            KeyRefused: it does not.
        """
        files = self._files() | {_name_of(one): one.to_bytes(COMPACT) for one in new}
        if len(_message_of(files)) + spare_bytes > MAX_MESSAGE_BYTES:
            raise _too_large()

    def _fits(self, new: Staged, spare_bytes: int) -> bool:
        with contextlib.suppress(KeyRefused):
            self._check_fits(new, spare_bytes=spare_bytes)
            return True
        return False

    def changed_ns(self) -> int:
        """Return a number that is another one when what is in force was changed."""
        return (self.folder / "timestamp.json").stat().st_mtime_ns

    # -- online --------------------------------------------------------------------------------------------------

    def refresh(self, *, force: bool = False) -> bool:
        """Sign snapshot and timestamp anew with the online key where they are old; return whether they were.

        Raises:
            KeyRefused: the online key is missing, or the root names another; or the clock cannot be right.
        """
        with self._lock():
            return self._refresh(force=force)

    def _refresh(self, *, force: bool) -> bool:
        now = self._clock()
        root = self.root().signed
        versions = {"targets.json": MetaFile(self.targets().signed.version)}
        files = (self.folder / "snapshot.json", self.folder / "timestamp.json")
        if not all(file.is_file() for file in files):
            snapshot, timestamp = None, None
        else:
            snapshot, timestamp = self.snapshot().signed, self.timestamp().signed
        fresh = (
            snapshot is not None
            and timestamp is not None
            and snapshot.meta == versions
            and timestamp.expires - now > TIMESTAMP_LIFE - REFRESH_AFTER
            and not _is_ahead(timestamp, now, root)
        )
        if fresh and not force:
            return False
        if not force:  # else somebody is there, with an offline key
            _check_clock(now, root, timestamp)
        online = load_key(self.folder / ONLINE_KEY)
        if online.public_key.keyid not in root.roles["timestamp"].keyids:
            raise KeyRefused(
                f"{self.folder / ONLINE_KEY} is not the key that the root names",
                hint="Take it from your backup, or rotate: `headway fleet keys rotate online`.",
            )
        number = 1 if snapshot is None else snapshot.version + 1
        new = Snapshot(version=number, expires=_days(now, SNAPSHOT_LIFE), meta=versions)
        version = 1 if timestamp is None else timestamp.version + 1
        stamp = Timestamp(version=version, expires=_days(now, TIMESTAMP_LIFE), snapshot_meta=MetaFile(number))
        _stamp(stamp, now)
        _write(files[0], _signed(Metadata(new), online))
        _write(files[1], _signed(Metadata(stamp), online))
        return True

    def online_signer(self) -> CryptoSigner:
        """Return the key that signs the stream of labels.

        Raises:
            KeyRefused: it is missing.
        """
        return load_key(self.folder / ONLINE_KEY)

    # -- offline -------------------------------------------------------------------------------------------------

    def stage_release(
        self, release_id: str, descriptor_bytes: int, new: SignedRelease, *, fallback: str | None = None
    ) -> Metadata[Targets]:
        """Return targets, not signed yet, that name one more release; the oldest of its channel gives way.

        So do the oldest of all channels, while the message is too large for another root to find room.

        Args:
            release_id: The release.
            descriptor_bytes: Length of its descriptor.
            new: What is signed about it.
            fallback: A signed release of the channel that its devices may go back to.

        Raises:
            KeyRefused: the message would be too large with what channels run alone.
        """
        metadata = self._next_targets()
        targets = metadata.signed
        known = {
            path: signed.version for path, signed in releases(targets).items() if signed.channel == new.channel
        }
        version = 1 + max(known.values(), default=0)
        target = to_target(release_id, descriptor_bytes, msgspec.structs.replace(new, version=version))
        newest = sorted(known, key=lambda path: -known[path])
        for path in newest[KEPT_RELEASES - 1 :]:
            del targets.targets[path]
        targets.targets[target.path] = target
        back = targets.targets.get(release_path(new.channel, fallback or ""))
        if back is not None and back is not target:
            lifted = msgspec.structs.replace(from_target(back), version=new.version, fallback=True)
            targets.targets[back.path] = to_target(back.hashes["sha256"], back.length, lifted)
        self._let_go(metadata)
        self._check_fits(metadata)
        return metadata

    def _let_go(self, metadata: Metadata[Targets]) -> None:
        """Drop releases while there is no room for roots: those first that have most newer ones in their channel.

        Never the newest of a channel, nor what its devices go back to from that: both have its highest version.
        """
        known = releases(metadata.signed)
        versions: dict[str, list[int]] = {}
        for one in known.values():
            versions.setdefault(one.channel, []).append(one.version)
        newer = {
            path: sum(version > one.version for version in versions[one.channel]) for path, one in known.items()
        }
        for path in sorted(filter(newer.__getitem__, newer), key=lambda path: -newer[path]):
            if self._fits(metadata, ROOT_ROOM_BYTES):
                return
            del metadata.signed.targets[path]

    def next_version(self, channel: str) -> int:
        """Return the version that the next release of a channel gets."""
        return 1 + max((s.version for s in self.releases().values() if s.channel == channel), default=0)

    def stage_renewal(self) -> Metadata[Targets]:
        """Return the targets in force with a new expiry, not signed yet; the oldest give way to roots."""
        metadata = self._next_targets()
        self._let_go(metadata)
        return metadata

    def _next_targets(self) -> Metadata[Targets]:
        targets = self.targets().signed
        targets.version += 1
        targets.expires = _days(self._clock(), TARGETS_LIFE)
        return Metadata(targets)

    def stage_root(self, revoke: Sequence[Key] = (), add: Sequence[tuple[Key, str]] = ()) -> Metadata[Root]:
        """Return the next root, not signed yet: without some keys in any role, with others in theirs."""
        root = self.root().signed
        root.version += 1
        root.expires = _days(self._clock(), ROOT_LIFE)
        for key in revoke:
            for name, role in root.roles.items():
                if key.keyid in role.keyids:
                    root.revoke_key(key.keyid, name)
        for key, name in add:
            root.add_key(key, name)
        _stamp(root, self._clock())
        return Metadata(root)

    def rotate_online(
        self, root_signers: Sequence[CryptoSigner], targets_signer: CryptoSigner
    ) -> tuple[CryptoSigner, Path]:
        """Give the server a new online key; return it and where the old one was put aside.

        Root and targets name the new key, so both offline roles sign. What the old key signed no longer binds.
        """
        with self._lock():
            current = self.folder / ONLINE_KEY
            old_ids = self.root().signed.roles["timestamp"].keyids
            old = [self.root().signed.keys[keyid] for keyid in old_ids]
            fresh = _next_to(current)
            online = make_key(fresh, None)
            root = self.stage_root(old, [(online.public_key, "snapshot"), (online.public_key, "timestamp")])
            targets = self.stage_renewal()
            targets.signed.delegations = _delegate(online.public_key)
            sign(root, root_signers)
            sign(targets, [targets_signer])
            self._check(root)
            self._check(targets, root.signed)
            self._check_fits(root, targets)
            aside = self.folder / f"{ONLINE_KEY}.old"
            with contextlib.suppress(FileNotFoundError):
                current.replace(aside)
            fresh.replace(current)
            _write(self.folder / f"{root.signed.version}.root.json", root)
            _write(self.folder / "targets.json", targets)
            self._refresh(force=True)
            return online, aside

    def put_into_force(self, metadata: Staged) -> None:
        """Make signed metadata current, and sign snapshot and timestamp for it.

        Raises:
            KeyRefused: not signed as the root in force demands, not the next version, or too much for a message.
        """
        with self._lock():
            self._check(metadata)
            self._check_fits(metadata)
            _write(self.folder / _name_of(metadata), metadata)
            self._refresh(force=True)

    def is_in_force(self, metadata: Staged) -> bool:
        """Return whether metadata is what is in force already, whoever signed this copy of it."""
        current = self.root() if isinstance(metadata.signed, Root) else self.targets()
        return metadata.signed_bytes == current.signed_bytes

    def put_root_and_targets(self, root: Metadata[Root], targets: Metadata[Targets]) -> None:
        """Make a root current together with the targets that its new targets key signed.

        Raises:
            KeyRefused: as `put_into_force`.
        """
        with self._lock():
            self._check(root)
            self._check(targets, root.signed)
            self._check_fits(root, targets)
            _write(self.folder / f"{root.signed.version}.root.json", root)
            _write(self.folder / "targets.json", targets)
            self._refresh(force=True)

    def _check(self, metadata: Staged, by: Root | None = None) -> None:
        signed = metadata.signed
        root = self.root().signed
        role = "root" if isinstance(signed, Root) else "targets"
        now = root.version if isinstance(signed, Root) else self.targets().signed.version
        if signed.version != now + 1:
            raise KeyRefused(
                f"{role} version {signed.version} does not follow {now}, which is in force",
                hint="Something else was signed meanwhile: stage it again.",
            )
        try:
            (by or root).verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            if isinstance(signed, Root):
                signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (RepositoryError, ValueError) as error:
            raise KeyRefused(
                f"{role} version {signed.version} is not signed as the root demands: {error}",
                hint=f"{(by or root).roles[role].threshold} of its keys must sign.",
            ) from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep the service and the commands from writing at once."""
        with (self.folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class OnlineTrust:
    """What a running service does with the online key: keeps the message fresh, signs segments.

    Args:
        repository: The fleet's.
        monotonic: Seconds of a clock that never goes back.

    Raises:
        KeyRefused: the online key is missing.
    """

    def __init__(self, repository: Repository, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._repository = repository
        self._monotonic = monotonic
        self._look_due = float("-inf")
        self._changed_ns = -1
        self._message = b""
        self._signer = repository.online_signer()

    def poll(self) -> bytes | None:
        """Return the message where it is another one than last time: refreshed, or changed by a command.

        Raises:
            KeyRefused: the online key is missing or the wrong one, or the message is too large.
        """
        now = self._monotonic()
        if now >= self._look_due:
            self._look_due = now + LOOK_EVERY_S
            self._repository.refresh()
        changed_ns = self._repository.changed_ns()
        if changed_ns == self._changed_ns:
            return None
        self._signer = self._repository.online_signer()
        self._message = self._repository.message()
        self._changed_ns = changed_ns
        return self._message

    def message(self) -> bytes:
        """Return the message as it is now."""
        return self.poll() or self._message

    def sign_ack(self, ack: Ack, device: str) -> Ack:
        """Return an acknowledgement to a device with the fleet's signature."""
        return msgspec.structs.replace(ack, signature=self._signer.sign(ack.signed_bytes(device)).signature)

    def sign(self, segment: LogSegment) -> LogSegment:
        """Return a segment with the fleet's signature."""
        signature = bytes.fromhex(self._signer.sign(segment.signed_bytes()).signature)
        return msgspec.structs.replace(segment, signature=signature)


def exists(folder: Path) -> bool:
    """Return whether a folder holds signed metadata."""
    return (folder / "1.root.json").is_file()


def sign(metadata: Staged, signers: Sequence[CryptoSigner]) -> None:
    """Add signatures to metadata; those it has stay."""
    for signer in signers:
        metadata.sign(signer, append=True)


def _signed(metadata: Metadata[_T], signer: CryptoSigner) -> Metadata[_T]:
    metadata.sign(signer)
    return metadata


def read_staged(file: Path) -> Staged:
    """Return metadata that is to be signed, or has been.

    Raises:
        KeyRefused: the file holds none, or cannot be read.
    """
    try:
        metadata: Staged = Metadata.from_bytes(file.read_bytes())
    except OSError as error:
        raise KeyRefused(
            f"{file}: {error.strerror or error}",
            hint="`headway fleet publish --unsigned` writes it into the fleet's directory, and says where.",
        ) from error
    except DeserializationError as error:
        raise KeyRefused(
            f"{file} holds nothing to sign", hint="`headway fleet publish --unsigned` writes such a file."
        ) from error
    if not isinstance(metadata.signed, Root | Targets):
        raise KeyRefused(f"{file} is not signed offline", hint="The service signs snapshot and timestamp itself.")
    return metadata


def write_staged(file: Path, metadata: Staged) -> None:
    """Write metadata for signing elsewhere."""
    _write(file, metadata)


def role_signers(
    root: Root, role: str, keys: Path, passphrase: bytes | None, names: Sequence[str] | None = None
) -> list[CryptoSigner]:
    """Return those keys of a folder that the root names for a role.

    Args:
        root: Says which keys.
        role: `root` or `targets`.
        keys: The folder.
        passphrase: Opens them.
        names: File names to look at; all of the role's pattern by default.

    Raises:
        KeyRefused: there is none, or one does not open.
    """
    files = [keys / name for name in names] if names else sorted(keys.glob(f"{role}*.pem"))
    wanted = set(root.roles[role].keyids)
    found = [
        signer for signer in (load_key(file, passphrase) for file in files) if signer.public_key.keyid in wanted
    ]
    if not found:
        raise KeyRefused(f"{keys} holds no key of the role {role}", hint="Name the folder with its PEM files.")
    return found


def rotate_targets(
    repository: Repository, root_signers: Sequence[CryptoSigner], keys: Path, passphrase: bytes | None
) -> Path:
    """Replace the targets key; return the new one's file. The old file is moved aside, to `.old`."""
    root = repository.root().signed
    old = [root.keys[keyid] for keyid in root.roles["targets"].keyids]
    file = keys / "targets.pem"
    fresh = _next_to(file)
    made = make_key(fresh, passphrase)
    new_root = repository.stage_root(old, [(made.public_key, "targets")])
    targets = repository.stage_renewal()
    sign(new_root, root_signers)
    sign(targets, [made])
    repository.put_root_and_targets(new_root, targets)
    _exchange(file, fresh)
    return file


def rotate_root(repository: Repository, keys: Path, name: str, passphrase: bytes | None) -> Path:
    """Replace one root key; return the new one's file. The old file, where it is there, is moved aside.

    Args:
        repository: The fleet's.
        keys: Folder with at least the threshold of the other root keys.
        name: The key's file, or where it is lost the first digits of its id.
        passphrase: Opens the keys, and locks the new one.

    Raises:
        KeyRefused: there is no such key, or the folder has not enough of the others to sign.
    """
    root = repository.root().signed
    signers = {
        file.name: signer
        for file in sorted(keys.glob("root-*.pem"))
        for signer in [load_key(file, passphrase)]
        if signer.public_key.keyid in root.roles["root"].keyids
    }
    if name in signers:
        replaced: Key = signers.pop(name).public_key
        file = keys / name
    else:
        lost = [keyid for keyid in root.roles["root"].keyids if keyid.startswith(name)]
        if len(lost) != 1:
            raise KeyRefused(
                f"{name} is no root key in force",
                hint=f"In {keys} there are: {', '.join(signers) or 'none'}; ids are in `headway fleet keys show`.",
            )
        replaced = root.keys[lost[0]]
        file = keys / f"root-{lost[0][:8]}-new.pem"
    fresh = _next_to(file)
    made = make_key(fresh, passphrase)
    new_root = repository.stage_root([replaced], [(made.public_key, "root")])
    sign(new_root, [*signers.values(), made])
    repository.put_into_force(new_root)
    _exchange(file, fresh)
    return file


def _next_to(file: Path) -> Path:
    """Return where a new key waits until it counts.

    Raises:
        KeyRefused: one waits there. It may count already: it is never overwritten.
    """
    fresh = file.with_name(f"{file.name}.next")
    if fresh.exists():
        raise KeyRefused(
            f"{fresh} is left from a rotation that did not end", hint="Move it aside, keep it, and rotate again."
        )
    return fresh


def _exchange(file: Path, fresh: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        file.replace(file.with_name(f"{file.name}.old"))
    fresh.replace(file)


def describe_change(before: Mapping[str, TargetFile], after: Mapping[str, TargetFile]) -> list[str]:
    """Return in words what new targets add and drop, for whoever is about to sign them."""
    lines = []
    for path, target in after.items():
        if path not in before or before[path] != target:
            new = from_target(target)
            lines.append(f"signs {new.name!r} as version {new.version} of channel {new.channel}: {path}")
    lines += [f"drops {path}" for path in before if path not in after]
    return lines or ["the same releases, with a new expiry"]


def _name_of(metadata: Staged) -> str:
    signed = metadata.signed
    return f"{signed.version}.root.json" if isinstance(signed, Root) else "targets.json"


def _message_of(files: Mapping[str, bytes]) -> bytes:
    try:
        return encode_json(TrustFiles(files={name: msgspec.Raw(content) for name, content in files.items()}))
    except LocalWireError as error:
        raise _too_large() from error


def _too_large() -> KeyRefused:
    return KeyRefused(
        f"all that is signed would be more than the {MAX_MESSAGE_BYTES} bytes of a message",
        hint="`headway fleet keys renew` with the targets key lets older releases go. Where no channel has an "
        "older one, give some channels a fleet of their own.",
    )


def _delegate(online: Key) -> Delegations:
    role = DelegatedRole(HEADS_ROLE, [online.keyid], 1, terminating=True, paths=[HEADS_PATHS])
    return Delegations({online.keyid: online}, {HEADS_ROLE: role})


def _days(now: datetime, life: timedelta) -> datetime:
    return (now + life).replace(microsecond=0)


def _check_clock(now: datetime, root: Root, timestamp: Timestamp | None) -> None:
    """Refuse to sign, with nobody there, at a time that no server was away until: it would seem fresh for years.

    Raises:
        KeyRefused: the clock is years past the last signature.
    """
    last = max(signed_utc(root), 0.0 if timestamp is None else signed_utc(timestamp))
    if now.timestamp() > last + CLOCK_AHEAD_S:
        raise KeyRefused(
            f"this server's clock says {now:%Y-%m-%d}, and the last signature is of "
            f"{datetime.fromtimestamp(last, timezone.utc):%Y-%m-%d}: nothing is signed",
            hint="Set the clock. If it is right, say so with an offline key: `headway fleet keys renew`.",
        )


def _is_ahead(timestamp: Timestamp, now: datetime, root: Root) -> bool:
    """Return whether a clock that ran ahead signed this: it would count as fresh until that date.

    Not by a clock that is behind the root's signature: that is the one which is wrong.
    """
    utc = now.timestamp()
    return signed_utc(timestamp) - CLOCK_SLACK_S > utc >= signed_utc(root) - CLOCK_SLACK_S


def _stamp(signed: Signed, now: datetime) -> None:
    signed.unrecognized_fields[SIGNED_UTC] = int(now.timestamp())


def _read(file: Path, kind: type[_T]) -> Metadata[_T]:
    try:
        metadata: Metadata[_T] = Metadata.from_bytes(file.read_bytes())
    except (OSError, DeserializationError) as error:
        raise KeyRefused(f"{file} cannot be read", hint="Restore the folder from a backup.") from error
    if not isinstance(metadata.signed, kind):
        raise KeyRefused(f"{file} is not {kind.type} metadata", hint="Restore the folder from a backup.")
    return metadata


def _write(file: Path, metadata: Metadata[_T] | Staged) -> None:
    write_whole(file, metadata.to_bytes(COMPACT))
