"""What happens in the demo, act by act, and the figures it brings back.

    images -> headway export (one class held back) -> Mosquitto, headway fleet serve, two headway agents
      -> release over MQTT -> both inspect their stream -> held-out images judged: before
      -> an oracle answers what agent A's queue asks, for the held-back class -> A knows it, then B does
      -> held-out images judged again: after

Which image is which comes from the split that the bundle records: the devices see the stream part, the figures
come from the test part, and no image of either was learned from before.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sdk.bundle import Bundle
from sdk.demo.plant import Answer, DemoFailed, Device, Guard, Service, headway, run, running
from sdk.demo.waiting import leave_waiting
from sdk.errors import BadImages
from sdk.fleet.broker import Mosquitto
from sdk.images import ImageSet, LabelledImage, open_images
from sdk.splits import Part, split

UNKNOWN: Final = "unknown"
OPERATOR: Final = "oracle"
PAGE: Final = 200
"""Most samples that a device lists at a time."""
RELEASE_TIMEOUT_S: Final = 180.0
STREAM_TIMEOUT_S: Final = 600.0
LEARN_TIMEOUT_S: Final = 120.0
SHARE_TIMEOUT_S: Final = 120.0
MIN_CLASSES: Final = 3
"""One to hold back, and two to tell apart meanwhile."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to show.

    Attributes:
        data: Labelled images, as `headway export` takes them.
        export_args: What `headway export` gets besides data, class held back and output.
        hold_back: The class that nobody knows at first.
        labels: How many labels of it the oracle gives, all on device A.
        out: Where bundle, stores, logs and reports go.
        seed: Of the split and the streams.
    """

    data: Path
    export_args: Sequence[str]
    hold_back: str
    labels: int
    out: Path
    seed: int = 0


@dataclass
class Judged:
    """A device's decisions on the held-out images."""

    answers: dict[Path, Answer]
    recall: dict[str, float]
    forced_recall: dict[str, float]
    unknown: dict[str, float]

    def others(self, hold_back: str) -> float:
        """Return the mean recall of the classes that were known from the start."""
        known = [value for name, value in self.recall.items() if name != hold_back]
        return sum(known) / len(known)


@dataclass
class Taught:
    """One answer of the oracle."""

    sample: str
    reason: str
    image: bytes
    saved_ms: float
    label_to_live_ms: float


@dataclass
class Shown:
    """Everything the report tells."""

    plan: Plan
    classes: list[str]
    parts: dict[str, int] = field(default_factory=dict)
    before: dict[str, Judged] = field(default_factory=dict)
    after: dict[str, Judged] = field(default_factory=dict)
    taught: list[Taught] = field(default_factory=list)
    offered: int = 0
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    shared_ms: float = 0.0
    digests: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)
    test_images: list[LabelledImage] = field(default_factory=list)


@contextlib.contextmanager
def act(shown: Shown, name: str, say: Say) -> Iterator[None]:
    """Announce an act and time it."""
    say(name)
    start = time.monotonic()
    yield
    shown.seconds[name] = time.monotonic() - start


def play(plan: Plan, say: Say, *, stay: Callable[[Shown, dict[str, str]], None] | None = None) -> Shown:
    """Play the demo to its end and return what was seen; all processes are stopped again.

    Args:
        plan: What to show.
        say: Told what is happening, a line at a time.
        stay: Called with the result and the devices' page addresses before the processes are stopped.

    Raises:
        HeadwayError: a step failed; its message names the log to read.
    """
    out, logs = plan.out, plan.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    images = _images(plan)
    _passing(plan, _dealt(images, split(images.groups, images.labels, plan.seed)))  # before minutes of work
    shown = Shown(plan, images.classes)
    with act(shown, "Export: backbone and head, learned without the class held back", say):
        shown.export = _export(plan, logs)
    parts = Bundle.open(out / "bundle").parts()
    by_part = _dealt(images, [parts[image.sample_id] for image in images.images])
    shown.parts = {part.value: len(members) for part, members in by_part.items()}
    shown.test_images = by_part[Part.TEST]
    _check_enough(plan, by_part)
    streams = _streams(plan, _passing(plan, by_part))

    with Guard() as guard, contextlib.ExitStack() as stack:
        with act(shown, "Fleet: keys, broker, service, two devices; the signed release goes out over MQTT", say):
            fleet_dir = ("--dir", out / "fleet", "--keys", out / "keys")
            run("fleet", "keys", "init", *fleet_dir, "--no-passphrase", log=logs)
            broker = stack.enter_context(_broker(guard))
            address = f"127.0.0.1:{broker.port}"
            fleet = stack.enter_context(_service("fleet", logs, _fleet_command(out, address), guard))
            fleet.wait_ready(60)
            run("fleet", "publish", out / "bundle", *fleet_dir, log=logs)
            services = [
                stack.enter_context(
                    _service(name, logs, headway("agent", "run", _site(plan, name, stream, broker.port)), guard)
                )
                for name, stream in streams.items()
            ]
            devices = [Device(name, service) for name, service in zip(streams, services, strict=True)]
            for device in devices:
                device.wait("the release", lambda state: state["release"], RELEASE_TIMEOUT_S)
        with act(shown, "Stream: both devices inspect what passes their cameras", say):
            for device in devices:
                n = len(streams[device.name])
                device.wait("the end of the stream", lambda s, n=n: s["frames"] >= n, STREAM_TIMEOUT_S)  # type: ignore[misc]
        with act(shown, "Before: held-out images, judged by each device", say):
            shown.before = _judge(devices, shown)
        a, b = devices
        truth = {hashlib.sha256(image.path.read_bytes()).hexdigest(): image.label for image in images.images}
        with act(shown, f"Teach: {plan.labels} labels of {plan.hold_back} on device {a.name}", say):
            _teach(plan, a, truth, shown)
        with act(shown, f"Share: device {b.name} learns it from the fleet, without a label of its own", say):
            start = time.monotonic()
            digest = a.wait("the trial of its head", _settled, LEARN_TIMEOUT_S)
            b.wait("the head of the fleet", lambda s: _settled(s) == digest, SHARE_TIMEOUT_S)
            shown.shared_ms = 1e3 * (time.monotonic() - start)
        with act(shown, "After: the same held-out images again", say):
            shown.after = _judge(devices, shown)
        shown.states = {device.name: device.state() for device in devices}
        shown.digests = {name: str(state["live_set_digest"]) for name, state in shown.states.items()}
        shown.digests["fleet"] = _fleet_digest(out)
        if stay is not None:
            with act(shown, "Leave questions waiting on both devices, for whoever stays", say):
                for device in devices:
                    leave_waiting(device, (image.path.read_bytes() for image in shown.test_images))
            stay(shown, {device.name: device.url for device in devices})
    return shown


def _images(plan: Plan) -> ImageSet:
    images = open_images(plan.data)
    if plan.hold_back not in images.classes:
        raise BadImages(
            f"there is no class {plan.hold_back!r} in {plan.data}", hint=f"It has: {', '.join(images.classes)}."
        )
    if len(images.classes) < MIN_CLASSES:
        raise BadImages(
            f"{plan.data} has only {len(images.classes)} classes", hint=f"The demo needs {MIN_CLASSES} or more."
        )
    return images


def _export(plan: Plan, logs: Path) -> dict[str, Any]:
    """Run `headway export` and return what it reports."""
    report = plan.out / "export.json"
    # What int8 could still gain takes minutes, and the demo is about what is learned on the devices.
    run(
        "export", plan.data, *plan.export_args, "--hold-back", plan.hold_back, "--seed", str(plan.seed),
        "--no-qat", "--int8-budget", "0.3", "--out", plan.out / "bundle", "--json", report, log=logs,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _check_enough(plan: Plan, by_part: dict[Part, list[LabelledImage]]) -> None:
    if not any(image.label == plan.hold_back for image in by_part[Part.TEST]):
        raise BadImages(
            f"the test part has no image of {plan.hold_back}",
            hint="Name a class with images of at least four groups.",
        )


@contextlib.contextmanager
def _broker(guard: Guard) -> Iterator[Mosquitto]:
    with Mosquitto() as broker:
        guard.watch(broker.pid)
        yield broker


@contextlib.contextmanager
def _service(name: str, logs: Path, command: list[str], guard: Guard) -> Iterator[Service]:
    with running(Service(name, command, logs / f"{name}.log")) as service:
        guard.watch(service.pid)
        yield service


def _fleet_command(out: Path, address: str) -> list[str]:
    return headway("fleet", "serve", "--dir", out / "fleet", "--broker", address, "--json")


def _dealt(images: ImageSet, parts: Iterable[Part]) -> dict[Part, list[LabelledImage]]:
    by_part: dict[Part, list[LabelledImage]] = defaultdict(list)
    for image, part in zip(images.images, parts, strict=True):
        by_part[part].append(image)
    return by_part


def _passing(plan: Plan, by_part: dict[Part, list[LabelledImage]]) -> list[LabelledImage]:
    """Return the images that pass the devices' cameras: the stream's.

    Where device A would not meet enough of the class held back to label, also those of it that would otherwise
    have been learned from: nobody has learned from them.

    Raises:
        BadImages: there are not enough even so.
    """
    stream = by_part[Part.STREAM]
    spare = [i for part in (Part.TRAIN, Part.VALIDATION) for i in by_part[part] if i.label == plan.hold_back]
    for passing in (stream, stream + spare):
        side = _sides(plan, passing)
        met = sum(image.label == plan.hold_back and side[image.group] == "a" for image in passing)
        if met >= plan.labels:
            return passing
    raise BadImages(
        f"device a would meet {met} images of {plan.hold_back}, and {plan.labels} are to be labelled",
        hint=f"Give --labels {met}, or more images: a quarter judges at the end, half of the rest passes device b."
        if met
        else "Name a class with images of more groups.",
    )


def _sides(plan: Plan, stream: list[LabelledImage]) -> dict[str, str]:
    """Return which device each group passes: every class passes both."""
    by_class: dict[str, set[str]] = defaultdict(set)
    for image in stream:
        by_class[image.label].add(image.group)
    return {
        group: ("a", "b")[i % 2]
        for label in sorted(by_class)
        for i, group in enumerate(sorted(by_class[label], key=lambda g: _shuffled(plan.seed, g)))
    }


def _streams(plan: Plan, stream: list[LabelledImage]) -> dict[str, list[Path]]:
    """Give each device its own parts of the stream, in an order like a shift's."""
    dealt: dict[str, list[Path]] = {"a": [], "b": []}
    side = _sides(plan, stream)
    rows: dict[str, list[tuple[str, str]]] = {"a": [], "b": []}
    for image in sorted(stream, key=lambda image: _shuffled(plan.seed, image.group)):
        device = side[image.group]
        folder = plan.out / f"stream-{device}"
        folder.mkdir(exist_ok=True)
        target = folder / f"{len(dealt[device]):05d}{image.path.suffix}"
        shutil.copyfile(image.path, target)
        dealt[device].append(target)
        rows[device].append((target.name, image.group))
    for device, listed in rows.items():
        with (plan.out / f"stream-{device}" / "index.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "group"), *listed])
    return dealt


def _shuffled(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"stream {seed} {key}".encode()).digest()


def _site(plan: Plan, name: str, stream: list[Path], port: int) -> Path:
    """Write the settings file that a plant would write for this device."""
    site = plan.out / f"site-{name}.toml"
    site.write_text(
        f"""# Device {name} of the demo: a folder of images stands in for its camera.
device = "{name}"
data_dir = "device-{name}"

[camera]
kind = "folder"
path = "{stream[0].parent.name}"

[page]
port = 0

[runtime]
threads = 1

[mqtt]
host = "127.0.0.1"
port = {port}

[trust]
root = "fleet/trust/1.root.json"
"""
    )
    return site


def _judge(devices: Sequence[Device], shown: Shown) -> dict[str, Judged]:
    """Push every held-out image to every device; devices work side by side, as they would."""

    def on(device: Device) -> Judged:
        answers = {image.path: device.inspect(image.path.read_bytes()) for image in shown.test_images}
        members = {
            name: [answers[image.path] for image in shown.test_images if image.label == name]
            for name in shown.classes
        }

        def share(right: Callable[[str, Answer], bool]) -> dict[str, float]:
            return {n: sum(right(n, x) for x in found) / len(found) for n, found in members.items() if found}

        return Judged(
            answers,
            recall=share(lambda name, answer: answer.decision == name),
            forced_recall=share(lambda name, answer: answer.forced == name),
            unknown=share(lambda _, answer: answer.decision == UNKNOWN),
        )

    with ThreadPoolExecutor(len(devices)) as pool:
        return dict(zip([device.name for device in devices], pool.map(on, devices), strict=True))


def _teach(plan: Plan, device: Device, truth: dict[str, str], shown: Shown) -> None:
    """Label images of the class held back, and no others, as an operator would.

    First what the queue asks about. Once the device knows the class well enough to ask no more, parts that an
    operator picks from the last ones inspected.
    """
    class_id = device.post("/api/classes", {"name": plan.hold_back, "operator": OPERATOR})["class_id"]
    passed: set[str] = set()
    while len(shown.taught) < plan.labels:
        item = _asked(plan, device, truth, passed, shown) or _seen(plan, device, truth)
        number = device.state()["head"]["number"]
        start = time.monotonic()
        device.post("/api/labels", {"sample": item["sample"], "class_id": class_id, "operator": OPERATOR})
        saved_ms = 1e3 * (time.monotonic() - start)
        live_ms = device.wait(
            "learning the label",
            lambda s, n=number: s["label_to_live_ms"] if s["head"]["number"] > n else None,  # type: ignore[misc]
            LEARN_TIMEOUT_S,
        )
        reason = item["reason"] or "picked by the operator"
        shown.taught.append(Taught(item["sample"], reason, device.image(item["sample"]), saved_ms, float(live_ms)))


def _asked(
    plan: Plan, device: Device, truth: dict[str, str], passed: set[str], shown: Shown
) -> dict[str, Any] | None:
    """Return the first sample of the class held back that the queue asks about; others are passed over."""
    for item in device.get("/api/queue", limit=PAGE):
        if item["sample"] in passed:
            continue
        shown.offered += 1
        if truth[item["sample"]] == plan.hold_back:
            return dict(item)
        passed.add(item["sample"])
    return None


def _seen(plan: Plan, device: Device, truth: dict[str, str]) -> dict[str, Any]:
    """Return the newest unlabelled sample of the class held back among those inspected."""
    for offset in range(0, 10**6, PAGE):
        page = device.get("/api/samples", limit=PAGE, offset=offset)
        for item in page:
            if item["status"] != "labelled" and truth[item["sample"]] == plan.hold_back:
                return {**item, "reason": ""}
        if len(page) < PAGE:
            break
    raise DemoFailed(
        f"device {device.name} has seen no more images of {plan.hold_back}", hint="Ask for fewer with --labels."
    )


def _settled(state: dict[str, Any]) -> str | None:
    """Return the digest of a device's live set once its head has been tried and its labels are with the fleet."""
    idle = state["head"] and not state["head"]["busy"] and state["outbox"] == 0
    return str(state["live_set_digest"]) if idle else None


def _fleet_digest(out: Path) -> str:
    answer = subprocess.run(
        headway("fleet", "devices", "--dir", out / "fleet", "--json"), capture_output=True, check=True
    )
    digest = json.loads(answer.stdout)["channels"][0]["live_set_digest"]
    return str(digest)
