"""A release comes into service step by step, each on disk before the next, and leaves again when it is unfit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from device_agent import update as update_module
from device_agent.candidate import Carried, carry_labels, compare
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.pipeline import Pipeline
from device_agent.runtime import Runtime, check_golden, open_runtime
from device_agent.store import Store
from device_agent.sync import Sync
from device_agent.update import MAX_STARTS, Fetch, Release, Updater
from sdk.bundle import Bundle, write_bundle
from sdk.errors import BadSignature, StoreFull
from sdk.fetch import ChunkFetcher
from sdk.fleet.broker import Mosquitto
from sdk.fleet.store import FleetStore
from sdk.labels import CodeRecord
from sdk.mqtt import MqttSession, MqttSettings
from sdk.release import describe
from sdk.verdict import Verdict
from sdk.wire import (
    MAX_TEXT,
    Desired,
    DeviceState,
    ReleaseRef,
    Topics,
    UpdateEvent,
    UpdateState,
    decode_json,
    encode_json,
)
from tests import tiny
from tests.builders import class_id_of, make_bundle, open_projection
from tests.processes import Doomed
from tests.simulators import wait_for
from tests.test_learner import see
from tests.test_sync import serving

S = UpdateState
GOOD, SCRATCH = class_id_of("good"), class_id_of("scratch")
LIMITS = StoreLimits(reserve_bytes=0)
DEADLINE_S = 60.0
ALL_STEPS = [S.DOWNLOADING, S.VERIFIED, S.CANDIDATE, S.PROVISIONAL, S.COMMITTED]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """An old and a new release of the same classes, and ways in which a release can be unfit."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {
        "old": make_bundle(folder / "old"),
        "new": make_bundle(folder / "new", backbone="seed-2"),
        "newer": make_bundle(folder / "newer", backbone="seed-3"),
        # What this release calls good, the operators here call scratched.
        "worse": make_bundle(
            folder / "worse", backbone="seed-4", class_ids={"good": SCRATCH, "scratch": GOOD}, per_class=40
        ),
    }
    files = {each.name: (made["new"].path / each.name).read_bytes() for each in made["new"].manifest.files}
    files["golden.safetensors"] = (made["newer"].path / "golden.safetensors").read_bytes()
    made["wrong-golden"] = write_bundle(folder / "wrong-golden", files, made["new"].manifest)
    return made


def id_of(bundle: Bundle) -> str:
    """Return the id of the release that a bundle is published as."""
    return describe(bundle.path, bundle.manifest.name, bundle.file_names()).ref.release_id


def desired(bundle: Bundle, *, channel: str = "default", deadline_utc: float | None = None) -> Desired:
    ref = ReleaseRef(release_id=id_of(bundle), name=bundle.path.name, size_bytes=1)
    return Desired(release=ref, channel=channel, deadline_utc=deadline_utc)


def admit(bundle: Bundle) -> Runtime:
    runtime = open_projection(bundle, "fp32")
    check_golden(runtime, bundle)
    return runtime


@dataclass
class Rig:
    """An updater with a real store, a fetcher that copies, and a station that only remembers."""

    folder: Path
    sources: list[Path]
    store: Store
    watch_s: float = 0.0
    now: float = 1000.0
    events: list[tuple[str, UpdateState, str]] = field(default_factory=list)
    served: list[str | None] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    carried: int = 0
    names: dict[str, str] = field(default_factory=dict)
    waits: list[str | None] = field(default_factory=list)
    before_fetch: Callable[[threading.Event], None] = lambda _stop: None
    after_fetch: Callable[[Path], None] = lambda _slot: None
    on_serve: Callable[[Release | None], None] = lambda _release: None
    on_event: Callable[[UpdateEvent], None] = lambda _event: None
    on_records: Callable[[], None] = lambda: None
    authorize: Callable[[Desired], None] = lambda _desired: None
    in_touch: bool = True
    caught_up: Callable[[], bool | None] = lambda: True
    fetcher: Fetch | None = None
    admit: Callable[[Bundle], Runtime] = admit
    masters: Path | None = None

    def __post_init__(self) -> None:
        self.names |= {id_of(Bundle.open(path)): path.name for path in self.sources}
        self.updater = Updater(
            self.store,
            self.folder,
            channel="default",
            precision=None,
            fetch=self._fetch,
            admit=self.admit,
            serve=self._serve,
            on_event=self._event,
            on_waiting=lambda: self.waits.append(self.updater.status().fault),
            in_touch=lambda: self.in_touch,
            caught_up=self.caught_up,
            on_records=self._records,
            authorize=self._authorize,
            masters=self.masters,
            retry_s=0.05,
            watch_s=self.watch_s,
            clock=lambda: self.now,
        )

    def _fetch(
        self,
        ref: ReleaseRef,
        target: Path,
        *,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        stop: threading.Event | None = None,
    ) -> object | None:
        assert stop is not None
        if self.fetcher is not None:
            return self.fetcher(ref, target, progress=progress, stop=stop)
        self.fetched.append(ref.name)
        self.before_fetch(stop)
        if stop.is_set():
            return None
        if not target.exists():
            (source,) = [path for path in self.sources if path.name == ref.name]
            shutil.copytree(source, target.with_suffix(".draft"))
            target.with_suffix(".draft").rename(target)
        progress(1, 1)
        self.after_fetch(target)
        return target

    def _serve(self, release: Release | None) -> None:
        self.on_serve(release)
        self.served.append(self.name_of(release))

    def name_of(self, release: Release | None) -> str | None:
        return None if release is None else self.names[release.release_id]

    def _event(self, event: UpdateEvent) -> None:
        self.on_event(event)
        self.events.append((self.names[event.release_id], event.state, event.reason))

    def _authorize(self, assigned: Desired) -> None:
        self.authorize(assigned)

    def _records(self) -> None:
        self.on_records()
        self.carried += 1

    def install(self, bundle: Bundle) -> None:
        self.updater.start(desired(bundle))
        self.reaches(bundle, S.COMMITTED)

    def reaches(self, bundle: Bundle, state: UpdateState) -> None:
        assert self.updater.wait_until(id_of(bundle), state, DEADLINE_S), self.updater.status()

    def ends(self, bundle: Bundle) -> str:
        """Start an update that is rolled back; return the reason."""
        self.updater.start(desired(bundle))
        self.reaches(bundle, S.ROLLED_BACK)
        return self.updater.status().reason

    def current(self) -> str | None:
        link = self.folder / "current"
        return self.names[link.resolve().name] if link.is_symlink() else None

    def slots(self) -> set[str]:
        return {self.names.get(path.name, path.name) for path in (self.folder / "slots").iterdir()}


@contextlib.contextmanager
def rig_on(folder: Path, bundles: dict[str, Bundle], **changes: object) -> Iterator[Rig]:
    with Store.open(folder, "line-1", limits=LIMITS) as store:
        rig = Rig(folder, [bundle.path for bundle in bundles.values()], store, **changes)  # type: ignore[arg-type]
        try:
            yield rig
        finally:
            rig.updater.stop()


@pytest.fixture
def rig(tmp_path: Path, bundles: dict[str, Bundle]) -> Iterator[Rig]:
    """A rig that serves the old release."""
    with rig_on(tmp_path / "data", bundles) as opened:
        assert not opened.updater.boot()
        opened.install(bundles["old"])
        opened.events.clear()
        opened.served.clear()
        yield opened


def label_some(store: Store, bundle: Bundle, count: int = 6) -> set[bytes]:
    learner = Learner(bundle, None, store)
    ids = set()
    for name, class_id in (("good", GOOD), ("scratch", SCRATCH)):
        for number in range(count):
            sample = see(store, bundle, name, number)
            learner.label(sample, class_id, "anna")
            ids.add(sample)
    return ids


# -- the way into service


def test_a_release_comes_into_service_step_by_step(rig: Rig, bundles: dict[str, Bundle]) -> None:
    rig.install(bundles["new"])
    assert [state for _, state, _ in rig.events] == ALL_STEPS
    assert rig.served == ["new"]
    assert rig.current() == "new"
    assert rig.slots() == {"old", "new"}
    assert [row.state for row in rig.store.updates.newest()] == [S.COMMITTED, S.COMMITTED]


def test_own_labels_are_carried_into_the_new_space_once(rig: Rig, bundles: dict[str, Bundle]) -> None:
    ids = label_some(rig.store, bundles["old"])
    rig.install(bundles["new"])
    space = bytes.fromhex(bundles["new"].space())
    bodies = [record.entry.body for record in rig.store.log.records()]
    carried = [body.sample for body in bodies if isinstance(body, CodeRecord) and body.space == space]
    assert sorted(carried) == sorted(ids)
    assert rig.carried == 1
    assert Learner(bundles["new"], None, rig.store).status().own_labels == len(ids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="priorities of threads are Linux's")
def test_work_on_a_candidate_gives_way_to_frames_and_its_runtime_does_not(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that a runtime starts inherit the priority of the one that opens it."""
    nice: list[tuple[str, int]] = []

    def noted(what: str) -> None:
        nice.append((what, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

    def opened(bundle: Bundle) -> Runtime:
        noted("open")
        return admit(bundle)

    def carried(*args: Any) -> Carried:
        noted("carry")
        return carry_labels(*args)

    def compared(*args: Any) -> Verdict | None:
        noted("compare")
        return compare(*args)

    monkeypatch.setattr(update_module, "carry_labels", carried)
    monkeypatch.setattr(update_module, "compare", compared)
    with rig_on(tmp_path / "data", bundles, admit=opened) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        label_some(rig.store, bundles["old"])
        nice.clear()
        rig.install(bundles["new"])
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    low = min(ours + update_module.NICE, 19)
    assert nice == [("open", ours), ("carry", low), ("compare", low), ("carry", low)]


def test_labels_given_before_a_new_backbone_count_exactly_as_if_given_under_it(
    rig: Rig, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    """Same live set, so the same head bit for bit, and the same accuracy on whatever it is measured on."""
    label_some(rig.store, bundles["old"])
    rig.install(bundles["new"])
    with rig_on(tmp_path / "from the start", bundles) as other:
        label_some(other.store, bundles["new"])
        carried, given = Learner(bundles["new"], None, rig.store), Learner(bundles["new"], None, other.store)
        assert carried.status().own_labels == given.status().own_labels == 12
        assert carried.status().live_set_digest == given.status().live_set_digest


def test_a_label_whose_picture_is_lost_does_not_stop_the_update(rig: Rig, bundles: dict[str, Bundle]) -> None:
    label_some(rig.store, bundles["old"])
    picture = next((rig.folder / "images").glob("??/*"))
    picture.write_bytes(b"torn by a power cut")
    lost = frozenset({bytes.fromhex(picture.stem)})
    pipeline = Pipeline(bundles["new"], None, admit(bundles["new"]))
    assert carry_labels(rig.store, pipeline, lambda: False) == Carried(written=11, lost=lost)
    assert carry_labels(rig.store, pipeline, lambda: False) == Carried(written=0, lost=lost)
    rig.install(bundles["new"])


def test_the_same_assignment_again_changes_nothing(rig: Rig, bundles: dict[str, Bundle]) -> None:
    rig.install(bundles["new"])
    rig.updater.start(desired(bundles["new"]))
    rig.install(bundles["newer"])
    assert rig.fetched == ["old", "new", "newer"]


@pytest.mark.parametrize("bad", [False, True], ids=["committed", "rolled back"])
def test_the_same_assignment_again_is_answered_with_where_it_stands(
    rig: Rig, bundles: dict[str, Bundle], bad: bool
) -> None:
    """The fleet assigns again when it comes back to its broker: what was told meanwhile nobody has heard."""
    bundle = bundles["wrong-golden" if bad else "new"]
    rig.updater.start(desired(bundle))
    rig.reaches(bundle, S.ROLLED_BACK if bad else S.COMMITTED)
    told = rig.events[-1]
    rig.events.clear()
    rig.updater.start(desired(bundle))
    assert rig.events == [told]


def test_a_rollback_is_told_again_only_where_the_release_is_still_assigned(
    rig: Rig, bundles: dict[str, Bundle]
) -> None:
    """A device that was away when somebody resumed the rollout says it on its connect, and halts it again."""
    rig.ends(bundles["wrong-golden"])
    rig.events.clear()
    rig.updater.say_again()
    assert rig.events == []
    rig.updater.start(desired(bundles["wrong-golden"]))
    assert [state for _, state, _ in rig.events] == [S.ROLLED_BACK]


def test_an_earlier_release_may_be_assigned_again(rig: Rig, bundles: dict[str, Bundle]) -> None:
    rig.install(bundles["new"])
    rig.updater.start(desired(bundles["old"]))
    rig.reaches(bundles["old"], S.COMMITTED)
    assert rig.served == ["new", "old"]
    assert rig.current() == "old"


def test_only_the_slot_in_service_and_the_one_before_are_kept(rig: Rig, bundles: dict[str, Bundle]) -> None:
    rig.install(bundles["new"])
    rig.install(bundles["newer"])
    wait_for(lambda: rig.slots() == {"new", "newer"}, DEADLINE_S)


def test_a_restart_serves_what_was_committed(rig: Rig, bundles: dict[str, Bundle]) -> None:
    rig.install(bundles["new"])
    rig.updater.stop()
    again = Rig(rig.folder, rig.sources, rig.store)
    assert again.updater.boot()
    assert again.served == ["new"]
    again.updater.say_again()
    assert again.events == [("new", S.COMMITTED, "")]
    again.updater.stop()


def test_a_provisional_release_is_committed_by_the_agents_word(tmp_path: Path, bundles: dict[str, Bundle]) -> None:
    with rig_on(tmp_path, bundles, watch_s=600.0) as rig:
        rig.updater.boot()
        rig.updater.start(desired(bundles["old"]))
        wait_for(lambda: rig.updater.confirm(id_of(bundles["old"])), DEADLINE_S)
        assert not rig.updater.confirm("f" * 64), "another release"
        rig.reaches(bundles["old"], S.COMMITTED)


# -- unfit releases


def flip_a_byte(slot: Path) -> None:
    file = slot / "samples.fp32.safetensors"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def empty_it(slot: Path) -> None:
    shutil.rmtree(slot)
    slot.mkdir()


def add_a_file(slot: Path) -> None:
    (slot / "run-me.sh").write_text("echo")


def refuse(_slot: Path) -> None:
    raise BadSignature("the release contradicts itself", hint="Publish it again.")


@pytest.mark.parametrize(
    ("name", "harm", "reason", "steps"),
    [
        ("wrong-golden", None, "on the golden inputs", [S.DOWNLOADING, S.VERIFIED, S.CANDIDATE]),
        ("worse", None, "Taken back", [S.DOWNLOADING, S.VERIFIED, S.CANDIDATE]),
        ("new", flip_a_byte, "is not what the manifest says", [S.DOWNLOADING]),
        ("new", empty_it, "is not a bundle", [S.DOWNLOADING]),
        ("new", add_a_file, "is not in the manifest", [S.DOWNLOADING]),
        ("new", refuse, "contradicts itself", [S.DOWNLOADING]),
    ],
)
def test_an_unfit_release_is_rolled_back_and_the_old_one_serves_on(
    rig: Rig,
    bundles: dict[str, Bundle],
    name: str,
    harm: Callable[[Path], None] | None,
    reason: str,
    steps: list[UpdateState],
) -> None:
    label_some(rig.store, bundles["old"])
    if harm is not None:
        rig.after_fetch = harm
    assert reason in rig.ends(bundles[name])
    assert [state for _, state, _ in rig.events] == [*steps, S.ROLLED_BACK]
    assert reason in rig.events[-1][2]
    assert rig.served == [], "nothing else ever served"
    assert rig.current() == "old"
    wait_for(lambda: rig.slots() == {"old"}, DEADLINE_S)


def test_a_release_that_tells_master_parts_worse_is_rolled_back_without_a_label(tmp_path: Path) -> None:
    folder = tmp_path / "masters"
    for name in ("good", "pit", "scratch"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            (folder / name / f"{number}.png").write_bytes(tiny.picture(name, 500 + number))
    swapped = {"pit": "scratch", "scratch": "pit"}
    made = {
        "old": tiny.tiny_bundle(tmp_path / "old", name="old"),
        "worse": tiny.tiny_bundle(tmp_path / "worse", name="worse", called=swapped),
    }

    def opened(bundle: Bundle) -> Runtime:
        return open_runtime(bundle, None)

    with rig_on(tmp_path / "guarded", made, masters=folder, admit=opened) as rig:
        rig.updater.boot()
        rig.install(made["old"])
        assert "Taken back: of the master parts of" in rig.ends(made["worse"])
        assert rig.current() == "old"
    with rig_on(tmp_path / "unguarded", made, admit=opened) as rig:  # the control
        rig.updater.boot()
        rig.install(made["old"])
        rig.install(made["worse"])


def test_what_was_rolled_back_is_not_tried_again_for_the_same_assignment(
    rig: Rig, bundles: dict[str, Bundle]
) -> None:
    rig.ends(bundles["wrong-golden"])
    rig.updater.start(desired(bundles["wrong-golden"]))
    rig.install(bundles["new"])
    assert rig.fetched == ["old", "wrong-golden", "new"]


def test_a_new_deadline_is_a_new_assignment(rig: Rig, bundles: dict[str, Bundle]) -> None:
    rig.updater.start(desired(bundles["new"], deadline_utc=999.0))
    rig.reaches(bundles["new"], S.ROLLED_BACK)
    assert "deadline" in rig.updater.status().reason
    assert rig.fetched == ["old"]
    rig.events.clear()
    rig.updater.start(desired(bundles["new"], deadline_utc=2000.0))
    rig.reaches(bundles["new"], S.COMMITTED)
    assert [state for _, state, _ in rig.events] == ALL_STEPS, "what it forgives is not said once more"


def test_a_download_past_its_deadline_is_given_up(rig: Rig, bundles: dict[str, Bundle]) -> None:
    def away(stop: threading.Event) -> None:
        rig.now = 1000.2
        assert stop.wait(DEADLINE_S)

    rig.before_fetch = away
    rig.updater.start(desired(bundles["new"], deadline_utc=1000.1))
    rig.reaches(bundles["new"], S.ROLLED_BACK)
    assert "deadline" in rig.updater.status().reason


def test_a_deadline_that_passes_while_the_device_is_off_ends_nothing(rig: Rig, bundles: dict[str, Bundle]) -> None:
    """Its wave went on without it, and is past: the fleet has lifted the deadline."""
    began = threading.Event()

    def wait_for_stop(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(DEADLINE_S)

    rig.before_fetch = wait_for_stop
    rig.updater.start(desired(bundles["new"], deadline_utc=2000.0))
    assert began.wait(DEADLINE_S)
    rig.updater.stop()
    again = Rig(rig.folder, rig.sources, rig.store, now=3000.0)
    try:
        assert again.updater.boot()
        again.updater.start(desired(bundles["new"]))
        again.reaches(bundles["new"], S.COMMITTED)
    finally:
        again.updater.stop()
    assert S.ROLLED_BACK not in [state for _, state, _ in again.events]


def test_a_deadline_that_passes_while_the_fleet_is_away_ends_nothing(rig: Rig, bundles: dict[str, Bundle]) -> None:
    stopped = threading.Event()

    def away(stop: threading.Event) -> None:
        if not stopped.is_set():
            rig.now, rig.in_touch = 1000.2, False
            assert stop.wait(DEADLINE_S)
            stopped.set()

    rig.before_fetch = away
    rig.updater.start(desired(bundles["new"], deadline_utc=1000.1))
    assert stopped.wait(DEADLINE_S)
    rig.in_touch = True
    rig.updater.start(desired(bundles["new"]))
    rig.reaches(bundles["new"], S.COMMITTED)
    assert S.ROLLED_BACK not in [state for _, state, _ in rig.events]


def test_a_deadline_that_still_counts_when_it_is_heard_again_ends_the_download(
    rig: Rig, bundles: dict[str, Bundle]
) -> None:
    rig.updater.stop()
    again = Rig(rig.folder, rig.sources, rig.store)
    again.store.updates.begin(id_of(bundles["new"]), encode_json(desired(bundles["new"], deadline_utc=999.0)))
    try:
        assert again.updater.boot()
        again.updater.start(desired(bundles["new"], deadline_utc=999.0))
        again.reaches(bundles["new"], S.ROLLED_BACK)
    finally:
        again.updater.stop()
    assert (again.fetched, again.updater.status().reason[:12]) == ([], "its deadline")


def test_a_deadline_that_is_lifted_during_a_download_ends_nothing(rig: Rig, bundles: dict[str, Bundle]) -> None:
    began = threading.Event()

    def slow(stop: threading.Event) -> None:
        if not began.is_set():
            began.set()
            assert stop.wait(DEADLINE_S)

    rig.before_fetch = slow
    rig.updater.start(desired(bundles["new"], deadline_utc=2000.0))
    assert began.wait(DEADLINE_S)
    rig.now = 3000.0
    rig.updater.start(desired(bundles["new"]))
    rig.reaches(bundles["new"], S.COMMITTED)
    assert S.ROLLED_BACK not in [state for _, state, _ in rig.events]


def test_a_release_that_cannot_serve_gives_way_to_the_old_one(rig: Rig, bundles: dict[str, Bundle]) -> None:
    def fail_new(release: Release | None) -> None:
        if release is not None and release.bundle.path.name == id_of(bundles["new"]):
            raise RuntimeError("no memory for its head")

    rig.on_serve = fail_new
    assert "no memory" in rig.ends(bundles["new"])
    wait_for(lambda: rig.current() == "old", DEADLINE_S)


def test_a_provisional_release_that_fails_gives_way_to_the_old_one(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    with rig_on(tmp_path, bundles, watch_s=600.0) as rig:
        rig.updater.boot()
        for name in ("old", "new"):
            rig.updater.start(desired(bundles[name]))
            if name == "old":
                wait_for(lambda: rig.updater.confirm(id_of(bundles["old"])), DEADLINE_S)
                rig.reaches(bundles["old"], S.COMMITTED)
        wait_for(lambda: rig.updater.fail(id_of(bundles["new"]), "3 frames in a row failed"), DEADLINE_S)
        rig.reaches(bundles["new"], S.ROLLED_BACK)
        assert rig.updater.status().reason == "3 frames in a row failed"
        wait_for(lambda: rig.served == ["old", "new", "old"], DEADLINE_S)
        wait_for(lambda: rig.current() == "old", DEADLINE_S)  # the link follows what serves


def test_without_an_earlier_release_the_settings_bundle_serves_again(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    with rig_on(tmp_path, bundles, watch_s=600.0) as rig:
        rig.updater.boot()
        rig.updater.start(desired(bundles["new"]))
        wait_for(lambda: rig.updater.fail(id_of(bundles["new"]), "it crashed"), DEADLINE_S)
        wait_for(lambda: rig.served == ["new", None], DEADLINE_S)
        assert rig.current() is None


def test_another_channels_assignment_is_not_for_us(rig: Rig, bundles: dict[str, Bundle]) -> None:
    rig.updater.start(desired(bundles["new"], channel="other"))
    rig.install(bundles["newer"])
    assert rig.fetched == ["old", "newer"]


def test_another_assignment_ends_a_download(rig: Rig, bundles: dict[str, Bundle]) -> None:
    began = threading.Event()

    def wait_for_stop(stop: threading.Event) -> None:
        if rig.fetched[-1] == "new":
            began.set()
            assert stop.wait(DEADLINE_S)

    rig.before_fetch = wait_for_stop
    rig.updater.start(desired(bundles["new"]))
    assert began.wait(DEADLINE_S)
    rig.updater.start(desired(bundles["newer"]))
    rig.reaches(bundles["newer"], S.COMMITTED)
    assert rig.served == ["newer"]
    assert ("new", S.ROLLED_BACK, "release 'newer' was assigned instead") in rig.events


def test_assigning_what_serves_ends_another_update(rig: Rig, bundles: dict[str, Bundle]) -> None:
    began = threading.Event()

    def wait_for_stop(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(DEADLINE_S)

    rig.before_fetch = wait_for_stop
    rig.updater.start(desired(bundles["new"]))
    assert began.wait(DEADLINE_S)
    rig.updater.start(desired(bundles["old"]))
    rig.reaches(bundles["new"], S.ROLLED_BACK)
    assert rig.served == []


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_what_gave_way_while_it_was_watched_is_taken_when_it_is_assigned_again(
    tmp_path: Path, bundles: dict[str, Bundle], restart: bool
) -> None:
    """A rollout is halted, resumed before the devices committed what they were to go back to, and halted again."""
    with rig_on(tmp_path, bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        rig.install(bundles["new"])
    with rig_on(tmp_path, bundles, watch_s=DEADLINE_S) as rig:
        rig.updater.boot()
        rig.updater.start(desired(bundles["old"]))
        rig.reaches(bundles["old"], S.PROVISIONAL)
        rig.updater.start(desired(bundles["new"]))
        rig.reaches(bundles["old"], S.ROLLED_BACK)
        wait_for(lambda: rig.current() == "new", DEADLINE_S)
        if not restart:
            takes_it_again(rig, bundles["old"])
    if restart:
        with rig_on(tmp_path, bundles, watch_s=DEADLINE_S) as rig:
            rig.updater.boot()
            takes_it_again(rig, bundles["old"])


def takes_it_again(rig: Rig, bundle: Bundle) -> None:
    rig.updater.start(desired(bundle))
    assert rig.updater.pending(desired(bundle)) or rig.updater.status().state is not S.ROLLED_BACK
    rig.reaches(bundle, S.PROVISIONAL)
    wait_for(lambda: rig.current() == bundle.path.name, DEADLINE_S)
    assert rig.updater.confirm(id_of(bundle))
    rig.reaches(bundle, S.COMMITTED)


def test_what_gave_way_after_it_was_committed_is_taken_when_it_is_assigned_again(
    rig: Rig, bundles: dict[str, Bundle]
) -> None:
    for name in ("new", "old", "new", "old"):
        rig.install(bundles[name])
        assert rig.current() == name


def test_a_download_that_gave_way_is_taken_up_when_it_is_assigned_again(
    rig: Rig, bundles: dict[str, Bundle]
) -> None:
    began = threading.Event()

    def wait_for_stop(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(DEADLINE_S)

    rig.before_fetch = wait_for_stop
    rig.updater.start(desired(bundles["new"]))
    assert began.wait(DEADLINE_S)
    rig.updater.start(desired(bundles["old"]))
    rig.reaches(bundles["new"], S.ROLLED_BACK)
    rig.before_fetch = lambda _stop: None
    rig.install(bundles["new"])


def test_a_long_name_leaves_room_to_say_that_it_was_assigned_instead(rig: Rig, bundles: dict[str, Bundle]) -> None:
    began = threading.Event()

    def wait_for_stop(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(DEADLINE_S)

    rig.before_fetch = wait_for_stop
    rig.updater.start(desired(bundles["new"]))
    assert began.wait(DEADLINE_S)
    other = desired(bundles["old"])
    other = replace(other, release=replace(other.release, name="\x01" * MAX_TEXT))
    rig.updater.start(other)
    rig.reaches(bundles["new"], S.ROLLED_BACK)
    rig.before_fetch = lambda _stop: None
    rig.install(bundles["new"])


def test_a_full_disk_is_waited_for(rig: Rig, bundles: dict[str, Bundle]) -> None:
    tries: list[Path] = []

    def full_at_first(slot: Path) -> None:
        tries.append(slot)
        if len(tries) < 3:
            raise StoreFull("no space for chunks", hint="Free some.")

    rig.after_fetch = full_at_first
    rig.install(bundles["new"])
    assert len(tries) == 3
    assert rig.waits == ["no space for chunks"] * 2
    assert [state for _, state, _ in rig.events] == ALL_STEPS


# -- crashes


def update_and_die(folder: Path, bundle_folder: Path, die_at: str, _tell: object) -> None:
    bundles = {name: Bundle.open(bundle_folder / name) for name in ("old", "new")}

    def step(name: str) -> None:
        if name == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with rig_on(folder, bundles) as rig:
        rig.on_event = lambda event: step(f"told {event.state.value}")
        rig.before_fetch = lambda _stop: step("before fetch")
        rig.after_fetch = lambda _slot: step("after fetch")
        rig.on_serve = lambda release: step(f"serving {rig.name_of(release)}")
        rig.on_records = lambda: step("carried")
        rig.updater.boot()
        rig.updater.start(desired(bundles["new"]))
        rig.reaches(bundles["new"], S.COMMITTED)


_POINTS = [
    "told downloading",
    "before fetch",
    "after fetch",
    "told verified",
    "told candidate",
    "carried",
    "told provisional",
    "serving new",
    "told committed",
]


@pytest.mark.parametrize("point", _POINTS)
def test_an_update_killed_at_any_step_goes_on_from_there(
    tmp_path: Path, bundles: dict[str, Bundle], point: str
) -> None:
    with rig_on(tmp_path, bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = label_some(rig.store, bundles["old"], count=3)
    child = Doomed(update_and_die, tmp_path, bundles["new"].path.parent, point)
    assert child.join() == -signal.SIGKILL
    with rig_on(tmp_path, bundles) as rig:
        assert rig.updater.boot()
        assert rig.served == (["new"] if point in _POINTS[6:] else ["old"]), "something serves at once"
        rig.reaches(bundles["new"], S.COMMITTED)
        assert rig.current() == "new"
        assert rig.slots() == {"old", "new"}
        assert Learner(bundles["new"], None, rig.store).status().own_labels == len(ids)
        codes = [r for r in rig.store.log.records() if isinstance(r.entry.body, CodeRecord)]
        assert len(codes) == 2 * len(ids), "each label once in each space"


def test_a_release_that_the_agent_does_not_survive_is_rolled_back(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    """As if the agent crashed soon after each start: the release never gets committed."""
    with rig_on(tmp_path, bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
    with rig_on(tmp_path, bundles, watch_s=600.0) as rig:
        rig.updater.boot()
        rig.updater.start(desired(bundles["new"]))
        wait_for(lambda: rig.served == ["old", "new"], DEADLINE_S)
    for _ in range(MAX_STARTS - 1):
        with rig_on(tmp_path, bundles, watch_s=600.0) as rig:
            assert rig.updater.boot()
            assert rig.served == ["new"]
    with rig_on(tmp_path, bundles, watch_s=600.0) as rig:
        assert rig.updater.boot()
        assert rig.served == ["old"]
        assert rig.current() == "old"
        assert rig.updater.status().state is S.ROLLED_BACK
        assert f"start {MAX_STARTS} times" in rig.updater.status().reason


def test_a_release_damaged_on_disk_gives_way_and_is_fetched_anew(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    with rig_on(tmp_path, bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        rig.install(bundles["new"])
    flip_a_byte(tmp_path / "slots" / id_of(bundles["new"]))
    with rig_on(tmp_path, bundles) as rig:
        assert rig.updater.boot()
        assert rig.served == ["old"]
        rig.install(bundles["new"])
        assert rig.served == ["old", "new"]


def test_rubbish_in_the_slots_is_cleared_away_at_the_start(tmp_path: Path, bundles: dict[str, Bundle]) -> None:
    with rig_on(tmp_path, bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
    for stray in (f"{'a' * 64}.trash", "b" * 64):
        (tmp_path / "slots" / stray).mkdir()
        (tmp_path / "slots" / stray / "file").write_text("left by a crash")
    with rig_on(tmp_path, bundles) as rig:
        rig.updater.boot()
        assert rig.slots() == {"old"}


# -- over a real broker


@pytest.mark.broker
def test_a_published_release_comes_into_service_though_the_broker_is_killed(
    mosquitto: Mosquitto, tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    settings = MqttSettings(port=mosquitto.port)
    with serving(tmp_path / "fleet", settings) as fleet, rig_on(tmp_path / "data", bundles) as rig:
        fetcher = ChunkFetcher(settings, "line-1", "default", tmp_path / "data" / "chunks")
        assignment = publish(fleet, bundles["new"])
        rig.fetcher = fetcher.fetch
        rig.names[assignment.release.release_id] = "new"
        rig.updater.boot()
        mosquitto.kill()
        rig.updater.start(assignment)
        wait_for(lambda: rig.updater.status().state is S.DOWNLOADING, DEADLINE_S)
        mosquitto.start()
        release_id = assignment.release.release_id
        assert rig.updater.wait_until(release_id, S.COMMITTED, 2 * DEADLINE_S), rig.updater.status()
        assert rig.served == ["new"]
        slot = (tmp_path / "data" / "current").resolve()
        assert slot.name == assignment.release.release_id
        assert Bundle.open(slot).digest() == bundles["new"].digest()
        assert rig.updater.status().done_bytes == assignment.release.size_bytes


@pytest.mark.broker
def test_what_a_device_tells_a_broker_that_nobody_listens_to_reaches_the_fleet_when_it_is_back(
    mosquitto: Mosquitto, tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    """A broker that was restarted knows no session of the service, and acknowledges all the same."""
    settings = MqttSettings(port=mosquitto.port)
    go = threading.Event()

    def fetch(_ref: ReleaseRef, target: Path, **_: object) -> object:
        assert go.wait(DEADLINE_S)
        return shutil.copytree(bundles["new"].path, target)

    def state() -> DeviceState:
        return DeviceState(device="line-1", channel="default", online=True)

    def stands(fleet: FleetStore) -> UpdateState | None:
        with fleet.read() as ledger:
            return {each.device: each.state for each in ledger.assignments(1)}.get("line-1")

    heard: list[UpdateState] = []
    ear = MqttSession(
        settings, "ear", on_message=lambda m: heard.append(decode_json(m.payload, UpdateEvent).state)
    )
    with rig_on(tmp_path / "data", bundles, fetcher=fetch) as rig, contextlib.closing(ear):
        sync = Sync(
            settings,
            rig.store,
            "default",
            on_records=lambda _records: None,
            on_desired=rig.updater.start,
            state=state,
            on_online=rig.updater.say_again,
        )
        rig.on_event = sync.publish_event
        rig.updater.boot()
        sync.start()
        with contextlib.ExitStack() as ends:
            ends.callback(sync.stop)
            with serving(tmp_path / "fleet", settings) as fleet:
                rig.names[fleet.publish(bundles["new"], channel="default").ref.release_id] = "new"
                wait_for(lambda: stands(fleet) is S.DOWNLOADING, DEADLINE_S)
            mosquitto.kill()
            wait_for(lambda: not sync.status().connected, DEADLINE_S)
            mosquitto.start()
            wait_for(lambda: sync.status().connected, DEADLINE_S)
            ear.subscribe([Topics(settings.prefix).up_event("line-1")])
            ear.connect()
            go.set()
            wait_for(lambda: heard[-1:] == [S.COMMITTED], DEADLINE_S)
            with serving(tmp_path / "fleet", settings) as fleet:
                wait_for(lambda: stands(fleet) is S.COMMITTED, DEADLINE_S)


def publish(fleet: FleetStore, bundle: Bundle) -> Desired:
    """Publish a bundle and return what the device is assigned."""
    fleet.publish(bundle, channel="default")
    with fleet.write() as ledger:
        device, _ = ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=0.0)
        ((_, assignment),) = ledger.desired([device])
    return assignment
