"""What the classes are called, and by whose word: which of them pass follows from it.

Any device of a fleet may name a class for all of it. Which classes are good is this station's to say: by the names
that its release brought and those that people gave here, or by what people chose here. So

- a name that came from elsewhere makes no class good, nor takes it from one that is;
- a class that the release lacks is called as an earlier release here called it: a bundle that was exported anew
  may have another id for the same class, and what people labelled before passes as it did;
- a class that is one with others by a merge is good where each of them is.

What rests on somebody else's word is told, until people here have said what they want.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from sdk.class_names import key_of
from sdk.labels import FLEET_LOG_PREFIX, RELEASE_DEVICE, Fold

MAX_DOUBTS: Final = 5
"""Told at once: somebody may invent thousands of classes, all called good."""
_NOTHING: Final[Mapping[bytes, str]] = MappingProxyType({})


class Twin(NamedTuple):
    """A class that labels are of, and that the release lacks while it has another one called alike.

    Attributes:
        class_id: That class, after merges.
        name: What both are called.
        labels: So many.
    """

    class_id: bytes
    name: str
    labels: int


@dataclass(frozen=True)
class Naming:
    """The classes' names at one moment.

    Attributes:
        device: This station's.
        here: Name of each class as people here gave it, else the release, else an earlier one; ids before merges.
        called: Name of each class after merges, whoever gave it.
        named_by: Which device gave it, `RELEASE_DEVICE` too.
        merged: Each class that another stands for, and that one.
    """

    device: str
    here: Mapping[bytes, str]
    called: Mapping[bytes, str]
    named_by: Mapping[bytes, str]
    merged: Mapping[bytes, bytes]
    _members: dict[bytes, list[bytes]] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for class_id, root in self.merged.items():
            self._members.setdefault(root, [root]).append(class_id)

    @classmethod
    def of(cls, fold: Fold, device: str, former: Mapping[bytes, str] = _NOTHING) -> Naming:
        """Return what a fold says of them.

        Args:
            fold: Of the release.
            device: This station's.
            former: What the classes of earlier releases were called here.
        """
        here = {**former, **fold.names_by(RELEASE_DEVICE), **fold.names_by(device)}
        return cls(device, here, fold.class_names(), fold.named_by(), fold.merged())

    def members(self, class_id: bytes) -> list[bytes]:
        """Return all classes that are one with this, itself too."""
        root = self.merged.get(class_id, class_id)
        return self._members.get(root, [root])

    def here_called(self, keys: Collection[str]) -> frozenset[bytes]:
        """Return the classes that the release or people here call so."""
        return frozenset(class_id for class_id, name in self.here.items() if key_of(name) in keys)

    def words(self, learned: Iterable[bytes] = ()) -> dict[bytes, str]:
        """Return the name of each class after merges that master parts go by: no other device's takes them.

        Args:
            learned: Classes that have a name all the same where only an earlier release gave it.
        """
        found = {each: self.here[each] for each in learned if each in self.here}
        for root, name in self.called.items():
            here = [self.here[each] for each in self.members(root) if each in self.here]
            by = self.named_by[root]
            own = by in (self.device, RELEASE_DEVICE) or by.startswith(FLEET_LOG_PREFIX)
            kept = own or not here or key_of(name) in map(key_of, here)
            found[root] = name if kept else here[0]
        return found

    def good(self, wanted: Collection[bytes], class_id: bytes) -> bool:
        """Return whether a class passes where these are the good ones, before merges: with all that it is one."""
        return all(each in wanted for each in self.members(class_id))

    def twins(self, labels: Mapping[bytes, int], brought: Iterable[bytes]) -> list[Twin]:
        """Return the classes of labels beside which the release has another one of the same name, by name.

        Args:
            labels: How many there are of each class, after merges.
            brought: The release's classes.
        """
        roots = {self.merged.get(each, each) for each in brought}
        names = {key_of(self.called[root]): self.called[root] for root in roots if root in self.called}
        said = {each: self.called.get(each) or self.here.get(each) for each in labels.keys() - roots}
        keys = {each: key_of(name) for each, name in said.items() if name}
        found = [
            Twin(each, names[key], labels[each]) for each, key in keys.items() if key in names and labels[each]
        ]
        return sorted(found, key=lambda one: (one.name.casefold(), one.class_id))

    def doubts(self, wanted: Collection[bytes], keys: Collection[str]) -> list[str]:
        """Return what others' names and merges would change of what passes, and do not, in words.

        The first `MAX_DOUBTS`: merges, then names of classes known here, then those of others; and how many more.

        Args:
            wanted: The classes that are good by this station's word, before merges.
            keys: What good classes are called.
        """
        found = sorted(self._doubts(wanted, keys))
        words = [words for _, words in found[:MAX_DOUBTS]]
        return words + [f"{len(found) - MAX_DOUBTS} more such names"] * (len(found) > MAX_DOUBTS)

    def _doubts(self, wanted: Collection[bytes], keys: Collection[str]) -> Iterator[tuple[int, str]]:
        for root, name in self.called.items():
            members, by = self.members(root), self.named_by[root]
            good = [each for each in members if each in wanted]
            was = next(filter(None, map(self.here.get, members)), None)
            if good and len(good) < len(members):
                parts = sorted({self.here.get(each) or each.hex()[:8] for each in members})
                yield (
                    0,
                    f"{' and '.join(map(repr, parts))} are one class by a merge, and not all of it passed: it "
                    "does not pass until somebody here chooses the good classes",
                )
            elif by in (self.device, RELEASE_DEVICE):
                continue
            elif key_of(name) in keys and not good:
                words = f"{self._words(by, was, name)}: it does not pass until somebody here says so"
                yield 2 if was is None else 1, words
            elif good and was and key_of(name) != key_of(was) and not by.startswith(FLEET_LOG_PREFIX):
                yield 1, f"{self._words(by, was, name)}: it passes as before"

    @staticmethod
    def _words(by: str, was: str | None, name: str) -> str:
        by = "the fleet" if by.startswith(FLEET_LOG_PREFIX) else by
        return f"{by} named {'a class' if was is None else repr(was)} {name!r}"
