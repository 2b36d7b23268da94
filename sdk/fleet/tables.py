"""The tables of the fleet's database; `migrations/` makes them, `sdk.fleet.store` reads and writes them."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Dialect,
    Double,
    ForeignKey,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sdk.labels import GENESIS


class Base(DeclarativeBase):
    """All tables of the fleet service; `migrations/` makes them."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double()}


class Said(TypeDecorator[str]):
    """A device's words, or words about them. PostgreSQL's texts hold no zeros, which must not stop the service."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        """Return what is stored."""
        return None if value is None else value.replace("\x00", "\ufffd")


class ChannelRow(Base):
    """A product on like hardware: one release, one union of logs."""

    __tablename__ = "channels"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    log_length: Mapped[int] = mapped_column(BigInteger, default=0)


class ReleaseRow(Base):
    """A release whose chunks are in the chunk store."""

    __tablename__ = "releases"

    release_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(500))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    descriptor: Mapped[bytes] = mapped_column(LargeBinary)
    space: Mapped[str] = mapped_column(String(64))
    feature_size: Mapped[int]


class SpaceRow(Base):
    """A feature space of a published release, of whichever of its precisions."""

    __tablename__ = "spaces"

    space: Mapped[str] = mapped_column(String(64), primary_key=True)
    feature_size: Mapped[int]


class PublicationRow(Base):
    """A release was published on a channel; the channel's current one is the last."""

    __tablename__ = "publications"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    channel: Mapped[str] = mapped_column(ForeignKey("channels.name"), index=True)
    release_id: Mapped[str] = mapped_column(ForeignKey("releases.release_id"))
    published_utc: Mapped[float]
    announced: Mapped[bool] = mapped_column(default=False)
    """Its chunks and the assignments that name it have been handed to the broker once."""
    cleared: Mapped[bool] = mapped_column(default=False)
    """Its chunks were taken off the broker, because every device had moved on."""
    staged: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It is not the channel's current release: a rollout is under way, or halted."""


class DeviceRow(Base):
    """A device that has been seen, and where its log ends here."""

    __tablename__ = "devices"

    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    channel: Mapped[str] = mapped_column(ForeignKey("channels.name"), index=True)
    registered_utc: Mapped[float]
    last_seen_utc: Mapped[float]
    state: Mapped[bytes] = mapped_column(LargeBinary)
    """Its last `DeviceState`, as JSON."""
    last_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    last_hash: Mapped[bytes] = mapped_column(LargeBinary(32), default=GENESIS)
    last_counter: Mapped[int] = mapped_column(BigInteger, default=0)
    refused: Mapped[str | None] = mapped_column(Text)
    """Why its next entry is not taken."""
    revoked_utc: Mapped[float | None]
    """Since when its certificates count no more; what it says is not heard."""
    forgotten: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It is not shown until it says something again: its row is where its log ends."""


class BrokerRow(Base):
    """The broker of the one service; there is one row at most."""

    __tablename__ = "broker"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    address: Mapped[str] = mapped_column(Said(300))
    away_utc: Mapped[float | None]
    """Since when the service does not hear it; None where it does."""
    contested: Mapped[bool] = mapped_column(default=False, server_default=false())
    """The reason is another service, which takes its session again and again."""


class RestoreRow(Base):
    """A channel's union came back from an older copy."""

    __tablename__ = "restores"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(16))
    """Drawn when it was found: a number would come again after the next old copy."""
    channel: Mapped[str] = mapped_column(ForeignKey("channels.name"))
    since: Mapped[int] = mapped_column(BigInteger)
    """Up to here the union is what it was."""
    found_utc: Mapped[float]


class EntryRow(Base):
    """One record of the union of logs."""

    __tablename__ = "entries"
    __table_args__ = (UniqueConstraint("channel", "position"),)

    device: Mapped[str] = mapped_column(ForeignKey("devices.device"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    counter: Mapped[int] = mapped_column(BigInteger, index=True)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    channel: Mapped[str] = mapped_column(ForeignKey("channels.name"))
    position: Mapped[int] = mapped_column(BigInteger)
    record: Mapped[bytes] = mapped_column(LargeBinary)
    """MessagePack of `sdk.labels.Record`."""
    received_utc: Mapped[float]


class AssignmentRow(Base):
    """A device should run a publication's release, and how far it got."""

    __tablename__ = "assignments"

    publication_id: Mapped[int] = mapped_column(ForeignKey("publications.id"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.device"), primary_key=True, index=True)
    state: Mapped[str | None] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(Said(500), default="")
    updated_utc: Mapped[float | None]
    wave: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """Which wave of a rollout reached the device; 0 where there was none."""
    before: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The device's `Quality` when the wave reached it, as JSON."""


class RolloutRow(Base):
    """How a publication reaches its channel in waves, and how far it is."""

    __tablename__ = "rollouts"

    publication_id: Mapped[int] = mapped_column(ForeignKey("publications.id"), primary_key=True)
    plan: Mapped[bytes] = mapped_column(LargeBinary)
    """`sdk.fleet.rollout.Plan`, as JSON."""
    state: Mapped[str] = mapped_column(String(20))
    wave: Mapped[int] = mapped_column(default=0)
    wave_began_utc: Mapped[float] = mapped_column(default=0.0)
    well_since_utc: Mapped[float | None]
    approved: Mapped[int] = mapped_column(default=1)
    reason: Mapped[str] = mapped_column(Said(500), default="")
    version: Mapped[int] = mapped_column(default=0)
