"""The pictures behind a figure of the quality report: exactly those that it counts, page by page.

A figure is named by a query: which one, of which classes or lot, by which rule, of which head. The same query is
the address of the page that shows them, so a figure can be sent to somebody. Rules:

- A list is of one head, `head`, as its figures counted (`counted`). It stays while labels are corrected and newer
  heads learn from that, held by each look into it; what has become of each picture's label since stands beside it,
  and what the newest head makes of the same figure.
- Where the picture is not on this device, it is in the list all the same, with where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from device_agent.accepting import MAX_ESCAPE_RATE
from device_agent.learned import Now, in_english
from device_agent.page.access import Role
from device_agent.page.counted import Chosen, Counted, CountedHeads
from device_agent.page.desk import Desk
from device_agent.page.fields import MAX_PAGE, ClassField, RequestBody
from device_agent.page.guard import needs
from device_agent.page.history import LabelHistory
from device_agent.page.labels import LabelOut, Labels
from device_agent.page.refusal import Refusal
from device_agent.page.samples import SampleOut, Samples
from device_agent.station import UNKNOWN
from sdk.errors import HeadError, UnknownClassError
from sdk.moments import Ints

PAGE: Final = 24
"""Pictures of one page: six rows of four."""
FigureName = Literal["cell", "recall", "escapes", "overkill", "origin", "camera", "lot", "shift"]
Where = Literal["here", "release", "device", "gone"]


class FigureIn(RequestBody):
    """Which figure of the quality report, of which head, and which of its pictures.

    `truth` and `said` are the classes of a `cell`, `truth` that of a `recall`, `name` is the camera, lot, shift or
    origin. `escapes` and `overkill` are by the class that is decided, with `escape_rate` by the threshold that
    keeps it; `good` is as in force where it is left out. Without `head` it is the one that is confirmed now.
    """

    figure: FigureName
    truth: ClassField | None = None
    said: ClassField | Literal["unknown"] | None = None
    name: Annotated[str, Field(max_length=4096)] | None = None
    good: Annotated[list[ClassField], Field(max_length=1000)] | None = None
    escape_rate: Annotated[float, Field(ge=0, le=MAX_ESCAPE_RATE)] | None = None
    head: Annotated[int, Field(ge=1, le=2**62)] | None = None
    offset: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = PAGE

    def query(self, **other: object) -> str:
        """Return this as a query, with other values for some fields; None leaves one out."""
        asked = {**self.model_dump(exclude_defaults=True), **other}
        return urlencode({key: value for key, value in asked.items() if value is not None}, doseq=True)


@dataclass(frozen=True)
class PictureOut:
    """A left-out picture, as the head decided that had never seen its part.

    Attributes:
        sample: Its id.
        labelled_class_id, labelled: What it was labelled as for that head.
        class_id, decision: What the head said, None and "unknown" for unknown.
        forced_class_id, forced: The best class in any case, with its `probability`.
        right: The decision is the label.
        label_class_id, label: What it is labelled as now, None for not at all.
        changed: That is something else than it was.
        last: What was said of it last, and by whom; None where only the release has.
        camera: Where it was taken, as the slices call that; None where it is not known.
        where: Its picture is `here`; came with the `release`, and is where that was made; is on the `device` named
            so; or is `gone`: deleted, or no longer kept.
        device: Of `where`, else None.
        kept: The sample, where the picture is here.
    """

    sample: str
    labelled_class_id: str
    labelled: str
    class_id: str | None
    decision: str
    forced_class_id: str
    forced: str
    probability: float
    right: bool
    label_class_id: str | None
    label: str | None
    changed: bool
    last: LabelOut | None
    camera: str | None
    where: Where
    device: str | None
    kept: SampleOut | None


@dataclass(frozen=True)
class NewestOut:
    """What the head that is confirmed now makes of the same figure.

    Attributes:
        head: Its number.
        count, of, right: As those of the figure; None where it has none such.
        one_class: It has none because the two classes, of which one was taken for the other, are one to it.
    """

    head: int
    count: int | None = None
    of: int | None = None
    right: int | None = None
    one_class: bool = False


@dataclass(frozen=True)
class BehindOut:
    """The pictures behind a figure: those that were decided wrongly first.

    Attributes:
        head: Number of the head that the figure is of.
        count: So many pictures are behind it.
        of: So many it is a share of.
        right: So many of `count` were decided rightly.
        pictures: Some of them, from `offset` on.
        newest: Another head has been confirmed since; None where this is the one.
    """

    head: int
    count: int
    of: int
    right: int
    offset: int
    pictures: list[PictureOut]
    newest: NewestOut | None


class HeadNotHeld(Refusal):
    """The figures of that head cannot be told any more."""


class OneClass(Refusal):
    """The two classes of a cell are one to that head: neither can be taken for the other."""


class Behind:
    """The route for the pictures behind a figure.

    Args:
        desk: The station.
        counted: What the figures count.
        history: What was said of each sample.
        labels, samples: Say labels and samples as the interface does.
    """

    def __init__(
        self, desk: Desk, counted: CountedHeads, history: LabelHistory, labels: Labels, samples: Samples
    ) -> None:
        self._desk, self._station = desk, desk.station
        self._counted = counted
        self._history = history
        self._labels, self._samples = labels, samples

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        look = [Depends(needs(Role.OPERATOR))]
        api.add_api_route("/quality/pictures", self.get_pictures, dependencies=look)
        return api

    def get_pictures(self, figure: Annotated[FigureIn, Query()]) -> BehindOut:
        """The pictures behind a figure of the quality report, with what the head said of each that had never seen
        its part.

        A head's are told while it is confirmed, and for some heads after that; then 404.
        """
        return self.pictures_out(figure)

    def pictures_out(self, figure: FigureIn, now: Now = in_english) -> BehindOut:
        """Return `get_pictures` with names as `Desk.called` gives them.

        Raises:
            HeadNotHeld: the figures of that head are told no longer.
            Refusal: what the figure is of is missing.
            OneClass: what is taken for each other is one class to the head.
            UnknownClassError: the head has no such class.
            HeadError: escapes and overkill cannot be told.
        """
        newest = self._counted.now()
        number = newest.number if figure.head is None and newest is not None else figure.head
        counted = None if number is None else self._counted.listed(number)
        if counted is None and newest is not None:
            raise HeadNotHeld(
                404,
                f"the figures of head {figure.head} are held no longer",
                f"Leave out head= for those of head {newest.number}.",
            )
        if counted is None:
            raise Refusal(404, "the head is not scored yet", "Label parts of two groups, and wait for its trial.")
        chosen = self._chosen(counted, figure)
        rows = chosen.rows[figure.offset : figure.offset + figure.limit]
        return BehindOut(
            head=counted.number,
            count=len(chosen.rows),
            of=chosen.of,
            right=int(counted.right[chosen.rows].sum()),
            offset=figure.offset,
            pictures=self._pictures(counted, rows, now),
            newest=None if newest is None or newest is counted else self._newest(newest, figure),
        )

    def _newest(self, counted: Counted, figure: FigureIn) -> NewestOut:
        try:
            chosen = self._chosen(counted, figure)
        except OneClass:
            return NewestOut(counted.number, one_class=True)
        except (UnknownClassError, HeadError):
            return NewestOut(counted.number)
        right = int(counted.right[chosen.rows].sum())
        return NewestOut(counted.number, len(chosen.rows), chosen.of, right)

    def _chosen(self, counted: Counted, figure: FigureIn) -> Chosen:
        match figure.figure:
            case "escapes" | "overkill":
                good = [bytes.fromhex(each) for each in self.good_of(figure)]
                escapes, overkill = counted.costs(good, figure.escape_rate)
                return escapes if figure.figure == "escapes" else overkill
            case "recall":
                return counted.recall(self._place(counted, _given(figure.truth, "truth")))
            case "cell":
                truth, said = _given(figure.truth, "truth"), _given(figure.said, "said")
                taken_for = None if said == UNKNOWN else self._place(counted, said)
                labelled = self._place(counted, truth)
                if labelled == taken_for and truth != said:
                    raise OneClass(
                        404,
                        f"the two are one class to head {counted.number}",
                        "Ask for what is taken for it rightly.",
                    )
                return counted.cell(labelled, taken_for)
            case kind:
                return counted.slice(kind, _given(figure.name, "name"))

    def good_of(self, figure: FigureIn) -> list[str]:
        """Return which classes are good in a figure: as it says, or as they are now."""
        if figure.good is not None:
            return sorted(figure.good)
        return sorted(c.hex() for c in self._station.operating.good(self._desk.names()))

    def _place(self, counted: Counted, class_id: str) -> int:
        """Return the column of a class, or of that which it was made part of."""
        known, wanted = counted.reference.left_out.class_ids, bytes.fromhex(class_id)
        canonical = self._station.require().learner.canonical
        same = [i for i, each in enumerate(known) if wanted == each or canonical(wanted) == canonical(each)]
        if not same:
            raise UnknownClassError(
                f"head {counted.number} has no class {class_id[:12]}", hint="Look at GET /api/quality."
            )
        return next((i for i in same if known[i] == wanted), same[0])

    def _pictures(self, counted: Counted, rows: Ints, now: Now) -> list[PictureOut]:
        left_out, store = counted.reference.left_out, self._station.store
        learner, called = self._station.require().learner, self._desk.called(now)
        ids = [left_out.samples[row] for row in rows.tolist()]
        here = store.samples.among(ids)
        kept = dict(zip(here, self._samples.with_others([*here.values()]), strict=True))
        out: list[PictureOut] = []
        for row, sample in zip(rows.tolist(), ids, strict=True):
            truth, forced = left_out.class_ids[left_out.truth[row]], left_out.class_ids[counted.said[row]]
            unknown, label = bool(counted.unknown[row]), learner.label_of(sample)
            said = self._labels.labels_out(self._history.of_sample(sample), now)
            where, device = ("here", None) if sample in kept else self._elsewhere(said)
            out.append(
                PictureOut(
                    sample=sample.hex(),
                    labelled_class_id=truth.hex(),
                    labelled=called(truth),
                    class_id=None if unknown else forced.hex(),
                    decision=UNKNOWN if unknown else called(forced),
                    forced_class_id=forced.hex(),
                    forced=called(forced),
                    probability=float(counted.probability[row]),
                    right=bool(counted.right[row]),
                    label_class_id=None if label is None else label.hex(),
                    label=None if label is None else called(label),
                    changed=label is None or learner.canonical(label) != learner.canonical(truth),
                    last=said[0] if said else None,
                    camera=counted.of("camera", row),
                    where=where,
                    device=device,
                    kept=kept.get(sample),
                )
            )
        return out

    def _elsewhere(self, said: Sequence[LabelOut]) -> tuple[Where, str | None]:
        """Return where a picture is that is not here, by the last word first."""
        if not said:
            return "release", None
        return ("gone", None) if any(each.own for each in said) else ("device", said[-1].device)


def _given(value: str | None, name: str) -> str:
    if value is None:
        raise Refusal(422, f"{name}: is missing", "See /openapi.json.")
    return value
