"""The classes: define, rename, merge, and put away what nobody needs on the page.

Nothing can be taken out of the label log, and a class without labels teaches nothing; but it takes a button, and a
key, from whoever labels. So a class that has no label now is put away

- when somebody who may says so,
- when labels have been given with it and all of them taken back or corrected: a mistyped name goes with its undo,
- or when it was defined for a label that has not come: somebody cancelled, or another had answered meanwhile.

Never one that the release brought, nor one that has labels. It is back as soon as one is labelled with it, or
somebody defines it again. That somebody put it away, or asked for it, is this station's, and stands in its book.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Request

from device_agent.database import Database
from device_agent.learned import ClassInfo
from device_agent.page.access import Role
from device_agent.page.book import StationSetting
from device_agent.page.desk import Desk
from device_agent.page.fields import ClassField, ClassName, ClassPath, OperatorName, RequestBody
from device_agent.page.guard import needs, operator_of
from device_agent.page.history import ClassUse, LabelHistory
from device_agent.page.refusal import Refusal
from device_agent.report import State
from device_agent.station import Station
from sdk.class_names import key_of
from sdk.damaged import DAMAGED
from sdk.errors import LabelError, UnknownClassError

_MARKS: Final = "classes"
_AWAY: Final = -1
_Marks = dict[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")], int]
Canonical = Callable[[bytes], bytes]


class ClassIn(RequestBody):
    """A name for a class."""

    name: ClassName
    operator: OperatorName = ""


class NewClassIn(ClassIn):
    """A new class. `put_away`: nobody is offered it before somebody has labelled with it."""

    put_away: bool = False


class MergeIn(RequestBody):
    """The class of which another is to be a part."""

    into: ClassField
    operator: OperatorName = ""


class PutAwayIn(RequestBody):
    """Whether a class without labels is to be put away."""

    put_away: bool


@dataclass(frozen=True)
class ClassOut:
    """A class was defined, renamed or merged, and that is on this device's disk."""

    saved: bool
    class_id: str
    name: str


@dataclass(frozen=True)
class ClassRow:
    """A class with its live labels: this device's operators' own, and all, the release's samples included.

    `of_release`: the release brought it. `put_away`: it is not offered to whoever labels.
    """

    id: str
    name: str
    own_labels: int
    labels: int
    of_release: bool
    put_away: bool


class PutAway:
    """Which classes are put away. Any thread may call.

    Args:
        station: Whose classes.
        book: The page's file, where it stands which somebody put away or asked for.
        history: What was labelled with them.
    """

    def __init__(self, station: Station, book: Database, history: LabelHistory) -> None:
        self._station, self._history = station, history
        self._stored = StationSetting(book, station.store, _MARKS)
        self._lock = threading.Lock()

    def among(self, labels: Mapping[bytes, int]) -> frozenset[bytes]:
        """Return those of these classes that are put away.

        Args:
            labels: How many each has now.
        """
        serving = self._station.serving
        if serving is None:
            return frozenset()
        canonical = serving.learner.canonical
        empty = {class_id for class_id, count in labels.items() if not count} - self.released()
        if not empty:
            return frozenset()
        marks, uses = self._marks(canonical), self._uses(canonical)
        return frozenset(
            each for each in empty if not uses[each].standing and uses[each].given > marks.get(each, 0)
        )

    def released(self) -> frozenset[bytes]:
        """Return the classes that the release brought."""
        serving = self._station.serving
        if serving is None:
            return frozenset()
        brought = (bytes.fromhex(each.id) for each in serving.bundle.manifest.classes)
        return frozenset(map(serving.learner.canonical, brought))

    def offered(self, state: State) -> State:
        """Return the state without the classes that are put away."""
        away = {each.hex() for each in self.among({bytes.fromhex(c.id): c.labels for c in state.classes})}
        return replace(state, classes=[each for each in state.classes if each.id not in away]) if away else state

    def put(self, class_id: bytes) -> None:
        """Put a class away that has no labels.

        Raises:
            UnknownClassError: there is no such class.
            LabelError: it has some, or the release brought it.
        """
        known, canonical = self._known(class_id), self._station.require().learner.canonical
        if class_id in self.released():
            raise LabelError(
                f"class {known.name!r} came with the release", hint="Rename it, or leave it as it is."
            )
        if known.labels or self._uses(canonical)[class_id].standing:
            raise LabelError(
                f"class {known.name!r} has labels", hint="Rename it, merge it, or correct its labels first."
            )
        self._mark(class_id, _AWAY)

    def ask_for(self, class_id: bytes) -> None:
        """Bring a class back, until it has been labelled with and all of that taken back.

        Raises:
            UnknownClassError: there is no such class.
        """
        self._known(class_id)
        self._mark(class_id, self._uses(self._station.require().learner.canonical)[class_id].given)

    def until_labelled(self, class_id: bytes) -> None:
        """Put a class away that is new: it is defined for a label, which may be refused."""
        self._mark(class_id, _AWAY)

    def _known(self, class_id: bytes) -> ClassInfo:
        known = next((each for each in self._station.classes() if each.class_id == class_id), None)
        if known is None:
            raise UnknownClassError(
                f"there is no class {class_id.hex()[:12]}", hint="GET /api/classes lists them."
            )
        return known

    def _uses(self, canonical: Canonical) -> defaultdict[bytes, ClassUse]:
        """Return how often a label was given with each class, after merges."""
        found: defaultdict[bytes, ClassUse] = defaultdict(lambda: ClassUse(0, 0))
        for class_id, use in self._history.uses().items():
            if class_id is not None:
                of_it = found[canonical(class_id)]
                found[canonical(class_id)] = ClassUse(of_it.given + use.given, of_it.standing + use.standing)
        return found

    def _marks(self, canonical: Canonical) -> dict[bytes, int]:
        """Return up to how many labels given each class is asked for; below none, a class that was put away."""
        stored = self._stored.get()
        marks: _Marks = {}
        with contextlib.suppress(*DAMAGED):  # a backup says what whoever may write to it wrote there
            marks = {} if stored is None else msgspec.json.decode(stored, type=_Marks)
        return {canonical(bytes.fromhex(class_id)): upto for class_id, upto in marks.items()}

    def _mark(self, class_id: bytes, upto: int) -> None:
        with self._lock:
            marks = {**self._marks(self._station.require().learner.canonical), class_id: upto}
            stored = msgspec.json.encode({each.hex(): n for each, n in marks.items()})
            self._stored.set(stored)


class Classes:
    """The routes for classes."""

    def __init__(self, desk: Desk, put_away: PutAway) -> None:
        self._desk, self._station, self._put_away = desk, desk.station, put_away

    @property
    def in_fleet(self) -> bool:
        """Whether the station belongs to a fleet, which then merges: a device's word would be for all of it."""
        return self._desk.state().mqtt is not None

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        label, change = [Depends(needs(Role.OPERATOR))], [Depends(needs(Role.ENGINEER))]
        api.add_api_route("/classes", self.get_classes, dependencies=label)
        api.add_api_route("/classes", self.post_class, methods=["POST"], status_code=201, dependencies=label)
        api.add_api_route("/classes/{class_id}", self.put_class, methods=["PUT"], dependencies=change)
        api.add_api_route("/classes/{class_id}/put-away", self.put_put_away, methods=["PUT"], dependencies=change)
        api.add_api_route(
            "/classes/{class_id}/merge", self.post_merge, methods=["POST"], status_code=201, dependencies=change
        )
        return api

    def get_classes(self) -> list[ClassRow]:
        """All classes by name, those that are put away too."""
        found = self._station.classes()
        away = self._put_away.among({each.class_id: each.labels for each in found})
        released = self._put_away.released()
        return [
            ClassRow(
                each.class_id.hex(),
                each.name,
                each.own_labels,
                each.labels,
                each.class_id in released,
                each.class_id in away,
            )
            for each in found
        ]

    def post_class(self, new: NewClassIn, request: Request) -> ClassOut:
        """Define a class, or bring one of this name back that was put away; it is on disk when this answers.

        With `put_away` the label that it is for brings it, so that nothing is left of one that is refused.
        """
        known = next((c for c in self.get_classes() if c.put_away and key_of(c.name) == key_of(new.name)), None)
        if known is not None:
            if not new.put_away:
                self._put_away.ask_for(bytes.fromhex(known.id))
                self._desk.note(request, "class brought back", known.id)
            return ClassOut(True, known.id, known.name)
        class_id = self._station.define_class(new.name, operator_of(request, new.operator))
        if new.put_away:
            self._put_away.until_labelled(class_id)
        self._desk.note(request, "class defined", class_id.hex())
        return ClassOut(True, class_id.hex(), " ".join(new.name.split()))

    def put_class(self, class_id: ClassPath, new: ClassIn, request: Request) -> ClassOut:
        """Give a class another name; its labels stay.

        409 where nobody has chosen the good classes and by this name it would pass that did not, or the reverse.
        """
        self._check_passes_as_before(bytes.fromhex(class_id), new.name)
        self._station.rename_class(bytes.fromhex(class_id), new.name, operator_of(request, new.operator))
        self._desk.note(request, "class renamed", class_id)
        return ClassOut(True, class_id, " ".join(new.name.split()))

    def _check_passes_as_before(self, class_id: bytes, name: str) -> None:
        names, root = self._desk.names(), self._station.require().learner.canonical(class_id)
        passes = self._station.operating.renamed(class_id, name)
        taken = any(key_of(other) == key_of(name) for each, other in names.items() if each != root)
        if passes is None or root not in names or taken:  # there is nothing to say, or something else is wrong
            return
        raise LabelError(
            f"{names[root]!r} does not pass, and would by the name {name!r}"
            if passes
            else f"{names[root]!r} passes by its name, and would not as {name!r}",
            hint="Choose the good classes under Quality first; from then on they pass whatever they are called.",
        )

    def put_put_away(self, class_id: ClassPath, new: PutAwayIn, request: Request) -> ClassRow:
        """Put a class without labels away, or bring it back."""
        change = self._put_away.put if new.put_away else self._put_away.ask_for
        change(bytes.fromhex(class_id))
        self._desk.note(request, "class put away" if new.put_away else "class brought back", class_id)
        return next(each for each in self.get_classes() if each.id == class_id)

    def post_merge(self, class_id: ClassPath, merge: MergeIn, request: Request) -> ClassOut:
        """Make a class part of another, whose name stays; for good.

        409 in a fleet, whose service merges, and where one of them passes and the other does not: both would pass.
        """
        if self.in_fleet:
            raise Refusal(
                409,
                "this station's fleet merges classes",
                "There: headway fleet classes --dir DIR merge ONE OTHER.",
            )
        canonical = self._station.require().learner.canonical
        one, into = canonical(bytes.fromhex(class_id)), canonical(bytes.fromhex(merge.into))
        names = self._desk.names()
        good = self._station.operating.good(names)
        if {one, into} <= names.keys() and (one in good) != (into in good):
            raise LabelError(
                f"{names[one]!r} and {names[into]!r} are one class that passes and one that does not",
                hint="Choose first, under Quality, what both are.",
            )
        name = names.get(into)
        self._station.merge_classes(one, into, operator_of(request, merge.operator), name=name)
        self._desk.note(request, "classes merged", f"{class_id} {merge.into}")
        return ClassOut(True, min(one, into).hex(), name or "")
