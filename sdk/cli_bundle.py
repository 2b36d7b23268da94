"""`headway bundle`: what a bundle says of itself, and whether it is whole. Needs no extra."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sdk.bundle import Bundle

_BUNDLE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def bundle() -> None:
    """Show or verify a bundle."""


@bundle.command()
@_BUNDLE
@_JSON
def show(path: Path, as_json: bool) -> None:
    """Say what a bundle holds: classes, precisions, samples, where it comes from."""
    from sdk.bundle import Bundle

    facts = _facts(Bundle.open(path))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    lineage = facts["lineage"]
    console.print(f"[bold]{facts['name']}[/]  digest {facts['digest']}")
    console.print(f"{lineage['backbone']} ({lineage['strategy']}), made {lineage['created_utc']}", highlight=False)
    console.print(f"{facts['size_bytes'] / 1e6:.1f} MB in {len(facts['files'])} files", highlight=False)
    classes = Table("class", "samples", "groups", "id")
    for entry in facts["classes"]:
        classes.add_row(entry["name"], str(entry["samples"]), str(entry["groups"]), entry["id"])
    console.print(classes)
    forms = Table("precision", "d", "backbone MB", "feature space")
    for entry in facts["precisions"]:
        size = f"{entry['backbone_bytes'] / 1e6:.1f}"
        forms.add_row(entry["precision"], str(entry["feature_size"]), size, entry["space"][:16])
    console.print(forms)
    split = facts["split"]
    console.print(f"split (seed {split['seed']}): {split['parts']}", highlight=False)
    if split["held_back"]:
        console.print(f"held back: {', '.join(split['held_back'])}", highlight=False)


@bundle.command()
@_BUNDLE
@_JSON
def verify(path: Path, as_json: bool) -> None:
    """Check every file of a bundle: names, sizes, digests, and what is inside."""
    from sdk.bundle import Bundle

    opened = Bundle.open(path)
    for entry in opened.manifest.precisions:
        opened.base(entry.precision)
        opened.golden(entry.precision)
    opened.parts()
    facts = {
        "ok": True,
        "name": opened.manifest.name,
        "digest": opened.digest(),
        "files": len(opened.file_names()),
    }
    click.echo(json.dumps(facts) if as_json else f"whole: {facts['files']} files, digest {facts['digest']}")


def _facts(opened: Bundle) -> dict[str, Any]:
    import msgspec

    manifest = opened.manifest
    base = opened.base()
    sizes = {entry.name: entry.size_bytes for entry in manifest.files}
    count = Counter(base.class_ids)
    groups = {c: len({g for g, x in zip(base.groups, base.class_ids, strict=True) if x == c}) for c in count}
    return {
        "name": manifest.name,
        "digest": opened.digest(),
        "format": manifest.format,
        "size_bytes": sum(sizes.values()),
        "files": sizes,
        "classes": [
            {"id": c.hex(), "name": name, "samples": count[c], "groups": groups.get(c, 0)}
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
