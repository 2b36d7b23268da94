"""For the quality engineer: escapes and overkill at the operating point, confusion, slices, drift, the learning
curve.

All of it is of left-out samples of the head that serves: parts it has never learned. Where the release's samples
are among them, that is said.
"""

from __future__ import annotations

import contextlib
import csv
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from device_agent.accepting import KEPT_AS, LOST_AS, MAX_ESCAPE_RATE, Target
from device_agent.database import Database
from device_agent.heads import Reference
from device_agent.learned import Now, in_english
from device_agent.page.access import Role
from device_agent.page.book import StationSetting, setting
from device_agent.page.counted import Counted, CountedHeads
from device_agent.page.counts import SHIFTS, local
from device_agent.page.desk import Desk
from device_agent.page.fields import ClassField, RequestBody
from device_agent.page.guard import needs
from device_agent.page.learned import HeadOut, head_out
from device_agent.page.refusal import Refusal
from device_agent.report import DriftReport, ReleaseReport
from sdk.damaged import DAMAGED
from sdk.errors import HeadError, StoreFull, UnknownClassError
from sdk.operating import Costs, OperatingPoint, Rate, by_class, operating_point
from sdk.spreadsheet import harmless

TARGETS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Escape rates that the slider stops at."""


class SeenTarget(RequestBody):
    """The operating point that somebody saw when they chose another: as `GET /api/operating` tells it."""

    good: Annotated[list[ClassField], Field(max_length=1000)]
    escape_rate: float
    by_threshold: bool


class TargetIn(RequestBody):
    """The operating point to keep. `good` null goes by the classes' names; without `by_threshold` the decision
    rules. `seen` is what was in force when it was chosen: where it is no longer, nothing is kept."""

    good: Annotated[list[ClassField], Field(max_length=1000)] | None = None
    escape_rate: Annotated[float, Field(ge=0, le=MAX_ESCAPE_RATE)] = 0.01
    by_threshold: bool = False
    seen: SeenTarget | None = None


@dataclass(frozen=True)
class RateOut:
    """A share with its 95 % interval, and the parts it rests on. `count` of the samples are behind it; escapes
    weigh each class of defects the same, so that they are no plain share."""

    share: float
    low: float
    high: float
    samples: int
    groups: int
    count: int


@dataclass(frozen=True)
class PointOut:
    """Escapes and overkill from a threshold on. `reachable`: the target can be kept."""

    target: float
    threshold: float
    escapes: RateOut
    overkill: RateOut
    reachable: bool


@dataclass(frozen=True)
class CostsOut:
    """Escapes and overkill where the class that is decided says what is rejected."""

    escapes: RateOut
    overkill: RateOut


@dataclass(frozen=True)
class OperatingOut:
    """Where the line rejects. `good` are ids, `lost` such as people chose and no class has. `by_threshold` says
    which of `point` and `by_class` is in force; both are None where left-out samples cannot tell it yet."""

    good: list[str]
    lost: list[str]
    chosen: bool
    escape_rate: float
    by_threshold: bool
    point: PointOut | None
    by_class: CostsOut | None
    points: list[PointOut]
    missing: str | None

    @property
    def in_force(self) -> PointOut | CostsOut | None:
        """What the rule in force costs; None where left-out samples cannot tell it yet."""
        return self.point if self.by_threshold else self.by_class

    @property
    def seen(self) -> SeenTarget:
        """What whoever chooses now has seen."""
        return SeenTarget(good=self.good, escape_rate=self.escape_rate, by_threshold=self.by_threshold)


@dataclass(frozen=True)
class ConfusionRow:
    """How left-out parts of one class were decided: counts in the order of `classes`, then unknown."""

    id: str
    name: str
    counts: list[int]
    unknown: int


@dataclass(frozen=True)
class SliceOut:
    """How often the decision is right among some of the left-out samples."""

    kind: str
    name: str
    right: RateOut


@dataclass(frozen=True)
class QualityOut:
    """Everything for the quality page; `confusion` is empty before the head is scored. `head` is the one that the
    figures are of, `release` the one that serves, None before the first."""

    device: str
    made_utc: float
    release: ReleaseReport | None
    head: HeadOut | None
    classes: list[str]
    operating: OperatingOut
    confusion: list[ConfusionRow]
    slices: list[SliceOut]
    drift: DriftReport | None
    heads: list[HeadOut]


class Quality:
    """The routes for the quality engineer.

    Attributes:
        counted: What the figures count, head by head.
    """

    def __init__(self, desk: Desk, book: Database) -> None:
        self._desk = desk
        self._station = desk.station
        self._book = book
        self._target = StationSetting(book, self._station.store, KEPT_AS)
        self._choosing = threading.Lock()
        self.counted = CountedHeads(self._reference, self._station.store.samples.among, self._shift)
        self._begin()

    def _begin(self) -> None:
        """Go by what people chose, or say that nobody knows it here."""
        store, stored = self._station.store, self._target.get()
        if stored is not None:
            with contextlib.suppress(*DAMAGED):  # a backup says what whoever may write to it wrote there
                target = msgspec.json.decode(stored, type=Target)
                if target.good is not None and not target.whole and self._station.serving is not None:
                    # An earlier version's.
                    target = self._whole(target)
                    with contextlib.suppress(StoreFull):  # at a later start, then
                        self._keep(target)
                self._station.operating.choose(target)
                return
        if stored is not None or store.kept(LOST_AS):
            self._station.operating.forgotten = True
            return
        with contextlib.suppress(StoreFull):  # the next start tries again
            self._keep(self._station.operating.target)  # nobody chose: that too is known

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        look = [Depends(needs(Role.OPERATOR))]
        api.add_api_route("/quality", self.get_quality, dependencies=look)
        api.add_api_route("/quality.csv", self.get_csv, dependencies=look, response_class=Response)
        api.add_api_route("/operating", self.get_operating, dependencies=look)
        api.add_api_route(
            "/operating", self.put_operating, methods=["PUT"], dependencies=[Depends(needs(Role.ENGINEER))]
        )
        return api

    def _reference(self) -> Reference | None:
        serving = self._station.serving
        return None if serving is None else serving.learner.reference

    def _whole(self, target: Target) -> Target:
        """Return what people chose with all that is one class with it now."""
        if target.good is None:
            return target
        return msgspec.structs.replace(target, good=self._station.operating.whole(target.good), whole=True)

    def _keep(self, target: Target) -> None:
        self._target.set(msgspec.json.encode(target))

    def get_operating(self) -> OperatingOut:
        """Where the line rejects, and what other escape rates would cost in good parts."""
        return self._operating_of(self._reference())

    def _operating_of(self, reference: Reference | None) -> OperatingOut:
        operating, names = self._station.operating, self._desk.names()
        target, good = operating.target, operating.good(names)
        points: list[PointOut] = []
        missing: str | None = None
        if not good:
            missing = "no class is known to be good"
        elif reference is None:
            missing = "the head is not scored yet"
        else:
            try:
                points = [
                    _point(operating_point(reference.left_out, reference.calibration, good, escape_rate=rate))
                    for rate in TARGETS
                ]
            except HeadError as error:
                missing = str(error)
        now = costs = None
        if points and reference is not None:
            left_out, calibration = reference.left_out, reference.calibration
            now = _point(operating_point(left_out, calibration, good, escape_rate=target.escape_rate))
            costs = _costs(by_class(left_out, calibration, good))
        return OperatingOut(
            good=sorted(c.hex() for c in good),
            lost=operating.lost(names),
            chosen=target.good is not None,
            escape_rate=target.escape_rate,
            by_threshold=target.by_threshold,
            point=now,
            by_class=costs,
            points=points,
            missing=missing,
        )

    def put_operating(self, wanted: TargetIn, request: Request) -> OperatingOut:
        """Choose the good classes and the escape rate; on disk when this answers, and in force from the next
        frame."""
        names = self._desk.names()
        for each in wanted.good or []:
            if bytes.fromhex(each) not in names:
                raise UnknownClassError(f"there is no class {each[:12]}", hint="Look at the list of classes.")
        target = self._whole(Target(wanted.good, wanted.escape_rate, wanted.by_threshold))
        with self._choosing:
            if wanted.seen is not None and target != self._station.operating.target:
                self._check_unchanged(wanted.seen, names)
            self._keep(target)
            self._station.choose(target)
        self._desk.note(
            request, "operating point", f"{wanted.escape_rate:g} {'threshold' if wanted.by_threshold else 'class'}"
        )
        return self.get_operating()

    def _check_unchanged(self, seen: SeenTarget, names: dict[bytes, str]) -> None:
        operating = self._station.operating
        target, good = operating.target, sorted(c.hex() for c in operating.good(names))
        if (good, target.escape_rate, target.by_threshold) != (
            sorted(seen.good),
            seen.escape_rate,
            seen.by_threshold,
        ):
            raise Refusal(
                409,
                "what is rejected was changed since it was seen: nothing is saved",
                "Look at it again: GET /api/operating.",
            )

    def get_quality(self) -> QualityOut:
        """How good the head is on parts that it has never learned."""
        return self.report()

    def report(self, now: Now = in_english) -> QualityOut:
        """Return `get_quality` with names as `Desk.called` gives them."""
        counted, called = self.counted.now(), self._desk.called(now)
        heads = [head_out(row) for row in self._station.store.heads.newest(limit=200)]
        number = None if counted is None else counted.number
        state = self._desk.state()
        confusion: list[ConfusionRow] = []
        slices: list[SliceOut] = []
        classes: list[str] = []
        if counted is not None:
            named = [*map(called, counted.reference.left_out.class_ids)]
            order = sorted(range(len(named)), key=lambda i: named[i].casefold())
            classes = [named[i] for i in order]
            confusion = _confusion(counted, named, order)
            slices = [SliceOut(each.kind, each.name, _rate(each.right)) for each in counted.slices()]
        return QualityOut(
            device=state.device,
            made_utc=time.time(),
            release=state.release,
            head=next((h for h in heads if h.number == number), None),
            classes=classes,
            operating=self._operating_of(None if counted is None else counted.reference),
            confusion=confusion,
            slices=slices,
            drift=state.drift,
            heads=[h for h in heads if h.balanced_accuracy is not None],
        )

    def _shift(self, at_utc: float) -> str:
        """Return which shift a time falls into, as "06:00"."""
        clock = local(at_utc).strftime("%H:%M")
        begins = sorted((setting(self._book, "shifts") or SHIFTS).split())
        return max((b for b in begins if b <= clock), default=begins[-1])

    def get_csv(self) -> Response:
        """The quality report as CSV: one line per figure, after what it is of and the rule in force."""
        report, out = self.get_quality(), io.StringIO()
        write = csv.writer(out)
        write.writerow(["table", "row", "column", "value", "low", "high", "samples", "groups", "space"])
        for table, what, value in _about(report, self._desk.names()):
            write.writerow([table, what, "", harmless(str(value)), "", "", "", "", ""])
        for row in report.confusion:
            for name, count in zip([*report.classes, "unknown"], [*row.counts, row.unknown], strict=True):
                write.writerow(["confusion", harmless(row.name), harmless(name), count, "", "", "", "", ""])
        operating = report.operating
        costs: list[tuple[str, float | str, PointOut | CostsOut | None]] = [
            ("rule", "in force", operating.in_force)
        ]
        costs += [("operating", each.target, each) for each in operating.points]
        costs.append(("operating", "by class", operating.by_class))
        for table, row_name, cost in costs:
            if cost is None:
                continue
            for what, rate in (("escapes", cost.escapes), ("overkill", cost.overkill)):
                values = [rate.share, rate.low, rate.high, rate.samples, rate.groups]
                write.writerow([table, row_name, what, *values, ""])
        for each_slice in report.slices:
            rate = each_slice.right
            values = [rate.share, rate.low, rate.high, rate.samples, rate.groups]
            write.writerow([each_slice.kind, harmless(each_slice.name), "right", *values, ""])
        for head in report.heads:
            figures = (head.balanced_accuracy, head.low, head.high, head.samples)
            write.writerow(["heads", head.number, head.outcome, *figures, "", head.space])
        return Response(
            out.getvalue(),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="quality.csv"'},
        )


def _about(report: QualityOut, names: dict[bytes, str]) -> Iterator[tuple[str, str, object]]:
    """Yield what a report is of, and the rule that it says the costs of."""
    yield "about", "device", report.device
    yield (
        "about",
        "made (UTC)",
        datetime.fromtimestamp(report.made_utc, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    if report.release is not None:
        yield "about", "release", report.release.name
        yield "about", "release digest", report.release.digest
        yield "about", "precision", report.release.precision
    if report.head is not None:
        yield "about", "head", report.head.number
        yield "about", "head digest", report.head.digest
    operating = report.operating
    for each in operating.good:
        yield "rule", "good class", names.get(bytes.fromhex(each), each)
    yield "rule", "decided by", "threshold" if operating.by_threshold else "class"
    if operating.by_threshold:
        yield "rule", "escape rate", operating.escape_rate
        if operating.point is not None:
            yield "rule", "threshold", operating.point.threshold


def _rate(rate: Rate) -> RateOut:
    return RateOut(rate.share, rate.low, rate.high, rate.samples, rate.groups, rate.count)


def _point(point: OperatingPoint) -> PointOut:
    threshold = min(max(point.threshold, 0.0), 1.0)
    return PointOut(point.target, threshold, _rate(point.escapes), _rate(point.overkill), point.reachable)


def _costs(costs: Costs) -> CostsOut:
    return CostsOut(_rate(costs.escapes), _rate(costs.overkill))


def _confusion(counted: Counted, names: list[str], order: list[int]) -> list[ConfusionRow]:
    rows = []
    for i in order:
        counts, asked = counted.confusion(i)
        class_id = counted.reference.left_out.class_ids[i].hex()
        rows.append(ConfusionRow(class_id, names[i], [counts[j] for j in order], asked))
    return rows
