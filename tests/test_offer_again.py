"""A device offers again what its fleet lacks, come back from an older copy: in small pieces, nothing waits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from device_agent.limits import StoreLimits
from device_agent.store import Store
from device_agent.sync import SyncLimits
from sdk.errors import RemoteWireError
from sdk.mqtt import Publication
from sdk.wire import ChannelMeta, LabelBatch, Restored, decode_json, decode_msgpack, encode_json
from tests.simulators import TOPICS
from tests.test_sync import Device, device, foreign, write_label

__all__ = ["device"]

RESTORED = Restored(id="ab" * 8, since=2)


def meta(*restored: Restored, length: int = 4) -> bytes:
    return encode_json(ChannelMeta(channel="default", release=None, log_length=length, restored=list(restored)))


def test_a_device_reads_again_what_means_something_else_now_once(device: Device) -> None:
    log = foreign(6)
    device.segment(1, log[:4])
    for _ in range(2):  # the message is kept by the broker and comes often
        device.receive(TOPICS.meta("default"), meta(RESTORED), retained=True)
    assert device.store.log.position("default") == 2
    device.segment(3, [*log[4:], *log[2:4]])
    device.receive(TOPICS.meta("default"), meta(RESTORED), retained=True)
    assert device.store.log.position("default") == 6
    assert device.told == log, "each is told once"


def test_news_of_a_restore_does_not_forget_what_the_fleet_is_known_to_lack(device: Device) -> None:
    for number in range(100):
        write_label(device.store, number)
    told_all(device, 200)
    device.ack(20, now=10.0)
    device.receive(TOPICS.meta("default"), meta(RESTORED), retained=True)
    due = device.core.wake_at()
    assert due is not None
    assert sent_in(device.core.poll(due + 100.0))[0] == 21


@pytest.mark.parametrize(
    ("restored", "position"),
    [({"c": 9}, 6), ({"c": 3}, 3), ({"c": 5, "d": 1}, 1), ({"a": 0, "c": 5}, 5), ({"a": 0}, 6), ({}, 6)],
)
def test_it_reads_on_from_the_oldest_of_what_it_did_not_know(
    device: Device, restored: dict[str, int], position: int
) -> None:
    device.store.log.union_restored("default", {"a": 2})
    device.segment(1, foreign(6))
    news = device.store.log.union_restored("default", restored)
    assert news == bool(restored.keys() - {"a"})
    assert device.store.log.position("default") == position
    assert not device.store.log.union_restored("default", restored)


def sent_in(publications: list[Publication]) -> list[int]:
    return [
        record.entry.seq
        for publication in publications
        if publication.topic.endswith("up/label")
        for record in decode_msgpack(publication.payload, LabelBatch).records
    ]


def told_all(device: Device, through: int) -> None:
    device.core.connected(0.0)
    device.core.poll(0.0)
    device.ack(0)
    device.ack(through)


def test_what_the_fleet_acknowledges_no_more_is_offered_again_in_small_pieces(device: Device) -> None:
    for number in range(100):
        write_label(device.store, number)
    told_all(device, 200)
    device.ack(20, now=10.0)
    assert sent_in(device.core.poll(11.0)) == [], "a late acknowledgement would be the same"
    now, held = 10.0, 20
    due = device.core.wake_at()
    while held < 200:
        now = max(now + 1.0, min(device.core.wake_at() or now, now + 100.0))
        sent = sent_in(device.core.poll(now))
        if sent:
            assert sent[0] == held + 1
            assert len(sent) <= SyncLimits().again_records
            held = sent[-1]
            device.ack(held, now=now)
    assert due is not None
    assert now < 10.0 + SyncLimits().resend_s + SyncLimits().again_spread_s + 60.0
    assert sent_in(device.core.poll(now + 1000.0)) == []


def test_a_late_acknowledgement_keeps_no_new_label_waiting(device: Device) -> None:
    for number in range(5):
        write_label(device.store, number)
    told_all(device, 10)
    device.ack(8, now=1.0)
    write_label(device.store, 50)
    assert sent_in(device.core.poll(1.1)) == [11, 12]
    device.ack(12, now=1.2)
    assert sent_in(device.core.poll(500.0)) == [], "and nothing is sent again"


def test_a_device_asks_whether_its_last_entry_is_still_there_when_it_hears_of_it(device: Device) -> None:
    """Also where the acknowledgement that would tell was lost: until there is an answer."""
    for number in range(3):
        write_label(device.store, number)
    told_all(device, 6)
    device.receive(TOPICS.meta("default"), meta(RESTORED), retained=True, now=1.0)
    later = 1.0 + SyncLimits().resend_s + SyncLimits().again_spread_s
    assert sent_in(device.core.poll(later)) == [6]
    assert sent_in(device.core.poll(later + 60.0)) == [6]
    device.ack(6, now=later + 61.0)
    assert sent_in(device.core.poll(later + 500.0)) == []


def test_devices_begin_at_moments_of_their_own(tmp_path: Path) -> None:
    due = []
    for number in range(40):
        with Store.open(tmp_path / str(number), f"line-{number}", limits=StoreLimits(reserve_bytes=0)) as store:
            write_label(store, 1)
            one = Device(store)
            told_all(one, 2)
            one.ack(0, now=0.0)
            due.append(next(t for t in range(200) if sent_in(one.core.poll(float(t)))))
    by_ten = Counter(int(at) // 10 for at in due)
    assert max(by_ten.values()) <= 16
    assert len(by_ten) >= 6


@pytest.mark.parametrize(
    "restored",
    [
        b'[{"id":"xyz","since":1}]',
        b'[{"id":"abababababababab","since":-1}]',
        b'[{"id":"abababababababab"}]',
        b'[{"id":"abababababababab","since":1,"more":2}]',
        b"[" + b",".join([b'{"id":"abababababababab","since":1}'] * 9) + b"]",
        b"null",
    ],
)
def test_what_is_no_restore_is_refused(device: Device, restored: bytes) -> None:
    payload = b'{"v":1,"channel":"default","release":null,"log_length":4,"restored":' + restored + b"}"
    with pytest.raises(RemoteWireError):
        device.receive(TOPICS.meta("default"), payload, retained=True)


def test_a_fleet_that_was_never_restored_says_nothing_of_it() -> None:
    said = ChannelMeta(channel="default", release=None, log_length=4)
    assert b"restored" not in encode_json(said)
    assert decode_json(encode_json(said), ChannelMeta) == said
