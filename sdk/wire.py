"""What goes over MQTT: topics, messages, limits and state tables. Bytes in, values out; no sockets, no clock.

JSON where people read along with `mosquitto_sub`, MessagePack for batches of log records, raw bytes for chunks.
docs/protocol.md is the prose. Whatever bytes arrive, decoding ends in a value or in `RemoteWireError`.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Final, TypeVar

import msgspec

from sdk.damaged import DAMAGED
from sdk.errors import LocalWireError, RemoteWireError
from sdk.labels import DEVICE_ID_PATTERN, DeviceId, Record
from sdk.structs import prepare

WIRE_VERSION: Final = 1
DEFAULT_PREFIX: Final = "headway/v1"

DEFAULT_CHUNK_BYTES: Final = 112 * 1024
"""Each costs a message and a file: fifty devices have a release in 1.95 times HTTP's time, with 64 KiB in 2.47."""
MAX_CHUNK_BYTES: Final = 120 * 1024
"""Brokers and proxies commonly cap packets at 128 KiB; the topic needs some of it."""
MAX_MESSAGE_BYTES: Final = 120 * 1024
MAX_BATCH_RECORDS: Final = 256
PACKED_FIRST: Final = b"\x00"
"""First byte of a packed batch: of LZMA's header, its parameters. MessagePack's is 0x90 and up for a batch."""
_PACKING: Final = ({"id": lzma.FILTER_LZMA1, "dict_size": MAX_MESSAGE_BYTES, "lc": 0, "lp": 0, "pb": 0},)
"""Codes are numbers that have nothing to do with their neighbours: no context but how frequent each is."""
_UNPACKING_BYTES: Final = 1024 * 1024
"""What unpacking may take, whatever the header asks for; ours takes a fifth."""
_ANOTHER_VERSION: Final = "The sender speaks another version, or is not Headway."
MAX_SIGNATURE_BYTES: Final = 64
"""Ed25519."""
SEGMENT_PREFIX: Final = b"headway log segment\0"
ACK_PREFIX: Final = b"headway acknowledgement\0"
MAX_RELEASE_BYTES: Final = 2 * 1024**3
MAX_RESTORED: Final = 8
"""Times that a service came back from an older copy, the newest: a device that was away for all of them reads on
from the oldest of these."""

# \Z and not $, which a trailing newline would get past.
_NAME = r"^[a-z0-9._-]{1,64}\Z"
_HEX_64 = r"^[0-9a-f]{64}\Z"
Sha256Hex = Annotated[str, msgspec.Meta(pattern=_HEX_64)]
FileName = Annotated[str, msgspec.Meta(pattern=_NAME)]
ChannelName = Annotated[str, msgspec.Meta(pattern=_NAME)]
MAX_TEXT: Final = 500
MAX_FAULTS: Final = 8
"""That a device tells of: who looks at it sees the others."""
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Version = Annotated[int, msgspec.Meta(ge=WIRE_VERSION, le=WIRE_VERSION)]


@dataclass(frozen=True)
class Topics:
    """Topic names below one configurable prefix.

    >>> Topics().up_label("line-3")
    'headway/v1/dev/line-3/up/label'
    >>> Topics().device_of("headway/v1/dev/line-3/up/label")
    'line-3'
    """

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}(/[A-Za-z0-9_.-]{1,40}){0,5}", self.prefix):
            raise LocalWireError(
                f"MQTT prefix {self.prefix!r} is not a plain topic",
                hint="Use letters, digits, '_', '.', '-' and '/' only, for example headway/v1.",
            )

    def chunk(self, sha256: str) -> str:
        """Server to devices, QoS 1, retained: one raw chunk."""
        return f"{self.prefix}/chunk/{sha256}"

    def meta(self, channel: str) -> str:
        """Server to devices, QoS 1, retained: `ChannelMeta`."""
        return f"{self.prefix}/meta/{channel}"

    def trust(self) -> str:
        """Server to devices, QoS 1, retained: `TrustFiles`, all of the fleet's signed metadata."""
        return f"{self.prefix}/trust"

    def log(self, channel: str) -> str:
        """Server to devices, QoS 1: `LogSegment`, each new stretch of the union once, to all."""
        return f"{self.prefix}/log/{channel}"

    def desired(self, device: str) -> str:
        """Server to device, QoS 1, retained: `Desired`."""
        return f"{self.prefix}/dev/{device}/down/desired"

    def ack(self, device: str) -> str:
        """Server to device, QoS 1: `Ack`, what the server's own commit holds."""
        return f"{self.prefix}/dev/{device}/down/ack"

    def down_log(self, device: str) -> str:
        """Server to device, QoS 1: `LogSegment` that this device asked for."""
        return f"{self.prefix}/dev/{device}/down/log"

    def up_label(self, device: str) -> str:
        """Device to server, QoS 1: `LabelBatch`."""
        return f"{self.prefix}/dev/{device}/up/label"

    def up_event(self, device: str) -> str:
        """Device to server, QoS 1: `UpdateEvent`."""
        return f"{self.prefix}/dev/{device}/up/event"

    def up_result(self, device: str) -> str:
        """Device to server, QoS 0: `Result`."""
        return f"{self.prefix}/dev/{device}/up/result"

    def up_want(self, device: str) -> str:
        """Device to server, QoS 1: `Want`."""
        return f"{self.prefix}/dev/{device}/up/want"

    def up_tele(self, device: str) -> str:
        """Device to whoever listens: signs of life that nobody must read."""
        return f"{self.prefix}/dev/{device}/up/tele"

    def state(self, device: str) -> str:
        """Device to all, QoS 1, retained, and its last will: `DeviceState`."""
        return f"{self.prefix}/dev/{device}/state"

    def device_of(self, topic: str) -> str:
        """Return the device id in a device topic.

        Raises:
            RemoteWireError: the topic has none, or not a well-formed one.
        """
        parts = topic.removeprefix(f"{self.prefix}/dev/").split("/")
        if not topic.startswith(f"{self.prefix}/dev/") or not re.match(DEVICE_ID_PATTERN, parts[0]):
            raise RemoteWireError(f"topic {topic[:80]!r} names no device", hint="Check the sender's prefix.")
        return parts[0]

    def kind_of(self, topic: str) -> str:
        """Return what a topic carries, without its ids: the row of docs/protocol.md it belongs to.

        >>> Topics().kind_of("headway/v1/dev/line-3/up/label"), Topics().kind_of("headway/v1/log/default")
        ('up/label', 'log')
        >>> Topics().kind_of("somebody/else")
        'other'
        """
        parts = topic.removeprefix(f"{self.prefix}/").split("/")
        if not topic.startswith(f"{self.prefix}/"):
            return "other"
        if parts[0] == "dev":
            return "/".join(parts[2:]) or "other"
        return parts[0]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    v: Version = WIRE_VERSION


class ReleaseRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which release: the SHA-256 of its descriptor, itself a chunk, and what people call it."""

    release_id: Sha256Hex
    name: Text
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_RELEASE_BYTES)]


class ReleaseFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of a release and the chunks it is cut into, in order."""

    name: FileName
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_RELEASE_BYTES)]
    sha256: Sha256Hex
    chunks: list[Sha256Hex]


class ReleaseDescriptor(_Message, frozen=True, kw_only=True):
    """The files of a release. Encoded by `encode_json`, its SHA-256 is the release id.

    Kept within one chunk: at 112 KiB a chunk, 120 KiB of descriptor name about 195 MiB of release; larger
    releases are cut with larger chunks.
    """

    name: Text
    files: Annotated[list[ReleaseFile], msgspec.Meta(min_length=1, max_length=64)]


class Restored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The service came back from an older copy: positions above `since` mean other entries than they did."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    since: Count


class ChannelMeta(_Message, frozen=True, kw_only=True):
    """What a channel's devices should know: the current release, and how long the union of logs is.

    `restored` is there only where the service has come back from an older copy, each time once, oldest first.
    """

    channel: ChannelName
    release: ReleaseRef | None
    log_length: Count
    restored: Annotated[list[Restored], msgspec.Meta(max_length=MAX_RESTORED)] | msgspec.UnsetType = msgspec.UNSET


class TrustFiles(_Message, frozen=True, kw_only=True):
    """All TUF metadata of a fleet by file name, each as the very bytes that were written (docs/trust.md).

    One message, so that what a device sees is consistent whatever the broker forgets.
    """

    files: Annotated[dict[FileName, msgspec.Raw], msgspec.Meta(min_length=1, max_length=128)]


class Desired(_Message, frozen=True, kw_only=True):
    """A device's assignment. `deadline_utc` is seconds since 1970; past it the job has failed."""

    release: ReleaseRef
    channel: ChannelName
    deadline_utc: float | None = None


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entry the server will not take, and why."""

    seq: Count
    reason: Text


class Ack(_Message, frozen=True, kw_only=True):
    """Every entry of the device up to `through` is committed by the server.

    `signature` is by the role `heads` over `signed_bytes`, in hex; empty without keys (docs/trust.md).
    """

    through: Count
    refused: Refusal | None = None
    signature: Annotated[str, msgspec.Meta(pattern=rf"^([0-9a-f]{{2}}){{0,{MAX_SIGNATURE_BYTES}}}\Z")] = ""

    def signed_bytes(self, device: str) -> bytes:
        """Return what the signature is over: whose acknowledgement it is, and what it says."""
        said = msgspec.json.encode(msgspec.structs.replace(self, signature=""), order="sorted")
        return ACK_PREFIX + device.encode() + b"\0" + said


class LabelBatch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Consecutive records of one device's log, MessagePack."""

    v: Version
    records: Annotated[list[Record], msgspec.Meta(min_length=1, max_length=MAX_BATCH_RECORDS)]


class LogSegment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Records at positions `first`, `first` + 1, ... of a channel's union of logs, MessagePack.

    `signature` is by the role `heads` over `signed_bytes`, empty where the fleet has no keys (docs/trust.md).
    """

    v: Version
    channel: ChannelName
    first: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    records: Annotated[list[Record], msgspec.Meta(min_length=1, max_length=MAX_BATCH_RECORDS)]
    signature: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNATURE_BYTES)] = b""

    def signed_bytes(self) -> bytes:
        """Return what the signature is over: prefix and segment without it, so that it can mean nothing else."""
        return SEGMENT_PREFIX + msgspec.msgpack.encode(msgspec.structs.replace(self, signature=b""))


class Want(_Message, frozen=True, kw_only=True):
    """Chunks the device cannot find on the broker, and where its copy of the union ends."""

    channel: ChannelName
    chunks: Annotated[list[Sha256Hex], msgspec.Meta(max_length=256)] = []
    log_from: Annotated[int, msgspec.Meta(ge=1, le=2**62)] | None = None


class HeadState(str, Enum):
    """How far the head that serves has been confirmed."""

    NONE = "none"
    PROVISIONAL = "provisional"
    CONFIRMED = "confirmed"


_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well a device does, for rollouts to watch.

    Attributes:
        recall: Balanced accuracy on its own labels, each scored by a head that never saw its part; None without.
        samples: Own labels that rests on.
        frames: Newest frames that the following rest on.
        unknown: Share of them called unknown.
        latency_ms: Median from frame to decision.
    """

    recall: _Share | None = None
    samples: Count = 0
    frames: Count = 0
    unknown: _Share = 0.0
    latency_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0


PrecisionName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]


class PrecisionTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a device measured of one precision of its release: the fastest way that is right there.

    Attributes:
        precision: Which.
        frame_ms: Median time of one frame through the backbone; 0 where none is right.
        refused: Why it cannot run there; empty where it can.
    """

    precision: PrecisionName
    frame_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    refused: Text = ""


class DeviceState(_Message, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What a device is doing; retained. Its last will, which the broker sends, only says that it is gone.

    It tells and commands nothing, so members that are not known here are passed over: a device that was brought up
    to date before its fleet stays in sight.
    """

    device: DeviceId
    channel: ChannelName
    online: bool
    agent_version: Text = ""
    release_id: Sha256Hex | None = None
    space: Sha256Hex | None = None
    live_set_digest: Sha256Hex | None = None
    """Of all that it has heard; what decides may be of less."""
    live_samples: Count = 0
    head_state: HeadState = HeadState.NONE
    head_digest: Sha256Hex | None = None
    """Of the live set that the head which decides was solved from; None where an older device does not say."""
    head_samples: Count = 0
    """Size of that set."""
    taken_back: bool = False
    """The trial of a newer head took it back: labels that were heard do not decide."""
    outbox: Count = 0
    log_position: Count = 0
    quality: Quality | None = None
    trust: Text = ""
    """What its releases rest on: `unsigned`, `signed`, `time unverified`, or what it refuses."""
    precision: PrecisionName | None = None
    """Which precision of its release serves."""
    precision_fixed: bool = False
    """Its own settings name that precision: it stays, whatever the release says."""
    precisions: Annotated[list[PrecisionTime], msgspec.Meta(max_length=4)] = []
    """What it measured of all precisions of the release that serves."""
    faults: Annotated[list[Text], msgspec.Meta(max_length=MAX_FAULTS)] = []
    """What is wrong on it just now, in words; what else it tells above is not said again."""
    run: Text = ""
    """Which start of its agent says so: drawn anew at each. In the last will too."""
    own_labels: Count | None = None
    """Labels given on it that count with the release that serves; None where an older device does not say, while
    the fleet holds some of them back, and until all that is labelled is learned."""
    labelled_pictures: Count | None = None
    """Pictures with a label from there that it has: these labels follow into another feature space."""

    @property
    def tells(self) -> bool:
        """Whether it says anything of the device but who it is and that it is gone: a last will does not."""
        return self.online or self != last_will(self.device, self.channel, self.run)


def last_will(device: str, channel: str, run: str = "") -> DeviceState:
    """Return what the broker says of a device that is gone without a word."""
    return DeviceState(device=device, channel=channel, online=False, run=run)


class UpdateState(str, Enum):
    """Where a release stands on one device."""

    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    CANDIDATE = "candidate"
    PROVISIONAL = "provisional"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"


UPDATE_STEPS: Final[dict[UpdateState | None, frozenset[UpdateState]]] = {
    None: frozenset({UpdateState.DOWNLOADING}),
    UpdateState.DOWNLOADING: frozenset({UpdateState.VERIFIED, UpdateState.ROLLED_BACK}),
    UpdateState.VERIFIED: frozenset({UpdateState.CANDIDATE, UpdateState.ROLLED_BACK}),
    UpdateState.CANDIDATE: frozenset({UpdateState.PROVISIONAL, UpdateState.ROLLED_BACK}),
    UpdateState.PROVISIONAL: frozenset({UpdateState.COMMITTED, UpdateState.ROLLED_BACK}),
    UpdateState.COMMITTED: frozenset({UpdateState.ROLLED_BACK}),
    UpdateState.ROLLED_BACK: frozenset(),
}
"""Which state may follow which; the update of docs/design is a walk through this table."""


class UpdateEvent(_Message, frozen=True, kw_only=True):
    """A release changed its state on a device."""

    release_id: Sha256Hex
    state: UpdateState
    reason: Text = ""


class Verdict(str, Enum):
    """What becomes of a part."""

    PASS = "pass"  # noqa: S105 - not a password
    REJECT = "reject"


class Result(_Message, frozen=True, kw_only=True):
    """One part's verdict, for whoever listens on the line, and the decision that it rests on.

    `sample`, `decision`, `probability`, `novelty` and `unknown` are of the tile that decided, the worst;
    `sample` is None where no tile was seen, which rejects. `tile` is [camera, x, y, width, height] in that
    camera's frame, where it is not the whole of it. `latency_ms` is from the first frame, or the trigger, to
    the verdict. `lot` is what the trigger said, and empty where nobody did.
    """

    sample: Sha256Hex | None
    decision: Text
    probability: float
    novelty: float
    unknown: bool
    captured_utc: float
    latency_ms: float
    part: Text = ""
    verdict: Verdict | None = None
    reason: Text = ""
    tile: tuple[Count, Count, Count, Count, Count] | None = None
    frames: Count = 1
    tiles: Count = 1
    rejected_tiles: Count = 0
    lot: Text = ""


MESSAGES: Final = (
    Ack,
    ChannelMeta,
    Desired,
    DeviceState,
    LabelBatch,
    LogSegment,
    ReleaseDescriptor,
    Result,
    TrustFiles,
    UpdateEvent,
    Want,
)
"""All that is decoded here, on whichever thread it arrives."""
prepare(*MESSAGES)

_BATCH_OVERHEAD_BYTES: Final = 128 + MAX_SIGNATURE_BYTES
"""MessagePack around a batch's records: version, channel name of up to 64 bytes, position, headers, signature."""

MAX_RECORD_BYTES: Final = 64 * 1024
"""An encoded record; a code of the largest feature size takes an eighth of it."""


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield the records in order, cut into lists that fit one `LabelBatch` or `LogSegment`.

    Raises:
        LocalWireError: a record is over `MAX_RECORD_BYTES`.
    """
    batch: list[Record] = []
    room = MAX_MESSAGE_BYTES - _BATCH_OVERHEAD_BYTES
    used = 0
    for record in records:
        size = len(msgspec.msgpack.encode(record))
        if size > MAX_RECORD_BYTES:
            raise LocalWireError(
                f"entry {record.entry.seq} of {record.entry.device} takes {size} bytes",
                hint=f"At most {MAX_RECORD_BYTES}; the code is too long.",
            )
        if batch and (used + size > room or len(batch) == MAX_BATCH_RECORDS):
            yield batch
            batch, used = [], 0
        batch.append(record)
        used += size
    if batch:
        yield batch


_M = TypeVar("_M", bound=msgspec.Struct)


def encode_json(message: msgspec.Struct) -> bytes:
    """Return a message as JSON with sorted keys.

    Raises:
        LocalWireError: it is over `MAX_MESSAGE_BYTES`.
    """
    return _checked(msgspec.json.encode(message, order="sorted"), message)


def encode_msgpack(message: LabelBatch | LogSegment) -> bytes:
    """Return a batch as MessagePack, packed by LZMA where that is shorter.

    Codes of a real backbone are (zeros, mostly small numbers): a label then costs a third less.

    Raises:
        LocalWireError: it is over `MAX_MESSAGE_BYTES` before it is packed.
    """
    plain = _checked(msgspec.msgpack.encode(message), message)
    packed = lzma.compress(plain, lzma.FORMAT_ALONE, filters=_PACKING)
    return packed if len(packed) < len(plain) else plain


def _checked(payload: bytes, message: msgspec.Struct) -> bytes:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise LocalWireError(
            f"{type(message).__name__} of {len(payload)} bytes is over {MAX_MESSAGE_BYTES}",
            hint="Send fewer records at a time.",
        )
    return payload


def decode_json(payload: bytes, kind: type[_M]) -> _M:
    """Return the message of this kind that the JSON bytes say.

    Raises:
        RemoteWireError: they say none.
    """
    return _decode(payload, kind, msgspec.json.decode)


def decode_msgpack(payload: bytes, kind: type[_M]) -> _M:
    """Return the batch of this kind that the bytes say: MessagePack, deflated or not.

    Raises:
        RemoteWireError: they say none.
    """
    if payload[:1] == PACKED_FIRST:
        payload = _unpacked(payload, kind)
    return _decode(payload, kind, msgspec.msgpack.decode)


def _unpacked(payload: bytes, kind: type[_M]) -> bytes:
    """Undo the packing, and no further than a message may be long."""
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, _UNPACKING_BYTES)
    try:
        plain = stream.decompress(payload[:MAX_MESSAGE_BYTES], MAX_MESSAGE_BYTES + 1)
    except lzma.LZMAError as error:
        raise RemoteWireError(f"not a {kind.__name__}: {error}", hint=_ANOTHER_VERSION) from error
    if not stream.eof or stream.unused_data or len(plain) > MAX_MESSAGE_BYTES:
        raise RemoteWireError(
            f"a packed {kind.__name__} that is cut short, or longer than {MAX_MESSAGE_BYTES} bytes",
            hint=_ANOTHER_VERSION,
        )
    return plain


def _decode(payload: bytes, kind: type[_M], decode: object) -> _M:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RemoteWireError(
            f"a {kind.__name__} of {len(payload)} bytes is over {MAX_MESSAGE_BYTES}",
            hint="The sender must split it.",
        )
    try:
        return decode(payload, type=kind)  # type: ignore[no-any-return, operator]
    except DAMAGED as error:
        raise RemoteWireError(
            f"not a {kind.__name__}: {str(error)[:200]}",
            hint=_ANOTHER_VERSION,
        ) from error
