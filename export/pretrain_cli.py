"""`headway export pretrain`: train a backbone on drawn surfaces, and write it with its papers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from sdk.console import Console
from sdk.durable import write_output

STDOUT: Final = "-"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write; new or empty."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.05),
    default=60.0,
    show_default=True,
    help="Plan as many steps as fit this time on this machine.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Take so many steps, however long they take.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of everything drawn.")
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    default=0,
    show_default=True,
    help="Processes that draw ahead; 0 draws in between, which suits a machine with one or two cores.",
)
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="JSON of what differs from the usual recipe; record.json has the whole of it.",
)  # fmt: skip
@click.option("--measure/--no-measure", default=True, show_default=True, help="Measure on drawn tasks afterwards.")
@click.option("--full-precision", is_flag=True, help="Train in 32 bits throughout.")
@click.option("--json", "json_file", metavar="FILE", help="Write the record as JSON too; - is standard output.")
@click.option(
    "--tensorboard", metavar="DIR", type=click.Path(path_type=Path), help="Write the curves of training there."
)
def pretrain(
    out: Path,
    minutes: float,
    steps: int | None,
    seed: int,
    workers: int,
    recipe_file: Path | None,
    measure: bool,
    full_precision: bool,
    json_file: str | None,
    tensorboard: Path | None,
) -> None:
    """Train a backbone on drawn surfaces alone, as `--backbone builtin` was.

    No image and no weights of anybody are needed, and no network. What comes out is a timm model folder with its
    card and ML-BOM: give it to `headway export` with --weights. After a kill, the same command goes on from there.

    \b
    An hour on this machine:
      headway export pretrain --minutes 60 --out own
      headway export parts/ --backbone resnet10t --weights own --out bundle
    On a machine with a GPU, eight processes drawing:
      headway export pretrain --steps 40000 --workers 8 --out own
    """
    import msgspec

    from export.board import board
    from export.pretrain import Plan, Recipe, recipe_of
    from export.pretrained import RECORD_NAME, train_folder
    from export.terminal import Terminal
    from sdk.errors import ExportError

    if (out / RECORD_NAME).exists():
        raise ExportError(f"{out} holds a backbone already", hint="Choose another --out.")
    recipe = Recipe()
    if recipe_file is not None:
        try:
            recipe = recipe_of(recipe_file.read_bytes(), str(recipe_file))
        except OSError as error:
            raise ExportError(f"{recipe_file}: {error.strerror}", hint="Name a file of JSON.") from error
    plan = Plan(seed, steps, minutes, workers, mixed=not full_precision)
    with Terminal(Console(stderr=True)) as terminal, board(tensorboard) as on_scalars:
        record = train_folder(out, plan, recipe, terminal, on_scalars, measure=measure)
    console = Console(stderr=json_file == STDOUT, highlight=False)
    for score in record.drawn:
        console.print(f"{score.task}, {score.labels} labels a class: {score.accuracy:.1%}")
    console.print(f"[bold]{out}[/]  {record.outcome.steps} steps, {record.outcome.seconds / 60:.0f} min")
    as_json = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    if json_file == STDOUT:
        sys.stdout.write(as_json.decode())
    elif json_file is not None:
        try:
            write_output(Path(json_file), as_json)
        except OSError as error:
            raise ExportError(f"{json_file}: {error.strerror}", hint="Choose another file.") from error
