"""The HTML pages. They show what the interface's subjects tell, in sentences; nothing is decided here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import jinja2
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup
from pydantic import Field

from device_agent.heads import score_of
from device_agent.heads_and_updates import HeadRow, Outcome
from device_agent.learned import LearnerStatus, Now
from device_agent.page.access import Access, Role, Who
from device_agent.page.behind import PAGE, Behind, FigureIn, HeadNotHeld, OneClass
from device_agent.page.classes import Classes
from device_agent.page.counts import local
from device_agent.page.desk import Desk
from device_agent.page.guard import MAX_THEN, needs, who_of
from device_agent.page.history import LabelHistory
from device_agent.page.labels import Labels
from device_agent.page.learned import Learned, head_out
from device_agent.page.people import People
from device_agent.page.quality import ConfusionRow, Quality
from device_agent.page.refusal import Refusal
from device_agent.page.text import LANGUAGES, Texts, for_scripts, language_of
from device_agent.report import NONE_PASSES, lost_words, masters_report
from device_agent.station import UNKNOWN
from device_agent.withdrawn import is_alone
from sdk.errors import HeadwayError
from sdk.outlook import FEW, WORTH
from sdk.reason import ENGLISH, Reason
from sdk.score import Score
from sdk.version import headway_version

THEMES: Final = ("auto", "light", "dark")
_OWN_PAGE: Final = re.compile(r"/(?!/)[A-Za-z0-9/_-]*(\?[A-Za-z0-9_=&%.+-]*)?")
"""What the login may lead to. "//elsewhere" is another site to a browser, and so are "/\\elsewhere" and what
it takes tabs and line ends out of."""
SHOWN_SUSPECTS: Final = 5
SHOWN_HEADS: Final = 12
SHOWN_LABELS: Final = 12
SHOWN_CHANGES: Final = 4
PRINTED_COLUMNS: Final = 14
"""Of the confusion table, side by side: so many fit on a sheet of A4, with names written upwards in two lines."""
PRINTED_LONG: Final = 8
"""So many where a name takes more lines than two."""
LONG_NAME: Final = 24
"""Characters; a longer one does."""
SAME: Final = 0.005
"""Recalls that differ by less are shown as the same."""


class ShownIn(FigureIn):
    """A figure of one head, shown where that of another was asked for, `lost`, which is held no longer."""

    lost: Annotated[int, Field(ge=1, le=2**62)] | None = None


@dataclass(frozen=True)
class News:
    """What became of the last label: a sentence, and the picture that it is about."""

    level: str
    mark: str
    sentence: str
    more: str = ""
    sample: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class ScoreRow:
    """A class's recall, what it was earlier, and where the pictures behind it are shown."""

    name: str
    recall: float
    low: float
    high: float
    scored: bool
    before: float | None
    behind: str


@dataclass(frozen=True)
class Earlier:
    """The score to compare with: yesterday's last, or today's first."""

    when: str
    score: Score


def _breakable(name: str) -> Markup:
    """Return a name that is divided after what joins its words, if it must be, rather than within one."""
    return Markup("_<wbr>").join(name.split("_"))


@dataclass(frozen=True)
class Subjects:
    """What of the interface the pages show."""

    labels: Labels
    learned: Learned
    classes: Classes
    quality: Quality
    behind: Behind
    people: People


class Pages:
    """The pages of one station."""

    def __init__(self, desk: Desk, history: LabelHistory, subjects: Subjects) -> None:
        self._desk, self._station = desk, desk.station
        self._history = history
        self._subjects = subjects
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("device_agent.page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters["breakable"] = _breakable

    def router(self) -> APIRouter:
        """Return all pages."""
        pages = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
        look = [Depends(needs(Role.OPERATOR))]
        pages.add_api_route("/login", self.login)
        for path, show in (
            ("/", self.now),
            ("/label", self.label),
            ("/learned", self.learned),
            ("/learned/part", self.learned_part),
            ("/learned/outlook", self.outlook),
            ("/learned/suspects", self.suspects),
            ("/learned/labels", self.labels),
            ("/learned/heads", self.heads),
            ("/quality", self.quality),
            ("/quality/part", self.quality_part),
            ("/quality/pictures", self.pictures),
            ("/quality/pictures/part", self.pictures_part),
            ("/settings", self.settings),
        ):
            pages.add_api_route(path, show, dependencies=look)
        return pages

    def _render(self, request: Request, template: str, page: str, **values: Any) -> str:
        language = language_of(request.cookies.get("headway-lang"), request.headers.get("accept-language", ""))
        theme = request.cookies.get("headway-theme", "auto")
        t = Texts(language)
        who: Who | None = request.state.who
        facts = {
            "texts": for_scripts(language),
            "faults": {"none_passes": NONE_PASSES, "lost": lost_words("{name}")},
            "csrf": "" if who is None else who.csrf,
            "page": page,
            "loggedIn": who is not None,
            "accounts": self._desk.access.in_use,
            "who": "" if who is None else who.id,
            "name": "" if who is None or not who.id else who.name,
        }
        return self._templates.get_template(template).render(
            t=t,
            lang=language,
            languages=LANGUAGES,
            theme=theme if theme in THEMES else "auto",
            device=self._station.store.device,
            page=page,
            who=who,
            facts=facts,
            may_change=who is not None and who.role.rank >= Role.ENGINEER.rank,
            percent=t.percent,
            when=when,
            **values,
        )

    # -- whole pages ----------------------------------------------------------------------------------------------

    def login(self, request: Request, then: Annotated[str, Query(max_length=MAX_THEN)] = "/") -> Any:
        """Ask who somebody is."""
        if request.state.who is not None:
            return RedirectResponse("/", 303)
        safe = then if _OWN_PAGE.fullmatch(then) else "/"
        return HTMLResponse(self._render(request, "login.html", "login", then=safe))

    def now(self, request: Request) -> str:
        """What the line is doing."""
        return self._render(request, "now.html", "now")

    def label(self, request: Request) -> str:
        """One picture at a time."""
        return self._render(request, "label.html", "label", page_size=PAGE)

    def learned(self, request: Request) -> str:
        """What labels have done."""
        return self._render(request, "learned.html", "learned", **self._learned(request))

    def learned_part(self, request: Request) -> str:
        """Its first part, anew."""
        return self._render(request, "learned_part.html", "learned", **self._learned(request))

    def quality(self, request: Request) -> str:
        """For the quality engineer."""
        return self._render(request, "quality.html", "quality", **self._qualities(request))

    def quality_part(self, request: Request) -> str:
        """Its content, anew."""
        return self._render(request, "quality_part.html", "quality", **self._qualities(request))

    def pictures(self, request: Request, figure: Annotated[FigureIn, Query()]) -> str:
        """The pictures behind a figure."""
        return self._render(request, "behind.html", "quality", **self._behind(request, figure))

    def pictures_part(self, request: Request, figure: Annotated[ShownIn, Query()]) -> str:
        """Their list, anew."""
        asked = FigureIn(**figure.model_dump(exclude={"lost"}))
        return self._render(request, "behind_part.html", "quality", **self._behind(request, asked, figure.lost))

    def settings(self, request: Request) -> str:
        """Looks, accounts, machines."""
        who, access = who_of(request), self._desk.access
        admin = who.role is Role.ADMIN
        return self._render(
            request,
            "settings.html",
            "settings",
            accounts_on=access.in_use,
            admin=admin,
            accounts=access.accounts() if admin else [],
            former=_former(access) if admin else [],
            tokens=access.tokens() if admin else [],
            audit=self._subjects.people.get_audit(30) if admin else [],
            classes=self._subjects.classes.get_classes(),
            by_name=self._station.operating.target.good is None,
            in_fleet=self._subjects.classes.in_fleet,
            version=headway_version(),
        )

    # -- what was learned -----------------------------------------------------------------------------------------

    def _learned(self, request: Request) -> dict[str, Any]:
        heads = self._station.store.heads.newest(limit=self._station.store.limits.keep_heads)
        space = None if self._station.serving is None else self._station.serving.learner.space
        scored = [(row, score) for row in heads if row.space == space and (score := score_of(row)) is not None]
        confirmed = [(row, score) for row, score in scored if row.outcome is Outcome.CONFIRMED]
        score = confirmed[0][1] if confirmed else self._subjects.learned.score()
        number = confirmed[0][0].number if confirmed else None
        earlier = _earlier(confirmed)
        t = self._texts(request)
        called = self._desk.called(_now(t))
        rows: list[ScoreRow] = []
        if score is not None:
            before = {} if earlier is None else _recalls(earlier.score)
            rows = sorted(
                (
                    ScoreRow(
                        called(c.class_id),
                        c.recall,
                        c.low,
                        c.high,
                        c.class_id not in score.one_group,
                        before.get(c.class_id),
                        _pictures_of(number, figure="recall", truth=c.class_id.hex()),
                    )
                    for c in score.classes
                ),
                key=lambda row: row.name.casefold(),
            )
        serving = self._station.serving
        told = None if serving is None else serving.learner.masters()
        return {
            "news": self._news(t, [row for row in heads if row.space == space]),
            "score": score,
            "earlier": earlier,
            "rows": rows,
            "masters": masters_report(told),
        }

    def _news(self, t: Texts, heads: list[HeadRow]) -> News:
        serving = self._station.serving
        if serving is None:
            return News("wait", "…", t("learned.no-release"))
        last = self._history.last_own()
        if last is None:
            return News("wait", "…", t("learned.nothing"))
        event, status = last.event, serving.learner.status()
        kept = self._station.store.samples.get(event.sample) is not None
        sample = event.sample.hex() if kept else None
        if event.class_id is None:
            return undone_news(t, status, sample)
        name, class_id = self._desk.called(_now(t))(event.class_id), serving.learner.canonical(event.class_id)
        if status.outcome is Outcome.PROVISIONAL or status.busy:
            return News("wait", "…", t("learned.on-trial", name=name), sample=sample, label=name)
        if status.outcome is Outcome.TAKEN_BACK:
            return News("bad", "✕", t("learned.taken-back", name=name), why(t, status.why), sample, name)
        effect = _effect(t, heads, class_id, name)
        sentence = t("common.space").join(filter(None, [t("learned.live", name=name), effect]))
        level = "bad" if status.prices else "good"
        return News(level, "✓", sentence, why(t, status.why), sample, name)

    def outlook(self, request: Request) -> str:
        """How many more labels, and of what."""
        t, ahead = self._texts(request), self._subjects.learned.get_outlook()
        if ahead.balanced_accuracy is None or not ahead.classes:
            sentence = t("learned.outlook-none")
        else:
            gain = ahead.classes[0].gain
            if gain.share < WORTH and ahead.few:
                sentence = t("learned.outlook-few", names=t("common.and").join(ahead.few), n=FEW)
            elif gain.share < WORTH:
                sentence = t("learned.outlook-enough")
            else:
                low, high = (f"{100 * x:.0f}" for x in (gain.low, gain.high))
                sentence = t(
                    "learned.outlook-helps",
                    name=ahead.classes[0].name,
                    gain=f"{100 * gain.share:.0f}",
                    low=low,
                    high=high,
                )
        return self._render(
            request,
            "learned_outlook.html",
            "learned",
            sentence=sentence,
            now=ahead.balanced_accuracy,
            steps=ahead.steps if ahead.balanced_accuracy else [],
            one_group=ahead.one_group,
        )

    def suspects(self, request: Request) -> str:
        """Labels to confirm or correct."""
        now, learned = _now(self._texts(request)), self._subjects.learned
        found = [] if self._station.serving is None else learned.suspects_out(200, now)
        here = [each for each in found if each.kept]
        return self._render(
            request,
            "learned_suspects.html",
            "learned",
            suspects=here[:SHOWN_SUSPECTS],
            elsewhere=len(found) - len(here),
        )

    def labels(self, request: Request, limit: Annotated[int, Query(ge=1, le=200)] = SHOWN_LABELS) -> str:
        """Who labelled what."""
        found = self._subjects.labels.labels_out(self._history.rows(limit), _now(self._texts(request)))
        more = min(2 * limit, 200) if len(found) == limit < 200 else None
        return self._render(request, "learned_labels.html", "learned", labels=found, more=more)

    def heads(self, request: Request) -> str:
        """Heads that served here."""
        serving, called = self._station.serving, self._desk.called(_now(self._texts(request)))
        rows = self._station.store.heads.newest(limit=200)
        shown = []
        number = None if serving is None else serving.learner.head.number
        for i, row in enumerate(rows):
            if row.outcome is Outcome.SUPERSEDED and row.number != number:
                continue
            score = score_of(row)
            older = (r for r in rows[i + 1 :] if r.space == row.space and r.outcome is Outcome.CONFIRMED)
            before = next((s for r in older if (s := score_of(r)) is not None), None)
            back = None
            same_space = serving is not None and row.space == serving.learner.space
            if same_space and row.number != number and row.outcome is Outcome.CONFIRMED and not is_alone(row):
                back = len(self._history.restoring(row)) or None
            shown.append(
                {
                    **head_out(row).__dict__,
                    "comparable": score is not None and before is not None,
                    "changes": _changes(before, score, called),
                    "back": back,
                    "serves": row.number == number,
                }
            )
        return self._render(request, "learned_heads.html", "learned", heads=shown[:SHOWN_HEADS])

    # -- quality --------------------------------------------------------------------------------------------------

    def _qualities(self, request: Request) -> dict[str, Any]:
        report, serving = self._subjects.quality.report(_now(self._texts(request))), self._station.serving
        space = None if serving is None else serving.learner.space
        points, point, costs = report.operating.points, report.operating.point, report.operating.by_class
        rate = report.operating.escape_rate
        place = min(range(len(points)), key=lambda i: abs(points[i].target - rate)) if points else 0
        classes = self._subjects.classes.get_classes()
        known = [c for c in classes if not c.put_away or c.id in report.operating.good]
        number = None if report.head is None else report.head.number
        said = [*(row.id for row in report.confusion), UNKNOWN]
        confusion = [_shaded(row, i, said, number) for i, row in enumerate(report.confusion)]
        columns = [*report.classes, self._texts(request)("common.unknown")]
        costs_behind = {
            figure: _pictures_of(number, figure=figure, good=report.operating.good)
            for figure in ("escapes", "overkill")
        }
        return {
            "report": report,
            "made": made(report.made_utc),
            "good": [c.name for c in classes if c.id in report.operating.good],
            "columns": columns,
            "blocks": _side_by_side(columns, confusion),
            "classes": known,
            "place": place,
            "points": [asdict(each) for each in points],
            "point": None if point is None else asdict(point),
            "by_class": None if costs is None else asdict(costs),
            "seen": report.operating.seen.model_dump(),
            "confusion": confusion,
            "behind": costs_behind,
            "slices": [(each, _pictures_of(number, figure=each.kind, name=each.name)) for each in report.slices],
            "curve": _curve(
                self._texts(request),
                [
                    (h.samples, h.balanced_accuracy or 0.0, h.low or 0.0, h.high or 0.0)
                    for h in reversed(report.heads)
                    if h.outcome == Outcome.CONFIRMED.value and h.space == space
                ],
            ),
        }

    def _behind(self, request: Request, figure: FigureIn, lost: int | None = None) -> dict[str, Any]:
        """Return what shows a figure's pictures: of the head that it is of, of the newest where that is held no
        longer, or why there are none. `lost` was asked for at first, and was held no longer."""
        behind, t = self._subjects.behind, self._texts(request)
        if figure.figure in ("escapes", "overkill"):
            figure = figure.model_copy(update={"good": behind.good_of(figure)})
        try:
            try:
                found = behind.pictures_out(figure, _now(t))
            except HeadNotHeld:
                lost = lost or figure.head
                figure = figure.model_copy(update={"head": None, "offset": 0})
                found = behind.pictures_out(figure, _now(t))
        except OneClass:
            return {"title": t("quality.title"), "found": None, "why": t("behind.one-class")}
        except (Refusal, HeadwayError) as error:
            return {"title": t("quality.title"), "found": None, "why": str(error)}
        figure = figure.model_copy(update={"head": found.head})
        here, shown = found.offset, len(found.pictures)
        return {
            "title": self._title(t, figure),
            "found": found,
            "whole": figure.figure not in ("cell", "escapes", "overkill"),
            "not_held": lost,
            **self._rule(t, figure),
            "query": figure.query(lost=lost),
            "newest": figure.query(head=found.newest and found.newest.head, offset=None),
            "before": figure.query(offset=max(0, here - figure.limit)) if here else None,
            "after": figure.query(offset=here + shown) if here + shown < found.count else None,
            "links": [
                figure.query(sample=each.sample, offset=here + i, limit=None)
                for i, each in enumerate(found.pictures)
            ],
            "made": made(time.time()),
            "part_of": lambda group: group.removeprefix(f"{self._station.store.device}/"),
        }

    def _title(self, t: Texts, figure: FigureIn) -> str:
        """Return what a figure is of, in words."""
        called = self._desk.called(_now(t))

        def name(class_id: str | None) -> str:
            return called(bytes.fromhex(class_id)) if class_id and class_id != UNKNOWN else t("common.unknown")

        match figure.figure:
            case "cell" if figure.truth == figure.said:
                return t("behind.cell-right", truth=name(figure.truth))
            case "cell":
                return t("behind.cell", truth=name(figure.truth), said=name(figure.said))
            case "recall":
                return t("behind.recall", truth=name(figure.truth))
            case "escapes":
                return t("behind.escapes")
            case "overkill":
                return t("behind.overkill")
            case kind:
                of = t(f"slice.{figure.name}") if kind == "origin" else figure.name
                return t("behind.slice", kind=t(f"slice.{kind}"), name=of)

    def _rule(self, t: Texts, figure: FigureIn) -> dict[str, Any]:
        """Return by which rule escapes and overkill are told, and whether another one is in force."""
        if figure.good is None:
            return {"rule": None, "other_rule": False}
        operating, called = self._subjects.quality.get_operating(), self._desk.called(_now(t))
        good = t("common.and").join(called(bytes.fromhex(each)) for each in figure.good)
        in_force = operating.good, operating.escape_rate if operating.by_threshold else None
        rule = t("behind.rule-class", good=good)
        if figure.escape_rate is not None:
            rule = t("behind.rule-threshold", good=good, rate=t.percent(figure.escape_rate, 1))
        return {"rule": rule, "other_rule": in_force != (figure.good, figure.escape_rate)}

    def _texts(self, request: Request) -> Texts:
        return Texts(language_of(request.cookies.get("headway-lang"), request.headers.get("accept-language", "")))


def when(at_utc: float) -> str:
    """Return a time by the device's clock, without what today's date makes plain."""
    at = local(at_utc)
    return at.strftime("%H:%M" if at.date() == local(time.time()).date() else "%Y-%m-%d %H:%M")


def made(at_utc: float) -> str:
    """Return a time by the device's clock in full, for paper."""
    return local(at_utc).strftime("%Y-%m-%d %H:%M (%z)")


def _earlier(confirmed: list[tuple[HeadRow, Score]]) -> Earlier | None:
    """Return the last score before today; where there is none, today's first; None where there is but one."""
    confirmed = [each for each in confirmed if each[1].balanced_accuracy is not None]
    today = local(time.time()).date()
    older = [score for row, score in confirmed if local(row.created_utc).date() < today]
    if older:
        return Earlier("yesterday", older[0])
    return Earlier("first", confirmed[-1][1]) if len(confirmed) > 1 else None


def _recalls(score: Score) -> dict[bytes, float]:
    return {c.class_id: c.recall for c in score.classes if c.class_id not in score.one_group}


def _effect(t: Texts, heads: list[HeadRow], class_id: bytes, name: str) -> str:
    """Return what the newest head made of a class, against the one before, in a sentence."""
    confirmed = [row for row in heads if row.outcome is Outcome.CONFIRMED]
    scores = [score for row in confirmed if (score := score_of(row)) is not None]
    if not scores or any(each.code == "not-yet" and name in dict(each.classes) for each in confirmed[0].why):
        return ""  # nothing to say, or the reason says it
    now = _recalls(scores[0])
    before = _recalls(scores[1]) if len(scores) > 1 else {}
    if class_id not in now:
        return t("learned.effect-few")
    share = t.percent(now[class_id])
    if class_id not in before:
        return t("learned.effect-new", name=name, share=share) if len(scores) > 1 else ""
    if abs(now[class_id] - before[class_id]) < SAME:
        return t("learned.effect-same")
    return t("learned.effect-up", name=name, share=share, before=t.percent(before[class_id]))


def undone_news(t: Texts, status: LearnerStatus, sample: str | None) -> News:
    """Return what became of a label that was taken back: it decides no more, whatever that costs."""
    if status.outcome is Outcome.PROVISIONAL or status.busy:
        return News("wait", "↶", t("learned.undoing"), sample=sample)
    more = why(t, status.prices)
    if status.outcome is Outcome.TAKEN_BACK:
        more = t("common.space").join(filter(None, [why(t, status.why), more]))
        return News("bad", "↶", t("learned.undone-alone"), more, sample)
    return News("bad" if more else "good", "↶", t("learned.undone"), more, sample)


def why(t: Texts, reasons: Sequence[Reason]) -> str:
    """Return why a trial ended as it did, in the page's language; what only a newer version would know is left
    out."""
    known = [each for each in reasons if each.code in ENGLISH]
    return t("common.space").join(r.worded(t(f"trial.{r.code}"), t.percent, t("common.and")) for r in known)


def _now(t: Texts) -> Now:
    """Return what joins the name of a class that was made part of another and what it is called by now."""
    return lambda name, into: t("learned.now-of", name=name, into=into)


def _changes(before: Score | None, after: Score | None, called: Callable[[bytes], str]) -> list[dict[str, Any]]:
    """Return classes whose recall changed from one head to the next, the largest change first."""
    if before is None or after is None:
        return []
    old, new = _recalls(before), _recalls(after)
    by = {c: new[c] - old.get(c, 0.0) for c in new}
    largest = sorted((c for c in by if abs(by[c]) >= SAME), key=lambda c: -abs(by[c]))[:SHOWN_CHANGES]
    return [{"name": called(c), "by": by[c]} for c in largest]


def _pictures_of(head: int | None, **figure: Any) -> str:
    """Return where the pictures behind a figure of a head are shown."""
    return f"/quality/pictures?{FigureIn(head=head, **figure).query()}"


def _shaded(row: ConfusionRow, place: int, said: list[str], head: int | None) -> dict[str, Any]:
    """Return a row of the confusion table: `said` are the columns' classes, `place` that of its own."""
    cells = [*row.counts, row.unknown]
    total = max(sum(cells), 1)
    return {
        "name": row.name,
        "behind": _pictures_of(head, figure="recall", truth=row.id),
        "cells": [
            {
                "n": n,
                "level": min(4, -(-4 * n // total)) if n else 0,
                "right": i == place,
                "behind": _pictures_of(head, figure="cell", truth=row.id, said=said[i]),
            }
            for i, n in enumerate(cells)
        ],
    }


def _side_by_side(columns: list[str], rows: list[dict[str, Any]]) -> list[tuple[list[str], list[dict[str, Any]]]]:
    """Return the confusion table in as few parts as fit beside each other on paper, each with all rows."""
    most = PRINTED_COLUMNS if max(map(len, columns)) <= LONG_NAME else PRINTED_LONG
    count = -(-len(columns) // most)
    size = -(-len(columns) // count)
    parts = [slice(i, i + size) for i in range(0, len(columns), size)]
    return [(columns[part], [{**row, "cells": row["cells"][part]} for row in rows]) for part in parts]


def _curve(t: Texts, heads: list[tuple[int, float, float, float]]) -> dict[str, Any]:
    """Return the points of heads, oldest first, and their line and band in the drawing's units.

    One after the other: what was undone leaves fewer samples, and later heads are not earlier for that.
    """
    if len(heads) < 2:
        return {"points": []}
    bottom = min(0.9, int(10 * min(low for _, _, low, _ in heads)) / 10)

    def x(place: int) -> float:
        return round(34 + 262 * place / (len(heads) - 1), 1)

    def y(share: float) -> float:
        return round(112 - 104 * (share - bottom) / (1 - bottom), 1)

    upper = [(x(i), y(high)) for i, (_, _, _, high) in enumerate(heads)]
    lower = [(x(i), y(low)) for i, (_, _, low, _) in enumerate(heads)]
    band = [*upper, *reversed(lower)]
    line = [(x(i), y(share)) for i, (_, share, _, _) in enumerate(heads)]
    return {
        "points": line,
        "line": " ".join(f"{a},{b}" for a, b in line),
        "band": " ".join(f"{a},{b}" for a, b in band),
        "grid": [(y(s), t.percent(s)) for s in (bottom, (1 + bottom) / 2, 1.0)],
        "from": heads[0][0],
        "to": heads[-1][0],
        "first": heads[0][1],
        "last": heads[-1][1],
    }


def _former(access: Access) -> list[str]:
    """Return the names that only removed accounts have, which can still be erased."""
    taken = {each.name.casefold() for each in access.accounts()}
    return sorted({name for name in access.former().values() if name.casefold() not in taken}, key=str.casefold)
