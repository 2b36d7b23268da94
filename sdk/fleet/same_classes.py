"""Whether a bundle that is to be published keeps the classes that a channel's labels are of.

A class is its id; the name is for people. A bundle that was exported anew has new ids unless it was given the ones
that are in use (`--classes-from`): every label that operators gave would be of a class that the release does not
know, beside another of the same name.

No files, no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sdk.class_names import key_of
from sdk.labels import RELEASE_DEVICE
from sdk.liveset import LiveSet


@dataclass(frozen=True)
class Replaced:
    """A class in use that a bundle does not have, while it has another one called alike.

    Attributes:
        name: As people know it.
        used: Its id in the channel.
        brought: The id of the bundle's class of this name.
    """

    name: str
    used: bytes
    brought: bytes


def replaced(
    brought: Mapping[bytes, str], live: LiveSet, names: Mapping[bytes, str], released: Collection[bytes]
) -> list[Replaced]:
    """Return the classes of a channel that a bundle would replace by others of the same names, by name.

    Args:
        brought: The bundle's class names by id.
        live: The channel's live set.
        names: Its class names by id, after merges.
        released: Class ids of its current release, before merges.
    """
    of_release = {live.merged.get(class_id, class_id) for class_id in released}
    kept = {live.merged.get(class_id, class_id) for class_id in brought}
    used = {*live.class_ids, *of_release}
    # Those of the current release have been accepted beside others.
    by_key = {key_of(name): class_id for class_id, name in brought.items() if class_id not in of_release}
    found = [
        Replaced(name, class_id, by_key[key_of(name)])
        for class_id, name in names.items()
        if class_id in used - kept and key_of(name) in by_key
    ]
    return sorted(found, key=lambda one: (one.name.casefold(), one.used))


def left_behind(brought: Collection[bytes], live: LiveSet, names: Mapping[bytes, str]) -> dict[bytes, str]:
    """Return the names of the classes that devices' labels are of and that a bundle does not bring.

    Args:
        brought: The bundle's class ids.
        live: The channel's live set.
        names: Its class names by id, after merges.
    """
    kept = {live.merged.get(class_id, class_id) for class_id in brought}
    own = {c for c, device in zip(live.class_ids, live.devices, strict=True) if device != RELEASE_DEVICE}
    return {class_id: names[class_id] for class_id in sorted(own - kept) if class_id in names}


def dropped(
    brought: Collection[bytes],
    live: LiveSet,
    names: Mapping[bytes, str],
    released: Collection[bytes],
    others: Collection[Replaced],
) -> list[str]:
    """Return the names of the classes that a channel's release brings and a bundle does not, in order.

    Args:
        brought: The bundle's class ids.
        live: The channel's live set.
        names: Its class names by id, after merges.
        released: Class ids of its current release, before merges.
        others: Those that the bundle has under another id.
    """
    kept = {live.merged.get(class_id, class_id) for class_id in brought} | {one.used for one in others}
    gone = {live.merged.get(class_id, class_id) for class_id in released} - kept
    return sorted(names[class_id] for class_id in gone if class_id in names)
