"""`python -m sdk.surfaces`: a contact sheet of every kind, or an image set on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from PIL import Image
from rich.progress import Progress

from sdk import surfaces
from sdk.errors import ConfigError, HeadwayError

SHEET_COLOURS = 255
"""Of the contact sheet's palette: noise in full colour makes a PNG four times as large."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--contact-sheet", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png",
              help="Write one picture: a row per surface kind, a column per defect kind.")  # fmt: skip
@click.option("--image-set", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Write an image set: index.csv (path,label,group,mask), images/ and masks/.")  # fmt: skip
@click.option("--class", "classes", multiple=True, type=click.Choice(surfaces.CLASSES), metavar="CLASS",
              default=surfaces.PRODUCT_CLASSES, show_default=True,
              help=f"A class of the set, once per class: {', '.join(surfaces.CLASSES)}.")  # fmt: skip
@click.option("--kind", "kinds", multiple=True, type=click.Choice(surfaces.KINDS), metavar="KIND",
              default=surfaces.PRODUCT, show_default=True,
              help=f"A surface of the set's parts, once per kind: {', '.join(surfaces.KINDS)}.")  # fmt: skip
@click.option("--parts", "parts_per_class", type=click.IntRange(min=1), default=90, show_default=True,
              help="Parts of each class.")  # fmt: skip
@click.option("--frames", "frames_per_part", type=click.IntRange(1, 100), default=3, show_default=True,
              help="Each part is photographed once to this many times, under another light.")  # fmt: skip
@click.option("--size-px", type=click.IntRange(surfaces.MIN_SIZE_PX, surfaces.MAX_SIZE_PX),
              default=surfaces.DEFAULT_SIZE_PX, show_default=True, help="Both sides of a picture.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="The same seed writes the same bytes; another one other parts.")  # fmt: skip
def main(
    contact_sheet: Path | None,
    image_set: Path | None,
    classes: tuple[str, ...],
    kinds: tuple[str, ...],
    parts_per_class: int,
    frames_per_part: int,
    size_px: int,
    seed: int,
) -> None:
    """Draw factory surfaces with defects, from a seed.

    \b
    See every kind:
        python -m sdk.surfaces --contact-sheet surfaces.png
    Write a set of about 900 pictures and learn from it:
        python -m sdk.surfaces --image-set surfaces
        headway export surfaces --out first.bundle ...
    Another product, with another defect:
        python -m sdk.surfaces --image-set cloth --kind woven --class good --class stain --class dent

    Pictures of one part share a group: split by it, or the score will be too kind.
    """
    if contact_sheet is None and image_set is None:
        raise click.UsageError("nothing to do: give --contact-sheet FILE.png or --image-set FOLDER")
    try:
        if contact_sheet is not None:
            _write_sheet(contact_sheet, seed, size_px)
        if image_set is not None:
            with Progress() as bar:
                task = bar.add_task("pictures", total=None)
                written = surfaces.write_image_set(
                    image_set,
                    classes=tuple(dict.fromkeys(classes)),
                    kinds=kinds,
                    parts_per_class=parts_per_class,
                    frames_per_part=frames_per_part,
                    size_px=size_px,
                    seed=seed,
                    progress=lambda done, in_all: bar.update(task, completed=done, total=in_all),
                )
            click.echo(f"{image_set}: {written} pictures of {parts_per_class * len(set(classes))} parts")
    except HeadwayError as error:
        click.echo(f"error: {error}\nhint: {error.hint}", err=True)
        sys.exit(2)


def _write_sheet(path: Path, seed: int, size_px: int) -> None:
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written", hint="Name a .png file in a folder that exists.")
    sheet = Image.fromarray(surfaces.contact_sheet(seed=seed, size_px=size_px)[:, :, ::-1])
    # The palette from a sixteenth of the pixels, which finds the same in a fraction of the time.
    sample = sheet.resize((sheet.width // 4, sheet.height // 4), Image.Resampling.NEAREST)
    palette = sample.quantize(SHEET_COLOURS, Image.Quantize.MAXCOVERAGE)
    try:
        sheet.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="Check space and rights.") from error
    click.echo(f"{path}: {len(surfaces.KINDS)} surfaces, {len(surfaces.CLASSES)} classes")


if __name__ == "__main__":
    main()
