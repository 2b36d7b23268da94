"""Every message there and back, batches packed or not; T11: any bytes give a value or the declared error."""

from __future__ import annotations

import lzma
import random
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from sdk import wire
from sdk.bundle import decode_manifest
from sdk.errors import BundleError, RemoteWireError
from sdk.labels import CodeRecord, Entry, Record
from sdk.release import Release
from sdk.stick import StickIndex
from sdk.wire import (
    MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    Ack,
    ChannelMeta,
    Desired,
    DeviceState,
    LabelBatch,
    LogSegment,
    PrecisionTime,
    Quality,
    Refusal,
    ReleaseDescriptor,
    ReleaseFile,
    ReleaseRef,
    Result,
    Topics,
    TrustFiles,
    UpdateEvent,
    UpdateState,
    Verdict,
    Want,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)
from tests.simulators import SimDevice
from tests.soak import tell, times

FUZZ = times(20_000, 2_000_000)
HANG_S = 1.0
REF = ReleaseRef(release_id="ab" * 32, name="surfaces", size_bytes=10_000_000)
WORDS: list[msgspec.Struct] = [
    ChannelMeta(channel="default", release=REF, log_length=7),
    TrustFiles(files={"1.root.json": msgspec.Raw(b'{"signed":{},"signatures":[]}')}),
    Desired(release=REF, channel="default", deadline_utc=1e9),
    Ack(through=7, refused=Refusal(seq=8, reason="no"), signature="ab" * 64),
    Want(channel="default", chunks=["cd" * 32], log_from=3),
    DeviceState(
        device="line-1",
        channel="default",
        online=True,
        quality=Quality(recall=0.9, samples=10, frames=100, unknown=0.1, latency_ms=9.0),
        precisions=[PrecisionTime(precision="int8", refused="no operator")],
    ),
    UpdateEvent(release_id="ef" * 32, state=UpdateState.CANDIDATE),
    Result(
        sample="ab" * 32, decision="pit", probability=0.9, novelty=0.1, unknown=False, captured_utc=1e9,
        latency_ms=9.0, verdict=Verdict.REJECT, tile=(0, 1, 2, 3, 4),
    ),
    ReleaseDescriptor(
        name="r", files=[ReleaseFile(name="a.onnx", size_bytes=3, sha256="12" * 32, chunks=["34" * 32])]
    ),
    StickIndex(channel="default", release=REF),
]  # fmt: skip


def log() -> list[Record]:
    device = SimDevice("line-1")
    for number in range(3):
        device.label(number)
    return device.log


BATCHES: list[LabelBatch | LogSegment] = [
    LabelBatch(WIRE_VERSION, log()),
    LogSegment(WIRE_VERSION, "default", 1, log(), b"s" * 64),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_a_message_says_the_same_after_the_way(word: msgspec.Struct) -> None:
    assert decode_json(encode_json(word), type(word)) == word


def test_a_newer_devices_state_is_taken_without_what_is_not_known_here() -> None:
    state = DeviceState(device="line-1", channel="default", online=True, faults=["no camera"], run="ab")
    newer = b'{"surprise":1,' + encode_json(state)[1:]
    assert decode_json(newer, DeviceState) == state


@pytest.mark.parametrize(
    "word", [w for w in WORDS if not isinstance(w, DeviceState)], ids=lambda w: type(w).__name__
)
def test_a_message_that_says_more_than_is_known_is_refused(word: msgspec.Struct) -> None:
    with pytest.raises(RemoteWireError, match="unknown field"):
        decode_json(b'{"surprise":1,' + encode_json(word)[1:], type(word))


def test_every_message_is_known_to_the_decoder_before_threads_need_it() -> None:
    """Two threads that decode a type for the first time at once crash msgspec (`sdk.structs`)."""
    inside = {"Refusal", "ReleaseRef", "ReleaseFile", "Quality", "PrecisionTime", "Restored", "_Message"}
    defined = {
        name
        for name, kind in vars(wire).items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == wire.__name__
    }
    assert defined - inside == {kind.__name__ for kind in wire.MESSAGES}


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)
def test_a_batch_says_the_same_packed_or_not(batch: LabelBatch | LogSegment) -> None:
    plain = msgspec.msgpack.encode(batch)
    for payload in (plain, packed(plain), encode_msgpack(batch)):
        assert decode_msgpack(payload, type(batch)) == batch


def packed(plain: bytes, dict_size: int = MAX_MESSAGE_BYTES) -> bytes:
    """Return bytes as LZMA packs them."""
    how = {"id": lzma.FILTER_LZMA1, "dict_size": dict_size, "lc": 0, "lp": 0, "pb": 0}
    return lzma.compress(plain, lzma.FORMAT_ALONE, filters=[how])


def segment_of(code: bytes) -> LogSegment:
    body = CodeRecord(bytes(32), bytes(32), "g", bytes(32))
    return LogSegment(WIRE_VERSION, "default", 1, [Record(Entry("a", 1, 1, 0, bytes(32), body), code)])


def test_codes_that_repeat_themselves_are_sent_shorter_and_others_never_longer() -> None:
    roll = np.random.default_rng(0)
    like_a_backbones = np.clip(np.rint(roll.normal(-5, 15, 1280)), 0, 127).astype(np.int8).tobytes()
    alike = segment_of(like_a_backbones)
    assert len(encode_msgpack(alike)) < 0.8 * len(msgspec.msgpack.encode(alike))
    random_codes = segment_of(roll.bytes(1280))
    assert len(encode_msgpack(random_codes)) <= len(msgspec.msgpack.encode(random_codes))


PLAIN = msgspec.msgpack.encode(BATCHES[1])


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (packed(bytes(50_000_000)), "cut short, or longer than"),
        (packed(PLAIN, 64 * 1024 * 1024), "not a LogSegment"),
        (packed(PLAIN)[:-8], "cut short, or longer than"),
        (packed(PLAIN) + b"more", "cut short, or longer than"),
        (packed(packed(PLAIN)), "not a LogSegment"),
        (b"\x00" * 13 + b"\xff" * 30, "not a LogSegment|cut short"),
        (lzma.compress(PLAIN), "not a LogSegment"),
        (b"\x00", "cut short"),
        (b"", "not a LogSegment"),
    ],
    ids=["bomb", "memory", "truncated", "trailing", "twice", "nonsense", "xz", "one byte", "nothing"],
)
def test_what_does_not_unpack_to_a_batch_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(RemoteWireError, match=why):
        decode_msgpack(payload, LogSegment)


def test_a_message_at_the_limit_unpacks_and_one_byte_more_does_not() -> None:
    for size, taken in ((MAX_MESSAGE_BYTES, True), (MAX_MESSAGE_BYTES + 1, False)):
        with pytest.raises(RemoteWireError) as refused:
            decode_msgpack(packed(b"\x01" * size), LogSegment)
        assert ("longer than" not in str(refused.value)) == taken


# -- T11

ODD = (b"null", b"-1", b"1e999", b"9" * 40, b'"\\u0000"', b"NaN", b"\xff\xfe", b"\xef\xbb\xbf", b"true")
"""What JSON readers have stumbled over."""


def harmed(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return a message that was sound once, or never."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(9):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                del data[at : at + rng.randrange(1, 9)]
            case 4:
                data[at:at] = data[: rng.randrange(200)]
            case 5:
                data = bytearray(rng.choice((b"[", b'{"a":', b"\x91", b"\x81\xa1a")) * rng.randrange(1, 20_000))
            case 6:
                data[at:at] = rng.choice(
                    (
                        b"null",
                        b"-1",
                        b"1e999",
                        b"9" * 40,
                        b'"\\u0000"',
                        b"NaN",
                        b"\xff\xfe",
                        b"\xef\xbb\xbf",
                        b"true",
                    )
                )
            case 7:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                data = bytearray(packed(bytes(data)))
    return bytes(data)


Decoder = Callable[[bytes], object]


def decoders() -> Iterator[tuple[Decoder, list[bytes]]]:
    """Yield each reader of foreign bytes with sound messages for it."""
    jsons = [encode_json(word) for word in WORDS]
    for word in WORDS:
        kind = type(word)
        yield lambda data, kind=kind: decode_json(data, kind), [encode_json(word), *jsons[:2]]  # type: ignore[misc]
    forms = [form for batch in BATCHES for form in (msgspec.msgpack.encode(batch), encode_msgpack(batch))]
    for batch in BATCHES:
        one = type(batch)
        yield lambda data, one=one: decode_msgpack(data, one), forms  # type: ignore[misc]
    yield Release.parse, [encode_json(WORDS[8])]
    yield decode_manifest, [b'{"format":1,"name":"a","classes":[],"precisions":[]}', jsons[0]]
    yield (
        lambda data: Topics().device_of(data.decode("latin-1")),
        [b"headway/v1/dev/line-1/up/label", b"headway/v1/dev/+/#"],
    )


def strays(decode: Decoder, seeds: list[bytes], runs: int, seed: int) -> tuple[list[str], float]:
    """Return what else than the declared errors came of so many harmed messages, and the longest one took."""
    rng, found, longest_s = random.Random(seed), [], 0.0
    for _ in range(runs):
        data = harmed(rng, seeds)
        began_s = time.thread_time()  # of this thread's own: a busy machine is no hang
        try:
            decode(data)
        except (RemoteWireError, BundleError):
            pass
        except Exception as error:  # noqa: BLE001 - what is looked for
            found.append(f"{type(error).__name__}: {data[:80]!r}")
        longest_s = max(longest_s, time.thread_time() - began_s)
    return found, longest_s


def test_whatever_bytes_come_a_decoder_ends_in_a_value_or_in_the_declared_error() -> None:
    every = list(decoders())
    share = -(-FUZZ // len(every))
    found: list[str] = []
    longest_s = 0.0
    for number, (decode, seeds) in enumerate(every):
        decode(seeds[0]) if number < len(WORDS) else None  # sound ones are read
        more, took_s = strays(decode, seeds, share, number)
        found += more
        longest_s = max(longest_s, took_s)
    tell("T11", share * len(every), len(found), f"the longest took {longest_s * 1e3:.0f} ms")
    assert found == []
    assert longest_s < HANG_S


def test_the_harness_finds_a_decoder_that_lets_strays_through() -> None:
    """The control: the same bytes on decoders that do not translate what their library raises."""
    seeds = [encode_json(WORDS[0])]
    found, _ = strays(lambda data: msgspec.json.decode(data, type=ChannelMeta), seeds, 500, 0)
    assert any("ValidationError" in one or "DecodeError" in one for one in found)
    found, _ = strays(lzma.decompress, [lzma.compress(PLAIN)], 500, 0)
    assert any(one.startswith("LZMAError") for one in found)
