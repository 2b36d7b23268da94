"""Which parts are rejected: where a station's operating point lies, kept at a stated escape rate as its head
learns.

People choose which classes are good and which share of defects may pass at most. The threshold on the probability
of a defect follows from left-out samples of the head that serves (`sdk.operating`), and is found anew for each
confirmed head; a provisional one uses the threshold before, and so does a release that starts again. Until the
first head of a release is scored, which takes a second or so, every part is rejected. Unknown always is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, Protocol

import msgspec

from device_agent.naming import Naming
from sdk.class_names import key_of
from sdk.damaged import DAMAGED
from sdk.errors import HeadError
from sdk.head import Calibration
from sdk.moments import Floats
from sdk.operating import operating_point
from sdk.score import LeftOut

MAX_ESCAPE_RATE: Final = 0.5
KEPT_AS: Final = "operating"
"""Name under which a station keeps what people chose, in its store too."""
LOST_AS: Final = "operating-lost"
"""Name under which a restored store keeps that its backup did not say what people chose; else empty."""
THRESHOLD_KEPT_AS: Final = "operating-threshold"
"""Name under which a station's store keeps the threshold last found."""
GOOD_NAMES: Final = frozenset(
    {"good", "ok", "okay", "pass", "free", "fine", "normal", "gut", "i.o.", "io", "合格", "良品", "正常"}
)
"""What people call parts without a defect; the default until somebody names the good classes."""


class Scored(Protocol):
    """A confirmed head's left-out scores: `device_agent.heads.Reference`."""

    @property
    def number(self) -> int: ...
    @property
    def left_out(self) -> LeftOut: ...
    @property
    def calibration(self) -> Calibration: ...


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What people chose. `good` None goes by `GOOD_NAMES`.

    A version refuses fields that it does not know: what is rejected may hang on them. So only what was chosen is
    written, and where nobody chose, any version that somebody goes back to can read that.

    Attributes:
        good: Ids of the classes without a defect, in hex; those too that were one with these when people chose.
        escape_rate: Share of defects that may pass at most.
        by_threshold: Reject from a threshold on that keeps this rate; else whatever is decided as no good class.
        whole: `good` has all that were one with these. An earlier version wrote down one id of each.
    """

    good: list[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]] | None = None
    escape_rate: Annotated[float, msgspec.Meta(ge=0, le=MAX_ESCAPE_RATE)] = 0.01
    by_threshold: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Accepting:
    """How parts are judged now.

    Attributes:
        good: Ids of the classes without a defect.
        threshold: Reject from this probability of a defect on; None rejects every decision that is no good class.
        scored: Whether left-out scores could be asked for the threshold. If not, every part is rejected.
    """

    good: frozenset[bytes]
    threshold: float | None
    scored: bool = True

    def defect(self, class_ids: Collection[bytes], probabilities: Floats) -> float:
        """Return the probability (k,) of any class but the good ones."""
        said = zip(class_ids, probabilities.tolist(), strict=True)
        return float(sum(probability for class_id, probability in said if class_id not in self.good))

    def rejects(self, class_id: bytes, defect: float, unknown: bool) -> bool:
        """Return whether a part goes out: it is unknown, or too likely a defect."""
        if unknown or not self.scored:
            return True
        return class_id not in self.good if self.threshold is None else defect >= self.threshold


class _Found(NamedTuple):
    """A threshold, and what it was found for; None where left-out scores cannot tell one."""

    release: str  # another's probabilities say something else
    number: int  # of the head
    good: frozenset[bytes]
    target: Target
    threshold: float | None


class KeptThreshold(msgspec.Struct, frozen=True):
    """A threshold as a store keeps it, for the next start.

    Attributes:
        release: Which one's, by its digest.
        target: What people had chosen.
        good: Ids of the good classes of then, in hex, sorted.
        threshold: Reject from this probability of a defect on.
    """

    release: str
    target: Target
    good: list[str]
    threshold: float


class OperatingTarget:
    """The target of one station, and the threshold that it means for the head that serves. Any thread may call.

    Args:
        target: What people chose.
        naming: Returns what the classes are called, and by whose word; None where no release serves.
        kept: The threshold that was found before this start, as `to_keep` gave it; None where there is none.

    Attributes:
        forgotten: The store came from a backup that does not say what people chose: they choose again, or what
            they rejected passes.
    """

    def __init__(
        self,
        target: Target | None = None,
        *,
        naming: Callable[[], Naming | None] = lambda: None,
        kept: bytes | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._target = target or Target()
        self._names = GOOD_NAMES
        self._naming = naming
        self.forgotten = False
        self._found: _Found | None = None
        self._kept: KeptThreshold | None = None
        if kept is not None:
            # A backup says what whoever may write to it wrote there.
            with contextlib.suppress(*DAMAGED):
                self._kept = msgspec.json.decode(kept, type=KeptThreshold)
        # Asked for each frame.
        self._good: tuple[dict[bytes, str], Naming | None, object, frozenset[bytes]] = {}, None, None, frozenset()

    def default_names(self, good: Collection[str]) -> None:
        """Go by these names, however written, until people choose the good classes."""
        self._names = frozenset(map(key_of, good))

    @property
    def target(self) -> Target:
        """What people chose."""
        return self._target

    def choose(self, target: Target) -> None:
        """Go by another target from the next frame on."""
        with self._lock:
            self._target, self._found, self.forgotten = target, None, False

    def good(self, names: dict[bytes, str]) -> frozenset[bytes]:
        """Return the good classes among those that exist: by what people here chose, else by their names.

        No other station's name or merge makes a class good (`device_agent.naming`).
        """
        naming, rests_on = self._naming(), (self._target, self._names)
        known = self._good
        if known[0] == names and known[1] is naming and known[2] == rests_on:
            return known[3]
        wanted = self._wanted(naming, names)
        found = frozenset(c for c in names if (c in wanted if naming is None else naming.good(wanted, c)))
        self._good = {**names}, naming, rests_on, found
        return found

    def _wanted(self, naming: Naming | None, names: dict[bytes, str]) -> frozenset[bytes]:
        """Return the classes that are good by this station's word, before merges."""
        if self._target.good is not None:
            return frozenset(map(bytes.fromhex, self._target.good))
        if naming is None:
            return frozenset(c for c, name in names.items() if key_of(name) in self._names)
        return naming.here_called(self._names)

    def renamed(self, class_id: bytes, name: str) -> bool | None:
        """Return whether a class passes once people here call it so; None where that is as it was."""
        naming = self._naming()
        if naming is None or self._target.good is not None:
            return None
        wanted = self._wanted(naming, {})
        after = naming.good(wanted - {class_id} | ({class_id} if key_of(name) in self._names else set()), class_id)
        return None if after == naming.good(wanted, class_id) else after

    def doubts(self) -> list[str]:
        """Return what others' names and merges would change of what passes, and do not, in words."""
        naming = self._naming()
        if naming is None:
            return []
        wanted, keys = self._wanted(naming, {}), self._names
        if self._target.good is not None:
            keys = frozenset(key_of(naming.here[each]) for each in wanted if each in naming.here)
        return naming.doubts(wanted, keys)

    def whole(self, good: Iterable[str]) -> list[str]:
        """Return these classes, in hex, with all that are one with them now."""
        naming, chosen = self._naming(), [bytes.fromhex(each) for each in good]
        return sorted({each.hex() for c in chosen for each in ([c] if naming is None else naming.members(c))})

    def lost(self, names: Collection[bytes]) -> list[str]:
        """Return what people chose as good and no class stands for, in hex, of the ids of all classes."""
        naming = self._naming()
        merged = {} if naming is None else naming.merged
        there = {merged.get(c, c) for c in names}
        chosen = {c: bytes.fromhex(c) for c in self._target.good or []}
        return sorted(c for c, class_id in chosen.items() if merged.get(class_id, class_id) not in there)

    def accepting(
        self, names: dict[bytes, str], scored: Scored | None, release: str = "", *, scorable: bool = True
    ) -> Accepting | None:
        """Return how parts are judged now; None where nobody chose, and no class has a name of a good one.

        Where people chose, and none of these classes is left, every part goes out, whatever it is called.

        Args:
            names: Class id to name.
            scored: The head whose left-out scores are known; None where no head of this release has been scored.
            release: Which one judges: its digest.
            scorable: Where no head has been scored: whether it will be. One of too few groups never is.
        """
        good = self.good(names)
        if not good:
            called = any(key_of(name) in self._names for name in names.values())  # by somebody else
            return Accepting(good, None) if called or self._target.good is not None else None
        if not self._target.by_threshold:
            return Accepting(good, None)
        found = self._threshold(good, scored, release)
        if found is None:
            return Accepting(good, None, scored=not scorable)
        return Accepting(good, found.threshold)

    def to_keep(self) -> bytes | None:
        """Return the threshold, for `kept` of the next start; None where that is what it was told last."""
        with self._lock:
            found = self._found
            if found is None or found.threshold is None or not found.target.by_threshold:
                return None
            good = sorted(c.hex() for c in found.good)
            kept = KeptThreshold(found.release, found.target, good, found.threshold)
            if kept == self._kept:
                return None
            self._kept = kept
        return msgspec.json.encode(kept)

    def _threshold(self, good: frozenset[bytes], scored: Scored | None, release: str) -> _Found | None:
        """Return the threshold for the target; None where no head of this release has been scored for it."""
        with self._lock:
            target, found, kept = self._target, self._found, self._kept
            if scored is None:  # a provisional head, or one not scored yet: as before
                if found is not None and found.release == release:
                    return found
                if kept is None or (kept.release, kept.target) != (release, target):
                    return None
                if kept.good != sorted(c.hex() for c in good):
                    return None
                return _Found(release, 0, good, target, kept.threshold)
            key = (release, scored.number, good, target)
            if found is None or found[:4] != key:
                threshold: float | None = None
                with contextlib.suppress(HeadError):
                    threshold = operating_point(
                        scored.left_out, scored.calibration, good, escape_rate=target.escape_rate
                    ).threshold
                found = self._found = _Found(*key, threshold)
            return found
