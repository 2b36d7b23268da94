"""One device's settings, a frozen tree: what `site.toml` may say (`device_agent.site_file` reads it).

Every key, its unit and its default stand here and in the file that `headway agent init` writes
(`device_agent.site_template`). Secrets stand in files of their own, never here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from sdk.labels import DeviceId
from sdk.wire import DEFAULT_PREFIX, ChannelName

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_PUBLIC_URL: Final = r"https://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"

Rate = Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0.0, le=86_400.0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Extent = Annotated[int, msgspec.Meta(ge=8, le=100_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of `site.toml`."""


class RecipeSettings(Section, frozen=True, kw_only=True):
    """What of a camera's frame is inspected, and in which tiles (`device_agent.recipe`).

    Attributes:
        region: [x, y, width, height] in the camera's pixels; all of the frame without it.
        mask: An image of the frame's size; what is white in it is inspected.
        tile_px: Width of a tile in the camera's pixels; its height follows from the backbone's input. Without it a
            region of up to four times the input's sides stays whole, and a larger one is cut into tiles of that.
        overlap: Neighbouring tiles share at least this much of a side.
    """

    region: tuple[Offset, Offset, Extent, Extent] | None = None
    mask: Path | None = None
    tile_px: Extent | None = None
    overlap: Annotated[float, msgspec.Meta(ge=0.0, le=0.9)] = 0.125


class PictureSettings(Section, frozen=True, kw_only=True):
    """When a picture cannot be right, and its part is rejected (`device_agent.camera.picture`). 0 never asks.

    Attributes:
        black_share: So many of its pixels, as a share, are black.
        bright_share: So many are over-exposed.
        frozen_after: A live camera has given the very same picture so many times again.
    """

    black_share: Share = 0.995
    bright_share: Share = 0.95
    frozen_after: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 10


class _Camera(Section, frozen=True, kw_only=True):
    """What every camera has: a name for people, and its recipe. Frames without a part id are put into groups:
    pictures of one part must not be told apart by score.

    Attributes:
        name: For people, where a station has several.
        recipe: What of its frames is inspected.
        picture: When one of its pictures cannot be right.
        burst_gap_s: A frame this long after the one before starts a new group.
        burst_max_s: A group without a gap ends here, so that a camera that never pauses has groups at all.
            Set it above the time one part stays in view.
    """

    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    recipe: RecipeSettings = RecipeSettings()
    picture: PictureSettings = PictureSettings()
    burst_gap_s: Seconds = 2.0
    burst_max_s: PositiveSeconds = 30.0


class FolderCamera(_Camera, frozen=True, kw_only=True, tag="folder", tag_field="kind"):
    """Image files of a folder, sorted by path; an `index.csv` (path[,group]) may say which and in what order.

    Attributes:
        path: The folder.
        rate_fps: Frames a second; 0 is as fast as they can be inspected.
        loop: Start again at the end.
    """

    path: Path
    rate_fps: Rate = 0.0
    loop: bool = False


class VideoCamera(_Camera, frozen=True, kw_only=True, tag="video", tag_field="kind"):
    """A video file, sampled at `rate_fps` of its own time; 0 takes every frame as fast as it can be inspected."""

    path: Path
    rate_fps: Rate = 0.0
    loop: bool = False


class WatchCamera(_Camera, frozen=True, kw_only=True, tag="watch", tag_field="kind"):
    """A folder that another program fills: each new image is taken once.

    Attributes:
        path: The folder; folders in it are not looked into.
        names: What its file names look like: `{part}` stands for the part id, `*` for anything. Empty: the whole
            name is the part id, and tells a trigger nothing.
        poll_s: How often it is looked at. A file is taken when it has not changed from one look to the next.
        delete: Files are deleted once taken, and those that lie there at the start are taken too.
    """

    path: Path
    names: Annotated[str, msgspec.Meta(max_length=200)] = ""
    poll_s: PositiveSeconds = 0.2
    delete: bool = False


class LiveCamera(_Camera, frozen=True, kw_only=True):
    """What all live cameras have.

    Attributes:
        rate_fps: Frames a second at most; 0 takes every frame that inspection keeps up with.
        retry_s: Wait before the first reconnection; doubles up to `retry_max_s`.
    """

    rate_fps: Rate = 0.0
    retry_s: PositiveSeconds = 0.5
    retry_max_s: PositiveSeconds = 30.0


class OpenCvCamera(LiveCamera, frozen=True, kw_only=True, tag="opencv", tag_field="kind"):
    """A live camera that OpenCV opens, by index or by URL (V4L2, RTSP, HTTP, a device path).

    Attributes:
        index: Number of a local camera; 0 is the first.
        url: Address of a network camera.
        width: Asked of the camera, in pixels; as it likes without it.
        height: The same.
        fps: Frames a second that the camera is asked for.
        fourcc: Pixel format that it is asked for, such as MJPG.
    """

    index: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None
    url: Name | None = None
    width: Extent | None = None
    height: Extent | None = None
    fps: Annotated[float, msgspec.Meta(gt=0.0, le=10_000.0)] | None = None
    fourcc: Annotated[str, msgspec.Meta(min_length=4, max_length=4)] | None = None

    def __post_init__(self) -> None:
        if (self.index is None) == (self.url is None):
            raise ValueError("give either index or url")


class GStreamerCamera(LiveCamera, frozen=True, kw_only=True, tag="gstreamer", tag_field="kind"):
    """A live camera behind a GStreamer pipeline, written as for gst-launch-1.0 and without its sink."""

    pipeline: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]


class PluginCamera(LiveCamera, frozen=True, kw_only=True, tag="plugin", tag_field="kind"):
    """A live camera of another package (`device_agent.plugins`).

    Attributes:
        plugin: Its `kind` in the file.
        options: The keys of its table that are not of every camera; the plug-in checks them.
    """

    plugin: Name
    options: dict[str, Any] = {}


CameraSettings = FolderCamera | VideoCamera | WatchCamera | OpenCvCamera | GStreamerCamera | PluginCamera


class PartSettings(Section, frozen=True, kw_only=True):
    """How tiles and frames make one verdict for the part (`device_agent.parts`).

    Attributes:
        good: Names of the classes that pass; any other, and unknown, rejects the part.
        frames: Frames of each camera that make a part. More than one needs part ids: a trigger, or an `index.csv`.
        decide_within_ms: A part that has no verdict so long after its frame or trigger is rejected.
        masters: Folder of master parts, one folder of each class: a head that tells them worse by more than five
            points is taken back, and none learns from them (`device_agent.masters`).
    """

    good: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)] = ("good",)
    frames: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    decide_within_ms: Annotated[float, msgspec.Meta(ge=1.0, le=3_600_000.0)] = 1000.0
    masters: Path | None = None


class TriggerSettings(Section, frozen=True, kw_only=True):
    """One frame per part, on demand (`device_agent.trigger`): by `POST /api/trigger`, and over MQTT if `topic`
    is given.

    Attributes:
        topic: MQTT topic on the broker of `[mqtt]`; its messages are part ids, plain or as JSON `{"part": "..."}`.
        delay_ms: From the trigger until the part stands where the cameras look.
        limit: Parts that may wait for their frames; the next one is rejected unseen.
    """

    topic: Name | None = None
    delay_ms: Annotated[float, msgspec.Meta(ge=0.0, le=60_000.0)] = 0.0
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64


class HttpOutput(Section, frozen=True, kw_only=True, tag="http", tag_field="kind"):
    """Posts each verdict as JSON, in order, tried again until it arrives.

    Attributes:
        url: http or https.
        timeout_s: For one answer.
        token_file: Holds nothing but a token, sent as `Authorization: Bearer`.
    """

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    timeout_s: Annotated[float, msgspec.Meta(gt=0.0, le=60.0)] = 2.0
    token_file: Path | None = None


class ModbusOutput(Section, frozen=True, kw_only=True, tag="modbus", tag_field="kind"):
    """Sets coils of a PLC over Modbus TCP; needs the extra `modbus`.

    Attributes:
        host: The PLC.
        port: Its TCP port.
        unit: Its unit id.
        pass_coil: On while the newest part passes, off otherwise: what nobody sets rejects. Prefer it.
        reject_coil: On while the newest part is rejected.
        counter_register: Holding register that counts verdicts, written last.
        heartbeat_register: Holding register that counts on every second while the agent lives.
        timeout_s: For one answer.
    """

    host: Name
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 502
    unit: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1
    pass_coil: Port | None = None
    reject_coil: Port | None = None
    counter_register: Port | None = None
    heartbeat_register: Port | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0.0, le=60.0)] = 0.5

    def __post_init__(self) -> None:
        if self.pass_coil is None and self.reject_coil is None:
            raise ValueError("give pass_coil, reject_coil, or both")
        if self.pass_coil == self.reject_coil:
            raise ValueError("pass_coil and reject_coil are the same coil")
        if self.counter_register is not None and self.counter_register == self.heartbeat_register:
            raise ValueError("counter_register and heartbeat_register are the same register")


class PluginOutput(Section, frozen=True, kw_only=True, tag="plugin", tag_field="kind"):
    """An output of another package (`device_agent.plugins`).

    Attributes:
        plugin: Its `kind` in the file.
        options: The other keys of its table; the plug-in checks them.
    """

    plugin: Name
    options: dict[str, Any] = {}


OutputSettings = HttpOutput | ModbusOutput | PluginOutput


class HistorySettings(Section, frozen=True, kw_only=True):
    """Verdicts kept on the device: the newest so many; about 200 bytes each."""

    keep_parts: Annotated[int, msgspec.Meta(ge=1000, le=50_000_000)] = 1_000_000


class RuntimeSettings(Section, frozen=True, kw_only=True):
    """How the backbone runs. What is left open is measured on this device, for each release.

    `threads`: processor threads; 0 takes the number that measures fastest. `provider`: of ONNX Runtime; `auto`
    takes the fastest that computes the golden inputs right. `max_frame_ms`: a release that takes longer for a
    frame is rolled back; 0 allows twice the time of the release before it, and 50 ms in any case.

    `tensorrt`: `auto` lets an engine take over where TensorRT is installed and faster here, `on` wherever it is
    right, and refuses to start without TensorRT; `off` never.
    """

    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    max_frame_ms: Annotated[float, msgspec.Meta(ge=0.0, le=60_000.0)] = 0.0
    tensorrt: Literal["auto", "on", "off"] = "auto"


class PageSettings(Section, frozen=True, kw_only=True):
    """Where the operator's page is. Beyond loopback it wants accounts (`headway agent user`) and TLS.

    Attributes:
        host: On loopback only this machine reaches it.
        port: 0 takes a free one.
        cert_file, key_file: Its certificate and private key, PEM; both or neither.
        plain_http: Serve beyond loopback without TLS, where nobody listens.
        public_url: What people call the page behind a proxy on this machine, which has the certificate.
    """

    host: Name = "127.0.0.1"
    port: Port = 8080
    cert_file: Path | None = None
    key_file: Path | None = None
    plain_http: bool = False
    public_url: Annotated[str, msgspec.Meta(max_length=300)] = ""

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("give both cert_file and key_file, or neither")
        if self.public_url and re.fullmatch(_PUBLIC_URL, self.public_url) is None:
            raise ValueError("public_url is https://NAME or https://NAME:PORT, without a path")
        if self.public_url and self.host not in LOOPBACK:
            raise ValueError("public_url is of a proxy on this machine: leave host at 127.0.0.1")

    @property
    def for_this_machine(self) -> bool:
        """Return whether nobody else comes to the page: on loopback, and no proxy brings others."""
        return self.host in LOOPBACK and not self.public_url


class MqttTable(Section, frozen=True, kw_only=True):
    """The fleet's broker. Without this table the device works alone. `sdk.mqtt.MqttSettings` says it in full.

    `ca_file` turns TLS on; `cert_file` and `key_file` are this device's own certificate, `chunks_cert_file` and
    `trigger_cert_file` those of its other connections, for the same key. `password_file` holds nothing but the
    password.
    """

    host: Name
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1883
    prefix: Name = DEFAULT_PREFIX
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    chunks_cert_file: Path | None = None
    trigger_cert_file: Path | None = None
    username: Name | None = None
    password_file: Path | None = None


class ChunksTable(Section, frozen=True, kw_only=True):
    """A server of HTTP that also has releases' chunks, asked before the broker. Its word counts for nothing.

    Attributes:
        url: What stands before a chunk's digest.
        ca_file: Authority of its certificate; over https by default that of `[mqtt]`, else the system's.
        cert_file: This device's own certificate; over https by default that of `[mqtt]`.
        key_file: Its key.
    """

    url: Name
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class TrustTable(Section, frozen=True, kw_only=True):
    """Whose releases and labels this device takes. Without this table it takes all that the broker brings.

    Attributes:
        root: The fleet's root of trust, `root.json`, copied here by hand and not over the network.
    """

    root: Path


class QueueSettings(Section, frozen=True, kw_only=True):
    """Which samples an operator is asked about.

    Attributes:
        ask_below: Ask when the best class has less than this probability.
        young_labels: Ask about what is taken for a class of fewer labels than this; 0 does not.
        spot_check_share: Share of all other samples that is asked about, so that confident mistakes show too.
        limit: At most this many wait; the least urgent give way.
    """

    ask_below: Share = 0.8
    young_labels: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3
    spot_check_share: Share = 0.01
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 200


class StoreSettings(Section, frozen=True, kw_only=True):
    """What is kept. Labelled samples are kept for ever.

    Attributes:
        keep_samples: Unlabelled samples with their images; the oldest go first.
        keep_parts: Of the last so many parts everything stays at hand for labelling, as long as there is room.
        max_image_mib: Images on disk, MiB; certain ones go before uncertain ones, labelled ones never.
        ballast_mib: Kept on the disk to be given up for labels when it is full; about 900 labels a MiB.
    """

    keep_samples: Annotated[int, msgspec.Meta(ge=10, le=1_000_000)] = 2000
    keep_parts: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 50
    max_image_mib: Annotated[int, msgspec.Meta(ge=16, le=1_000_000)] = 16_384
    ballast_mib: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 4


class MetricsSettings(Section, frozen=True, kw_only=True):
    """Where Prometheus finds this device's metrics, read-only and without a login; without this table nowhere."""

    host: Name = "127.0.0.1"
    port: Port = 9464


class LogSettings(Section, frozen=True, kw_only=True):
    """What is logged, on stderr: `text` for people, `json` for a collector, one object a line."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Site(Section, frozen=True, kw_only=True):
    """All settings of one device.

    Attributes:
        device: This device's id in the fleet: small letters, digits and '-'.
        camera: Where frames come from; several as `[[camera]]`, all looking at the same part.
        part: How they make a verdict.
        output: Where verdicts go, beside the result topic and the history; `[[output]]`.
        history: How many verdicts are kept here.
        trigger: One frame per part, on demand; without it every frame is looked at that inspection keeps up with.
        data_dir: Labels, images, releases. Back it up; never copy it to a second device.
        channel: The product line whose releases and labels this device shares.
        bundle: Release to start with. Without it the device waits for one, over MQTT or on a stick.
        precision: fp32, fp16, int8 or int8-tensorrt; by default the bundle's first.
    """

    device: DeviceId
    camera: CameraSettings | tuple[CameraSettings, ...]
    data_dir: Path = Path("headway-data")
    channel: ChannelName = "default"
    bundle: Path | None = None
    precision: Literal["fp32", "fp16", "int8", "int8-tensorrt"] | None = None
    part: PartSettings = PartSettings()
    trigger: TriggerSettings | None = None
    output: tuple[OutputSettings, ...] = ()
    history: HistorySettings = HistorySettings()
    runtime: RuntimeSettings = RuntimeSettings()
    page: PageSettings = PageSettings()
    mqtt: MqttTable | None = None
    trust: TrustTable | None = None
    chunks: ChunksTable | None = None
    queue: QueueSettings = QueueSettings()
    store: StoreSettings = StoreSettings()
    metrics: MetricsSettings | None = None
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ValueError("a station has a camera")
        if self.trigger is not None and self.trigger.topic is not None and self.mqtt is None:
            raise ValueError("trigger.topic needs an [mqtt] table")
        if self.chunks is not None and self.mqtt is None:
            raise ValueError("[chunks] needs an [mqtt] table: releases are assigned there")
        if len(self.cameras) > 1 and self.trigger is None and any(isinstance(c, LiveCamera) for c in self.cameras):
            raise ValueError("several cameras need a [trigger]: nothing else tells which frames show one part")
        if self.part.frames > 1 and self.trigger is None and not all(map(_names_parts, self.cameras)):
            raise ValueError("part.frames above 1 needs part ids: a [trigger], or a folder with an index.csv")

    @property
    def cameras(self) -> tuple[CameraSettings, ...]:
        """All cameras, in order."""
        return self.camera if isinstance(self.camera, tuple) else (self.camera,)


def _names_parts(camera: CameraSettings) -> bool:
    return isinstance(camera, (FolderCamera, WatchCamera))


CAMERA_KINDS: Mapping[str, type[Section]] = {
    "folder": FolderCamera,
    "video": VideoCamera,
    "watch": WatchCamera,
    "opencv": OpenCvCamera,
    "gstreamer": GStreamerCamera,
}
"""Kinds of `[camera]`, besides those of plug-ins."""
OUTPUT_KINDS: Mapping[str, type[Section]] = {"http": HttpOutput, "modbus": ModbusOutput}
"""Kinds of `[[output]]`, besides those of plug-ins."""
CAMERA_TABLES: Mapping[str, type[Section]] = {"recipe": RecipeSettings, "picture": PictureSettings}
"""Tables within `[camera]`."""
TABLES: Mapping[str, type[Section]] = {
    "part": PartSettings,
    "trigger": TriggerSettings,
    "history": HistorySettings,
    "runtime": RuntimeSettings,
    "page": PageSettings,
    "mqtt": MqttTable,
    "trust": TrustTable,
    "chunks": ChunksTable,
    "queue": QueueSettings,
    "store": StoreSettings,
    "metrics": MetricsSettings,
    "log": LogSettings,
}
"""All other tables."""
