"""Releases onto this device: fetched, verified, tried, taken into service, committed, or rolled back.

    downloading -> verified -> candidate -> provisional -> committed
         any of these ---------------------------------> rolled back, with a reason

Each release has a slot, `slots/<release id>/`, which is a bundle directory. Rules this module keeps:

- The store says where an update stands; each step is on disk before the next begins. After a crash or a power cut
  at any point the next start goes on from there; repeating a step does no harm.
- The release that serves goes on serving until the candidate has been verified, has computed the golden inputs
  right on this very device, and knows this device's own labels as well as the old one.
- `current` is a link for people and scripts, swapped by rename. It follows the store, never the other way round.
- A release that does not stay up is rolled back: by a failure reported while it is provisional, or by the agent
  starting `MAX_STARTS` times with it without committing it.
- A deadline counts as it was last heard. One that passes while the fleet is away, or before it was heard since the
  start, ends nothing: the fleet has gone on without this device, and may have lifted it.
- A code of a picture labelled earlier is said when the store has the fleet's labels as far as they are known, and
  not before: it may have been erased for good while this device was away. An update waits for that.
- What may help to try again (a full disk) is tried again; what will not, is rolled back at once, and not tried
  again for the same assignment. A release that only gave way to another assignment did not fail: assigned once
  more, as by a rollout that is halted, resumed and halted again, it is taken once more.

How chunks are fetched, a runtime opened and a release served are others' business; they come in as callables.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from device_agent.candidate import Carried, carry_labels, compare, compare_masters
from device_agent.courtesy import aside, breathe
from device_agent.database import disk
from device_agent.heads_and_updates import MAY_SERVE, UpdateRow, in_service
from device_agent.pipeline import Pipeline
from device_agent.runtime import Runtime
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.durable import sync_path
from sdk.errors import BundleError, HeadwayError, InferenceFailed, RemoteWireError
from sdk.head import Head
from sdk.reason import Reason
from sdk.wire import (
    UPDATE_STEPS,
    Desired,
    ReleaseRef,
    UpdateEvent,
    UpdateState,
    decode_json,
    encode_json,
)

MAX_STARTS: Final = 3
"""Starts of the agent with a provisional release: the first may be the power cut's fault, the third is not."""
RETRY_S: Final = 5.0
RETRY_MAX_S: Final = 300.0
WATCH_S: Final = 10.0
"""A hundred frames of a usual line. What breaks later is the fleet's to see, and to roll back for all."""
NICE: Final = 10
"""By how much the work on a candidate gives way, as a trial does: the line's frames go on meanwhile."""
BEHIND_S: Final = 1.0
"""Wait for the rest of the union before own labels are looked at again: pages of it follow one another."""
MAX_REASON: Final = 500  # what an `UpdateEvent` carries
_BEHIND: Final = "waits until the store has the rest of the fleet's labels"
_SUPERSEDED: Final = re.compile(r"release (['\"]).*\1 was assigned instead")
"""Why an attempt ended whose release did not fail, as it is in the store; `_superseded_by` says it."""
_SUPERSEDED_NAME: Final = 40  # characters; escaped, they leave room for the rest within `MAX_REASON`

log = logging.getLogger(__name__)


class Release(NamedTuple):
    """A release that may serve. `release_id` names its slot and what the fleet calls it."""

    release_id: str
    bundle: Bundle
    runtime: Runtime


class Fetch(Protocol):
    """`sdk.fetch.ChunkFetcher.fetch`: bring a release's files into a directory, which appears whole."""

    def __call__(
        self,
        ref: ReleaseRef,
        target: Path,
        *,
        progress: Callable[[int, int], None] = ...,
        stop: threading.Event | None = None,
    ) -> object | None:
        """Return None when stopped, anything else when the directory is there."""


@dataclass(frozen=True)
class UpdateStatus:
    """How the newest update stands; all empty where there was none.

    Attributes:
        release_id: Which release.
        name: What people call it.
        state: Where it stands.
        reason: Why it was rolled back.
        done_bytes, total_bytes: Of its download.
        fault: What it waits for, where it is trying again.
    """

    release_id: str | None = None
    name: str = ""
    state: UpdateState | None = None
    reason: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    fault: str | None = None


class _Unfit(HeadwayError):
    """The candidate may not serve."""


class Updater:
    """Brings assigned releases onto this device. Call `boot` once, `start` per assignment, `stop` at the end.

    Args:
        store: Where an update stands, and this device's labels.
        folder: The agent's data folder: `slots/` and `current` are in it.
        channel: Assignments for other channels are not for us.
        precision: Which precision of a release runs here; the release's first by default.
        fetch: Brings a release's files into a directory.
        admit: Returns a runtime for a bundle that has computed its golden inputs right on this device.
        serve: Lets a release take over, or with None what served before there were releases.
        on_event: Told each state, after it is on disk.
        on_waiting: Told that it waits to try again: the status has what for.
        in_touch: Says whether the fleet would be heard now.
        on_records: Told that code records were written to the log: the outbox and the learner have news.
        authorize: Raises where an assigned release may not be taken (`device_agent.trust`).
        incumbent: What serves where no release does: the bundle that the settings name.
        masters: Folder of the station's master parts, which judge a candidate too; None where it keeps none.
        confirmed: The head that serves in a feature space, for that comparison; None where it is not known.
        in_use: What decides now, whoever brought it; by default the release that an update brought.
        caught_up: Says whether the store has all of the union that is known of; None is that nobody has said yet.
            Before that no code of a sample labelled earlier is said, since it may be erased for good. Where no
            update brought what serves, nobody need have said: the fleet may be away.
        retry_s: First wait before trying again what may help to try again; doubles up to `RETRY_MAX_S`.
        watch_s: A provisional release is committed when nothing has failed for this long.
        clock: Seconds since 1970, for deadlines.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        channel: str,
        precision: str | None,
        fetch: Fetch,
        admit: Callable[[Bundle], Runtime],
        serve: Callable[[Release | None], None],
        on_event: Callable[[UpdateEvent], None],
        on_waiting: Callable[[], None] = lambda: None,
        in_touch: Callable[[], bool] = lambda: True,
        on_records: Callable[[], None] = lambda: None,
        authorize: Callable[[Desired], None] = lambda _desired: None,
        incumbent: Callable[[], Bundle | None] = lambda: None,
        masters: Path | None = None,
        confirmed: Callable[[str], Head | None] = lambda _space: None,
        in_use: Callable[[], Pipeline | None] | None = None,
        caught_up: Callable[[], bool | None] = lambda: True,
        retry_s: float = RETRY_S,
        watch_s: float = WATCH_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._slots = folder / "slots"
        self._current = folder / "current"
        self._channel = channel
        self._precision = precision
        self._fetch = fetch
        self._admit = admit
        self._serve = serve
        self._on_event = on_event
        self._on_waiting = on_waiting
        self._in_touch = in_touch
        self._on_records = on_records
        self._authorize = authorize
        self._incumbent = incumbent
        self._masters = masters
        self._confirmed = confirmed
        self._in_use = in_use or self._served
        self._caught_up = caught_up
        self._retry_s = retry_s
        self._watch_s = watch_s
        self._clock = clock
        self._telling = threading.Lock()  # a step and the word of it are one: no older word follows a newer one
        # Guards what follows; notified on an assignment, a verdict, a stop.
        self._changed = threading.Condition()
        self._assigned: Desired | None = None
        self._unheard = True  # nothing was assigned since the start, or since a deadline passed out of touch
        self._halt = threading.Event()  # ends the step that runs: another assignment, or the end
        self._stopping = False
        self._verdict: str | None = None  # "" is well
        self._again: str | None = None  # a release found damaged, which may be fetched anew
        self._lacking: float | None = 0.0  # when to look for own labels without a code; None: there are none
        self._lost = frozenset[bytes]()  # own labelled samples that get none in the release that serves
        self._serving: Release | None = None
        self._status = UpdateStatus()
        self._thread = threading.Thread(target=self._run, name="update", daemon=True)

    # -- what the agent calls ------------------------------------------------------------------------------------

    def boot(self) -> bool:
        """Serve the release that was in service, go on with an unfinished update; return whether one serves.

        Raises:
            StoreFull: the disk takes no writes.
        """
        with disk(self._slots):
            self._slots.mkdir(parents=True, exist_ok=True)
            for stray in self._slots.glob("*.trash"):
                shutil.rmtree(stray)
        serves = self._serve_newest()
        newest = self._newest()
        if newest is not None:
            self._show(newest)
            self._tidy(newest.release_id)
        self._thread.start()
        return serves

    def start(self, desired: Desired) -> None:
        """Begin an assigned update in the background. The same assignment any number of times is one update.

        Where it is the newest update already, its state is told once more. The fleet assigns again when it comes
        back to its broker, and may have missed what was told meanwhile: the broker acknowledges what nobody hears.
        """
        if desired.channel != self._channel:
            log.warning("an assignment for channel %s is not for this device", desired.channel)
            return
        with self._changed:
            self._assigned, self._unheard = desired, False
            newest = self._newest()
            other = newest is not None and newest.release_id != desired.release.release_id
            other_job = newest is not None and newest.job != encode_json(desired)
            another_deadline = other_job and newest is not None and newest.state is UpdateState.DOWNLOADING
            # What it waits for may have come with this.
            if other or another_deadline or self._status.fault is not None:
                self._halt.set()
            begins_anew = self._is_new(desired, newest) and not self._goes_on(newest)
            self._changed.notify_all()
        if not other and not begins_anew:
            self._say_newest()

    def ask_again(self, release_id: str) -> None:
        """Somebody has brought this release: that it was rolled back is no reason not to `start` it.

        A download of it begins again with what it has, and looks first where it was brought.
        """
        with self._changed:
            newest = self._newest()
            if newest is None or newest.release_id != release_id:
                return
            if newest.state is UpdateState.ROLLED_BACK:
                self._again = release_id
            elif newest.state is UpdateState.DOWNLOADING:
                self._halt.set()

    def look_for_lacking(self) -> None:
        """Say, in the background, the codes that own labels lack in the feature space of the release that serves.

        To be called when codes were erased, and when a release serves that no update brought.
        """
        with self._changed:
            self._lacking = 0.0
            self._changed.notify_all()

    @property
    def lost(self) -> frozenset[bytes]:
        """Samples labelled here that got no code of the release that serves, for want of their pictures."""
        return self._lost

    def pending(self, desired: Desired) -> bool:
        """Return whether this is the assignment in force, and its release's files are not all here yet."""
        with self._changed:
            newest = self._newest()
            if self._again == desired.release.release_id and self._assigned == desired:
                return True
            if newest is not None and _answers(newest, desired):
                return newest.state is UpdateState.DOWNLOADING
            return self._assigned == desired and self._is_new(desired, newest)

    def confirm(self, release_id: str) -> bool:
        """This release does its work: commit it, if it is provisional. Return whether it serves at all."""
        return self._give(release_id, "")

    def fail(self, release_id: str, reason: str) -> bool:
        """This release does not do its work: roll it back, if it is provisional. Returns as `confirm`."""
        return self._give(release_id, reason or "the agent reported a failure")

    def _give(self, release_id: str, verdict: str) -> bool:
        with self._changed:
            if self._serving is None or self._serving.release_id != release_id:
                return False
            self._verdict = self._verdict or verdict  # a failure stays one
            self._changed.notify_all()
            return True

    def say_again(self) -> None:
        """Tell the newest state once more: the broker may have lost it.

        But not a rollback: whoever resumed the rollout meanwhile, or published the release again, has forgiven it,
        and would take this for the next. The assignment tells, and `start` answers it.
        """
        newest = self._newest()
        if newest is not None and newest.state is not UpdateState.ROLLED_BACK:
            self._say_newest()

    def _say_newest(self) -> None:
        with self._telling:
            newest = self._newest()
            if newest is not None:
                self._tell(newest)

    def status(self) -> UpdateStatus:
        """Return how the newest update stands."""
        with self._changed:
            return self._status

    def wait_until(self, release_id: str, state: UpdateState, timeout_s: float) -> bool:
        """Wait until the newest update is of this release and in this state; return whether it came to that."""

        def there() -> bool:
            return (self._status.release_id, self._status.state) == (release_id, state)

        with self._changed:
            return self._changed.wait_for(there, timeout_s)

    def stop(self) -> None:
        """End the thread; what is not finished goes on at the next start."""
        with self._changed:
            self._stopping = True
            self._halt.set()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    # -- which release serves ------------------------------------------------------------------------------------

    def _newest(self) -> UpdateRow | None:
        rows = self._store.updates.newest(1)
        return rows[0] if rows else None

    def _in_service(self) -> Iterator[UpdateRow]:
        return in_service(self._store.updates.newest(MAY_SERVE))

    def _serve_newest(self) -> bool:
        """Serve the newest release that can; roll back those that cannot. Return whether one serves."""
        for row in self._in_service():
            try:
                if row.state is UpdateState.PROVISIONAL:
                    row = self._count_start(row)  # noqa: PLW2901
                release = self._open(row.release_id)
                self._take_over(release)
            except (BundleError, InferenceFailed, _Unfit) as error:
                if isinstance(error, BundleError) and row.state is UpdateState.COMMITTED:
                    self._again = row.release_id
                self._note(row, UpdateState.ROLLED_BACK, str(error))
                self._discard(row.release_id)
                continue
            return True
        self._point(None)
        return False

    def _count_start(self, row: UpdateRow) -> UpdateRow:
        if row.starts >= MAX_STARTS:
            raise _Unfit(
                f"the agent had to start {row.starts} times with it", hint="Look at the agent's log of that time."
            )
        row = replace(row, starts=row.starts + 1)
        self._store.updates.put(row)
        return row

    def _open(self, release_id: str) -> Release:
        bundle = Bundle.open(self._slots / release_id)
        return Release(release_id, bundle, self._admit(bundle))

    def _take_over(self, release: Release) -> None:
        self._serve(release)
        with self._changed:
            self._verdict = None
            self._serving = release
        self._point(release.release_id)

    def _point(self, release_id: str | None) -> None:
        """Let `current` lead to a slot, or nowhere."""
        with disk(self._current):
            draft = self._current.with_name("current.new")
            draft.unlink(missing_ok=True)
            if release_id is None:
                self._current.unlink(missing_ok=True)
            else:
                draft.symlink_to(Path(self._slots.name) / release_id)
                draft.replace(self._current)
            sync_path(self._current.parent)

    def _discard(self, release_id: str) -> None:
        slot = self._slots / release_id
        if slot.is_dir():
            with disk(self._slots):
                # By rename first: a slot is whole or not there.
                trash = slot.with_name(f"{release_id}.trash")
                shutil.rmtree(trash, ignore_errors=True)
                slot.rename(trash)
                shutil.rmtree(trash)

    def _tidy(self, keep: str) -> None:
        """Keep the slot in service and the one before it; they are what a rollback needs."""
        kept = [row.release_id for row in self._in_service()][:2]
        for slot in self._slots.iterdir():
            if slot.name not in {*kept, keep}:
                self._discard(slot.name)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = self._retry_s
        while not self._stopping:
            try:
                row = self._next()
                if row is not None:
                    self._attempt(row)
                retry_s = self._retry_s
                continue
            except InterruptedError:
                continue  # `_next` knows why
            except HeadwayError as error:
                fault = str(error)
            except Exception as error:  # the thread's outermost loop: the next assignment must be heard
                log.exception("an update failed")
                fault = f"{type(error).__name__}: {error}"
            self._set(fault=fault)
            self._on_waiting()
            log.warning("update waits %g s: %s", retry_s, fault)
            self._halt.wait(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    def _attempt(self, row: UpdateRow) -> None:
        """Take an update to its end, good or bad.

        Raises:
            HeadwayError: it may help to try again.
            InterruptedError: another assignment came, or the end.
        """
        try:
            self._walk(row)
        except InterruptedError:
            raise
        except HeadwayError as error:
            if error.retryable:
                raise
            self._roll_back(row, str(error))
        except Exception as error:  # a candidate may fail in any way; the release that serves must go on
            log.exception("release %s failed", row.release_id[:12])
            self._roll_back(row, f"{type(error).__name__}: {error}")

    def _next(self) -> UpdateRow | None:
        """Return the update to work on, waiting for one; None at the end."""
        while True:
            self._say_lacking()
            with self._changed:
                if self._stopping:
                    return None
                self._halt.clear()
                desired, row = self._assigned, self._newest()
                unfinished = self._goes_on(row)
                other = desired is not None and row is not None and row.release_id != desired.release.release_id
                if row is not None and unfinished and not other:
                    job = row.job if desired is None else encode_json(desired)
                    if job != row.job:
                        row = replace(row, job=job)
                        self._store.updates.put(row)
                    if row.state is not UpdateState.PROVISIONAL and self._must_hear(_deadline(row)):
                        self._changed.wait()
                        continue
                    return row
                if desired is None or not (unfinished or self._is_new(desired, row)):
                    looks = None if self._in_use() is None else self._lacking
                    self._changed.wait(None if looks is None else max(0.0, looks - time.monotonic()))
                    continue
            if row is not None and unfinished:
                self._roll_back(row, _superseded_by(desired))
                continue
            with self._telling:
                row = self._store.updates.begin(desired.release.release_id, encode_json(desired))
                self._tell(row)
            self._again = None
            self._show(row)
            return row

    def _say_lacking(self) -> None:
        """Say the codes that own labels lack in the release that serves, where an update does not do it anyway.

        A fleet may have erased them while no release in use had their space, and an older agent did not notice. Or
        somebody has named another release in the settings.
        """
        with self._changed:
            pipeline, due = self._in_use(), self._lacking
            if due is None or time.monotonic() < due or pipeline is None or self._goes_on(self._newest()):
                return
            found = self._caught_up()
            if not (found or (found is None and self._serving is None)):
                self._lacking = time.monotonic() + BEHIND_S
                return
            self._lacking = None
        try:
            self._lost = frozenset()
            if self._store.samples.labelled_without_code(pipeline.space):
                self._lost = aside(NICE, lambda: self._carry(pipeline)).lost
        except InterruptedError:
            self._look_again(self._retry_s)  # whoever interrupted it comes first
        except Exception as error:  # what serves goes on without them, and the next assignment must be heard
            log.warning("codes are not said anew yet: %s", error, exc_info=not isinstance(error, HeadwayError))
            self._look_again(RETRY_MAX_S)

    def _look_again(self, after_s: float) -> None:
        with self._changed:
            if self._lacking is None:
                self._lacking = time.monotonic() + after_s

    def _served(self) -> Pipeline | None:
        return None if self._serving is None else self._pipeline(self._serving)

    def _pipeline(self, release: Release) -> Pipeline:
        return Pipeline(release.bundle, self._precision, release.runtime)

    @staticmethod
    def _goes_on(newest: UpdateRow | None) -> bool:
        """Return whether an update has begun and not ended."""
        return newest is not None and newest.state not in (UpdateState.COMMITTED, UpdateState.ROLLED_BACK)

    def _is_new(self, desired: Desired, newest: UpdateRow | None) -> bool:
        release_id = desired.release.release_id
        if release_id == self._again:
            return True
        if self._serving is not None and self._serving.release_id == release_id:
            return False
        return newest is None or not _answers(newest, desired)

    def _walk(self, row: UpdateRow) -> None:
        """Take an update from where it stands to the end.

        Raises:
            HeadwayError: it cannot go on; retryable or not.
            InterruptedError: another assignment came, or the end.
        """
        desired = _job(row)
        release: Release | None = None
        if row.state is not UpdateState.PROVISIONAL:  # before a byte is fetched, and after a restart again
            self._authorize(desired)
        if row.state is UpdateState.DOWNLOADING:
            self._download(desired)
            row = self._note(row, UpdateState.VERIFIED)
        if row.state is UpdateState.VERIFIED:
            row = self._note(row, UpdateState.CANDIDATE)
        if row.state is UpdateState.CANDIDATE:
            self._check_deadline(desired)
            release = candidate = self._open(row.release_id)
            self._catch_up(desired, self._pipeline(candidate).space)
            aside(NICE, lambda: self._examine(candidate))
            row = self._note(row, UpdateState.PROVISIONAL)
        if self._serving is None or self._serving.release_id != row.release_id:
            row = self._count_start(row)
            self._take_over(release or self._open(row.release_id))
        serving = self._serving
        assert serving is not None
        # Labels that came while the candidate was examined.
        if self._caught_up():
            self._lost = aside(NICE, lambda: self._carry(self._pipeline(serving))).lost
        else:  # once it is committed: what serves must not wait for a fleet that is away
            self._look_again(0.0)
        self._watch()
        row = self._note(row, UpdateState.COMMITTED)
        self._tidy(row.release_id)

    def _download(self, desired: Desired) -> None:
        slot = self._slots / desired.release.release_id
        if slot.is_dir():
            try:
                Bundle.open(slot)
            except BundleError:
                self._discard(slot.name)  # left by a power cut, or damaged since
        self._check_deadline(desired)
        timer = None
        if desired.deadline_utc is not None:
            timer = threading.Timer(max(0.0, desired.deadline_utc - self._clock()), self._halt.set)
            timer.daemon = True
            timer.start()
        try:
            done = self._fetch(desired.release, slot, progress=self._progress, stop=self._halt)
        finally:
            if timer is not None:
                timer.cancel()
        if done is None:
            self._check_deadline(desired)
            raise InterruptedError("the download was stopped")
        with disk(slot):
            sync_path(self._slots)
        Bundle.open(slot)

    def _check_deadline(self, desired: Desired) -> None:
        assigned = self._assigned
        if assigned is not None and assigned.release.release_id == desired.release.release_id:
            desired = assigned  # with the deadline as it is now
        if self._must_hear(desired.deadline_utc):
            raise InterruptedError("its deadline has passed, and nobody said whether it still counts")
        if self._is_late(desired.deadline_utc):
            raise _Unfit("its deadline has passed", hint="Assign it again with a later one.")

    def _catch_up(self, desired: Desired, space: str) -> None:
        """Wait for the rest of the union, where own labels are to be said in a candidate's feature space.

        A device that was away knows nothing yet of what was erased meanwhile, and would bring it back.

        Raises:
            _Unfit, InterruptedError: as `_check_deadline`; or another assignment came, or the end.
        """
        while self._store.samples.labelled_without_code(space) and not self._caught_up():
            if self._status.fault != _BEHIND:
                self._set(fault=_BEHIND)
                self._on_waiting()
                log.info("release %s: %s", desired.release.release_id[:12], _BEHIND)
            if self._halt.wait(BEHIND_S):
                raise InterruptedError("another assignment came, or the end")
            self._check_deadline(desired)
        if self._status.fault == _BEHIND:
            self._set(fault=None)
            self._on_waiting()

    def _is_late(self, deadline_utc: float | None) -> bool:
        return deadline_utc is not None and self._clock() >= deadline_utc

    def _must_hear(self, deadline_utc: float | None) -> bool:
        """Return whether a deadline has passed of which only the fleet can say whether it still counts."""
        if not self._is_late(deadline_utc):
            return False
        with self._changed:
            self._unheard = self._unheard or not self._in_touch()
            return self._unheard

    def _examine(self, release: Release) -> None:
        """Carry the device's labels into the candidate's space, and compare.

        Raises:
            _Unfit: it knows them less well than the release that serves.
        """
        self._carry(self._pipeline(release))
        old = self._incumbent() if self._serving is None else self._serving.bundle
        if old is None:
            return
        verdict = compare(self._store, (old, self._precision), (release.bundle, self._precision), self._is_halted)
        if verdict is not None and not verdict.keep:
            raise _Unfit(verdict.reason, hint="Export a release that has learned this device's labels.")
        missed = self._missed_masters(release)
        if missed is not None:
            raise _Unfit(missed.sentence(), hint="Export a release that tells this station's master parts.")

    def _missed_masters(self, release: Release) -> Reason | None:
        if self._masters is None or self._serving is None:
            return None
        old, new = ((each.bundle, self._pipeline(each)) for each in (self._serving, release))
        confirmed = self._confirmed(old[1].space)
        return compare_masters(self._store, self._masters, old, new, self._is_halted, confirmed)

    def _carry(self, pipeline: Pipeline) -> Carried:
        carried = carry_labels(self._store, pipeline, self._is_halted)
        if carried.written:
            self._on_records()
        return carried

    def _is_halted(self) -> bool:
        """Return whether to end here; asked between steps, so it also lets frames go on."""
        breathe()
        return self._halt.is_set()

    def _watch(self) -> None:
        """Return when the provisional release has proved itself.

        Raises:
            _Unfit: it has not.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._verdict is not None or self._halt.is_set(), self._watch_s)
            if self._verdict:
                raise _Unfit(self._verdict, hint="Look at the agent's log.")
            if self._verdict is None and self._halt.is_set():
                raise InterruptedError("stopped while watching")

    def _roll_back(self, row: UpdateRow, reason: str) -> None:
        stood = self._newest() or row  # the row as the walk left it
        self._note(stood, UpdateState.ROLLED_BACK, reason)
        if stood.state is UpdateState.PROVISIONAL:
            # It serves, or nobody knows how far it came: let the one before take over from the ground up.
            self._serving = None
            if not self._serve_newest():
                self._serve(None)
            self._look_again(0.0)
        self._discard(row.release_id)

    # -- saying so -----------------------------------------------------------------------------------------------

    def _note(self, row: UpdateRow, state: UpdateState, reason: str = "") -> UpdateRow:
        """Make a step durable, then tell of it."""
        if state not in UPDATE_STEPS[row.state]:
            raise ValueError(f"{row.state.value} may not become {state.value}")
        row = replace(row, state=state, reason=reason[:MAX_REASON])
        with self._telling:
            self._store.updates.put(row)
            log.info("release %s is %s %s", row.release_id[:12], state.value, reason)
            self._tell(row)
        self._show(row)
        return row

    def _tell(self, row: UpdateRow) -> None:
        self._on_event(UpdateEvent(release_id=row.release_id, state=row.state, reason=row.reason))

    def _show(self, row: UpdateRow) -> None:
        self._set(
            release_id=row.release_id,
            name=_name(row),
            state=row.state,
            reason=row.reason,
            fault=None,
        )

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        self._set(done_bytes=done_bytes, total_bytes=total_bytes)

    def _set(self, **changes: object) -> None:
        with self._changed:
            self._status = replace(self._status, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()


def _answers(row: UpdateRow, desired: Desired) -> bool:
    """Return whether this attempt is, or was, all that there is to do for an assignment."""
    superseded = row.state is UpdateState.ROLLED_BACK and _SUPERSEDED.fullmatch(row.reason) is not None
    return row.job == encode_json(desired) and not superseded


def _superseded_by(desired: Desired) -> str:
    return f"release {desired.release.name[:_SUPERSEDED_NAME]!r} was assigned instead"


def _job(row: UpdateRow) -> Desired:
    try:
        return decode_json(row.job, Desired)
    except RemoteWireError as error:
        raise _Unfit("its assignment cannot be read any more", hint="Assign it again.") from error


def _deadline(row: UpdateRow) -> float | None:
    try:
        return _job(row).deadline_utc
    except _Unfit:
        return None


def _name(row: UpdateRow) -> str:
    try:
        return _job(row).release.name
    except _Unfit:
        return row.release_id[:12]
