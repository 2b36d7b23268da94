"""What a person here takes back decides no more, whatever a trial says of the head without it (decision 0052)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_agent.camera import Shot
from device_agent.heads_and_updates import Outcome
from device_agent.learner import Learner
from device_agent.metrics import metrics_of
from device_agent.page.history import LabelHistory
from device_agent.page.pages import undone_news
from device_agent.page.text import Texts
from device_agent.report import CameraReport, State, masters_report, station_state
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from device_agent.withdrawn import is_alone, taken_back_here
from sdk.bundle import Bundle
from sdk.codes import code_digest
from sdk.errors import LabelError
from sdk.images import decode, sample_id
from sdk.labels import (
    MAX_COUNTER,
    Chain,
    CodeRecord,
    Label,
    Quarantine,
    Record,
    entry_hash,
    fleet_log_of,
)
from sdk.liveset import without
from sdk.wire import HeadState
from tests.simulators import SimDevice
from tests.test_masters import MASTERS
from tests.tiny import class_id, picture, tiny_bundle

DEFECTS = ("pit", "scratch")


@pytest.fixture(scope="module")
def confused(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A release that takes pits for scratches and scratches for pits, until operators say what they are."""
    swapped = {"pit": "scratch", "scratch": "pit"}
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "confused", per_class=40, called=swapped)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "clean", per_class=40)


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("station") / "masters"
    for name in ("good", *DEFECTS):
        (folder / name).mkdir(parents=True)
        for i in MASTERS:
            (folder / name / f"{i}.png").write_bytes(picture(name, i))
    return folder


@contextmanager
def station_at(folder: Path, bundle: Bundle, masters: Path | None) -> Iterator[Station]:
    with Store.open(folder, "line-1") as store:
        station = Station(store, masters=masters, threads=False)
        station.serve(bundle, None, open_runtime(bundle, None))
        station.require().learner.run_until_idle()
        yield station
        station.close()


def label(station: Station, numbers: Sequence[int], names: Sequence[str] = DEFECTS) -> list[bytes]:
    """Label parts as what they are; return the samples."""
    samples = []
    for i in numbers:
        for name in names:
            data = picture(name, i)
            samples.append(station.see(Shot(decode(data), 0.0, f"line-1/{name}{i}", "", data)).sample_id)
            station.label(samples[-1], class_id(name), "ann")
    learner = station.require().learner
    learner.run_until_idle()
    assert learner.status().outcome is Outcome.CONFIRMED
    return samples


def undo(station: Station, samples: Sequence[bytes]) -> Learner:
    station.label_all([(sample, None) for sample in samples], "ann")
    learner = station.require().learner
    learner.run_until_idle()
    return learner


def decides_by(learner: Learner, samples: Sequence[bytes]) -> int:
    """Return by how many of these samples the head that serves decides; it serves confirmed."""
    assert learner.head.state is HeadState.CONFIRMED
    live = learner._heads.confirmed.live
    assert live.digest == learner.head.digest
    return len({*samples} & {*live.samples})


def from_elsewhere(station: Station, *devices: SimDevice) -> Learner:
    """Let all that devices have written reach a station through its fleet."""
    learner = station.require().learner
    records = [record for device in devices for record in device.log]
    learner.received(station.store.log.receive(records, len(records)))
    learner.run_until_idle()
    return learner


def labels_of(bundle: Bundle, station: Station, device: SimDevice, numbers: Sequence[int], right: bool) -> None:
    """Let a device of the fleet label pits and scratches of its own, rightly or the other way round."""
    pipeline = station.require().pipeline
    for i in numbers:
        for name, other in (DEFECTS, DEFECTS[::-1]):
            data = picture(name, i)
            code = pipeline.code(decode(data))[0]
            sample, group = sample_id(data), f"{device.device}/{name}{i}"
            record = CodeRecord(bytes.fromhex(bundle.space()), sample, group, code_digest(code))
            device.write(record, code.tobytes())
            device.write(Label(sample, class_id(name if right else other), "bob"))


# -- it always takes effect


def test_a_roll_back_that_masters_would_refuse_takes_effect_and_its_price_is_told(
    confused: Bundle, masters: Path, tmp_path: Path
) -> None:
    with station_at(tmp_path, confused, masters) as station:
        learner = undo(station, label(station, range(900, 940)))
        status = learner.status()
        assert (status.outcome, learner.head.samples) == (Outcome.CONFIRMED, status.live_samples)
        assert learner.head.digest == status.live_set_digest
        assert [each.code for each in status.prices] == ["undone-masters"]
        assert "What was taken back here no longer counts." in status.reason
        report = masters_report(learner.masters())
        assert report is not None
        price = status.prices[0]
        assert (price.of, report.of) == (30, 30)
        assert price.sentence().endswith(f"master parts told worse: {price.times} of 30.")
        assert report.undone == price.times > 10


def test_an_undo_that_the_trial_would_refuse_takes_effect_and_its_price_is_told(
    confused: Bundle, tmp_path: Path
) -> None:
    with station_at(tmp_path, confused, None) as station:
        label(station, range(800, 806))
        learner = undo(station, label(station, range(900, 940)))
        status = learner.status()
        assert (status.outcome, learner.head.digest) == (Outcome.CONFIRMED, status.live_set_digest)
        (price,) = status.prices
        assert price.code == "undone-worse"
        assert price.share < price.before - 0.25, "the control: a head that costs so much would have been refused"


def test_a_correction_that_is_refused_leaves_neither_label_deciding(
    clean: Bundle, masters: Path, tmp_path: Path
) -> None:
    with station_at(tmp_path, clean, masters) as station:
        samples = label(station, range(900, 940))
        learner = station.require().learner
        swapped = [class_id(name) for _ in range(40) for name in DEFECTS[::-1]]
        station.label_all(list(zip(samples, swapped, strict=True)), "ann")
        learner.run_until_idle()
        assert learner.status().outcome is Outcome.TAKEN_BACK
        assert (decides_by(learner, samples), learner.status().withdrawn) == (0, 0)


def test_a_label_given_again_is_not_taken_back(confused: Bundle, tmp_path: Path) -> None:
    with station_at(tmp_path, confused, None) as station:
        (first, *_) = label(station, range(800, 806))
        learner = station.require().learner
        before = learner.head.digest
        station.label(first, None, "ann")
        station.label(first, class_id("pit"), "ann")
        learner.run_until_idle()
        assert learner.head.digest == before
        assert decides_by(learner, [first]) == 1
        live, again = learner.live_set(), (first, class_id("pit"))
        assert taken_back_here([(first, None), again], live, live) == frozenset()
        less = without(live, {first}, [])
        assert taken_back_here([(first, None)], live, less) == {first}
        assert taken_back_here([again], live, less) == frozenset(), "nobody here has said so"


# -- and nothing comes in behind it


def poisoned(confused: Bundle, station: Station) -> tuple[list[bytes], list[bytes]]:
    """Have a station learn its own labels and refuse another line's wrong ones; return the samples of both."""
    own = label(station, range(900, 940))
    bad = SimDevice("line-9")
    labels_of(confused, station, bad, range(2000, 2100), right=False)
    learner = from_elsewhere(station, bad)
    assert learner.status().outcome is Outcome.TAKEN_BACK
    return own, [each.entry.body.sample for each in bad.log if isinstance(each.entry.body, Label)]


def test_refused_labels_do_not_come_in_with_an_undo(confused: Bundle, masters: Path, tmp_path: Path) -> None:
    with station_at(tmp_path, confused, masters) as station:
        own, wrong = poisoned(confused, station)
        learner = undo(station, own[:6])
        status = learner.status()
        assert status.outcome is Outcome.TAKEN_BACK
        assert (decides_by(learner, own[:6]), decides_by(learner, wrong)) == (0, 0)
        assert decides_by(learner, own) == len(own) - 6
        digest, number = learner.head.digest, learner.head.number
        rows = {row.number: row for row in learner.history()}
        assert rows[number].reason.startswith(
            "What was taken back here no longer counts; nor does what came since"
        )
        undone_again = undo(station, own[6:8])
        assert decides_by(undone_again, own) == len(own) - 8
        assert undone_again.head.digest != digest


@pytest.mark.parametrize("then", ["stopped", "cut"])
def test_after_a_restart_it_is_as_before(confused: Bundle, masters: Path, tmp_path: Path, then: str) -> None:
    with station_at(tmp_path, confused, masters) as station:
        own, wrong = poisoned(confused, station)
        learner = undo(station, own[:6])
        head, rows = learner.head, len(learner.history())
        if then == "cut":  # the head's row, which is a record, was not on disk yet
            with station.store._db.transaction() as db:
                db.execute("DELETE FROM heads WHERE number = ?", (head.number,))
    for _ in range(2):
        with station_at(tmp_path, confused, masters) as station:
            learner = station.require().learner
            assert learner.head.digest == head.digest
            assert (decides_by(learner, own[:6]), decides_by(learner, wrong)) == (0, 0)
            assert decides_by(learner, own) == len(own) - 6
            assert len(learner.history()) == rows, "nothing is tried or written again"


def test_an_undo_that_was_not_tried_before_the_agent_stopped_never_decides(
    confused: Bundle, masters: Path, tmp_path: Path
) -> None:
    with station_at(tmp_path, confused, masters) as station:
        own, wrong = poisoned(confused, station)
        station.label(own[0], None, "ann")
    with Store.open(tmp_path, "line-1") as store:
        learner = Learner(confused, None, store)
        assert learner.head.state is HeadState.PROVISIONAL
        learner.run_until_idle()
        assert (decides_by(learner, own[:1]), decides_by(learner, own[1:])) == (0, len(own) - 1)
        assert decides_by(learner, wrong) == 0


@pytest.mark.parametrize("how", ["withdrawn", "quarantined"])
def test_what_is_taken_back_elsewhere_is_tried_and_what_stays_of_it_is_told(
    clean: Bundle, masters: Path, tmp_path: Path, how: str
) -> None:
    """Right labels hold wrong ones up, so both pass the trial; the right ones are then taken back behind it."""
    with station_at(tmp_path, clean, masters) as station:
        helpful, bad = SimDevice("line-8"), SimDevice("line-9")
        labels_of(clean, station, helpful, range(3000, 3120), right=True)
        labels_of(clean, station, bad, range(2000, 2020), right=False)
        from_elsewhere(station, helpful, bad)
        learner = station.require().learner
        assert learner.status().outcome is Outcome.CONFIRMED
        right = [each.entry.body.sample for each in helpful.log if isinstance(each.entry.body, Label)]
        if how == "withdrawn":
            for sample in right:
                helpful.write(Label(sample, None, "bob"))
            from_elsewhere(station, helpful)
        else:
            fleet = SimDevice(fleet_log_of("default"))
            fleet.write(Quarantine("line-8", "", MAX_COUNTER, "a stolen key says so", "eve"))
            from_elsewhere(station, fleet)
        status = learner.status()
        assert (status.outcome, status.why[0].code) == (Outcome.TAKEN_BACK, "masters")
        assert (status.withdrawn, status.prices) == (len(right), ())
        assert decides_by(learner, right) == len(right)
        state = state_of(station)
        assert f"{len(right)} labels that were withdrawn or corrected elsewhere still decide" in state.faults[0]
        assert state.head is not None
        assert state.head.withdrawn == len(right)


def test_what_the_fleet_sends_under_this_devices_name_is_no_persons_word(
    confused: Bundle, masters: Path, tmp_path: Path
) -> None:
    with station_at(tmp_path, confused, masters) as station:
        own = label(station, range(900, 940))
        last = [each.entry for each in station.store.log.records()][-1]
        chain, forged, counter = Chain("line-1", last.seq, entry_hash(last)), SimDevice("line-1"), last.counter
        for sample in own:
            counter += 1
            chain, entry = chain.write(Label(sample, None, "ann"), counter=counter, wall_time_us=0)
            forged.log.append(Record(entry))
        learner = from_elsewhere(station, forged)
        assert learner.status().live_samples == 60
        assert learner.status().outcome is Outcome.TAKEN_BACK
        assert decides_by(learner, own) == len(own)
        told = {each.name: each.samples[0].value for each in metrics_of(state_of(station))}
        assert (told["headway_live_samples"], told["headway_head_samples"]) == (60, 60 + len(own))


def test_a_head_that_leaves_out_what_was_refused_is_not_rolled_back_to(
    confused: Bundle, masters: Path, tmp_path: Path
) -> None:
    with station_at(tmp_path, confused, masters) as station:
        own, _ = poisoned(confused, station)
        learner = undo(station, own[:6])
        row = next(each for each in learner.history() if each.number == learner.head.number)
        assert is_alone(row)
        history = LabelHistory(station.store, lambda _: None)
        with pytest.raises(LabelError, match="left out what had come before"):
            history.restoring(row)
        assert not any(is_alone(each) for each in learner.history() if each.number != row.number)


# -- and it is told


def state_of(station: Station) -> State:
    report = CameraReport("none", "live", 0, 0, 0, 0)
    return station_state(station, channel="default", version="0", started_utc=0.0, camera=report)


def test_the_price_is_a_fault_a_metric_and_on_the_page(confused: Bundle, masters: Path, tmp_path: Path) -> None:
    with station_at(tmp_path, confused, masters) as station:
        learner = undo(station, label(station, range(900, 940)))
        state = state_of(station)
        assert state.masters is not None
        assert "The price of taking it back: master parts told worse:" in state.faults[0]
        told = {each.name: each.samples[0].value for each in metrics_of(state)}
        assert told["headway_masters_undone"] == state.masters.undone > 10
        assert told["headway_withdrawn_labels"] == 0
        for language, said in (("en", "as if it had never been learned"), ("de", "als wäre sie nie gelernt")):
            news = undone_news(Texts(language), learner.status(), None)
            assert (news.level, said in news.sentence) == ("bad", True)
            assert f"{learner.status().prices[0].times}" in news.more


def test_what_is_labelled_after_an_undo_is_not_blamed_for_it(
    confused: Bundle, masters: Path, tmp_path: Path
) -> None:
    with station_at(tmp_path, confused, masters) as station:
        learner = undo(station, label(station, range(900, 940)))
        label(station, [1000], names=["good"])
        before = masters_report(learner.masters())
        label(station, range(1001, 1041))
        after = masters_report(learner.masters())
        assert before is not None
        assert after is not None
        assert (before.undone > 10, after.undone < 10) == (True, True), "told again, they are counted no more"
        assert learner.status().prices == ()
