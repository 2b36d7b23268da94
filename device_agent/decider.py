"""Features to codes and decisions in one call, without the interpreter's lock: what happens to each frame.

`sdk.codes.encode` and `Head.decide` say what is right. In NumPy they are some forty calls, a dozen of which let go
of the interpreter's lock and wait for it again, and they read the whitening, d x d numbers, from memory: a tenth
of a frame's time at d = 1584 (decision 0055). Here most of it is one graph in ONNX Runtime, with the whitening in
seven bits. Codes have the same bits; scores and novelty agree within `TOLERANCE`, but for the novelty of a sample
at the very mean of a class, which both take for as known as can be.

A graph is made beside frames whenever a head was solved, 10 ms at d = 1584. Until it is there, and wherever ONNX
Runtime does not keep the tolerance on this device, NumPy decides. Heads updated since share their whitening, and
with it the graph.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from device_agent.courtesy import step_back
from device_agent.runtime import graph
from device_agent.runtime.onnx import GraphSession
from sdk.codes import Codes, Features, encode
from sdk.errors import HeadwayError, InferenceFailed
from sdk.head import Decisions, Head

TOLERANCE: Final = 0.01
"""Largest share by which |q R'|^2 may be off, and scores by half of it. Seven bits give a tenth of that."""
STAYS: Final = "decisions stay in NumPy, which is slower"
NICE: Final = 5
"""The priority of learning: until there is a graph, NumPy decides."""
_PROBES: Final = 16
Numbers = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


# A head that serves no more takes no memory here: only weak references, and what a call is given beside features.


class _Graph(NamedTuple):
    """A session, the whitening in it, and by how much (d,) its product with the centre is off: bits it lacks."""

    session: GraphSession
    whitening: weakref.ref[Numbers]
    off: Numbers


class _Bound(NamedTuple):
    """A head, the graph for it, and what that is given beside features."""

    head: weakref.ref[Head]
    session: GraphSession
    beside: dict[str, Numbers]


class Decider:
    """Decides about frames of one release by whatever head serves. Any thread may ask.

    Args:
        scale: The release's code scale.
        beside: Graphs are made on a thread of their own, and NumPy decides meanwhile. Else they are made in
            between, so that the same frames always meet the same arithmetic.
    """

    def __init__(self, scale: float, *, beside: bool = True) -> None:
        self._scale = scale
        self._graph: _Graph | None = None
        self._bound: _Bound | None = None
        self._asked: weakref.ref[Numbers] | None = None  # whitening of the graph asked for, whatever came of it
        self._wanted: Head | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="decider", daemon=True) if beside else None
        if self._thread is not None:
            self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether a graph decides by the head that was asked last."""
        return self._bound is not None

    def decide(self, head: Head, features: Features) -> tuple[Codes, Decisions]:
        """Return the codes (n, d) of features (n, d), and what the head says of them.

        Raises:
            FeatureSizeError: the features are not finite, or of another feature space.
        """
        bound = self._bound
        if bound is None or bound.head() is not head:
            bound = self._bind(head)
        if bound is not None and features.ndim == 2 and features.shape[1] == head.feature_size:
            try:
                code, length, squared, along = bound.session.run({graph.FEATURES: features, **bound.beside})
            except HeadwayError as error:
                self._graph = self._bound = None
                _log.warning("%s: %s", STAYS, error)
            else:
                if np.isfinite(length).all():  # else it is for `encode` to say what is wrong
                    return code, head.decided(squared, along)
        codes = encode(features, self._scale)
        return codes, head.decide(codes)

    def close(self) -> None:
        """Make no more graphs; return when none is being made, so that no process ends in the middle of one."""
        with self._changed:
            self._closed, self._wanted = True, None
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _bind(self, head: Head) -> _Bound | None:
        """Return what decides by this head; None while there is no graph with its whitening."""
        whitening = head.factors.whitening
        if not (self._asked and self._asked() is whitening):
            self._ask(head)
        made = self._graph
        if made is None or made.whitening() is not whitening:
            self._bound = None
            return None
        self._bound = _bound(head, made)
        return self._bound

    def _ask(self, head: Head) -> None:
        self._asked = weakref.ref(head.factors.whitening)
        if self._thread is None:
            self._make(head)
            return
        with self._changed:
            self._wanted = head
            self._changed.notify()

    def _work(self) -> None:
        step_back(NICE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._closed)
                head, self._wanted = self._wanted, None
            if head is None:
                return
            self._make(head)
            del head  # the next one may be long in coming

    def _make(self, head: Head) -> None:
        """Make the graph with a head's whitening, and let it serve where it computes right on this device."""
        try:
            made = _graph(head, self._scale)
            off = _deviation(head, made, self._scale)
        except HeadwayError as error:
            _log.warning("%s: %s", STAYS, error)
            return
        if not off <= TOLERANCE:  # not a number is no agreement
            _log.warning("%s: ONNX Runtime's are off by %.1f %% on this device", STAYS, 100 * off)
            return
        self._graph = made


def _graph(head: Head, scale: float) -> _Graph:
    whitening, centre, _ = head.factors
    whole, unit, diagonal = graph.in_steps(whitening)
    session = GraphSession(graph.deciding(whole, unit, diagonal, scale), "the head's graph", graph.OUTPUTS)
    coarse = np.empty_like(unit)
    for at in range(0, len(unit), graph.STRIP):
        coarse[at : at + graph.STRIP] = centre @ whole[:, at : at + graph.STRIP].astype(np.float32)
    return _Graph(session, weakref.ref(whitening), coarse * unit + centre * diagonal - centre @ whitening)


def _bound(head: Head, made: _Graph) -> _Bound:
    """Return a head with its graph: the same whitening, and a centre that has not moved far since that was made.

    What seven bits lack is taken off the centre as off a code, so that it weighs by the distance between the two.
    """
    whitening, centre, directions = head.factors
    taken = centre @ whitening + made.off
    beside = {graph.OFFSET: -taken, graph.DIRECTIONS: directions, graph.ALONG_OFFSET: centre @ directions}
    return _Bound(weakref.ref(head), made.session, beside)


def _deviation(head: Head, made: _Graph, scale: float) -> float:
    """Return by what share |q R'|^2 and the products are off at most, on codes about the head's centre.

    Raises:
        InferenceFailed: the graph fails, or gives other codes.
    """
    whitening, centre, directions = head.factors
    rng = np.random.default_rng(0)
    near = centre + rng.normal(0, max(float(centre.std()), 1.0), (_PROBES, len(centre))).astype(np.float32)
    features = np.asarray(np.sign(near) * near**2, np.float32)
    bound = _bound(head, made)
    code, _, squared, along = bound.session.run({graph.FEATURES: features, **bound.beside})
    if not np.array_equal(code, encode(features, scale)):
        raise InferenceFailed(
            "ONNX Runtime gives other codes than NumPy", hint="Update onnxruntime on this device."
        )
    q = code - centre
    right, products = ((q @ whitening) ** 2).sum(1), q @ directions
    tiny = np.finfo(np.float32).tiny
    far, large = max(float(right.mean()), tiny), np.abs(products).max(initial=tiny)
    return float(max(np.abs(squared - right).max() / far, np.abs(along - products).max(initial=0) / large))
