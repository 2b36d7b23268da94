"""What `publish` and `precision move` look at before: do the labels that operators gave keep classes and codes?

Both are compared with the channel's current release, so its chunks have to be here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from sdk.errors import BundleError, FleetError, HeadwayError, StoreCorrupt
from sdk.fleet.cli_quarantine import who
from sdk.labels import DefineClass
from sdk.shown import say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sdk.bundle import Bundle
    from sdk.fleet.losing import Loss
    from sdk.fleet.store import FleetStore

uncompared_option = click.option(
    "--uncompared", is_flag=True,
    help="Publish although the current release cannot be read here: nobody looks then which labels are lost.",
)  # fmt: skip
lost_option = click.option(
    "--max-lost-labels", type=click.IntRange(0), default=0, show_default=True, metavar="N",
    help="So many labels may count no more, since no device has their pictures.",
)  # fmt: skip
NAMED: Final = 4
"""Classes that are named of those that would be replaced."""


@dataclass(frozen=True)
class Compared:
    """What a bundle does to the labels of the channel that it is to go to.

    Attributes:
        merges: The commands that make each class that it replaces one with its own, once it is published.
        losses: Labels that count no more.
        known: Whether both could be looked at.
    """

    merges: list[str]
    losses: list[Loss]
    known: bool = True

    def say(self) -> None:
        """Print what a person has to know of it."""
        if self.merges:
            click.echo(
                "it has other ids for classes of the same names; once it is published, to make each pair one:"
            )
            say(*(f"  {merge}" for merge in self.merges))
        say_losses(self.losses)
        if not self.known:
            click.echo(
                "not compared with the release before, which cannot be read here: labels may count no more, and "
                "classes be without a name; see `headway fleet devices` and `headway fleet classes`"
            )


def compare(
    store: FleetStore,
    channel: str,
    bundle: Bundle,
    precision: str | None,
    *,
    max_lost_labels: int,
    new_classes: bool,
    uncompared: bool,
) -> Compared:
    """Let a bundle be published, as `keep_classes` does, and say what of the labels is lost with it.

    Where the current release lacks chunks here and the bundle has its files, they are put back before.

    Args:
        store: The fleet's.
        channel: Where it is to go.
        bundle: What is to be published.
        precision: Which of its precisions is to serve; its first by default.
        max_lost_labels: So many labels may count no more.
        new_classes: Its maker means it where it has other classes of the same names.
        uncompared: Its maker means it where it cannot be compared.

    Raises:
        FleetError: more would be lost than is meant; or the current release cannot be read, and that is not meant.
        StoreCorrupt, StoreFull: the place where chunks are kept does not answer, or takes nothing.
    """
    from sdk.fleet.losing import check_losses, losses
    from sdk.fleet.lost_chunks import put_back

    error = _unreadable(store, channel)
    if error is not None:
        put_back(store, bundle)
        error = _unreadable(store, channel)
    if error is None:
        check_losses(lost := losses(store, channel, bundle, precision), max_lost_labels)
        return Compared(keep_classes(store, channel, bundle, new_classes=new_classes), lost)
    if uncompared:
        return Compared([], [], known=False)
    with store.read() as ledger:
        current = ledger.current(channel)
    name = "its release" if current is None else f"its release {current.ref.name!r}"
    raise FleetError(
        f"what the labels of channel {channel} would lose is not known: {name} cannot be read here, and "
        f"{bundle.manifest.name!r} does not have its files: {error}",
        hint=f"Put them back from its own bundle first: headway fleet doctor --dir {store.directory} --mend-from "
        "BUNDLE; or its chunks from a backup. Where nobody has them: --uncompared.",
    )


def _unreadable(store: FleetStore, channel: str) -> HeadwayError | None:
    try:
        store.learned(channel)
    except (BundleError, StoreCorrupt) as error:
        return error
    return None


def keep_classes(store: FleetStore, channel: str, bundle: Bundle, *, new_classes: bool) -> list[str]:
    """Let a bundle be published, with a name in the union for each labelled class that it does not bring.

    A class that came with a release has its name from there only. Without the name it could be neither chosen,
    corrected nor merged once another release serves.

    Args:
        store: The fleet's.
        channel: Where it is to go.
        bundle: What is to be published.
        new_classes: Its maker means it where it has other classes of the same names.

    Returns:
        The commands that make each class that it replaces one with its own, once it is published.

    Raises:
        FleetError: it has other classes of the same names, and devices are on the channel.
    """
    from sdk.fleet.same_classes import dropped, left_behind, replaced

    learned = store.learned(channel)
    if learned is None:
        return []
    with store.read() as ledger:
        current = ledger.current(channel)
        in_use = bool(ledger.devices(channel)) or ledger.log_length(channel) > 0
    brought = bundle.class_names()
    released = store.released_classes(channel)
    found = replaced(brought, learned.live, learned.names, released)
    if found and in_use and not new_classes and current is not None:
        named = ", ".join(repr(one.name) for one in found[:NAMED])
        named += f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise FleetError(
            f"{bundle.manifest.name!r} has other ids than {current.ref.name!r} for classes of the same names "
            f"({named}): labels that operators gave would be of none of its classes",
            hint="Export it again with --classes-from and the bundle that it replaces. To publish it all the "
            "same: --new-classes, which says how to make them one then.",
        )
    kept = left_behind(brought, learned.live, learned.names)
    if in_use:  # labels of them may still be on their way, and nobody could merge what nobody knows
        kept |= {one.used: one.name for one in found}
    if kept:
        with store.write() as ledger:
            ledger.decide(channel, [DefineClass(class_id, name, who(None)) for class_id, name in kept.items()])
    if current is not None and (gone := dropped(brought, learned.live, learned.names, released, found)):
        say(
            f"note: {current.ref.name} also brings {', '.join(gone)}, and {bundle.manifest.name} does not: "
            f"devices will know of {'it' if len(gone) == 1 else 'them'} what operators label",
            err=True,
        )
    return [
        f"headway fleet classes --dir {store.directory} merge {one.used.hex()} {one.brought.hex()}"
        for one in found
    ]


def say_losses(found: Iterable[Loss]) -> None:
    """Print which labels count no more, where there are any."""
    for loss in found:
        say(f"will not count: {loss.words}")
