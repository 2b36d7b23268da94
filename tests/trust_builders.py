"""A fleet with keys, its thief, and a device with a gate, for the tests of trust."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from device_agent.limits import StoreLimits
from device_agent.store import Store
from device_agent.trust import Gate
from sdk.trust.keys import load_key
from sdk.trust.metadata import SignedRelease, release_path, to_target
from sdk.trust.repository import Repository, sign
from sdk.wire import Desired, ReleaseRef, TrustFiles, decode_json, encode_json

NOW = datetime(2026, 6, 1, tzinfo=timezone.utc).timestamp()
DAY_S = 24 * 3600.0


class TrustedFleet:
    """A fleet's keys and metadata, with all keys at hand and a clock of its own."""

    def __init__(self, folder: Path, *, root_keys: int = 3, threshold: int = 2) -> None:
        self.now = NOW
        self.keys = folder / "keys"
        self.repository = Repository.create(
            folder / "fleet" / "trust", self.keys, root_keys=root_keys, threshold=threshold, clock=self.clock
        )

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.now, timezone.utc)

    def key(self, name: str) -> CryptoSigner:
        return load_key(self.keys / f"{name}.pem")

    @property
    def online(self) -> CryptoSigner:
        return self.repository.online_signer()

    def root_keys(self) -> list[CryptoSigner]:
        return [self.key(f"root-{n}") for n in (1, 2, 3)]

    def release(self, name: str, channel: str = "default", *, fallback: Desired | None = None) -> Desired:
        """Sign a release and return its assignment."""
        desired = assignment(name, channel)
        new = SignedRelease(
            channel=channel,
            version=self.repository.next_version(channel),
            name=name,
            space="ab" * 32,
            feature_size=8,
        )
        back = None if fallback is None else fallback.release.release_id
        staged = self.repository.stage_release(desired.release.release_id, 100, new, fallback=back)
        sign(staged, [self.key("targets")])
        self.repository.put_into_force(staged)
        return desired

    def message(self) -> bytes:
        return self.repository.message()


def assignment(name: str, channel: str = "default") -> Desired:
    """Return the assignment of a release, signed or not."""
    release_id = hashlib.sha256(name.encode()).hexdigest()
    return Desired(release=ReleaseRef(release_id=release_id, name=name, size_bytes=1), channel=channel)


def files_of(message: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in decode_json(message, TrustFiles).files.items()}


def message_of(files: dict[str, bytes]) -> bytes:
    return encode_json(TrustFiles(files={name: msgspec.Raw(raw) for name, raw in files.items()}))


class Thief:
    """Has a copy of what a fleet published, and some of its keys; says whatever they can sign."""

    def __init__(self, message: bytes) -> None:
        self.files = files_of(message)

    def targets(self) -> Metadata[Targets]:
        return Metadata.from_bytes(self.files["targets.json"])

    def name_release(self, desired: Desired, key: CryptoSigner) -> None:
        """Put a release of one's own into the targets, signed with some key."""
        targets = self.targets()
        signed = targets.signed
        path = release_path(desired.channel, desired.release.release_id)
        custom = SignedRelease(channel=desired.channel, version=99, name="evil", space="ab" * 32, feature_size=8)
        signed.targets[path] = to_target(desired.release.release_id, 1, custom)
        signed.version += 1
        targets.sign(key)
        self.files["targets.json"] = targets.to_bytes()

    def sign_online(self, key: CryptoSigner, *, version: int | None = None) -> None:
        """Sign snapshot and timestamp for the targets as they are now, or say another version."""
        snapshot: Metadata[Snapshot] = Metadata.from_bytes(self.files["snapshot.json"])
        timestamp: Metadata[Timestamp] = Metadata.from_bytes(self.files["timestamp.json"])
        snapshot.signed.meta["targets.json"].version = self.targets().signed.version
        snapshot.signed.version = version or snapshot.signed.version + 1
        timestamp.signed.snapshot_meta.version = snapshot.signed.version
        timestamp.signed.version = version or timestamp.signed.version + 1
        snapshot.sign(key)
        timestamp.sign(key)
        self.files |= {"snapshot.json": snapshot.to_bytes(), "timestamp.json": timestamp.to_bytes()}

    def name_root(self, signers: Sequence[CryptoSigner], mine: CryptoSigner) -> None:
        """Publish a next root in which the targets key is one's own."""
        newest = max(
            (name for name in self.files if name.endswith(".root.json")), key=lambda n: int(n.split(".")[0])
        )
        root: Metadata[Root] = Metadata.from_bytes(self.files[newest])
        root.signed.version += 1
        for keyid in list(root.signed.roles["targets"].keyids):
            root.signed.revoke_key(keyid, "targets")
        root.signed.add_key(mine.public_key, "targets")
        root.signatures.clear()
        for signer in signers:
            root.sign(signer, append=True)
        self.files[f"{root.signed.version}.root.json"] = root.to_bytes()

    def message(self) -> bytes:
        return message_of(self.files)


@dataclass
class GuardedDevice:
    """A gate on a real store, and the assignments that it let through."""

    folder: Path
    root: Path | None
    now: float = NOW
    channel: str = "default"
    begun: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store.open(self.folder, "line-1", limits=StoreLimits(reserve_bytes=0))
        self.gate = self._gate()

    def _gate(self) -> Gate:
        return Gate(self.store, self.root, channel=self.channel, start=self._begin, clock=lambda: self.now)

    def _begin(self, desired: Desired) -> None:
        self.gate.authorize(desired)
        self.begun.append(desired.release.name)

    def restart(self) -> None:
        """Lose all that is not on disk."""
        self.store.close()
        self.store = Store.open(self.folder, "line-1", limits=StoreLimits(reserve_bytes=0))
        self.gate = self._gate()

    def takes(self, message: bytes, desired: Desired) -> bool:
        """Return whether metadata and an assignment together bring a release."""
        before = len(self.begun)
        self.gate.receive(message)
        self.gate.desired(desired)
        return len(self.begun) > before
