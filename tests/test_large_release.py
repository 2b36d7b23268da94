"""A release with more samples than codes: the same head, live at once; what needs a code is refused in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agent.candidate import compare
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.report import CameraReport, station_state
from device_agent.runtime import base_head
from device_agent.sample import Sample
from device_agent.station import Station
from device_agent.store import Store
from device_agent.trial import Base
from sdk.adaptation import choose, stream_shifts
from sdk.bundle import MANIFEST_NAME, Bundle, write_bundle
from sdk.codes import code_digest
from sdk.errors import LabelError, SummedSample
from sdk.fleet.store import FleetStore
from sdk.labels import Body, Chain, CodeRecord, Label, Record
from sdk.wire import DeviceState, HeadState
from tests.builders import class_id_of, code_of, make_bundle, open_projection, picture, with_exemplars
from tests.commands import headway

GOOD, SCRATCH = class_id_of("good"), class_id_of("scratch")
NO_RESERVE = StoreLimits(reserve_bytes=0)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "full")


@pytest.fixture(scope="module")
def large(full: Bundle) -> Bundle:
    """The same 24 samples, of which 8 have codes."""
    return with_exemplars(full, full.path.parent / "large", 8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1", limits=NO_RESERVE) as opened:
        yield opened


def numbers_of(bundle: Bundle, name: str, *, summed: bool) -> list[int]:
    """Return the numbers of the release's pictures of a class that have no code there, or that have one."""
    base = bundle.base()
    some = set(base.samples[len(base.codes) :] if summed else base.samples[: len(base.codes)])
    return [i for i in range(1000, 1012) if hashlib.sha256(picture(name, i)).digest() in some]


def see(store: Store, bundle: Bundle, name: str, number: int) -> bytes:
    image = picture(name, number)
    sample = Sample(
        sample_id=hashlib.sha256(image).digest(),
        captured_utc=float(number),
        group=f"{store.device}/{name}-{number}",
        space=bundle.space(),
        code=code_of(bundle, image),
        decision="good",
        class_id=GOOD,
        probability=0.9,
        novelty=0.1,
        unknown=False,
    )
    store.samples.put(sample, image)
    return sample.sample_id


def written(bundle: Bundle, name: str, number: int, class_id: bytes | None) -> list[Record]:
    """Return what another device wrote of a picture: its label and its code."""
    image = picture(name, number)
    sample, code = hashlib.sha256(image).digest(), code_of(bundle, image)
    record = CodeRecord(bytes.fromhex(bundle.space()), sample, "line-2/1", code_digest(code))
    bodies: list[tuple[Body, bytes | None]] = [(Label(sample, class_id, "carl"), None), (record, code.tobytes())]
    chain, records = Chain("line-2"), []
    for counter, (body, raw) in enumerate(bodies, 1):
        chain, entry = chain.write(body, counter=counter, wall_time_us=0)
        records.append(Record(entry, raw))
    return records


def test_the_head_is_the_one_of_all_codes(full: Bundle, large: Bundle, store: Store) -> None:
    codes = full.base().codes
    assert np.array_equal(base_head(large).scores(codes), base_head(full).scores(codes))
    learner = Learner(large, None, store)
    assert learner.status().live_samples == 24
    assert learner.status().live_set_digest == full.precision().head.live_set_digest
    assert learner.moments_digest() == full.base().moments().digest()
    assert {info.name: info.labels for info in learner.classes()} == {"good": 12, "scratch": 12}


def test_labels_corrections_and_merges_give_the_same_head_as_with_all_codes(
    full: Bundle, large: Bundle, tmp_path: Path
) -> None:
    states = []
    correctable = numbers_of(large, "good", summed=False)[0]
    for bundle in (full, large):
        with Store.open(tmp_path / bundle.path.name, "line-1", limits=NO_RESERVE) as store:
            learner = Learner(bundle, None, store)
            for number in range(3):
                learner.label(see(store, bundle, "scratch", number), SCRATCH, "anna")
            learner.label(see(store, bundle, "good", correctable), SCRATCH, "anna")
            learner.label(see(store, bundle, "scratch", 1), None, "anna")
            learner.run_until_idle()
            scores = learner.head.head.scores(full.base().codes)
            before = (learner.status().live_set_digest, learner.moments_digest(), scores.tobytes())
            again = Learner(bundle, None, store)
            assert again.moments_digest() == learner.moments_digest()
            learner.merge_classes(GOOD, SCRATCH, "anna")
            learner.run_until_idle()
            states.append((*before, learner.status().live_set_digest, learner.head.head.counts))
    assert states[0] == states[1]


def test_a_score_covers_exemplars_and_own_labels_and_says_so(large: Bundle, store: Store) -> None:
    learner = Learner(large, None, store)
    own = see(store, large, "scratch", 1)
    learner.label(own, SCRATCH, "anna")
    learner.run_until_idle()
    status, reference = learner.status(), learner.reference
    assert status.state is HeadState.CONFIRMED
    assert status.score is not None
    assert (status.score.samples, status.score.summed) == (9, 16)
    assert reference is not None
    assert set(reference.left_out.samples) == {own, *large.base().samples[:8]}


def test_own_labels_are_weighed_as_with_all_codes(full: Bundle, large: Bundle, store: Store) -> None:
    learner = Learner(full, None, store)
    for number in range(6):
        for name, class_id in (("good", GOOD), ("scratch", SCRATCH)):
            learner.label(see(store, full, name, number), class_id, "anna")
    stream = np.stack([code_of(full, picture("scratch", number)) for number in range(60)])
    found = []
    for bundle in (full, large):
        base = Base.of(bundle, None)
        for record in store.log.records():
            base.fold.apply(record)
        station = base.labelled(base.fold.live_set(), "line-1")
        found.append((choose(station, stream), stream_shifts(station, stream)))
    (whole, shifts), (some, same_shifts) = found
    assert whole.tried > 1
    assert (some.adaptation, some.tried, same_shifts) == (whole.adaptation, whole.tried, shifts)
    np.testing.assert_allclose([some.gain, some.error], [whole.gain, whole.error], atol=1e-9)


@pytest.mark.parametrize("class_id", [SCRATCH, GOOD, None], ids=["corrected", "confirmed", "withdrawn"])
def test_labelling_a_summed_sample_is_refused_and_stores_nothing(
    large: Bundle, store: Store, class_id: bytes | None
) -> None:
    learner = Learner(large, None, store)
    sample = see(store, large, "good", numbers_of(large, "good", summed=True)[0])
    with pytest.raises(SummedSample, match="without its code") as refusal:
        learner.label(sample, class_id, "anna")
    assert "--max-base-codes" in refusal.value.hint
    assert isinstance(refusal.value, LabelError)
    assert list(store.log.records()) == []


def test_a_fleet_label_on_a_summed_sample_is_counted_and_every_digest_agrees(
    large: Bundle, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = numbers_of(large, "good", summed=True)[0]
    records = written(large, "good", number, SCRATCH)
    learner = Learner(large, None, store)
    before = learner.status().live_set_digest
    learner.received(store.log.receive(records, position=2))
    learner.run_until_idle()
    for each in (learner, Learner(large, None, store)):
        status = each.status()
        assert (status.unapplied, status.refused, status.live_set_digest) == (1, 0, before)
        assert each.moments_digest() == large.base().moments().digest()
    with FleetStore(tmp_path / "fleet") as fleet:
        fleet.publish(large, channel="default")
        with fleet.write() as ledger:
            ledger.note_state(DeviceState(device="line-2", channel="default", online=True), seen_utc=1.0)
            ledger.take("line-2", records, ledger.feature_sizes())
        live = fleet.live_set("default")
    assert live is not None
    assert (live.digest, len(live), live.unapplied) == (before, 24, 1)
    told = headway(capsys, "fleet", "devices", "--dir", tmp_path / "fleet")
    assert "labels that change nothing, their samples being in the release's sums only: 1" in told.out


def test_the_same_log_counts_again_where_the_release_has_the_codes(
    full: Bundle, large: Bundle, store: Store
) -> None:
    store.log.receive(written(large, "good", numbers_of(large, "good", summed=True)[0], SCRATCH), position=2)
    assert Learner(large, None, store).status().unapplied == 1
    learner = Learner(full, None, store)
    assert learner.status().unapplied == 0
    assert {info.name: info.labels for info in learner.classes()} == {"good": 11, "scratch": 13}


def test_releases_are_compared_on_own_labels_whichever_has_sums(full: Bundle, large: Bundle, store: Store) -> None:
    learner = Learner(full, None, store)
    for number in range(4):
        learner.label(see(store, full, "scratch", number), SCRATCH, "anna")
    for old, new in ((full, large), (large, full)):
        verdict = compare(store, (old, None), (new, None), lambda: False)
        assert verdict is not None
        assert verdict.keep


def test_a_class_without_exemplars_is_known_and_not_scored(full: Bundle, store: Store, tmp_path: Path) -> None:
    """As where all its pictures are one group that is too large."""
    base, entry = full.base(), full.precision()
    rest = base.with_codes_of([i for i in range(24) if base.class_ids[i] == GOOD])
    files = {name: (full.path / name).read_bytes() for name in full.file_names() if name != MANIFEST_NAME}
    files |= {entry.samples: rest.to_bytes(), "moments": rest.moments_bytes()}
    precisions = [msgspec.structs.replace(entry, moments="moments")]
    manifest = msgspec.structs.replace(full.manifest, precisions=precisions)
    learner = Learner(write_bundle(tmp_path / "bundle", files, manifest), None, store)
    learner.label(see(store, full, "good", 1), GOOD, "anna")
    learner.run_until_idle()
    assert learner.head.names == Learner(full, None, store).head.names
    score = learner.status().score
    assert score is not None
    assert [c.class_id for c in score.classes] == [GOOD]
    assert (score.samples, score.summed) == (13, 12)


def test_the_page_says_what_the_score_covers_and_which_labels_change_nothing(large: Bundle, store: Store) -> None:
    station = Station(store, threads=False)
    station.serve(large, None, open_projection(large, "fp32"))
    learner = station.require().learner
    records = written(large, "good", numbers_of(large, "good", summed=True)[0], None)
    learner.received(store.log.receive(records, position=2))
    learner.label(see(store, large, "good", 1), GOOD, "anna")
    learner.run_until_idle()
    camera = CameraReport("none", "live", 0, 0, 0, 0)
    state = station_state(station, channel="default", version="0", started_utc=0.0, camera=camera)
    station.close()
    assert state.score is not None
    assert state.score.summed == 16
    assert [fault for fault in state.faults if "change nothing here" in fault and fault.endswith(": 1")]


def test_a_master_part_that_is_a_summed_sample_shows_nothing(store: Store, large: Bundle, tmp_path: Path) -> None:
    """The head has learned from it like from those that have a code."""
    for name in ("good", "scratch"):
        (tmp_path / "masters" / name).mkdir(parents=True)
        for i in (numbers_of(large, name, summed=True)[0], numbers_of(large, name, summed=False)[0], 2000):
            (tmp_path / "masters" / name / f"{i}.png").write_bytes(picture(name, i))
    learner = Learner(large, None, store, embed=lambda image: code_of(large, image), masters=tmp_path / "masters")
    learner.label(see(store, large, "scratch", 3000), SCRATCH, "ann")
    learner.run_until_idle()
    telling = learner.masters()
    assert telling is not None
    assert [each.file.name for each in telling.told] == ["2000.png", "2000.png"]


def test_verify_and_show_say_what_is_summed(large: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    verified = headway(capsys, "bundle", "verify", large.path)
    assert verified.code == 0
    assert "16 samples are in sums only" in verified.out
    shown = headway(capsys, "bundle", "show", large.path)
    assert "16 samples are in sums only" in shown.out
    facts = json.loads(headway(capsys, "bundle", "show", large.path, "--json").out)
    assert [(c["samples"], c["codes"], c["groups"]) for c in facts["classes"]] == [(12, 4, 6), (12, 4, 6)]
