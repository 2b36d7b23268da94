"""`headway bundle`: what a bundle says of itself, whether it is whole, where it comes from. Needs no extra.

`sdk.cli_stick` has the two commands that carry one on a stick.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdk.cli_stick import pack, unpack
from sdk.shown import say

if TYPE_CHECKING:
    from sdk.bundle import Bundle
    from sdk.lineage import Link

_BUNDLE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def bundle() -> None:
    """Show or verify a bundle, say where it comes from, or carry it on a stick."""


bundle.add_command(pack)
bundle.add_command(unpack)


@bundle.command(short_help="Say what a bundle holds.")
@_BUNDLE
@_JSON
def show(path: Path, as_json: bool) -> None:
    """Say what a bundle holds: classes, precisions, samples, where it comes from."""
    from sdk.bundle import Bundle

    facts = _facts(Bundle.open(path))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    from rich.table import Table

    from sdk.console import Console, plain

    console = Console(soft_wrap=True)
    lineage = facts["lineage"]
    made = f"{lineage['backbone']} ({lineage['strategy']}), made {lineage['created_utc']}"
    console.print(f"[bold]{plain(facts['name'])}[/]  digest {facts['digest']}")
    console.print(f"{plain(made)}", highlight=False)
    console.print(f"{facts['size_bytes'] / 1e6:.1f} MB in {len(facts['files'])} files", highlight=False)
    classes = Table("class", "samples", "with code", "groups", "id")
    for entry in facts["classes"]:
        counts = (str(entry[what]) for what in ("samples", "codes", "groups"))
        classes.add_row(plain(entry["name"]), *counts, entry["id"])
    console.print(classes)
    summed = sum(entry["samples"] - entry["codes"] for entry in facts["classes"])
    if summed:
        console.print(
            f"{summed} samples are in sums only: devices learn from them, and can neither correct nor score them",
            highlight=False,
        )
    forms = Table("precision", "d", "backbone MB", "feature space")
    for entry in facts["precisions"]:
        size = f"{entry['backbone_bytes'] / 1e6:.1f}"
        forms.add_row(plain(entry["precision"]), str(entry["feature_size"]), size, entry["space"][:16])
    console.print(forms)
    split = facts["split"]
    images = ", ".join(f"{part} {count}" for part, count in split["parts"].items())
    console.print(f"split (seed {split['seed']}), images: {images}", highlight=False)
    if split["held_back"]:
        console.print(f"held back: {plain(', '.join(split['held_back']))}", highlight=False)


@bundle.command(short_help="Check every file of a bundle.")
@_BUNDLE
@_JSON
def verify(path: Path, as_json: bool) -> None:
    """Check every file of a bundle: names, sizes, digests, what is inside, and that its papers agree with it.

    Where samples are in sums only, these are checked against what codes can give. The codes are not there to be
    added up again.
    """
    from sdk.bundle import Bundle
    from sdk.lineage import lineage as lineage_of

    opened = Bundle.open(path)
    summed = 0
    for entry in opened.manifest.precisions:
        summed = max(summed, len(opened.base(entry.precision).summed))
        opened.golden(entry.precision)
    opened.parts()
    opened.split_groups()
    lineage_of(opened)
    facts = {
        "ok": True,
        "name": opened.manifest.name,
        "digest": opened.digest(),
        "files": len(opened.file_names()),
        "summed_samples": summed,
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"whole: {facts['files']} files, digest {facts['digest']}")
    if summed:
        click.echo(f"{summed} samples are in sums only: their codes cannot be checked one by one")


@bundle.command(short_help="Say where a bundle comes from.")
@_BUNDLE
@click.option(
    "--search",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where earlier bundles may be, besides beside this one. May be repeated.",
)
@click.option(
    "--fleet",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Also the heads that a fleet's labels made of it. Needs the fleet extra.",
)
@_JSON
def lineage(path: Path, search: tuple[Path, ...], fleet: Path | None, as_json: bool) -> None:
    """Say where a bundle comes from: heads, weights with licence, data, and earlier bundles back to the first.

    Earlier bundles are found in the bundle's own papers (mlbom.cdx.json), beside it, and under --search.
    """
    import msgspec

    from sdk.bundle import Bundle
    from sdk.lineage import lineage as lineage_of

    opened = Bundle.open(path)
    link = lineage_of(opened, [path.resolve().parent, *search])
    heads: list[dict[str, Any]] = [
        {
            "precision": entry.precision,
            "space": entry.space,
            "live_set_digest": entry.head.live_set_digest,
            "samples": len(opened.base(entry.precision).samples),
        }
        for entry in opened.manifest.precisions
    ]
    channels: list[dict[str, Any]] = [] if fleet is None else _fleet_heads(fleet, opened.digest())
    if as_json:
        told = {**msgspec.to_builtins(link), "heads": heads, "fleet_heads": channels}
        click.echo(json.dumps(told, indent=1))
        return
    for line in _lineage_lines(link):
        say(line)
    for head in heads:
        click.echo(
            f"  head {head['precision']}: live set {head['live_set_digest'][:16]}, {head['samples']} samples, "
            f"feature space {head['space'][:16]}"
        )
    for channel in channels:
        click.echo(
            f"  head of channel {channel['channel']}: live set {channel['live_set_digest'][:16]}, "
            f"{channel['samples']} samples, {channel['log_length']} log records"
        )
    for line in _parent_lines(link):
        say(line)


def _lineage_lines(link: Link) -> list[str]:
    digest = link.weights.sha256
    return [
        f"{link.name}  {link.bundle_sha256[:16]}  made {link.created_utc}",
        f"  backbone {link.backbone}, strategy {link.strategy}",
        f"  weights {link.weights.source}; licence {link.weights.licence}; sha256 {digest or 'none'}",
        *(f"  int8 made for {profile}: {how}" for profile, how in link.finetuned.items()),
        f"  data {link.data_sha256[:16]}, {link.images} images",
    ]


def _parent_lines(link: Link) -> list[str]:
    """Return lines on all earlier bundles, each generation further in."""
    lines = []
    for parent in link.parents:
        told = [*_lineage_lines(parent), *_parent_lines(parent)]
        lines += [f"  continues {told[0]}", *(f"  {line}" for line in told[1:])]
    return lines + [
        f"  continues {digest[:16]}, which is not here: name its folder by --search" for digest in link.missing
    ]


def _fleet_heads(directory: Path, digest: str) -> list[dict[str, Any]]:
    """Return the live set of each channel of a fleet whose current release is this bundle."""
    from sdk.bundle import MANIFEST_NAME
    from sdk.errors import MissingExtra
    from sdk.extras import installing
    from sdk.fleet.cli import open_fleet

    try:
        import sqlalchemy  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("--fleet needs the fleet extra", hint=installing("fleet")) from error
    heads = []
    with open_fleet(directory) as store:
        with store.read() as ledger:
            current = {name: (ledger.current(name), ledger.log_length(name)) for name in ledger.channels()}
        for name, (publication, log_length) in current.items():
            files = [] if publication is None else publication.release.descriptor.files
            if {file.sha256 for file in files if file.name == MANIFEST_NAME} != {digest}:
                continue
            live = store.live_set(name)
            if live is not None:
                heads.append(
                    {
                        "channel": name,
                        "live_set_digest": live.digest,
                        "samples": len(live),
                        "log_length": log_length,
                    }
                )
    return heads


def _facts(opened: Bundle) -> dict[str, Any]:
    import msgspec

    manifest = opened.manifest
    base = opened.base()
    sizes = {entry.name: entry.size_bytes for entry in manifest.files}
    count = Counter(base.class_ids)
    exemplars = Counter(base.class_ids[: len(base.codes)])
    groups = Counter(class_id for class_id, _ in set(zip(base.class_ids, base.groups, strict=True)))
    return {
        "name": manifest.name,
        "digest": opened.digest(),
        "format": manifest.format,
        "size_bytes": sum(sizes.values()),
        "files": sizes,
        "classes": [
            {"id": c.hex(), "name": name, "samples": count[c], "codes": exemplars[c], "groups": groups[c]}
            for c, name in opened.class_names().items()
        ],
        "precisions": [
            {
                "precision": entry.precision,
                "feature_size": entry.feature_size,
                "space": entry.space,
                "backbone_bytes": sizes[entry.backbone],
                "novelty_threshold": entry.head.novelty_threshold,
                "live_set_digest": entry.head.live_set_digest,
            }
            for entry in manifest.precisions
        ],
        "preprocess": msgspec.to_builtins(manifest.preprocess),
        "split": {
            "seed": manifest.split.seed,
            "held_back": manifest.split.held_back,
            "parts": dict(sorted(Counter(part.value for part in opened.parts().values()).items())),
        },
        "lineage": msgspec.to_builtins(manifest.lineage),
        "parents": manifest.parents,
    }
