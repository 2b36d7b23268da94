"""What the demo showed, as `report.json` for machines, `report.html` for people and a table for the terminal."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import jinja2
import numpy as np
from rich.markup import escape
from rich.table import Table

from sdk.console import Console
from sdk.demo.story import UNKNOWN, Shown
from sdk.images import decode
from sdk.preprocess import resize

THUMBNAIL_PX: Final = 132
_GALLERY_NEW: Final = 9
_GALLERY_OTHERS: Final = 15


def figures(shown: Shown) -> dict[str, Any]:
    """Return what goes into `report.json`: shares in [0, 1], times in ms or s, bytes of topics and payloads."""
    plan = shown.plan
    devices = []
    for name in shown.before:
        before, after, state = shown.before[name], shown.after[name], shown.states[name]
        devices.append(
            {
                "trust": state["trust"],
                "device": name,
                "new_class_recall_before": before.recall[plan.hold_back],
                "new_class_recall_after": after.recall[plan.hold_back],
                "new_class_forced_recall_after": after.forced_recall[plan.hold_back],
                "new_class_unknown_before": before.unknown[plan.hold_back],
                "old_class_recall_before": before.others(plan.hold_back),
                "old_class_recall_after": after.others(plan.hold_back),
                "recall_before": before.recall,
                "recall_after": after.recall,
                "labels_given": len(shown.taught) if name == "a" else 0,
                "label_to_live_ms": _median([t.label_to_live_ms for t in shown.taught]) if name == "a" else None,
                "label_saved_ms": _median([t.saved_ms for t in shown.taught]) if name == "a" else None,
                "mqtt_bytes_release": state["mqtt"]["release_bytes"],
                "mqtt_bytes_head": state["mqtt"]["head_bytes"],
                "frames": state["frames"],
                "live_set_digest": shown.digests[name],
            }
        )
    return {
        "held_back": plan.hold_back,
        "classes": shown.classes,
        "images": shown.parts,
        "devices": devices,
        "shared_after_ms": shown.shared_ms,
        "live_set_digests": shown.digests,
        "digests_equal": len(set(shown.digests.values())) == 1,
        "queue_items_seen": shown.offered,
        "label_to_live_ms_each": [t.label_to_live_ms for t in shown.taught],
        "seconds": shown.seconds,
        "export": shown.export,
    }


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def write(shown: Shown) -> dict[str, Any]:
    """Write `report.json` and `report.html` into the demo's folder and return the figures."""
    report = figures(shown)
    out = shown.plan.out
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.0f}\u202f%"
    environment.filters["size"] = _size
    page = environment.get_template("report.html.j2").render(
        r=report, gallery=_gallery(shown), taught=_taught(shown), bars=_bars(shown), unknown=UNKNOWN
    )
    (out / "report.html").write_text(page)
    return report


def _size(n: float) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


@dataclass(frozen=True)
class Bar:
    """One class's recall on one device, before and after."""

    name: str
    before: float
    after: float
    is_new: bool


def _bars(shown: Shown) -> dict[str, list[Bar]]:
    new = shown.plan.hold_back
    order = [new, *(name for name in shown.classes if name != new)]
    return {
        device: [
            Bar(n, shown.before[device].recall[n], after.recall[n], n == new) for n in order if n in after.recall
        ]
        for device, after in shown.after.items()
    }


@dataclass(frozen=True)
class Tile:
    """One held-out picture with what device B said of it, before and after."""

    image: str
    truth: str
    before: str
    after: str
    right: bool
    sure: float


def _gallery(shown: Shown) -> list[Tile]:
    """Some of every class, the first ones in the set's order: neither the best nor the worst were picked."""
    new = shown.plan.hold_back
    others = [name for name in shown.classes if name != new]
    tiles: list[Tile] = []
    for name in [new, *others]:
        wanted = _GALLERY_NEW if name == new else max(1, _GALLERY_OTHERS // len(others))
        for image in [i for i in shown.test_images if i.label == name][:wanted]:
            before, after = (judged["b"].answers[image.path] for judged in (shown.before, shown.after))
            tiles.append(
                Tile(
                    image=_thumbnail(image.path.read_bytes()),
                    truth=name,
                    before=before.decision,
                    after=after.decision,
                    right=after.decision == name,
                    sure=after.probability,
                )
            )
    return tiles


def _taught(shown: Shown) -> list[dict[str, Any]]:
    return [{"image": _thumbnail(t.image), "reason": t.reason, "ms": t.label_to_live_ms} for t in shown.taught]


def _thumbnail(data: bytes) -> str:
    frame = decode(data)
    scale = THUMBNAIL_PX / max(frame.shape[:2])
    small = resize(frame, max(1, round(frame.shape[0] * scale)), max(1, round(frame.shape[1] * scale)))
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def print_table(report: dict[str, Any], console: Console) -> None:
    """Print what each device knew before and after."""
    new = escape(report["held_back"])
    table = Table(title=f"Recall on held-out images; {new} was held back", title_justify="left")
    for column in ("device", "labels given", f"{new}: before", "after", "others: before", "after"):
        table.add_column(column, justify="left" if column == "device" else "right")
    for d in report["devices"]:
        table.add_row(
            d["device"],
            str(d["labels_given"]),
            f"{d['new_class_recall_before']:.1%}",
            f"[bold]{d['new_class_recall_after']:.1%}[/]",
            f"{d['old_class_recall_before']:.1%}",
            f"{d['old_class_recall_after']:.1%}",
        )
    console.print(table)
    a, b = report["devices"]
    console.print(
        f"Label to live head on {a['device']}: {a['label_to_live_ms']:.0f} ms (median). "
        f"Over MQTT to {b['device']}: release {_size(b['mqtt_bytes_release'])}, "
        f"what {a['device']} learned {_size(b['mqtt_bytes_head'])}."
    )
    for name, digest in report["live_set_digests"].items():
        console.print(f"Live set on {name:>5}: [dim]{digest}[/]")
    console.print("The digests are equal." if report["digests_equal"] else "[red]The digests differ.[/]")
