"""The agent: camera to station to fleet, with the page beside it. The only module that knows the others.

One frame's way is `device_agent.flow`; docs/one-frame.md follows it. Rules kept here:

- Nothing that happens to a frame or a source ends it.
- The page answers from the first moment, before there is a release and after the source has ended.
- A release changes between two frames.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from device_agent.camera import open_camera
from device_agent.camera.picture import PictureWatch
from device_agent.config import CameraSettings, ChunksTable, MetricsSettings, MqttTable, Site
from device_agent.expiry import of_another
from device_agent.flow import FAILURES_IN_A_ROW, Flow, FlowSettings, Source
from device_agent.history import History, greatest_head
from device_agent.limits import StoreLimits
from device_agent.outputs import WAITING_PARTS, LastingOutput, Outputs, open_output
from device_agent.outputs.topic import ResultTopic
from device_agent.pace import ReleaseWatch, check_pace
from device_agent.parts import Part
from device_agent.pipeline import Pipeline
from device_agent.quality import QualityWatch
from device_agent.queue import QueuePolicy
from device_agent.recipe import Recipe
from device_agent.report import (
    MqttReport,
    State,
    TriggerReport,
    UpdateReport,
    camera_report,
    fleet_faults,
    line_report,
    output_reports,
    station_state,
)
from device_agent.runtime import Runtime
from device_agent.runtime.apart import try_apart
from device_agent.runtime.choice import Measured, RuntimeChoice, best_of_each
from device_agent.runtime.engines import Engines
from device_agent.station import Station
from device_agent.stick import Inbox
from device_agent.store import Store
from device_agent.systemd import Notifier, Watchdog
from device_agent.trigger import MqttTrigger, PartLot
from device_agent.trust import Gate
from device_agent.update import Release, Updater
from sdk.bundle import Bundle
from sdk.errors import (
    BrokerError,
    BundleError,
    CameraLost,
    ConfigError,
    HeadwayError,
    NoRelease,
    StoreCorrupt,
    StoreFull,
    Unreadable,
)
from sdk.labels import CodeRecord, Record
from sdk.tensorrt_api import Library, open_library
from sdk.version import headway_version
from sdk.wire import MAX_TEXT, Desired, DeviceState, HeadState, ReleaseRef, UpdateEvent, UpdateState

if TYPE_CHECKING:
    from device_agent.metrics import Metrics
    from device_agent.sync import Sync
    from sdk.fetch import ChunkFetcher
    from sdk.http_chunks import HttpChunks

_log = logging.getLogger(__name__)

NOT_THE_RELEASES: Final = (CameraLost, ConfigError, NoRelease, StoreFull, StoreCorrupt)
"""Through no fault of the release that serves: shown like all that goes wrong, and no reason to roll it back."""

RUNNING_NAME: Final = "agent.json"
"""In the data folder while an agent runs: where its page is."""
ENGINE_WAIT_S: Final = 1800.0
"""A candidate waits so long for its TensorRT engine, while the release before it serves."""


class Agent:
    """One device, composed from its settings. Use it in a `with` block.

    Opening it takes the store's lock, binds the page's port and checks the first release, so that whatever is
    wrong with the settings is told before anything runs.

    Args:
        site: The settings.
        clock: UTC seconds, for records only.
        tensorrt: Opens TensorRT, where the settings do not rule it out.

    Raises:
        TensorRtMissing: the settings insist on it.
        ConfigError: a folder, port or file that the settings name cannot be used.
        BundleError: the bundle they name is none, or not for this device.
        DeviceError: the store is damaged, or the runtime does not compute what it should.
    """

    def __init__(
        self,
        site: Site,
        *,
        clock: Callable[[], float] = time.time,
        tensorrt: Callable[[], Library] = open_library,
    ) -> None:
        self.site = site
        self.started_utc = clock()
        self.errors = 0
        self._count_lock = threading.Lock()  # frames fail on several threads
        self._fault: str | None = None
        self._sync: Sync | None = None
        self._quality = QualityWatch()
        self._notifier = Notifier()
        self._watchdog = Watchdog(self._notifier)
        self._metrics: Metrics | None = None
        self.metrics_port: int | None = None
        self._fetcher: ChunkFetcher | None = None
        self._fetched_bytes = 0
        self._watch = ReleaseWatch(site.runtime)
        self._in_a_row = 0  # frames that failed
        self._own_bundle: Bundle | None = None
        # An update that goes on from before the last stop may take over while the first release is still chosen.
        self._serve_lock = threading.RLock()
        wanted = site.runtime.tensorrt
        self._engines = Engines(site.data_dir / "engines", library=tensorrt, only_if_faster=wanted == "auto")
        if wanted == "on":
            self._engines.require()
        with contextlib.ExitStack() as undo:
            undo.callback(self._engines.stop)
            self.sources = told_apart(
                [open_source(each, site.device, clock, site.cameras) for each in site.cameras]
            )
            self.store = Store.open(site.data_dir, site.device, clock=clock, limits=limits_of(site))
            undo.callback(self.store.close)
            # A store that was begun anew, or lost rows to a power cut, would count again from what it knows.
            self.store.heads.number_beyond(greatest_head(site.data_dir))
            self.station = Station(
                self.store,
                policy=QueuePolicy(site.queue.ask_below, site.queue.spot_check_share, site.queue.young_labels),
                on_change=self._head_changed,
                on_saved=self._log_grew,
                masters=site.part.masters,
            )
            undo.callback(self.station.close)
            self._choice = RuntimeChoice(site.data_dir, site.runtime)
            undo.callback(self._choice.close)
            self.outputs = Outputs()
            self.flow = Flow(
                self.station,
                self.sources,
                flow_settings(site),
                on_part=self._part_done,
                on_frame=self._frame_done,
                work=self._watchdog.work,
                clock=clock,
            )
            self._open_page(undo)
            self._gate = self._make_gate(clock)
            self._updater = self._make_updater()
            undo.callback(self._updater.stop)
            self._inbox = Inbox(
                site.data_dir,
                offer=self._gate.bring,
                pending=self._updater.pending,
                again=self._updater.ask_again,
            )
            self.trigger: MqttTrigger | None = None
            if site.mqtt is not None:
                self._join_fleet()
            undo.callback(self.outputs.stop)
            self._open_outputs()
            self._first_release()
            if site.metrics is not None:
                self._show_metrics(site.metrics)
            undo.pop_all()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_gate(self, clock: Callable[[], float]) -> Gate:
        trust = self.site.trust
        root = None if trust is None else trust.root
        return Gate(self.store, root, channel=self.site.channel, start=self._assigned, clock=clock)

    def _open_page(self, undo: contextlib.ExitStack) -> None:
        from device_agent.page import Access, ShiftCounter, open_book, open_page

        self._access = Access(open_book(self.site.data_dir))
        undo.callback(self._access.book.close)
        self._shift = ShiftCounter(self._access.book)
        self._server = open_page(self.site.page, self._access)
        undo.callback(self._server.stop)

    def _open_outputs(self) -> None:
        # By its time alone two runs would be one: a clock without a battery says the same at each start.
        run = f"{self.started_utc:.3f}-{secrets.token_hex(4)}"
        history = History(self.site.data_dir, self.site.history.keep_parts, run)
        self.outputs.add(history)
        self._shift.begin(run, history.behind)
        if self._sync is not None:
            self.outputs.add(ResultTopic(self._sync.publish_result))
        opened = [open_output(each, self.site.device, run) for each in self.site.output]
        lasting = {output.resumes_as for output in opened if isinstance(output, LastingOutput)}
        lacking = history.resume(lasting, newest=WAITING_PARTS)
        for output in opened:
            # Of two to one address the first has the account of it.
            kept = lacking.pop(output.resumes_as, None) if isinstance(output, LastingOutput) else None
            if kept is None or not isinstance(output, LastingOutput):
                self.outputs.add(output)
                continue
            if kept:
                _log.info("%s: %d verdicts that waited are delivered now", output.name, len(kept))
            self.outputs.add(output, kept, functools.partial(history.delivered, output.resumes_as))

    def close(self) -> None:
        """Stop everything; what is not learned or sent yet is at the next start."""
        if self._metrics is not None:
            self._metrics.close()
        if self.trigger is not None:
            self.trigger.stop()
        self.outputs.stop()
        self._server.stop()
        self._engines.stop()
        self._choice.close()
        self._inbox.stop()
        self._updater.stop()
        if self._sync is not None:
            self._sync.stop()
        self.station.close()
        self.store.close()
        self._access.book.close()
        (self.site.data_dir / RUNNING_NAME).unlink(missing_ok=True)

    @property
    def page_url(self) -> str:
        """Where the page is."""
        return self._server.url

    # -- the fleet -------------------------------------------------------------------------------------------

    @functools.cached_property
    def _misnamed(self) -> str | None:
        """Why this device does not connect to its fleet; None where it does, or has none."""
        other = None if self.site.mqtt is None else of_another(self.site.device, self.site.mqtt)
        return None if other is None else f"{other}: it does not connect to its fleet"

    def _join_fleet(self) -> None:
        """Make what moves labels and releases; nothing connects yet."""
        from device_agent.sync import Sync
        from sdk.fetch import ChunkFetcher
        from sdk.mqtt import MqttSettings

        assert self.site.mqtt is not None
        if self._misnamed is not None:
            # The line goes on. Connected it would throw the other device off, and be refused all it says.
            _log.error("%s", self._misnamed)
            return
        settings = MqttSettings(**msgspec.structs.asdict(self.site.mqtt))
        if self.site.trigger is not None and self.site.trigger.topic is not None:
            topic = self.site.trigger.topic
            self.trigger = MqttTrigger(settings, self.site.device, topic, self._trigger, self.flow.refuse)
        self._sync = Sync(
            settings,
            self.store,
            self.site.channel,
            on_records=self._records_came,
            on_desired=self._gate.desired,
            on_trust=self._gate.receive,
            check_signed=self._gate.check_signed,
            state=self._device_state,
            on_online=self._updater.say_again,
        )
        chunks = self.site.data_dir / "chunks"
        source = None if self.site.chunks is None else chunk_source(self.site.chunks, self.site.mqtt)
        self._fetcher = ChunkFetcher(settings, self.site.device, self.site.channel, chunks, source=source)

    def _assigned(self, desired: Desired) -> None:
        """An assignment that may be taken."""
        self._updater.start(desired)

    def _records_came(self, records: list[Record]) -> None:
        """Labels from elsewhere are in the store."""
        serving = self.station.serving
        if serving is not None:
            serving.learner.received(records)
        if any(isinstance(one.entry.body, CodeRecord) and one.code is None for one in records):
            self._updater.look_for_lacking()

    def _trigger(self, named: PartLot) -> None:
        self.flow.trigger(*named)

    def _log_grew(self) -> None:
        if self._sync is not None:
            self._sync.notify_outbox()

    def _head_changed(self) -> None:
        if self._sync is not None:
            self._sync.notify_state()

    def _device_state(self) -> DeviceState:
        """Return what the fleet should know of this device."""
        serving = self.station.serving
        status = None if serving is None else serving.learner.status()
        return DeviceState(
            device=self.site.device,
            channel=self.site.channel,
            online=True,
            agent_version=headway_version(),
            release_id=None if serving is None else serving.release_id,
            space=None if serving is None else serving.pipeline.space,
            live_set_digest=None if status is None else status.live_set_digest,
            live_samples=0 if status is None else status.live_samples,
            head_state=HeadState.NONE if status is None else status.state,
            head_digest=None if status is None else status.digest,
            head_samples=0 if status is None else status.samples,
            taken_back=status is not None and status.taken_back,
            own_labels=None if status is None else status.kept_labels,
            labelled_pictures=self.store.samples.labelled_pictures(),
            outbox=self.store.log.outbox_depth(),
            log_position=self.store.log.position(self.site.channel),
            quality=self._quality.now(self.station),
            trust=self._trust_words(None if serving is None else serving.release_id),
            precision=None if serving is None else serving.pipeline.precision,
            precision_fixed=self.site.precision is not None,
            precisions=best_of_each(self._runtimes()),
            faults=fleet_faults(
                self.station,
                status,
                [camera_report(source.camera) for source in self.sources],
                output_reports(self.outputs),
                self._faults(),
            ),
        )

    def _faults(self) -> list[str | None]:
        """Return what is wrong with this agent, but for what its releases rest on."""
        full = "the disk was full and the ballast is given up: free space" if self.store.ballast_given_up else None
        sync = None if self._sync is None else self._sync.status().fault
        trigger = None if self.trigger is None else self.trigger.fault
        return [self._misnamed, self._fault, trigger, self._updater.status().fault, self._lost(), sync, full]

    def _lost(self) -> str | None:
        serving, lost = self.station.serving, self._updater.lost
        lacking = 0 if serving is None or not lost else serving.learner.codeless(lost)
        if not lacking:
            return None
        what = "1 label given here does" if lacking == 1 else f"{lacking} labels given here do"
        return f"{what} not count with this release: its features are others, and the pictures are gone or damaged"

    def _trust_words(self, release_id: str | None) -> str:
        fault, ends = self._gate.fault, self._gate.ending(self.site.mqtt)
        said = [self._gate.standing(release_id), ends, "" if fault is None else f"refused: {fault}"]
        return "; ".join(filter(None, said))[:MAX_TEXT]

    # -- releases --------------------------------------------------------------------------------------------

    def _first_release(self) -> None:
        """Serve the release that was in service, else the bundle that the settings name, else nothing yet.

        Raises:
            BundleError: that bundle is none, and nothing else serves. A line does not stop for a folder that it
                no longer needs.
        """
        self.station.operating.default_names(self.site.part.good)
        fault: BundleError | None = None
        if self.site.bundle is not None:
            try:
                self._own_bundle = Bundle.open(self.site.bundle)
            except BundleError as error:
                fault = error
        self._updater.boot()
        with self._serve_lock:
            if self.station.serving is None and fault is not None:
                raise fault
            if self.station.serving is None and self._own_bundle is not None:
                self._serve(None)
                self._updater.look_for_lacking()  # it may be another bundle than last time
        if fault is not None:
            _log.warning("%s (%s)", fault, fault.hint)

    def _make_updater(self) -> Updater:
        return Updater(
            self.store,
            self.site.data_dir,
            channel=self.site.channel,
            precision=self.site.precision,
            fetch=self._fetch,
            admit=self._admit,
            serve=self._serve,
            on_event=self._tell_update,
            on_waiting=self._head_changed,
            in_touch=lambda: self._sync is not None and self._sync.status().connected,
            on_records=self._codes_carried,
            authorize=self._gate.authorize,
            incumbent=lambda: self._own_bundle,
            masters=self.site.part.masters,
            confirmed=self.station.confirmed,
            in_use=lambda: None if self.station.serving is None else self.station.serving.pipeline,
            caught_up=lambda: self._sync is None or self._sync.caught_up(),
        )

    def _admit(self, bundle: Bundle) -> Runtime:
        """Return a runtime for a bundle that computes its golden inputs right on this device.

        Raises:
            Incompatible: the bundle lacks the precision that the settings ask for.
            InferenceFailed: the backbone does not run here, or not rightly.
        """
        # Only a candidate is new here, and has somebody that serves in its place. What starts or comes back was
        # tried before, and does not wait.
        candidate = self._updater.status().state is UpdateState.CANDIDATE
        if candidate:
            try_apart(bundle, self.site.precision)
        runtime = self._choice.admit(bundle, self.site.precision)
        if candidate:
            serving = self.station.serving
            check_pace(
                self.site.runtime,
                (Pipeline(bundle, self.site.precision, runtime), bundle),
                None if serving is None else (serving.pipeline, serving.bundle),
            )
        if self.site.runtime.tensorrt == "off":
            return runtime
        return self._engines.upgrade(
            bundle, self.site.precision, runtime, wait_s=ENGINE_WAIT_S if candidate else 0.0
        )

    def _serve(self, release: Release | None) -> None:
        """Let a release take over; with None the bundle that the settings name, if they name one."""
        with self._serve_lock:
            if release is not None:
                self.station.serve(release.bundle, self.site.precision, release.runtime, release.release_id)
            elif self._own_bundle is not None:
                self.station.serve(self._own_bundle, self.site.precision, self._admit(self._own_bundle))
            else:
                self.station.serve_nothing()
            serving = self.station.serving
        if serving is not None:
            self._choice.measure_rest(serving.bundle, self._head_changed)

    def _fetch(
        self,
        ref: ReleaseRef,
        target: Path,
        *,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        stop: threading.Event | None = None,
    ) -> object | None:
        try:
            if self._inbox.fetch(ref, target):
                return ref
        except Unreadable:
            if self._fetcher is None:
                raise
        if self._fetcher is None:
            raise BrokerError(
                f"release {ref.name!r} cannot be fetched without a broker",
                hint="Give site.toml its [mqtt] table back, or bring it on a stick.",
            )
        fetched = self._fetcher.fetch(ref, target, progress=progress, stop=stop)
        if fetched is not None:
            self._fetched_bytes += fetched.traffic.release_bytes
        return fetched

    def _tell_update(self, event: UpdateEvent) -> None:
        if self._sync is not None:
            self._sync.publish_event(event)
            self._sync.notify_state()  # what it waited for is over

    def _codes_carried(self) -> None:
        self._log_grew()
        self._records_came([])

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, on_ready: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Inspect until `stop` is set.

        Args:
            stop: Set it from anywhere to end.
            on_ready: Called once, when the page answers and inspection begins, with what to tell the starter.
        """
        from device_agent.page import create_app

        self._access.wipe()
        self._server.start(
            create_app(
                self.station,
                self.state,
                host=self.site.page.host,
                secure=self._server.secure,
                public_url=self.site.page.public_url,
                access=self._access,
                counter=self._shift,
                trigger=self.flow.trigger,
            )
        )
        if self._sync is not None:
            self._sync.start()
        self._inbox.start()
        self._say_ready(on_ready)
        self._notifier.tell("READY=1", f"STATUS=page at {self.page_url}")
        self.outputs.start()
        if self.trigger is not None:
            self.trigger.start()
        with self._watchdog:
            self.flow.run(stop)
        self._notifier.tell("STOPPING=1")

    def _say_ready(self, on_ready: Callable[[dict[str, Any]], None] | None) -> None:
        serving = self.station.serving
        if serving is None:
            fix = "name a bundle in site.toml, or bring one on a stick (headway agent update)"
            if self.site.mqtt is not None:
                fix = f"publish one to channel {self.site.channel}, or {fix}"
            _log.warning("no release yet, so nothing is inspected: %s", fix)
        ready = {
            "ready": True,
            "page": self.page_url,
            "device": self.site.device,
            "release": None if serving is None else serving.bundle.manifest.name,
            "release_id": None if serving is None else serving.release_id,
            "pid": os.getpid(),
        }
        running = self.site.data_dir / RUNNING_NAME
        running.touch(mode=0o600)
        running.write_text(json.dumps({**ready, "token": self._access.local_token}))
        if on_ready is not None:
            on_ready(ready)

    def _part_done(self, part: Part) -> None:
        """A verdict has fallen."""
        self.outputs.put(part)
        self._shift.part(part)

    def _frame_done(self, error: Exception | None, latency_ms: float) -> None:
        """A frame was inspected, or something went wrong with one or with its source."""
        if error is None:
            self._in_a_row, self._fault = 0, None
            self._shift.frame()
            self._proves_itself(latency_ms)
            if self._metrics is not None:
                self._metrics.frame(latency_ms)
            return
        self._failed(error)
        if not isinstance(error, NOT_THE_RELEASES):
            self._in_a_row += 1
            if self._in_a_row >= FAILURES_IN_A_ROW:
                self._fails(error)

    def _proves_itself(self, latency_ms: float) -> None:
        """Count a frame that the serving release has decided; enough of them commit it, or roll it back."""
        serving = self.station.serving
        if serving is None:
            return
        verdict = self._watch.saw(serving.digest, latency_ms)
        if verdict is None or serving.release_id is None:
            return
        if verdict:
            self._updater.fail(serving.release_id, verdict)
        else:
            self._updater.confirm(serving.release_id)

    def _fails(self, error: Exception) -> None:
        serving = self.station.serving
        if serving is not None and serving.release_id is not None:
            self._updater.fail(serving.release_id, f"it decided no frame: {error}")

    def _failed(self, error: Exception) -> None:
        with self._count_lock:
            self.errors += 1
        fault = f"{error}" if isinstance(error, HeadwayError) else f"{type(error).__name__}: {error}"
        if fault != self._fault:
            _log.error("%s", fault, exc_info=not isinstance(error, HeadwayError))
        self._fault = fault

    def _show_metrics(self, settings: MetricsSettings) -> None:
        from device_agent.metrics import Metrics

        self._metrics = Metrics(self.state)
        self.metrics_port = self._metrics.serve(settings)

    # -- what it says of itself ------------------------------------------------------------------------------

    def state(self) -> State:
        """Return everything the device says of itself."""
        update = self._updater.status()
        cameras = [camera_report(source.camera) for source in self.sources]
        serving = self.station.serving
        faults = [*self._faults(), self._gate.fault]
        return station_state(
            self.station,
            channel=self.site.channel,
            version=headway_version(),
            started_utc=self.started_utc,
            camera=cameras[0],
            cameras=cameras,
            line=line_report(self.flow, self.outputs),
            mqtt=self._mqtt_report(),
            trigger=self._trigger_report(),
            update=None
            if update.release_id is None or update.state is None
            else UpdateReport(
                release_id=update.release_id,
                name=update.name,
                state=update.state.value,
                reason=update.reason,
                done_bytes=update.done_bytes,
                total_bytes=update.total_bytes,
            ),
            runtimes=self._runtimes(),
            errors=self.errors,
            trust=self._gate.standing(None if serving is None else serving.release_id),
            faults=tuple(fault for fault in faults if fault is not None),
        )

    def _runtimes(self) -> list[Measured]:
        serving = self.station.serving
        return [] if serving is None else self._choice.table(serving.bundle)

    def _mqtt_report(self) -> MqttReport | None:
        if self._sync is None or self.site.mqtt is None:
            return None
        traffic = self._sync.traffic()
        return MqttReport(
            address=f"{self.site.mqtt.host}:{self.site.mqtt.port}",
            connected=self._sync.status().connected,
            release_bytes=traffic.release_bytes + self._fetched_bytes,
            head_bytes=traffic.head_bytes,
        )

    def _trigger_report(self) -> TriggerReport | None:
        if self.trigger is None:
            return None
        return TriggerReport(self.trigger.topic, self.trigger.connected, self.trigger.deaf or "")


def chunk_source(settings: ChunksTable, mqtt: MqttTable) -> HttpChunks:
    """Return the web server that has chunks too. Over https what it does not name is as at the broker.

    Raises:
        ConfigError: it cannot be used.
    """
    from sdk.http_chunks import HttpChunks

    ca_file, cert_file, key_file = settings.ca_file, settings.cert_file, settings.key_file
    if settings.url.startswith("https:"):
        ca_file = ca_file or mqtt.ca_file
        if cert_file is None:
            cert_file, key_file = mqtt.chunks_cert_file or mqtt.cert_file, key_file or mqtt.key_file
    return HttpChunks(settings.url, ca_file=ca_file, cert_file=cert_file, key_file=key_file)


def open_source(
    settings: CameraSettings, device: str, clock: Callable[[], float], station: Sequence[CameraSettings] = ()
) -> Source:
    """Return a camera of a station, how its frames are cut, and what tells that one of them cannot be right."""
    camera = open_camera(settings, device, clock=clock, others=[each for each in station if each is not settings])
    return Source(camera, Recipe(settings.recipe), PictureWatch(settings.picture, camera))


def told_apart(sources: list[Source]) -> list[Source]:
    """Return sources of which no two have the same name: what differs in their addresses may be secret."""
    times: Counter[str] = Counter()
    for source in sources:
        name = source.camera.name
        times[name] += 1
        if times[name] > 1:
            source.camera.name = f"{name} ({times[name]})"
    return sources


def flow_settings(site: Site) -> FlowSettings:
    """Return how this site's parts are decided."""
    return FlowSettings(
        good=site.part.good,
        frames=site.part.frames,
        decide_within_s=site.part.decide_within_ms / 1000,
        triggers=0 if site.trigger is None else site.trigger.limit,
        delay_s=0.0 if site.trigger is None else site.trigger.delay_ms / 1000,
    )


def running_page(data_dir: Path) -> str | None:
    """Return where the page of the agent on this data folder is; None if none has said so."""
    try:
        return str(json.loads((data_dir / RUNNING_NAME).read_text())["page"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def running_state(site: Site, timeout_s: float) -> dict[str, Any]:
    """Return what the agent that runs with these settings says of itself.

    Whoever may read its data folder may ask: the token for it stands there. Over TLS only its own certificate
    counts, whatever name that is for: it is this machine.

    Raises:
        OSError: nobody answers.
        ValueError: what answers is no agent.
    """
    page = running_page(site.data_dir)
    if page is None:
        raise FileNotFoundError(f"no agent runs on {site.data_dir}")
    token = json.loads((site.data_dir / RUNNING_NAME).read_text()).get("token", "")
    tls: ssl.SSLContext | None = None
    if site.page.cert_file is not None:
        tls = ssl.create_default_context(cafile=str(site.page.cert_file))
        tls.check_hostname = False
    asked = urllib.request.Request(f"{page}api/state", headers={"Authorization": f"Bearer {token}"})
    # Straight to this machine: a proxy of the environment would be given the token.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    with direct.open(asked, timeout=timeout_s) as answer:
        return dict(json.load(answer))


def limits_of(site: Site) -> StoreLimits:
    """Return what the settings let the store keep."""
    return StoreLimits(
        keep_samples=site.store.keep_samples,
        queue=site.queue.limit,
        keep_parts=site.store.keep_parts,
        max_image_bytes=site.store.max_image_mib * 1024**2,
        ballast_bytes=site.store.ballast_mib * 1024**2,
        outbox=None if site.mqtt is None else StoreLimits.outbox,
    )
