"""What a release makes of a store's log, read from outside: whose names its classes have, and what was learned.

For the doctor. Nothing is changed, an agent may be at work meanwhile, and no code is kept: names and samples only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from device_agent.database import disk, open_to_read
from device_agent.folded import twins_of
from device_agent.former_names import KEPT_AS, former_names
from device_agent.label_log import decode_entry
from device_agent.naming import Naming
from device_agent.schema import MIGRATIONS
from device_agent.store import read_kept
from device_agent.trial import Base
from sdk.bundle import Bundle
from sdk.codes import Code, Codes
from sdk.labels import REFUSALS, RELEASE_DEVICE, Record
from sdk.shelf import Ints

_NOWHERE: Final = 0


@dataclass(frozen=True)
class AtRest:
    """What the next head would be of.

    Attributes:
        known: Names of the classes that it would know, as master parts go by them.
        unlabelled: Names of the others: no picture is of these.
        learned: The samples that it would learn from.
        twins: Which labels are of other classes than the release's of these names, in words; empty for none.
    """

    known: tuple[str, ...]
    unlabelled: tuple[str, ...]
    learned: frozenset[bytes]
    twins: str


class _NoCodes:
    """A shelf that keeps no code."""

    def __init__(self, feature_size: int) -> None:
        self.feature_size = feature_size

    def put_release(self, codes: Codes) -> Ints:
        """Return where none of these (n, d) lies."""
        return np.full(len(codes), _NOWHERE, np.int64)

    def put(self, _device: str, _seq: int, _code: Code) -> int:
        """Return where this one does not lie."""
        return _NOWHERE

    def read(self, _places: Ints) -> Codes:
        """Nobody asks for what is not kept."""
        raise NotImplementedError


def look(bundle: Bundle, precision: str | None, device: str, store: Path | None = None) -> AtRest:
    """Return what a release makes of a store's log.

    Args:
        bundle: The release.
        precision: Which of its precisions; None for its first.
        device: Whose store.
        store: The SQLite file; None where there is none yet.

    Raises:
        BundleError: the release's samples are not those its head was made from.
        StoreCorrupt, StoreFull: as `check_store`.
    """
    base = Base.of(bundle, precision, _NoCodes)
    fold = base.fold
    former: dict[bytes, str] = {}
    if store is not None:
        former = former_names(read_kept(store, KEPT_AS))
        with disk(store.parent), open_to_read(store, len(MIGRATIONS), whole=False) as db:
            for entry, code in db.execute("SELECT entry, code FROM records ORDER BY arrival"):
                with contextlib.suppress(*REFUSALS):  # the learner counts these
                    fold.apply(Record(decode_entry(entry), code))
    naming, live = Naming.of(fold, device, former), fold.live_set()
    classes = {*live.class_ids, *fold.summed_counts()}
    words = naming.words(classes)
    return AtRest(
        known=tuple(dict.fromkeys(words[each] for each in sorted(classes) if each in words)),
        unlabelled=tuple(dict.fromkeys(name for each, name in words.items() if each not in classes)),
        learned=base.learned(live),
        twins=twins_of(fold, naming, former, frozenset(fold.names_by(RELEASE_DEVICE))),
    )
