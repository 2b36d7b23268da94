"""`headway fleet classes`: the classes of a channel, those that may be one, and a person's word about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from sdk.class_names import composed, key_of
from sdk.errors import FleetError, LabelError
from sdk.fleet.cli_quarantine import by_option, channel_option, dir_option, json_option, who
from sdk.labels import FLEET_LOG_PREFIX, RELEASE_DEVICE, Body, KeepApart, MergeClasses, RenameClass
from sdk.shown import say

if TYPE_CHECKING:
    from sdk.fleet.alike import Pair, Side
    from sdk.fleet.store import FleetStore, Learned

MIN_DIGITS: Final = 4
"""Fewer digits of an id are a typing error, or a name that nothing has."""

MAX_UNHEARD: Final = 20
"""Merges of devices that are shown: more is no station that once worked alone, and nobody reads them."""


@click.group(invoke_without_command=True)
@dir_option
@channel_option
@json_option
@click.pass_context
def classes(context: click.Context, directory: Path, channel: str, as_json: bool) -> None:
    """Show a channel's classes, and which of them may be one.

    Two lines that invent a class of the same name have two classes until somebody merges them. Pairs that are
    named alike are proposed, with what their codes say; nothing is merged by itself. What a device merged, as one
    did that worked alone before, is shown and does not count: for all lines it is said here.

    \b
      headway fleet classes --dir fleet
      headway fleet classes --dir fleet merge 5c1e07 91aa3b
      headway fleet classes --dir fleet apart 5c1e07 91aa3b
    """
    context.obj = directory, channel, as_json
    if context.invoked_subcommand is not None:
        return
    from sdk.fleet.cli import open_fleet

    with open_fleet(directory) as store:
        found = classes_of(store, channel)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for one in found["classes"]:
        say(f"{one['class_id'][:8]}  {one['name']}: {_labels(one['labels'])}")
    for pair in found["proposed"]:
        say("", f"may be one: {pair['words']}", f"  {pair['merge']}", f"  {pair['apart']}")
    for said in found["unheard"]:
        say("", said["words"], f"  {said['merge']}", f"  {said['apart']}")
    for said in [*found["renamed"], *found["decided"]]:
        say("", said["words"])


@classes.command(short_help="Make two classes one on every device.")
@click.argument("one")
@click.argument("other")
@click.option(
    "--name", metavar="NAME", help="What the class is called from now on; else as the one with more labels is."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@by_option
@click.pass_obj
def merge(
    settings: tuple[Path, str, bool], one: str, other: str, name: str | None, yes: bool, by: str | None
) -> None:
    """Make ONE and OTHER one class on every device; each is a name or the first digits of an id.

    It cannot be undone, so it says both names, how many labels each has and what it will be called, and asks.
    Labels keep the class they were given; both ids stand for the same class from now on.
    """
    from sdk.fleet.cli import open_fleet

    directory, channel, _ = settings
    decided_by = who(by)
    with open_fleet(directory) as store:
        learned = _learned(store, channel)
        pair = _pair(learned, one, other)
        count = [learned.live.class_ids.count(class_id) for class_id in pair]
        called = [learned.names.get(class_id, class_id.hex()[:8]) for class_id in pair]
        name = called[count[1] > count[0]] if name is None else _checked(name, learned, pair)
        sides = [
            f"{name!r} ({class_id.hex()[:8]}, {_labels(labels)}{_released(learned, class_id)})"
            for name, class_id, labels in zip(called, pair, count, strict=True)
        ]
        words = f"{sides[0]} and {sides[1]}"
        if not yes:
            _ask(f"{words} become one class, called {name!r}, on every device. It cannot be undone.")
        low, high = sorted(pair)
        bodies: list[Body] = [MergeClasses(low, high, decided_by)]
        if {*called} != {name}:  # else a merged class goes by the name that was given last to either
            bodies.append(RenameClass(low, name, decided_by))
        _say(store, settings, bodies, f"{words} are one class now, called {name!r}")


def _ask(words: str) -> None:
    try:
        if click.confirm(f"{words} Go on?", err=True):
            return
    except click.Abort as error:
        raise FleetError(f"{words} Nobody said yes.", hint="Where nobody is there to ask: --yes.") from error
    raise FleetError("nothing was merged", hint="Another name for it: --name NAME.")


@classes.command(short_help="Say that two classes are not one.")
@click.argument("one")
@click.argument("other")
@by_option
@click.pass_obj
def apart(settings: tuple[Path, str, bool], one: str, other: str, by: str | None) -> None:
    """Say that ONE and OTHER are different classes: they are not proposed again."""
    from sdk.fleet.cli import open_fleet

    directory, channel, _ = settings
    decided_by = who(by)
    with open_fleet(directory) as store:
        learned = _learned(store, channel)
        low, high = sorted(_pair(learned, one, other))
        if (low, high) in learned.apart:
            raise LabelError(f"{one} and {other} are known to be different", hint="Nothing needs to be done.")
        _say(store, settings, [KeepApart(low, high, decided_by)])


def _pair(learned: Learned, one: str, other: str) -> tuple[bytes, bytes]:
    """Return the two classes, which are not one."""
    pair = _class(learned, one), _class(learned, other)
    if pair[0] == pair[1]:
        raise LabelError(f"{one} and {other} are one class already", hint="Nothing needs to be done.")
    return pair


def _say(store: FleetStore, settings: tuple[Path, str, bool], bodies: list[Body], words: str = "") -> None:
    """Write a decision, its first entry what it is about, and tell of it, in these words or the list's."""
    _, channel, as_json = settings
    with store.write() as ledger:
        ledger.decide(channel, bodies)
    found, served = classes_of(store, channel), store.served()
    done = found["decided"][-len(bodies)]
    if words:
        done = {**done, "words": f"{words}, by {done['by']}"}
    if as_json:
        click.echo(msgspec.json.encode({**done, "served": served, "live_set_digest": found["live_set_digest"]}))
        return
    say(done["words"])
    if not served:
        click.echo("no fleet service runs on this directory: devices hear of it when one does")


def _labels(count: int) -> str:
    return "1 label" if count == 1 else f"{count} labels"


def _checked(name: str, learned: Learned, pair: tuple[bytes, bytes]) -> str:
    name = " ".join(composed(name).split())
    taken = {key_of(called) for class_id, called in learned.names.items() if class_id not in pair}
    if not 0 < len(name) <= 64 or not name.isprintable() or key_of(name) in taken:
        raise LabelError(f"{name[:64]!r} is no name for this class", hint="Choose one that no other class has.")
    return name


def _class(learned: Learned, said: str) -> bytes:
    """Return the class of this name, or whose id begins with these digits."""
    merged = learned.live.merged
    names = learned.names.items()
    named = {class_id for class_id, name in names if name == said}
    named = named or {class_id for class_id, name in names if key_of(name) == key_of(said)}
    digits = said.lower() if len(said) >= MIN_DIGITS else "-"
    found = named or {merged.get(c, c) for c in {*learned.names, *merged} if c.hex().startswith(digits)}
    if len(found) != 1:
        what = "no class" if not found else f"{len(found)} classes"
        raise LabelError(
            f"{said[:64]!r} names {what}", hint="Give the first digits of its id: headway fleet classes."
        )
    return found.pop()


def _learned(store: FleetStore, channel: str) -> Learned:
    learned = store.learned(channel)
    if learned is None:
        raise FleetError(f"channel {channel} has no release", hint="Without one no codes can be compared.")
    return learned


def classes_of(store: FleetStore, channel: str) -> dict[str, Any]:
    """Return a channel's classes, the pairs that may be one, and what was decided, ready for JSON.

    Raises:
        FleetError: there is no such channel, or it has no release.
    """
    from sdk.fleet.alike import propose

    learned = _learned(store, channel)
    live, names = learned.live, learned.names
    pairs = propose(
        live,
        names,
        released=store.released_classes(channel),
        apart=learned.apart,
        rest=store.summed_moments(channel, live),
    )
    with store.read() as ledger:
        decisions = ledger.decisions(channel)
    counts = dict.fromkeys(names, 0)
    for class_id in live.class_ids:
        counts[class_id] = counts.get(class_id, 0) + 1
    return {
        "channel": channel,
        "live_set_digest": live.digest,
        "classes": [
            {"class_id": class_id.hex(), "name": name, "labels": counts[class_id]}
            for class_id, name in sorted(names.items(), key=lambda each: (each[1].casefold(), each[0]))
        ],
        "proposed": [_pair_row(pair) for pair in pairs],
        "renamed": _renamed(learned),
        "unheard": _unheard(learned),
        "decided": [
            row for entry in decisions if (row := _decision_row(entry.body, entry.wall_time_us / 1e6, learned))
        ],
    }


def _renamed(learned: Learned) -> list[dict[str, Any]]:
    """Return the release's classes that a device has given another name."""
    found = []
    for class_id, was in learned.released.items():
        root = learned.live.merged.get(class_id, class_id)
        name, by = learned.names.get(root, was), learned.named_by.get(root, RELEASE_DEVICE)
        if by == RELEASE_DEVICE or by.startswith(FLEET_LOG_PREFIX) or key_of(name) == key_of(was):
            continue
        words = f"{class_id.hex()[:8]}: {was!r} in the release, called {name!r} by {by}"
        found.append({"class_id": class_id.hex(), "released": was, "name": name, "device": by, "words": words})
    return found


def _released(learned: Learned, class_id: bytes) -> str:
    """Return what the release calls a class, where that is another: anybody may have named it since."""
    now, was = learned.names.get(class_id, ""), learned.released.get(class_id, "")
    return f", {was!r} in the release" if was and key_of(was) != key_of(now) else ""


def _unheard(learned: Learned) -> list[dict[str, Any]]:
    """Return what devices have merged and nobody here: each pair once, the first `MAX_UNHEARD`."""
    found: dict[frozenset[bytes], dict[str, Any]] = {}
    for merge in learned.unheard:
        ids = [learned.live.merged.get(each, each) for each in (merge.one, merge.other)]
        called = " and ".join(
            f"{learned.names.get(each, '?')!r} ({each.hex()[:8]}{_released(learned, each)})" for each in ids
        )
        row = {
            "device": merge.device,
            "operator": merge.operator,
            "class_ids": [each.hex() for each in ids],
            "words": f"{called}: made one on {merge.device}, which does not count",
            **_commands(*ids),
        }
        found.setdefault(frozenset(ids), row)
        if len(found) == MAX_UNHEARD:
            break
    return list(found.values())


def merged_words(learned: Learned) -> dict[str, str]:
    """Return by device that it has merged what is not one class for the fleet, in words."""
    found = {}
    for device, count in Counter(merge.device for merge in learned.unheard).items():
        pairs = "two classes" if count == 1 else f"{count} pairs of classes"
        found[device] = f"it merged {pairs}, which does not count: see headway fleet classes"
    return found


def _pair_row(pair: Pair) -> dict[str, Any]:
    return {
        "one": _side_row(pair.one),
        "other": _side_row(pair.other),
        "names_alike": pair.names_alike,
        "words": f"{_side_words(pair.one, pair.other)}; {_side_words(pair.other, pair.one)}",
        **_commands(pair.one.class_id, pair.other.class_id),
    }


def _commands(one: bytes, other: bytes) -> dict[str, str]:
    """Return how to say that two classes are one, or are not."""
    ids = f"{one.hex()[:8]} {other.hex()[:8]}"
    return {which: f"headway fleet classes --dir DIR {which} {ids}" for which in ("merge", "apart")}


def _side_row(side: Side) -> dict[str, Any]:
    return {
        "class_id": side.class_id.hex(),
        "name": side.name,
        "labels": side.labels,
        "devices": list(side.devices),
        "taken_for_other": side.taken_for_other,
    }


def _side_words(side: Side, other: Side) -> str:
    where = ", ".join(side.devices) or "nobody yet"
    words = f"{side.name!r} ({side.labels} labels, {where})"
    if side.taken_for_other is None:
        return words
    return f"{words}, {side.taken_for_other:.0%} of which would be called {other.name!r} without it"


def _decision_row(body: Body, utc: float, learned: Learned) -> dict[str, Any] | None:
    if isinstance(body, RenameClass):
        kind, ids, words = "rename", [body.class_id], f"called {body.name!r}"
    elif isinstance(body, MergeClasses | KeepApart):
        kind = "merge" if isinstance(body, MergeClasses) else "apart"
        ids, words = [body.one, body.other], {"merge": "made one", "apart": "said to be different"}[kind]
    else:
        return None
    called = [learned.names.get(learned.live.merged.get(c, c), c.hex()[:8]) for c in ids]
    if len(ids) == 2 and called[0] == called[1]:  # one class by now, and so one name
        said = f"{called[0]} ({ids[0].hex()[:8]} and {ids[1].hex()[:8]})"
    else:
        said = " and ".join(f"{name} ({class_id.hex()[:8]})" for name, class_id in zip(called, ids, strict=True))
    return {
        "kind": kind,
        "class_ids": [class_id.hex() for class_id in ids],
        "by": body.operator,
        "utc": utc,
        "words": f"{said}: {words} by {body.operator}",
    }
