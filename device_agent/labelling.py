"""What operators say, checked and made into entries of the label log.

Decided here: which samples can be labelled, when a label brings a code record along, what a class may be called.
Writing the entries, and waking whoever learns them, is the learner's: it checks and writes under one lock, so that
what was checked still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from device_agent.folded import Folded
from device_agent.sample import Sample, SampleStatus
from device_agent.store import Store
from sdk.class_names import composed, is_reserved, key_of
from sdk.codes import Code, code_digest
from sdk.errors import LabelError, LabelledMeanwhile, SummedSample, UnknownClassError
from sdk.labels import Body, CodeRecord, Label


@dataclass(frozen=True)
class Asked:
    """A sample that is to be labelled: its class, None to withdraw the label; its code unless it is withdrawn."""

    sample: Sample
    class_id: bytes | None
    code: Code | None = field(compare=False)


def class_name(typed: str) -> str:
    """Return what an operator typed as the name of a class, spaces put right and letters composed.

    Raises:
        LabelError: it is empty or reserved.
    """
    name = " ".join(composed(typed).split())
    if not name or not name.isprintable() or is_reserved(name):
        raise LabelError(f"{name[:64]!r} is no name for a class", hint="Call it what people call the defect.")
    return name


class Labelling:
    """Checks what operators say against what is folded.

    Args:
        store: Where samples and their pictures are.
        folded: What there is already.
        embed: Code (d,) of a picture in the release's space; None where samples of an earlier one are refused.
    """

    def __init__(self, store: Store, folded: Folded, embed: Callable[[bytes], Code] | None) -> None:
        self._store = store
        self._folded = folded
        self._embed = embed
        self._space = folded.fold.space

    def asked(self, labels: Sequence[tuple[bytes, bytes | None]]) -> list[Asked]:
        """Return samples with their classes and codes. Needs no lock; may embed pictures.

        Raises:
            LabelError: no such sample, or its picture is needed and gone.
        """
        kept = [(self._kept(sample_id), class_id) for sample_id, class_id in labels]
        return [Asked(s, class_id, None if class_id is None else self._code_of(s)) for s, class_id in kept]

    def entries(self, asked: Sequence[Asked], operator: str) -> tuple[list[Body], dict[bytes, Code]]:
        """Return what to write for labels, and the codes that go with it. Needs the learner's lock.

        A sample whose code this device or its fleet has said already, or is among these, brings none.

        Raises:
            SummedSample: the release has learned from it, and knows it by its sums only.
            UnknownClassError: no such class.
        """
        bodies: list[Body] = []
        codes: dict[bytes, Code] = {}
        # Withdrawn and labelled in one go, a sample has one code all the same.
        found = {each.sample.sample_id: each.code for each in asked if each.code is not None}
        for each in asked:
            sample_id = each.sample.sample_id
            self._check_label(sample_id, each.class_id)
            bodies.append(Label(sample_id, each.class_id, operator))
            code = found.get(sample_id)
            if code is None or sample_id in codes or self._store.log.has_code(sample_id, self._space):
                continue
            digest = code_digest(code)
            bodies.append(CodeRecord(bytes.fromhex(self._space), sample_id, each.sample.group, digest))
            codes[sample_id] = code
        return bodies, codes

    def check_unchanged(self, seen: Mapping[bytes, bytes | None]) -> None:
        """Refuse samples of which somebody has said something else meanwhile. Needs the learner's lock.

        Args:
            seen: The class that each was labelled as when it was looked at; None for none.

        Raises:
            LabelledMeanwhile: there is one.
            LabelError: no such sample.
        """
        fold = self._folded.fold
        for sample_id, class_id in seen.items():
            labelled, now = self._kept(sample_id).status is SampleStatus.LABELLED, fold.label_of(sample_id)
            # One that only the release labels is asked about as if nobody did.
            if now == fold.canonical(class_id) if class_id is not None else now is None or not labelled:
                continue
            what = "not labelled any more" if now is None else f"labelled {fold.class_names().get(now)!r}"
            raise LabelledMeanwhile(
                f"sample {sample_id.hex()[:12]} is {what}: somebody has said so meanwhile",
                hint="Look at it again; who says it all the same has the last word.",
            )

    def check_kept(self, asked: Sequence[Asked]) -> None:
        """Refuse samples that have gone since they were asked for, as the oldest unlabelled ones do.

        Raises:
            LabelError: there is one.
        """
        for each in asked:
            self._kept(each.sample.sample_id)

    def check_free(self, name: str, *owners: bytes) -> None:
        """Refuse a name that another class has. Needs the learner's lock.

        Args:
            name: Of `class_name`.
            owners: The class that is to have it, or those that are to be one; none for a new one.

        Raises:
            UnknownClassError: no such class.
            LabelError: another class has it.
        """
        for owner in owners:
            self._check_class(owner)
        roots = set(map(self._folded.fold.canonical, owners))
        for class_id, taken in self._folded.fold.class_names().items():
            if key_of(taken) == key_of(name) and class_id not in roots:
                raise LabelError(f"there is a class {taken!r} already", hint="Use it, or choose another name.")

    def check_two(self, one: bytes, other: bytes) -> None:
        """Refuse classes that are not two. Needs the learner's lock.

        Raises:
            UnknownClassError: no such class.
            LabelError: they are one already.
        """
        for class_id in (one, other):
            self._check_class(class_id)
        if self._folded.fold.canonical(one) == self._folded.fold.canonical(other):
            raise LabelError("these are one class already", hint="Nothing needs to be done.")

    def _kept(self, sample_id: bytes) -> Sample:
        sample = self._store.samples.get(sample_id)
        if sample is None:
            raise LabelError(
                f"sample {sample_id.hex()[:12]} is not kept here",
                hint="Only the newest unlabelled pictures are kept; label one of those.",
            )
        return sample

    def _code_of(self, sample: Sample) -> Code:
        if sample.space == self._space:
            return sample.code
        image = self._store.samples.image(sample.sample_id)
        if self._embed is None or image is None:
            raise LabelError(
                f"sample {sample.sample_id.hex()[:12]} was seen with an earlier release and its picture is gone",
                hint="Label a newer picture of the same kind.",
            )
        return self._embed(image)

    def _check_label(self, sample_id: bytes, class_id: bytes | None) -> None:
        if self._folded.fold.is_summed(sample_id):
            raise SummedSample(
                f"sample {sample_id.hex()[:12]} is one that the release was made from, without its code",
                hint="Correct it where the release is made, or export with a larger --max-base-codes.",
            )
        if class_id is not None:
            self._check_class(class_id, hint="Define the class first, then label with it.")

    def _check_class(self, class_id: bytes, *, hint: str = "Look at the list of classes.") -> None:
        root, fold = self._folded.fold.canonical(class_id), self._folded.fold
        if root not in fold.class_names() and all(fold.canonical(row.class_id) != root for row in fold.rows()):
            raise UnknownClassError(f"there is no class {class_id.hex()[:12]}", hint=hint)
