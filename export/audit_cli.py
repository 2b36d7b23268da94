"""`headway audit`: options in, labels to look at again out. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from export.cli import STDOUT, check_files, write_json
from export.terminal import Terminal, show_audit
from sdk.console import Console
from sdk.layouts import Layout

if TYPE_CHECKING:
    from export.check import Checked
    from export.label_audit import Source
    from export.progress import Log
    from sdk.codes import Features

BUILTIN: Final = "builtin"


@click.command()
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@click.option(
    "--backbone",
    metavar="NAME",
    help="timm architecture whose features judge, for example mobilenetv2_100. Default: builtin.",
)
@click.option(
    "--weights",
    metavar="PATH",
    help="Of the backbone: a .safetensors file or a timm model folder. Default: timm's hub; "
    "`builtin` brings its own.",
)
@click.option(
    "--bundle",
    "bundle_path",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Judge by this bundle's backbone instead; images that it was trained on are not judged.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice([one.value for one in Layout]),
    help="How the images are kept. Default: found out, and said.",
)
@click.option("--unannotated", metavar="LABEL", help="Class of COCO images without annotations. Default: refuse.")
@click.option(
    "--index",
    metavar="CSV",
    type=click.Path(path_type=Path),
    help="Labels from this index instead of the set's own: what --write-index wrote, corrected.",
)
@click.option(
    "--groups",
    "groups_from",
    type=click.Choice(["given", "derived", "none"]),
    help="What is left out together: the set's groups, near-duplicates too, or nothing. "
    "Default: given where the set names groups, else derived.",
)
@click.option(
    "--page",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an HTML page with the pictures, to look through and to correct on.",
)
@click.option(
    "--write-index",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a CSV of all labels, what to look at first: correct its column `label`.",
)
@click.option("--force", is_flag=True, help="Replace the file of --write-index.")
@click.option("--json", "json_file", metavar="FILE", help="Write all of it as JSON; - is standard output.")
def audit(
    data: Path,
    backbone: str | None,
    weights: str | None,
    bundle_path: Path | None,
    layout: str | None,
    unannotated: str | None,
    index: Path | None,
    groups_from: str | None,
    page: Path | None,
    write_index: Path | None,
    force: bool,
    json_file: str | None,
) -> None:
    """Find labels of a whole set that are probably wrong.

    Each image is judged by a head that learned from all others, but for those of its group, and by what its
    near-duplicates are labelled. DATA is kept as for `headway export`, and is never changed.

    \b
    Which labels should somebody look at again?
      headway audit parts/ --page audit.html
    Small or faint defects are seen better by ImageNet's weights than by our own:
      headway audit parts/ --backbone mobilenetv2_100 --weights weights/mobilenetv2_100 --page audit.html
    Correct the labels, on the page or in a spreadsheet program, and go on with them:
      headway audit parts/ --page audit.html --write-index labels.csv
      headway export parts/ --index labels.csv --backbone builtin --out bundle
    Look once more; what somebody confirmed is not listed again:
      headway audit parts/ --index labels.csv --page again.html
    """
    if bundle_path is not None and (backbone or weights):
        raise click.UsageError("--bundle brings its own backbone: give it, or --backbone and --weights.")
    if weights and not backbone:
        raise click.UsageError("--weights are of a --backbone: name its architecture, such as mobilenetv2_100.")
    check_files(json_file, ("--page", page), write_index, replace=force)
    from export.audit_page import audit_page
    from export.check import Groups, check
    from export.index_file import write_index as write
    from export.label_audit import audit_labels, audit_table
    from export.progress import Log

    with Terminal(Console(stderr=True)) as terminal:
        log = Log(terminal)
        if bundle_path is None:
            from export.backbones import check_source

            check_source(backbone or BUILTIN, weights)
        try:
            checked = check(
                data,
                layout=None if layout is None else Layout(layout),
                unannotated=unannotated,
                groups=None if groups_from is None else Groups(groups_from),
                index=index,
                log=log,
            )
            features, source = _embedded(checked, backbone or BUILTIN, weights, bundle_path, log)
            with log.stage("audit", "Judging each image without its group"):
                found = audit_labels(checked, features, source, lambda: log.seconds)
            table = audit_table(checked, found)
            if page is not None:
                with log.stage("page", f"Writing {page}"):
                    audit_page(found, table, page)
        except KeyboardInterrupt as stop:
            stop.args = ("nothing was written",)
            raise
    if write_index is not None:
        write(table, write_index)
    show_audit(found, page, write_index, Console(stderr=json_file == STDOUT, highlight=False))
    write_json(found, json_file)


def _embedded(
    checked: Checked, backbone: str, weights: str | None, bundle_path: Path | None, log: Log
) -> tuple[Features, Source]:
    """Return the features (m, d) of what an audit looks at, and where they come from.

    Raises:
        BadImages: there is nothing to compare.
        ExportError, BadFormat: the backbone, its weights or the bundle cannot be used.
    """
    from export.frames import resized_frames
    from export.label_audit import Source, to_embed

    paths = [image.path for image in to_embed(checked)]
    if bundle_path is None:
        from export.backbones import load_backbone
        from export.embed import features

        with log.stage("backbone", f"Loading {backbone}"):
            loaded = load_backbone(backbone, weights)
        log.listener.say(f"Weights: {loaded.origin.source}; licence: {loaded.origin.licence}.")
        with log.stage("decode", "Decoding images", len(paths)) as step:
            frames = resized_frames(paths, loaded.preprocess, None, step)
        with log.stage("features", "Computing features", len(paths)) as step:
            found = features(loaded, frames, step)
        return found, Source(loaded.name, loaded.origin.source, loaded.origin.licence)
    from export.judged import features_of
    from sdk.bundle import Bundle
    from sdk.onnxfile import check_onnx_file

    bundle = Bundle.open(bundle_path)
    entry, lineage, base, model = bundle.precision(), bundle.manifest.lineage, bundle.base(), bundle.backbone()
    check_onnx_file(model, entry.backbone)  # before any runtime sees it
    with log.stage("decode", "Decoding images", len(paths)) as step:
        frames = resized_frames(paths, bundle.manifest.preprocess, None, step)
    with log.stage("features", "Computing features", len(paths)) as step:
        found = features_of(model, frames, bundle.manifest.preprocess, step)
    fitted = frozenset(sample for sample, seen in zip(base.samples, base.fitted, strict=True) if seen)
    name = f"{lineage.backbone} of {bundle.manifest.name} ({entry.precision})"
    return found, Source(name, lineage.weights_source, lineage.weights_licence, fitted)
