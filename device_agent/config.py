"""One device's settings: `site.toml` into a frozen tree, checked once at start.

Every key, its unit and its default stand here and in `TEMPLATE`, which `headway agent init` writes. Unknown keys
are refused with the nearest known name; a wrong value is named with its file and key. Relative paths are
relative to the folder of `site.toml`. Secrets stand in files of their own, never here.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from device_agent.plugins import CAMERAS, OUTPUTS, installed
from sdk.errors import ConfigError
from sdk.labels import DeviceId
from sdk.wire import DEFAULT_PREFIX, ChannelName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SITE_NAME = "site.toml"
MAX_SITE_BYTES = 1024 * 1024
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


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of `site.toml`."""


class RecipeSettings(_Section, frozen=True, kw_only=True):
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


class PictureSettings(_Section, frozen=True, kw_only=True):
    """When a picture cannot be right, and its part is rejected (`device_agent.camera.picture`). 0 never asks.

    Attributes:
        black_share: So many of its pixels, as a share, are black.
        bright_share: So many are over-exposed.
        frozen_after: A live camera has given the very same picture so many times again.
    """

    black_share: Share = 0.995
    bright_share: Share = 0.95
    frozen_after: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 10


class _Camera(_Section, frozen=True, kw_only=True):
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


class PartSettings(_Section, frozen=True, kw_only=True):
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


class TriggerSettings(_Section, frozen=True, kw_only=True):
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


class HttpOutput(_Section, frozen=True, kw_only=True, tag="http", tag_field="kind"):
    """Posts each verdict as JSON, in order, tried again until it arrives.

    Attributes:
        url: http or https.
        timeout_s: For one answer.
        token_file: Holds nothing but a token, sent as `Authorization: Bearer`.
    """

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    timeout_s: Annotated[float, msgspec.Meta(gt=0.0, le=60.0)] = 2.0
    token_file: Path | None = None


class ModbusOutput(_Section, frozen=True, kw_only=True, tag="modbus", tag_field="kind"):
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


class PluginOutput(_Section, frozen=True, kw_only=True, tag="plugin", tag_field="kind"):
    """An output of another package (`device_agent.plugins`).

    Attributes:
        plugin: Its `kind` in the file.
        options: The other keys of its table; the plug-in checks them.
    """

    plugin: Name
    options: dict[str, Any] = {}


OutputSettings = HttpOutput | ModbusOutput | PluginOutput


class HistorySettings(_Section, frozen=True, kw_only=True):
    """Verdicts kept on the device: the newest so many; about 200 bytes each."""

    keep_parts: Annotated[int, msgspec.Meta(ge=1000, le=50_000_000)] = 1_000_000


class RuntimeSettings(_Section, frozen=True, kw_only=True):
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


class PageSettings(_Section, frozen=True, kw_only=True):
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


class MqttTable(_Section, frozen=True, kw_only=True):
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


class ChunksTable(_Section, frozen=True, kw_only=True):
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


class TrustTable(_Section, frozen=True, kw_only=True):
    """Whose releases and labels this device takes. Without this table it takes all that the broker brings.

    Attributes:
        root: The fleet's root of trust, `root.json`, copied here by hand and not over the network.
    """

    root: Path


class QueueSettings(_Section, frozen=True, kw_only=True):
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


class StoreSettings(_Section, frozen=True, kw_only=True):
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


class MetricsSettings(_Section, frozen=True, kw_only=True):
    """Where Prometheus finds this device's metrics, read-only and without a login; without this table nowhere."""

    host: Name = "127.0.0.1"
    port: Port = 9464


class LogSettings(_Section, frozen=True, kw_only=True):
    """What is logged, on stderr: `text` for people, `json` for a collector, one object a line."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Site(_Section, frozen=True, kw_only=True):
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


_CAMERAS: Mapping[str, type[_Section]] = {
    "folder": FolderCamera,
    "video": VideoCamera,
    "watch": WatchCamera,
    "opencv": OpenCvCamera,
    "gstreamer": GStreamerCamera,
}
_OUTPUTS: Mapping[str, type[_Section]] = {"http": HttpOutput, "modbus": ModbusOutput}
_CAMERA_TABLES: Mapping[str, type[_Section]] = {"recipe": RecipeSettings, "picture": PictureSettings}
_SECTIONS: Mapping[str, type[_Section]] = {
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


def load_site(file: Path) -> Site:
    """Return the settings in a `site.toml`.

    Raises:
        ConfigError: it cannot be read, or a key or value in it is wrong.
    """
    try:
        size_bytes = file.stat().st_size
        text = file.read_text(encoding="utf-8") if size_bytes <= MAX_SITE_BYTES else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{file}: {reason}", hint="`headway agent init` writes one to start from.") from error
    if size_bytes > MAX_SITE_BYTES:
        raise ConfigError(f"{file}: {size_bytes} bytes are too many", hint="Is this really a settings file?")
    return parse_site(text, file)


def parse_site(text: str, file: Path) -> Site:
    """Return the settings that the text of `file` says; paths are relative to the file's folder.

    Raises:
        ConfigError: a key or value is wrong.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{file}: {error}", hint='Strings stand in quotes: name = "value"; tables in brackets: [camera].'
        ) from error
    raw = _with_plugins(raw)
    _refuse_unknown(raw, file)
    folder = file.resolve().parent

    def to_path(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value:
            return folder / Path(value).expanduser()
        raise ValueError("expected a path in quotes")

    try:
        site = msgspec.convert(raw, Site, dec_hook=to_path)
    except msgspec.ValidationError as error:
        message, key = _explain(str(error))
        raise ConfigError(
            f"{file}: {key}{message}", hint=f"docs/agent.md lists every key; {_hint_for(key, raw)}"
        ) from error
    return msgspec.structs.replace(site, data_dir=folder / site.data_dir)


def _with_plugins(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with tables of plug-ins in the form that `PluginCamera` has."""
    cameras = raw.get("camera")
    kinds = installed(CAMERAS)

    def known(table: Any) -> Any:
        kind = table.get("kind") if isinstance(table, Mapping) else None
        if not isinstance(kind, str) or kind in _CAMERAS or kind not in kinds:
            return table
        common = {name for name in _known(LiveCamera) if name in table}
        options = {key: value for key, value in table.items() if key not in common and key != "kind"}
        return {**{name: table[name] for name in common}, "kind": "plugin", "plugin": kind, "options": options}

    whole = dict(raw)
    if cameras is not None:
        whole["camera"] = [known(each) for each in cameras] if isinstance(cameras, list) else known(cameras)
    if isinstance(raw.get("output"), list):
        whole["output"] = [_plugin_output(table) for table in raw["output"]]
    return whole


def _plugin_output(table: Any) -> Any:
    kind = table.get("kind") if isinstance(table, Mapping) else None
    if not isinstance(kind, str) or kind in _OUTPUTS or kind not in installed(OUTPUTS):
        return table
    options = {key: value for key, value in table.items() if key != "kind"}
    return {"kind": "plugin", "plugin": kind, "options": options}


def _explain(message: str) -> tuple[str, str]:
    """Return msgspec's message in plain words, and "key: " for where it is, if it says."""
    text, _, where = message.partition(" - at `$")
    key = where.rstrip("`").removeprefix(".")
    if not key and text.startswith("Object missing required field"):
        return f"{text.split('`')[1]} is missing", ""
    if text.startswith("Object missing required field"):
        return f"{text.split('`')[1]} is missing in [{key}]", ""
    plain = text.replace("Expected `", "expected ").replace("`, got `", ", got ").replace("`", "")
    return plain[:1].lower() + plain[1:], f"{key}: " if key else ""


def _hint_for(key: str, raw: Mapping[str, Any]) -> str:
    if key.startswith("device"):
        return "a device id has small letters, digits and '-' only, for example line-3."
    about_kind = key.removesuffix(": ").endswith(".kind") or "." not in key
    if "camera" not in raw or (key.startswith("camera") and about_kind):
        return f"kind is one of {', '.join([*_CAMERAS, *installed(CAMERAS)])}."
    if key.startswith("output") and about_kind:
        return f"kind is one of {', '.join([*_OUTPUTS, *installed(OUTPUTS)])}."
    return "`headway agent init` writes an example."


def _known(kind: type[_Section]) -> list[str]:
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    return ["kind", *names] if kind in (*_CAMERAS.values(), *_OUTPUTS.values()) else names


def _refuse_unknown(raw: Mapping[str, Any], file: Path) -> None:
    _refuse_in(raw, "", _known(Site), file)
    for name, table in raw.items():
        for one in table if isinstance(table, list) else [table]:
            if not isinstance(one, Mapping):
                continue
            if name == "camera":
                _refuse_in_camera(one, file)
            elif name == "output" and one.get("kind") in _OUTPUTS:
                _refuse_in(one, "output", _known(_OUTPUTS[one["kind"]]), file)
            elif name in _SECTIONS:
                _refuse_in(one, name, _known(_SECTIONS[name]), file)


def _refuse_in_camera(table: Mapping[str, Any], file: Path) -> None:
    kind = _CAMERAS.get(str(table.get("kind")))
    if kind is not None:
        _refuse_in(table, "camera", _known(kind), file)
    for name, section in _CAMERA_TABLES.items():
        inner = table.get(name)
        if isinstance(inner, Mapping):
            _refuse_in(inner, f"camera.{name}", _known(section), file)


def _refuse_in(table: Mapping[str, Any], section: str, known: list[str], file: Path) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{file}: unknown key {key!r}" + (f" in [{section}]" if section else ""),
                hint=_nearest(key, section, known),
            )


def _nearest(key: str, section: str, known: list[str]) -> str:
    tables: dict[str, type[_Section]] = {**_SECTIONS, "": Site}
    tables.update((f"camera.{name}", section) for name, section in _CAMERA_TABLES.items())
    tables.update((f"camera ({kind})", struct) for kind, struct in _CAMERAS.items())
    for name, kind in tables.items():
        if key in _known(kind) and name != section:
            return f"{key!r} belongs in [{name}]." if name else f"{key!r} belongs before the first [table]."
    here = difflib.get_close_matches(key, known, n=1)
    if here:
        return f"Did you mean {here[0]!r}?"
    return f"Known here: {', '.join(sorted(known))}."


TEMPLATE = """\
# Settings of one Headway device. Paths are relative to this file. docs/agent.md explains every key.

device = "line-1"             # this device's id in the fleet: small letters, digits and '-'
data_dir = "headway-data"     # labels, images, releases: back it up, never copy it to a second device
channel = "default"           # the product line whose releases and labels this device shares
# bundle = "bundle"           # release to start with; without it the device waits for one over MQTT
# precision = "int8"          # fp32, fp16, int8 or int8-tensorrt; by default the bundle's first

[camera]
kind = "folder"               # folder, video, watch, opencv, gstreamer, or a plug-in's
path = "images"               # folder, video and watch: where the files are
rate_fps = 1.0                # frames a second; 0 is as fast as they can be inspected
loop = false                  # folder and video: start again at the end
burst_gap_s = 2.0             # frames without a part id: this long a pause starts a new group
burst_max_s = 30.0            # and a group ends after this long even without a pause

# [camera]                    # a live camera instead
# kind = "opencv"
# index = 0                   # or: url = "rtsp://192.0.2.7/stream"
# retry_s = 0.5               # wait before the first reconnection; doubles up to retry_max_s
# retry_max_s = 30.0

# [camera]                    # or what another program writes into a folder
# kind = "watch"
# path = "incoming"
# names = "{part}_top.png"    # where its file names have the part id; * stands for anything
# poll_s = 0.2                # how often it is looked at
# delete = false              # files are deleted once taken

# [camera]                    # or a GStreamer pipeline, without its sink
# kind = "gstreamer"
# pipeline = "nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx"

# [camera.recipe]             # what of this camera's frames is inspected
# region = [0, 0, 1920, 1080] # x, y, width, height in its pixels; without it the whole frame
# mask = "mask.png"           # of the frame's size: what is white is inspected
# tile_px = 448               # width of a tile in its pixels; by default frames over 4 times the input are cut
# overlap = 0.125             # of neighbouring tiles, as a share of their side

# [camera.picture]            # when a picture cannot be right, and its part is rejected; 0 never asks
# black_share = 0.995         # so many of its pixels are black
# bright_share = 0.95         # or over-exposed
# frozen_after = 10           # or a live camera has given the very same picture so often again

[part]
good = ["good"]               # classes that pass: any other, and unknown, rejects the part
frames = 1                    # of each camera that make a part; more need part ids
decide_within_ms = 1000.0     # a part without a verdict so long after its frame is rejected
# masters = "masters"         # master parts, one folder of each class: no head may tell them five points worse

# [trigger]                   # one frame per part, on demand: POST /api/trigger
# topic = "line-1/part"       # and over MQTT: part ids on this topic of the broker below
# delay_ms = 0.0              # from the trigger until the part stands there
# limit = 64                  # parts that may wait for their frames

# [[output]]                  # verdicts also go to: a service,
# kind = "http"
# url = "https://mes.example/parts"
# timeout_s = 2.0
# token_file = "mes-token"

# [[output]]                  # a PLC (pip install 'headway-edge[modbus]')
# kind = "modbus"
# host = "192.0.2.20"
# port = 502
# unit = 1
# pass_coil = 0               # on only while the newest part passes; or reject_coil, the other way round
# counter_register = 0        # counts verdicts, written last
# heartbeat_register = 1      # counts on every second while the agent lives
# timeout_s = 0.5

[history]
keep_parts = 1000000          # verdicts kept on the device: headway agent history --csv parts.csv

[runtime]
threads = 0                   # processor threads for the backbone; 0 takes what measures fastest here
provider = "auto"             # of ONNX Runtime: auto takes the fastest that is right, or cpu, cuda
max_frame_ms = 0.0            # a release that takes longer is rolled back; 0: twice the one before, at least 50 ms
tensorrt = "auto"             # an engine takes over: auto where it is faster, on (required), or off

[page]
host = "127.0.0.1"            # beyond loopback: make accounts first (headway agent user add), and give TLS
port = 8080                   # 0 takes a free one; the agent prints its address
# cert_file = "page.pem"      # TLS
# key_file = "page.key"
# plain_http = false          # true: beyond loopback without TLS, where nobody listens
# public_url = "https://line-1.plant"   # behind a proxy on this machine (docs/page.md); make accounts first

# [mqtt]                      # without this table the device works alone
# host = "broker.example"
# port = 1883
# prefix = "headway/v1"
# keepalive_s = 30
# ca_file = "ca.pem"          # turns TLS on
# cert_file = "line-1.pem"
# key_file = "line-1.key"
# chunks_cert_file = "line-1-chunks.pem"
# trigger_cert_file = "line-1-trigger.pem"
# username = "line-1"
# password_file = "mqtt-password"

# [chunks]                    # a web server that has releases too, asked before the broker
# url = "https://fleet.example:8443/chunks/"

# [trust]                     # without this table releases and labels are taken unsigned
# root = "root.json"          # the fleet's root of trust, copied here by hand

[queue]
ask_below = 0.8               # ask an operator when the best class has less than this probability
young_labels = 3              # and about what is taken for a class of fewer labels than this
spot_check_share = 0.01       # and about this share of all others
limit = 200                   # at most this many samples wait; the least urgent give way

[store]
keep_samples = 2000           # unlabelled samples kept with their images; labelled ones stay for ever
keep_parts = 50               # of the last so many parts everything stays at hand for labelling
max_image_mib = 16384         # images on disk; certain ones go before uncertain ones, labelled ones never
ballast_mib = 4               # given up for labels when the disk is full

[log]
format = "text"               # or json: one object a line, for a collector
level = "info"                # debug, info, warning or error

# [metrics]                   # for Prometheus; without this table there are none
# host = "127.0.0.1"          # read-only and without a login
# port = 9464
"""
"""What `headway agent init` writes."""
