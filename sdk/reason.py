"""Why a head stays or goes: codes with values, which travel and are stored; words are made where somebody reads.

The English sentences stand here, for logs, the command line and the HTTP interface; the page has them in its other
languages (`device_agent.page.text`). Names are those that people used at the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

ENGLISH: Final = MappingProxyType(
    {
        "with-release": "It came with the release.",
        "stopped": "The agent stopped before its trial had ended.",
        "superseded": "A newer label came before its trial had ended.",
        "too-few": "There are too few groups to score it yet.",
        "first-score": "This is the first score; there was nothing to compare it with.",
        "first-head": "This is the first head.",
        "nothing-to-compare": "There was nothing to compare with yet.",
        "own-alone": "It goes by this station's own labels, of which the head before knew few or none. By "
        "everybody else's parts only about {share} of new parts of {name} would be recognised (before: {before}).",
        "tells-apart": "It now tells {name} from other classes; {name} itself is recognised {share} of the time "
        "(before: {before}).",
        "worse": "Taken back: {name} would be recognised only {share} of the time (before: {before}).",
        "less-clear": "Taken back: {name} would be told less clearly; about {share} of new parts would be right "
        "(before: {before}).",
        "masters": "Taken back: of the master parts of {name} only {share} would be told (before: {before}).",
        "also-knows-price": "It now also knows {classes}; the price is {name}, recognised {share} of the time "
        "(before: {before}).",
        "also-knows": "It now also knows {classes}; the others are as good as before.",
        "price": "{name} is recognised {share} of the time (before: {before}).",
        "not-yet": "Not recognised yet: {classes}; more labels are needed.",
        "better": "Known classes are better.",
        "as-good": "Known classes are as good as before.",
        "shifted": "It allows for this station's pictures looking different.",
        "own-weight": "This station's own labels count {times} times.",
        "undone": "What was taken back here no longer counts.",
        "undone-alone": "What was taken back here no longer counts; nor does what came since, which was refused.",
        "undone-worse": "The price of taking it back: {name} is recognised only {share} of the time "
        "(before: {before}).",
        "undone-less-clear": "The price of taking it back: {name} is told less clearly; about {share} of new "
        "parts will be right (before: {before}).",
        "undone-masters": "The price of taking it back: master parts told worse: {times} of {of}.",
        "harm": "Labels from {name} do not fit here: parts labelled here are recognised {before} of the time, "
        "{share} without them.",
    }
)
"""Each code's sentence."""


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reason.

    Attributes:
        code: A key of `ENGLISH`.
        name: Of the class, or device, that it is about.
        share: Recall of that class now; for a device that harms, of own parts without its labels.
        before: The same before, or with them.
        times: As so many labels an own label counts; or so many master parts.
        of: Out of so many.
        classes: Name and recall of the classes that are new.
    """

    code: str
    name: str = ""
    share: float = 0.0
    before: float = 0.0
    times: int = 0
    classes: tuple[tuple[str, float], ...] = ()
    of: int = 0

    def worded(self, text: str, percent: Callable[[float], str], comma: str) -> str:
        """Return a language's sentence with this reason's values, `comma` between several classes."""
        classes = comma.join(f"{name} ({percent(share)})" for name, share in self.classes)
        return text.format(
            name=self.name,
            share=percent(self.share),
            before=percent(self.before),
            times=self.times,
            of=self.of,
            classes=classes,
        )

    def sentence(self) -> str:
        """Return it in English.

        >>> Reason("worse", name="scratch", share=0.7, before=0.9).sentence()
        'Taken back: scratch would be recognised only 70% of the time (before: 90%).'
        """
        return self.worded(ENGLISH[self.code], lambda share: f"{share:.0%}", " and ")


def price(reason: Reason) -> Reason:
    """Return why a head would have been taken back as the price of one that stays: a person asked for it.

    >>> price(Reason("worse", name="scratch", share=0.7, before=0.9)).code
    'undone-worse'
    """
    return msgspec.structs.replace(reason, code=f"undone-{reason.code}")


PRICES: Final = frozenset({"undone-worse", "undone-less-clear", "undone-masters"})
"""What `price` returns: somebody should hear of it."""


def sentences(reasons: Sequence[Reason]) -> str:
    """Return reasons in English, one after the other."""
    return " ".join(reason.sentence() for reason in reasons)
