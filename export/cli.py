"""`headway export`: options in, a bundle and what there is to say about it out. Heavy imports happen inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from export.exemplars import MAX_BASE_CODES
from export.terminal import Terminal, show, show_set
from sdk.class_names import composed
from sdk.codes import MAX_FEATURE_SIZE
from sdk.console import Console
from sdk.durable import write_output
from sdk.errors import ExportError
from sdk.layouts import Layout
from sdk.preprocess import MAX_INPUT_SIDE_PX
from sdk.shown import readable

if TYPE_CHECKING:
    from export.check import Groups
    from export.distributed import Ranks
    from export.label_audit import LabelAudit
    from export.readout import Budget
    from export.report import Report
    from export.set_report import SetReport

STDOUT: Final = "-"
AUTO: Final = "auto"
MAX_LEVELS: Final = 12
_PRECISIONS: Final = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "int8": ("int8",),
    "both": ("fp32", "int8"),
    "all": ("fp32", "fp16", "int8"),
}
_PROFILES: Final = {"cpu": ("cpu",), "tensorrt": ("tensorrt",), "all": ("cpu", "tensorrt")}


def _side(ctx: click.Context, param: click.Parameter, value: Any) -> int | str | None:
    """Return the side in pixels, auto, or None where it is not given."""
    if value in (None, AUTO):
        return None if value is None else AUTO
    return click.IntRange(8, MAX_INPUT_SIDE_PX).convert(value, param, ctx)


def _readout_budget(
    levels: int | None,
    max_feature_size: int | None,
    max_latency_ms: float | None,
    pool: str | None,
    input_size: int | str | None,
) -> Budget | None:
    """Return what --levels auto may choose from; None where the levels are given."""
    from export.readout import DEFAULT_MAX_FEATURE_SIZE, Budget

    if levels is None:
        largest = max_feature_size or DEFAULT_MAX_FEATURE_SIZE
        return Budget(largest, max_latency_ms, sizes=input_size == AUTO, pooling=pool == AUTO)
    if (max_feature_size, max_latency_ms) != (None, None):
        raise click.UsageError("--max-feature-size and --max-latency-ms bound what --levels auto chooses from")
    if AUTO in (pool, input_size):
        raise click.UsageError(
            "--pool auto and --input-size auto widen what --levels auto chooses from: give both"
        )
    return None


def _levels(ctx: click.Context, param: click.Parameter, value: Any) -> int | None:
    """Return the number of levels; None for auto, 0 for the backbone's own."""
    if value is None:
        return 0
    return None if value == AUTO else click.IntRange(1, MAX_LEVELS).convert(value, param, ctx)


class WithPretrain(click.Command):
    """`export DATA ...`, and beside it `export pretrain ...`; a folder of that name is `./pretrain`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of whichever of the two the first argument names."""
        if args[:1] == ["pretrain"]:
            from export.pretrain_cli import pretrain

            return pretrain.make_context(f"{info_name} pretrain", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=WithPretrain)
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@click.option("--check", "check_only", is_flag=True, help="Only check the images; needs DATA alone.")
@click.option("--format", "layout", type=click.Choice([one.value for one in Layout]),
              help="How the images are kept. Default: found out, and said.")  # fmt: skip
@click.option("--unannotated", metavar="LABEL", help="Class of COCO images without annotations. Default: refuse.")
@click.option("--index", metavar="CSV", type=click.Path(path_type=Path),
              help="Labels from this index instead of the set's own, paths relative to DATA: what --write-index "
              "wrote, corrected.")  # fmt: skip
@click.option("--groups", "groups_from", type=click.Choice(["given", "derived", "none"]),
              help="What the split keeps together: the set's groups, near-duplicates too, or nothing. "
              "Default: given where the set names groups, else derived.")  # fmt: skip
@click.option("--images-page", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Write what is known of the images, with pictures, as an HTML page.")  # fmt: skip
@click.option("--write-index", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="With --check: write an index.csv with the groups found, to correct and use.")  # fmt: skip
@click.option(
    "--backbone",
    metavar="NAME",
    help="timm architecture, for example mobilenetv2_100. `builtin` is Headway's own.",
)
@click.option(
    "--weights",
    metavar="PATH",
    help="A .safetensors file, a timm model folder (config.json, model.safetensors), or `none`: random weights. "
    "Default: timm's hub; `builtin` brings its own.",
)
@click.option(
    "--strategy",
    type=click.Choice(["frozen", "last", "full", "head-then-full", AUTO]),
    help="What is trained besides the head: nothing, the last stages, everything, a classifier first and then "
    "everything; auto tries them and chooses. Default: frozen with weights, full without.",
)
@click.option(
    "--precision",
    type=click.Choice(list(_PRECISIONS)),
    default="both",
    show_default=True,
    help="Forms to keep; with fp32 and int8 (both), the one that measures better comes first.",
)
@click.option(
    "--profile",
    type=click.Choice(list(_PROFILES)),
    default="cpu",
    show_default=True,
    help="What int8 is made for: ONNX Runtime on a processor, TensorRT, or a form for each.",
)
@click.option(
    "--int8-loss",
    metavar="POINTS",
    type=click.FloatRange(min=0, max=100),
    default=0.5,
    show_default=True,
    help="Balanced accuracy that int8 may lose before layers stay fp32 and the backbone is fine-tuned for int8.",
)
@click.option("--qat/--no-qat", default=True, show_default=True, help="Fine-tune for int8 where that is needed.")
@click.option(
    "--int8-budget",
    metavar="MINUTES",
    type=click.FloatRange(min=0.01),
    default=5.0,
    show_default=True,
    help="For finding sensitive layers and fine-tuning for int8, each profile.",
)
@click.option(
    "--hold-back",
    metavar="CLASS",
    multiple=True,
    callback=lambda _context, _option, names: tuple(composed(name) for name in names),
    help="A class that nothing learns from, to see later how it is learned on a device. May be repeated.",
)
@click.option("--out", metavar="BUNDLE", type=click.Path(path_type=Path), help="Directory to make.")
@click.option("--force", is_flag=True, help="Replace a bundle, or the file of --write-index, that is there.")
@click.option(
    "--json", "json_file", metavar="FILE", help="Write everything reported as JSON; - is standard output."
)
@click.option(
    "--report",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --strategy auto: write what was tried, with plots, as an HTML page.",
)
@click.option(
    "--epochs", type=click.IntRange(1, 10_000), help="Of fine-tuning, at most. Default: the strategy's own."
)
@click.option(
    "--budget", metavar="MINUTES", type=click.FloatRange(min=0.01), help="Plan choosing and training within this."
)
@click.option(
    "--tensorboard", metavar="DIR", type=click.Path(path_type=Path), help="Write the curves of training there."
)
@click.option("--full-precision", is_flag=True, help="Train in 32 bits on a GPU too; a processor always does.")
@click.option(
    "--input-size",
    metavar="PX|auto",
    callback=_side,
    help="Side of the input; `auto` tries the weights' own and a larger one with --levels auto. "
    "Default: the weights'.",
)
@click.option(
    "--pool",
    type=click.Choice(["avg", "max", "catavgmax", AUTO]),
    help="Global pooling; max keeps defects of a few pixels, `auto` tries it with --levels auto. "
    "Default: the weights'.",
)
@click.option(
    "--levels",
    metavar="N|auto",
    callback=_levels,
    help="Read features from the last N levels of the backbone; more see more kinds of new defect, and make codes "
    "longer. `auto` measures which. Default: 4, or as many as give at most 2048 features.",
)
@click.option(
    "--max-feature-size",
    metavar="D",
    type=click.IntRange(1, MAX_FEATURE_SIZE),
    help="With --levels auto: at most so many features. Default: 2048.",
)
@click.option(
    "--max-latency-ms",
    metavar="MS",
    type=click.FloatRange(min=0, min_open=True),
    help="With --levels auto: at most so long a frame on this machine, fp32.",
)
@click.option(
    "--classes-from", metavar="BUNDLE", type=click.Path(path_type=Path), help="Keep this bundle's ids of classes."
)
@click.option(
    "--licence", metavar="ID", help="Licence of weights that do not state theirs, best as SPDX names it."
)
@click.option("--data-licence", metavar="TEXT", default="", help="Licence or owner of the images, for the papers.")
@click.option(
    "--engine", is_flag=True, help="Also build TensorRT engines for this machine's GPU, in BUNDLE.engines."
)
@click.option(
    "--max-base-codes",
    metavar="N",
    type=click.IntRange(2),
    default=MAX_BASE_CODES,
    show_default=True,
    help="Of more images than this the bundle has exact sums; devices can then score and correct N of them.",
)
@click.option("--name", help="What people call the bundle. Default: the directory's name.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of split and training.")
def export(
    data: Path,
    check_only: bool,
    layout: str | None,
    unannotated: str | None,
    index: Path | None,
    groups_from: str | None,
    images_page: Path | None,
    write_index: Path | None,
    backbone: str | None,
    weights: str | None,
    strategy: str | None,
    precision: str,
    profile: str,
    int8_loss: float,
    qat: bool,
    int8_budget: float,
    hold_back: tuple[str, ...],
    out: Path | None,
    force: bool,
    json_file: str | None,
    page: Path | None,
    epochs: int | None,
    budget: float | None,
    tensorboard: Path | None,
    full_precision: bool,
    input_size: int | str | None,
    pool: str | None,
    levels: int | None,
    max_feature_size: int | None,
    max_latency_ms: float | None,
    classes_from: Path | None,
    licence: str | None,
    data_licence: str,
    engine: bool,
    max_base_codes: int,
    name: str | None,
    seed: int,
) -> None:
    """Turn labelled images into a bundle: backbone, quantization, head, and an honest score.

    DATA is a folder with one folder of images per class, a folder with an index.csv (path,label[,group,...]), COCO
    annotations with their images, MVTec-style folders, or a folder of good parts only. A group is what must not be
    divided between training and test, such as a part that was photographed several times.

    \b
    Only look at the images: what is refused, near-duplicates, groups, slices:
      headway export --check parts/ --images-page parts.html

    \b
    Pretrained weights from a file or folder, nothing trained but the head (minutes):
      headway export parts/ --backbone mobilenetv2_100 --weights weights/mobilenetv2_100 --out bundle
    Also train the last stages:
      headway export parts/ --backbone mobilenetv2_100 --weights weights/mobilenetv2_100 \\
          --strategy last --out bundle
    Measure which levels and input size suit these images:
      headway export parts/ --backbone mobilenetv2_100 --weights weights/mobilenetv2_100 \\
          --levels auto --input-size auto --max-latency-ms 30 --out bundle
    Headway's own backbone, without a network or anybody's weights:
      headway export parts/ --backbone builtin --out bundle
    A small network from scratch, at most ten minutes:
      headway export parts/ --backbone resnet10t --weights none --input-size 96 --budget 10 --out bundle
    Train a backbone on drawn surfaces, see `headway export pretrain --help`:
      headway export pretrain --minutes 60 --out own
    """
    from export.check import Groups
    from export.images_page import write_page

    check_files(json_file, ("--images-page", images_page), write_index, replace=force)
    kept = None if layout is None else Layout(layout)
    groups = None if groups_from is None else Groups(groups_from)
    if check_only:
        _only_check(
            data, kept, unannotated, index, groups, hold_back, classes_from, seed, images_page, write_index,
            json_file,
        )  # fmt: skip
        return
    if write_index is not None:
        raise click.UsageError("--write-index goes with --check.")
    if backbone is None:
        raise click.UsageError(
            "Name a backbone: --backbone mobilenetv2_100 has weights on timm's hub, --weights brings your own; "
            "--backbone builtin needs neither."
        )
    if out is None:
        raise click.UsageError("Name the bundle to make: --out BUNDLE. Only looking at the images is --check.")
    from export.board import board
    from export.distributed import TrainedAlong, ranks
    from export.finetune import Strategy
    from export.pipeline import Request, export_bundle, stopped
    from export.profiles import Profile
    from export.report import encode_report
    from sdk.tensorrt_api import open_library

    request = Request(
        data=data,
        backbone=backbone,
        out=out,
        weights=weights,
        strategy=None if strategy in (None, AUTO) else Strategy(strategy),
        auto=strategy == AUTO,
        mixed=not full_precision,
        precisions=_PRECISIONS[precision],
        profiles=tuple(Profile(name) for name in _PROFILES[profile]),
        max_int8_loss=int8_loss / 100,
        qat=qat,
        int8_budget_s=int8_budget * 60,
        hold_back=tuple(dict.fromkeys(hold_back)),
        epochs=epochs,
        seed=seed,
        budget_s=None if budget is None else budget * 60,
        input_size_px=None if isinstance(input_size, str) else input_size,
        pool=None if pool == AUTO else pool,
        levels=levels or None,
        readout=_readout_budget(levels, max_feature_size, max_latency_ms, pool, input_size),
        classes_from=classes_from,
        max_base_codes=max_base_codes,
        replace=force,
        name=name,
        tensorrt=open_library() if engine else None,
        licence=licence,
        data_licence=data_licence,
        layout=kept,
        unannotated=unannotated,
        groups=groups,
        index=index,
    )
    _check_page(page, strategy)
    with ranks() as here:
        check_alone(strategy, here)
        with (
            Terminal(Console(stderr=True, quiet=not here.writes)) as terminal,
            board(tensorboard if here.writes else None) as on_scalars,
        ):
            try:
                report = export_bundle(request, terminal, ranks=here, on_scalars=on_scalars)
            except TrainedAlong:
                return
            except KeyboardInterrupt as stop:
                stop.args = (stopped(request),)
                raise
    _write_page(page, report)
    # With JSON on standard output, what people read goes to the other one.
    show(report, Console(stderr=json_file == STDOUT, highlight=False))
    if images_page is not None:
        write_page(report.image_set, images_page)
    if json_file == STDOUT:
        sys.stdout.write(encode_report(report).decode())
    elif json_file is not None:
        try:
            write_output(Path(json_file), encode_report(report))
        except OSError as error:
            raise ExportError(
                f"--json {json_file}: {error.strerror}", hint=f"The bundle is in {out}; only the JSON is missing."
            ) from error


def check_files(
    json_file: str | None, page: tuple[str, Path | None], index: Path | None, *, replace: bool
) -> None:
    """Refuse now what could not be written in the end.

    Args:
        json_file: Of --json.
        page: The option that names a page, and the page.
        index: Of --write-index.
        replace: The index may go.

    Raises:
        ExportError: there is no such folder, or an index is there.
    """
    json_path = None if json_file in (None, STDOUT) else Path(str(json_file))
    for option, file in (("--json", json_path), page, ("--write-index", index)):
        if file is not None:
            _check_file(option, file)
    if index is not None and index.exists() and not replace:
        raise ExportError(
            f"--write-index {index}: it exists, and may have been corrected by hand",
            hint="Name another file, or --force to replace it.",
        )


def _check_file(option: str, file: Path) -> None:
    if file.is_dir() or not file.resolve().parent.is_dir():
        raise ExportError(f"{option} {file}: there is no such folder", hint="Name a file in a folder that exists.")


def _only_check(
    data: Path,
    layout: Layout | None,
    unannotated: str | None,
    index: Path | None,
    groups: Groups | None,
    hold_back: tuple[str, ...],
    classes_from: Path | None,
    seed: int,
    page: Path | None,
    written: Path | None,
    json_file: str | None,
) -> None:
    """Say what is known of a set, and learn nothing. What an export would refuse is refused, after all is told.

    Raises:
        BadImages: an export would refuse it.
    """
    from export.check import check, set_report
    from export.images_page import write_page
    from export.index_file import index_table, write_index
    from export.progress import Log, Unheard
    from export.selection import select

    with Terminal(Console(stderr=True)) as terminal:
        checked = check(
            data, layout=layout, unannotated=unannotated, groups=groups, index=index, log=Log(terminal)
        )
    report = set_report(checked, seed=seed)
    show_set(report, Console(stderr=json_file == STDOUT, highlight=False))
    if page is not None:
        write_page(report, page)
    if written is not None:
        write_index(index_table(checked.images.folder, checked.images.images), written)
    write_json(report, json_file)
    select(checked.images, seed=seed, hold_back=hold_back, classes_from=classes_from, log=Log(Unheard()))


def write_json(report: SetReport | LabelAudit, json_file: str | None) -> None:
    """Write a report where --json says: a file, standard output, or nowhere.

    Raises:
        ExportError: the file cannot be written.
    """
    from export.set_report import encoded

    as_json = encoded(report)
    if json_file == STDOUT:
        sys.stdout.write(as_json.decode())
    elif json_file is not None:
        try:
            write_output(Path(json_file), as_json)
        except OSError as error:
            raise ExportError(f"--json {json_file}: {error.strerror}", hint="Choose another file.") from error


def check_alone(strategy: str | None, ranks: Ranks) -> None:
    """Refuse to choose in several processes: they would have to agree on times that each measures.

    Raises:
        ExportError: there are several.
    """
    if strategy == AUTO and ranks.world > 1:
        raise ExportError(
            "--strategy auto compares times and figures in one process",
            hint="Choose without torchrun, then train the chosen strategy with it.",
        )


def _check_page(page: Path | None, strategy: str | None) -> None:
    if page is None:
        return
    if strategy != AUTO:
        raise ExportError("--report tells what --strategy auto tried", hint="Add --strategy auto.")
    if page.is_dir() or not page.resolve().parent.is_dir():
        raise ExportError(f"--report {page}: there is no such folder", hint="Name a file in a folder that exists.")
    from export.transfer_page import check_plots

    check_plots()


def _write_page(page: Path | None, report: Report) -> None:
    if page is None:
        return
    from export.transfer_page import transfer_page

    try:
        write_output(page, readable(transfer_page(report)).encode())
    except OSError as error:
        raise ExportError(
            f"--report {page}: {error.strerror}", hint="The bundle is there; only the page is missing."
        ) from error
