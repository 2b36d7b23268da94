"""What a class id is: 16 random bytes. Names are for people, and may change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

CLASS_ID_BYTES: Final = 16


def check_class_ids(class_ids: Iterable[bytes]) -> None:
    """Refuse what are no class ids: a name in place of an id would be a class of its own.

    Raises:
        TypeError: one is not bytes.
        ValueError: one is not 16 of them.
    """
    for class_id in set(class_ids):
        if not isinstance(class_id, bytes):
            raise TypeError(
                f"a class id is 16 bytes, not {type(class_id).__name__} {class_id!r}: "
                "`Bundle.class_names` has those of a release, `sdk.labels.new_class_id` makes one"
            )
        if len(class_id) != CLASS_ID_BYTES:
            raise ValueError(f"a class id is {CLASS_ID_BYTES} bytes, not {len(class_id)}: {class_id!r}")
