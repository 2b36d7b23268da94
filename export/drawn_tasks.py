"""How well a head learns from a few labels on top of a backbone, asked of drawn pictures it was not trained on.

Backbones, recipes and readouts are chosen by these figures, so that no image set that is reported on is looked at:

- *new defects*: on each kind of surface, good parts and the defect kinds that the kind never showed in training
  (`export.pretrain.HELD_OUT`), photographed as `sdk.surfaces.make` does, one part once;
- *faint defects*: the same parts, with so much of the defect to see as `FAINT` says;
- *varied parts*: the same defect kinds, each part of another surface of the kind, loud or faint, its frame
  squeezed to a square from another shape: what tells the classes apart is the defect and nothing else;
- *new surfaces*: surfaces of recipes that were never drawn, with and without defects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from export.augment import Frames
from export.backbones import Backbone
from export.embed import features
from export.pretrain import HELD_OUT
from sdk.codes import encode, fit_scale
from sdk.head import solve
from sdk.moments import Moments
from sdk.preprocess import resize
from sdk.surfaces import GOOD, KINDS, make
from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES, MARK_PX, draw_sheet

LABELS: Final = (1, 5, 15)
"""Of each class; as many as leave a quarter of the pictures to judge by."""
SEED: Final = 1_000_003
"""Far from the seeds that anybody trains with; the pictures are the same for every backbone."""
DRAWN_PX: Final = 224
FAINT: Final = 0.35
"""Loudness of the defects of the second task: a person finds most of them, looking twice."""
SQUEEZED: Final = 0.6
"""Of a varied part's width over its height, at most this much either way, as a logarithm: 16 : 9 and a bit."""
VARIED_PX: Final = 288
"""Side of the sheet that a varied part is cut from."""


class DrawnScore(msgspec.Struct):
    """Balanced accuracy, a mean over tasks and draws.

    Attributes:
        task: `new defects`, `faint defects`, `varied parts` or `new surfaces`.
        labels: Given of each class.
        accuracy: In [0, 1].
    """

    task: str
    labels: int
    accuracy: float


@dataclass(frozen=True)
class Size:
    """How much is drawn.

    Attributes:
        parts: Pictures of each class of the other tasks.
        surfaces: Classes of the last task.
        pieces: Pictures of each.
        draws: Of the few labels.
    """

    parts: int = 20
    surfaces: int = 40
    pieces: int = 15
    draws: int = 3


@dataclass(frozen=True)
class DrawnTasks:
    """The pictures of all tasks.

    Attributes:
        frames: (n, s, s, 3) uint8 BGR.
        tasks: Name, rows and labels of each.
    """

    frames: Frames
    tasks: tuple[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]], ...]


DEFAULT_SIZE: Final = Size()


def draw_tasks(size: Size = DEFAULT_SIZE, on_picture: Callable[[], None] = lambda: None) -> DrawnTasks:
    """Return the pictures: the same from call to call. About a minute on one core."""
    frames: list[npt.NDArray[np.uint8]] = []
    tasks: list[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []

    def add(name: str, pictures: Iterator[tuple[npt.NDArray[np.uint8], int]]) -> None:
        first, labels = len(frames), []
        for frame, label in pictures:
            frames.append(frame)
            labels.append(label)
            on_picture()
        tasks.append((name, np.arange(first, len(frames)), np.array(labels, np.int64)))

    for kind in KINDS:
        classes = [GOOD, *sorted(defect for surface, defect in HELD_OUT if surface == kind)]
        add("new defects", _parts(kind, classes, size.parts, 1.0))
        add("faint defects", _parts(kind, classes, size.parts, FAINT))
        add("varied parts", _varied(kind, classes, size.parts))
    add("new surfaces", _pieces(size.surfaces, size.pieces))
    return DrawnTasks(np.stack(frames), tuple(tasks))


def _parts(
    kind: str, classes: list[str], parts: int, loudness: float
) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    for label, defect in enumerate(classes):
        for number in range(parts):
            seed = SEED + label * parts + number
            yield make(kind, defect, seed=seed, size_px=DRAWN_PX, loudness=loudness)[0], label


def _varied(kind: str, classes: list[str], parts: int) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    for label, defect in enumerate(classes):
        others = frozenset((kind, name) for name in DEFECT_NAMES if name != defect)
        for number in range(parts):
            place = label * parts + number
            rng = np.random.default_rng([SEED, KIND_NAMES.index(kind), place])
            recipe = KIND_NAMES.index(kind) + len(KIND_NAMES) * place
            shape = np.exp(rng.uniform(-SQUEEZED, SQUEEZED) / 2 * np.array([1, -1]))
            height, width = np.minimum(VARIED_PX, np.rint(DRAWN_PX * shape)).astype(int)
            top, left = rng.integers(0, VARIED_PX + 1 - np.array([height, width]))
            drawn = (
                draw_sheet(recipe, piece, seed=SEED, size_px=VARIED_PX, without=others, faint=0.5)
                for piece in count()
            )
            rows, columns = (
                slice(at // MARK_PX, (at + side) // MARK_PX) for at, side in ((top, height), (left, width))
            )
            frame = next(sheet.frame for sheet in drawn if sheet.marks[rows, columns].any() == (defect != GOOD))
            yield resize(frame[top : top + height, left : left + width], DRAWN_PX, DRAWN_PX), label


def _pieces(surfaces: int, pieces: int) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    for recipe in range(surfaces):
        for piece in range(pieces):
            yield draw_sheet(recipe, piece, seed=SEED, size_px=DRAWN_PX).frame, recipe


def drawn_scores(backbone: Backbone, tasks: DrawnTasks, draws: int = DEFAULT_SIZE.draws) -> list[DrawnScore]:
    """Return how well a head learns on top of the backbone."""
    side = (backbone.preprocess.height, backbone.preprocess.width)
    given = tasks.frames
    seen = given if given.shape[1:3] == side else np.stack([resize(frame, *side) for frame in given])
    return scores_of(features(backbone, seen), tasks, draws)


def scores_of(
    found: npt.NDArray[np.float32], tasks: DrawnTasks, draws: int = DEFAULT_SIZE.draws
) -> list[DrawnScore]:
    """Return how well a head learns from features (n, d) of the tasks' pictures."""
    scores = []
    for name in dict.fromkeys(task[0] for task in tasks.tasks):
        own = [(rows, labels) for task, rows, labels in tasks.tasks if task == name]
        fewest = min(int(np.bincount(labels).min()) for _, labels in own)
        for given in (n for n in LABELS if 4 * n <= 3 * fewest):
            reached = [_few(found[rows], labels, given, draw) for rows, labels in own for draw in range(draws)]
            scores.append(DrawnScore(name, given, round(float(np.mean(reached)), 4)))
    return scores


def _few(found: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], count: int, draw: int) -> float:
    """Return balanced accuracy after a few labels of each class, on all other pictures."""
    order = np.random.default_rng([SEED, draw]).permutation(len(labels))
    k = int(labels.max()) + 1
    given = np.concatenate([order[labels[order] == label][:count] for label in range(k)])
    rest = np.setdiff1d(order, given)
    codes = encode(found, fit_scale(found[given]))
    moments = Moments(codes.shape[1])
    moments.add(codes[given], [_id(label) for label in labels[given]])
    head = solve(moments)
    columns = np.array([int.from_bytes(one, "big") for one in head.class_ids])
    chosen = columns[head.scores(codes[rest]).argmax(1)]
    return float(np.mean([(chosen[labels[rest] == label] == label).mean() for label in range(k)]))


def _id(label: np.int64) -> bytes:
    return int(label).to_bytes(16, "big")
