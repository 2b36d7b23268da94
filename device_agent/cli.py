"""`headway agent`, `headway evaluate`, `headway rehearse`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from device_agent.cli_operations import backup, restore, unit
from device_agent.cli_update import update
from device_agent.cli_user import user
from device_agent.private import private_files
from sdk.durable import appearing_output, write_output
from sdk.errors import ConfigError
from sdk.layouts import Layout
from sdk.shown import say
from sdk.stopping import stop_on_signals

if TYPE_CHECKING:
    from sdk.images import ImageSet

_SITE = click.argument("site_file", metavar="SITE.TOML", type=click.Path(path_type=Path))
_BUNDLE = click.argument("bundle_path", metavar="BUNDLE", type=click.Path(path_type=Path))
_DATA = click.option(
    "--data",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Labelled images: class folders, an index.csv, COCO or MVTec-style folders.",
)
_LAYOUT = click.option(
    "--format",
    "layout",
    type=click.Choice([one.value for one in Layout]),
    help="How the images are kept. Default: found out.",
)
_UNANNOTATED = click.option(
    "--unannotated", metavar="LABEL", help="Class of COCO images without annotations. Default: refuse."
)
_INDEX = click.option(
    "--index",
    metavar="CSV",
    type=click.Path(path_type=Path),
    help="Labels from this index instead of the set's own, paths relative to DIR.",
)
_PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int8-tensorrt"]),
    help="Default: the bundle's first.",
)
_THREADS = click.option(
    "--threads",
    type=click.IntRange(0, 256),
    default=0,
    show_default=True,
    help="Processor threads; 0 is all of them.",
)
_JSON = click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the figures there; - prints them instead.",
)
_TIME: Final = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])
STATUS_TIMEOUT_S: Final = 5.0
_STDOUT: Final = Path("-")
_REFUSED_SHOWN: Final = 5
_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _learn_on_one_core() -> None:
    """Keep the solver's matrix library to one thread; call it before numpy is imported.

    Measured on two busy cores (MobileNetV2, d = 1280, 900 samples): from label to live in 180 to 220 ms with one
    thread, in 640 to 3200 ms with two, which wait for each other while inspection has the cores. The backbone's
    threads are the runtime's own.
    """
    for name in _ONE_THREAD:
        os.environ.setdefault(name, "1")


@click.group()
def agent() -> None:
    """Inspect, label and learn on this device."""


agent.add_command(user)


@agent.command()
@click.argument("file", metavar="[SITE.TOML]", type=click.Path(path_type=Path), default=Path("site.toml"))
@click.option("--force", is_flag=True, help="Replace the file.")
def init(file: Path, force: bool) -> None:
    """Write a commented site.toml to start from."""
    from device_agent.site_template import TEMPLATE

    try:
        if not force and os.path.lexists(file):
            raise ConfigError(f"{file} exists", hint="Edit it, or --force to replace it.")
        write_output(file, TEMPLATE.encode())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", hint="Name a file in a folder that exists.") from error
    click.echo(f"wrote {file}; edit it, then: headway agent run {file}")


@agent.command()
@_SITE
@click.option("--verbose", is_flag=True, help="Log every step.")
def run(site_file: Path, verbose: bool) -> None:
    """Run the agent until it is stopped (Ctrl-C, SIGTERM).

    Prints one line of JSON when it is ready: the page's address, the device, the release. Logs go to stderr.
    """
    _learn_on_one_core()
    from device_agent.memory import give_back_memory, set_modules_apart

    give_back_memory()
    import_module("device_agent.page")  # most of what is loaded comes with it
    from device_agent.agent import Agent
    from device_agent.logs import set_up_logs
    from device_agent.site_file import load_site

    site = load_site(site_file)
    set_up_logs(site.log, site.device, verbose=verbose)
    with private_files(), stop_on_signals() as stop:
        set_modules_apart()
        with Agent(site) as running:
            running.run(stop.event, on_ready=lambda ready: click.echo(json.dumps(ready)))
        if stop.interrupted:
            raise KeyboardInterrupt


for _each in (unit, backup, restore, update):
    agent.add_command(_each)


@agent.command()
@_SITE
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(site_file: Path, as_json: bool) -> None:
    """Say what the agent of this site.toml is doing."""
    from device_agent.agent import running_page, running_state
    from device_agent.report import CHOOSE_AGAIN, CHOOSE_GOOD, NONE_PASSES
    from device_agent.site_file import load_site

    site = load_site(site_file)
    try:
        state = running_state(site, STATUS_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no agent answers for {site.data_dir}", hint=f"Start it: headway agent run {site_file}"
        ) from error
    if as_json:
        click.echo(json.dumps(state, indent=1))
        return
    from sdk.console import Console, plain

    console = Console(soft_wrap=True, highlight=False)
    serves = (
        plain(f"{state['release']['name']} ({state['release']['precision']})") if state["release"] else "none yet"
    )
    head, score = state["head"], state["score"]
    console.print(f"[bold]{plain(state['device'])}[/]  {plain(str(running_page(site.data_dir)))}")
    console.print(f"release   {serves}")
    console.print(f"trust     {state['trust']}")
    if head:
        console.print(
            f"head      {head['number']}, {head['state']}, {head['samples']} samples. {plain(head['reason'])}"
        )
    if score and score["balanced_accuracy"] is None:
        console.print("score     not known: no class has parts of two groups yet")
    elif score:
        console.print(f"score     {score['balanced_accuracy']:.1%} ({score['low']:.0%} to {score['high']:.0%})")
    counts = (
        f"{state['frames']} inspected, {state['unknown']} unknown, {state['queue_depth']} waiting for an operator"
    )
    console.print(f"frames    {counts}")
    for camera in state["cameras"]:
        wrong = f", {camera['picture']}" if camera["picture"] else ""
        console.print(plain(f"camera    {camera['state']}: {camera['name']}{wrong}"))
    if state["line"]:
        line = state["line"]
        verdict = next(stage for stage in line["stages"] if stage["stage"] == "verdict")
        parts = f"{line['passed']} passed, {line['rejected']} rejected; verdict within"
        console.print(f"parts     {parts} {verdict['p50_ms']:.0f} ms (median), {verdict['p99_ms']:.0f} ms (99 %)")
        for output in line["outputs"]:
            if output["fault"] or output["dropped"] or output["waiting"]:
                told = f"{output['sent']} delivered, {output['dropped']} not delivered, {output['waiting']} wait"
                console.print("[yellow]output[/]    ", end="")
                console.print(plain(f"{output['name']}: {told}"))  # why is among the faults
    if state["mqtt"] and not state["mqtt"]["connected"]:
        console.print("[yellow]broker[/]    ", end="")
        console.print(f"{state['mqtt']['address']} does not answer: labels wait here", markup=False)
    # A label is an entry of the log or two; without a fleet none ever leaves.
    waits = f"; {state['outbox']} log entries not yet with the fleet" if state["mqtt"] else ""
    console.print(f"labels    {state['own_labels']} given here{waits}")
    faults = [fault for fault in state["faults"] if fault != NONE_PASSES]
    # An agent that has not been started since an update does not say who chose, or that this is a fault.
    if state["none_passes"]:
        faults.insert(0, f"{NONE_PASSES}. {CHOOSE_AGAIN if state.get('good_chosen') else CHOOSE_GOOD}")
    for fault in faults:
        console.print("[yellow]fault[/]     ", end="")
        console.print(plain(fault))  # it may hold a file's name


@agent.command()
@_SITE
@click.option(
    "--csv", "csv_file", metavar="FILE", type=click.Path(path_type=Path), help="Write CSV there; - prints it."
)
@click.option(
    "--since", type=_TIME, metavar="TIME", help="Captured from then on: 2026-03-01 or 2026-03-01T06:00, UTC."
)
@click.option("--until", type=_TIME, metavar="TIME", help="Captured before then.")
@click.option("--verdict", type=click.Choice(["pass", "reject"]), help="Only these.")
@click.option("--last", type=click.IntRange(1), metavar="N", help="The newest N only. Without --csv: 20.")
def history(
    site_file: Path,
    csv_file: Path | None,
    since: datetime | None,
    until: datetime | None,
    verdict: str | None,
    last: int | None,
) -> None:
    """Show or export the parts' verdicts. The agent may be running.

    \b
    What was rejected last?
      headway agent history site.toml --verdict reject
    A day for the quality department:
      headway agent history site.toml --since 2026-03-01 --until 2026-03-02 --csv parts.csv
    """
    from device_agent.history import read_history, write_csv
    from device_agent.site_file import load_site

    _check_file(csv_file)
    rows = read_history(
        load_site(site_file).data_dir,
        since_utc=0.0 if since is None else since.replace(tzinfo=timezone.utc).timestamp(),
        until_utc=float("inf") if until is None else until.replace(tzinfo=timezone.utc).timestamp(),
        verdict=verdict,
        newest=last if csv_file is not None else last or 20,
    )
    if csv_file == _STDOUT:
        write_csv(rows, sys.stdout)
        return
    if csv_file is not None:
        try:
            with appearing_output(csv_file) as draft, draft.open("w", encoding="utf-8", newline="") as file:
                count = write_csv(rows, file)
        except OSError as error:
            raise ConfigError(f"{csv_file}: {error.strerror}", hint="Name a file that can be written.") from error
        click.echo(f"wrote {count} parts to {csv_file}")
        return
    from rich.table import Table

    from sdk.console import Console, plain

    table = Table()
    table.add_column("captured (UTC)", no_wrap=True)
    for head in ("part", "verdict", "reason", "tiles", "latency"):  # a part's id is whole, or it finds no part
        table.add_column(head, overflow="fold")
    for row in rows:
        at = f"{datetime.fromtimestamp(row.captured_utc, timezone.utc):%Y-%m-%d %H:%M:%S}"
        tiles = f"{row.rejected_tiles} of {row.tiles}" if row.tiles > 1 else ""
        table.add_row(at, plain(row.part), row.verdict, plain(row.reason), tiles, f"{row.latency_ms:.0f} ms")
    Console().print(table)


@click.command()
@_BUNDLE
@_DATA
@_LAYOUT
@_UNANNOTATED
@_INDEX
@click.option(
    "--part",
    type=click.Choice(["test", "stream", "all"]),
    default="test",
    show_default=True,
    help="Which of the images that it did not learn from. Images it never saw are always evaluated.",
)
@click.option(
    "--good",
    multiple=True,
    metavar="CLASS",
    help="A class that is no defect: reports escapes and overkill. May be repeated.",
)
@click.option(
    "--escape-rate",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    help="With --good: reject from a threshold that lets at most this share of defects pass.",
)
@click.option(
    "--heatmaps",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write each image there, with the evidence for its decision drawn over it. Must be empty.",
)
@click.option(
    "--decisions",
    "decisions_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a CSV there, one line per image: what it is, what was shown; - prints it instead.",
)
@_PRECISION
@_THREADS
@_JSON
def evaluate(
    bundle_path: Path,
    data: Path,
    layout: str | None,
    unannotated: str | None,
    index: Path | None,
    part: str,
    good: tuple[str, ...],
    escape_rate: float | None,
    heatmaps: Path | None,
    decisions_file: Path | None,
    precision: str | None,
    threads: int,
    json_file: Path | None,
) -> None:
    """Measure a bundle on images that it did not learn from.

    \b
    How often is each class recognised?
      headway evaluate bundle --data parts/
    How many good parts are rejected, if at most one defect in fifty may pass?
      headway evaluate bundle --data parts/ --good free --escape-rate 0.02
    Which images were wrong?
      headway evaluate bundle --data parts/ --decisions decisions.csv
    Where in the images do the decisions come from?
      headway evaluate bundle --data parts/ --heatmaps heatmaps/
    """
    if escape_rate is not None and not good:
        raise click.UsageError("--escape-rate needs --good: which class is no defect?")
    if decisions_file == json_file == _STDOUT:
        raise click.UsageError("--json - and --decisions - cannot both be printed: name a file for one of them")
    _learn_on_one_core()
    from device_agent.config import RuntimeSettings
    from device_agent.decisions import as_csv, by_name
    from device_agent.evaluate import evaluate as measure
    from device_agent.figures import show_evaluation
    from device_agent.heatmap import check_folder, write_heatmaps
    from device_agent.pipeline import Pipeline
    from device_agent.runtime import base_head, check_golden, open_runtime
    from sdk.bundle import Bundle
    from sdk.console import Console
    from sdk.images import open_images

    _check_file(json_file)
    _check_file(decisions_file)
    if heatmaps is not None:
        check_folder(heatmaps)
    bundle = Bundle.open(bundle_path)
    with _progress("reading images") as step:
        images = open_images(
            data,
            layout=None if layout is None else Layout(layout),
            unannotated=unannotated,
            index=index,
            progress=step,
        )
    _say_left_out(images)
    runtime = open_runtime(bundle, precision, RuntimeSettings(threads=threads))
    check_golden(runtime, bundle, precision)
    with _progress("evaluating") as step:
        result = measure(
            bundle,
            images,
            runtime,
            precision=precision,
            part=part,
            good=good,
            escape_rate=escape_rate,
            progress=step,
        )
    if heatmaps is not None:
        files = by_name(images)
        with _progress("drawing heatmaps") as step:
            write_heatmaps(
                heatmaps,
                Pipeline(bundle, precision, runtime),
                base_head(bundle, precision),
                bundle.class_names(),
                [(files[each.path], each) for each in result.decisions],
                step,
            )
    if _STDOUT not in (json_file, decisions_file):
        show_evaluation(result, Console(highlight=False))
    _write_json(json_file, result)
    if decisions_file is not None:
        _write("--decisions", decisions_file, as_csv(result.decisions).encode())


def _station(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, list[str]] | None:
    if value is None:
        return None
    column, equals, rest = value.partition("=")
    values = [each.strip() for each in rest.split(",") if each.strip()]
    if not (column.strip() and equals and values):
        raise click.BadParameter("say COLUMN=VALUE or COLUMN=VALUE,VALUE, as in camera=3,4")
    return column.strip(), values


@click.command()
@_BUNDLE
@_DATA
@_LAYOUT
@_UNANNOTATED
@_INDEX
@click.option(
    "--labels",
    required=True,
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Labels that the operator will give in a shift.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(["queue", "random", "all"]),
    help="Which images get them: what the agent asks about (default), as many at random, or every one in order. "
    "May be repeated, to compare.",
)
@click.option("--compare", is_flag=True, help="Short for all three policies.")
@click.option("--hold-back", metavar="CLASS", help="A class that the device does not know at first.")
@click.option(
    "--station",
    metavar="COLUMN=VALUES",
    callback=_station,
    help="Only images with these values in this column of index.csv pass and judge, and the device has learned "
    "from none of them.",
)
@click.option(
    "--noise",
    metavar="RATE",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of labels that are wrong, such as 0.05.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Another order of the shift."
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    metavar="N",
    help="So many shifts, from --seed on.",
)
@click.option(
    "--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw the curves there, as .png or .svg."
)
@_PRECISION
@_THREADS
@_JSON
def rehearse(
    bundle_path: Path,
    data: Path,
    layout: str | None,
    unannotated: str | None,
    index: Path | None,
    labels: int,
    policies: tuple[str, ...],
    compare: bool,
    hold_back: str | None,
    station: tuple[str, list[str]] | None,
    noise: float,
    seed: int,
    seeds: int,
    plot: Path | None,
    precision: str | None,
    threads: int,
    json_file: Path | None,
) -> None:
    """Replay images through a real agent, with an oracle for the operator: how many labels will be needed?

    The images pass as on a shift. Some of them are labelled with what they are, the head learns each label, and is
    judged on other images, which nothing learns from, at 0, 1, 2, 3, 5, 10, ... labels. Beside it stands what
    labelling the whole shift would give.

    \b
    Forty labels, on what the agent asks about:
      headway rehearse bundle --data parts/ --labels 40
    What do its questions buy over labels at random? Five shifts of each, and a picture:
      headway rehearse bundle --data parts/ --labels 40 --policy queue --policy random \\
          --seeds 5 --plot curve.png
    How fast is a defect learned that the device has never seen?
      headway rehearse bundle --data parts/ --labels 40 --hold-back scratch
    Trained on other cameras, adapted on cameras 3 and 4 (a column of index.csv):
      headway rehearse bundle --data parts/ --labels 40 --station camera=3,4
    What if one label in twenty is wrong?
      headway rehearse bundle --data parts/ --labels 40 --noise 0.05
    """
    _learn_on_one_core()
    from device_agent.config import RuntimeSettings
    from device_agent.figures import show_rehearsal
    from device_agent.plot import check_plot, draw
    from device_agent.rehearse import Plan, StationImages
    from device_agent.rehearse import rehearse as replay
    from device_agent.runtime import check_golden, open_runtime
    from device_agent.shift import Policy
    from sdk.bundle import Bundle
    from sdk.console import Console
    from sdk.images import open_images

    chosen = ("queue", "random", "all") if compare else dict.fromkeys(policies or ("queue",))
    plan = Plan(
        labels=labels,
        policies=[Policy(name) for name in chosen],
        seeds=range(seed, seed + seeds),
        hold_back=hold_back,
        station=None if station is None else StationImages(*station),
        noise=noise,
    )
    if plot is not None:
        check_plot(plot)
    _check_file(json_file)
    bundle = Bundle.open(bundle_path)
    with _progress("reading images") as step:
        images = open_images(
            data,
            layout=None if layout is None else Layout(layout),
            unannotated=unannotated,
            index=index,
            progress=step,
        )
    _say_left_out(images)
    runtime = open_runtime(bundle, precision, RuntimeSettings(threads=threads))
    check_golden(runtime, bundle, precision)
    with _progress("computing codes") as step:
        result = replay(
            bundle,
            images,
            runtime,
            plan,
            precision=precision,
            coding=step,
            progress=lambda what, done, total: step(done, total, what),
        )
    if json_file != _STDOUT:
        show_rehearsal(result, Console(highlight=False))
    _write_json(json_file, result)
    if plot is not None:
        draw(result, plot)


class _Step(Protocol):
    def __call__(self, done: int, total: int, what: str = ..., /) -> None: ...


@contextmanager
def _progress(what: str) -> Iterator[_Step]:
    """Give a function (done, in all, what is done now) that draws a bar on stderr, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from sdk.console import Console

    console = Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task, shown = bars.add_task(what, total=None), what

        def step(done: int, total: int, now: str = what, /) -> None:
            nonlocal task, shown
            if now != shown and shown == what:  # another kind of work: its own count and time
                bars.remove_task(task)
                task = bars.add_task(now, total=total)
            shown = now
            bars.update(task, description=now, completed=done, total=total)

        yield step


def _check_file(file: Path | None) -> None:
    """Refuse a file that could not be written, before the work and not after it."""
    if file is None or file == _STDOUT:
        return
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"{file}: no such folder", hint="Name a file in a folder that exists.")


def _write_json(file: Path | None, result: Any) -> None:
    import msgspec

    if file is not None:
        _write("--json", file, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def _write(option: str, file: Path, encoded: bytes) -> None:
    """Write what an option asks for to the file it names, - is stdout."""
    if file == _STDOUT:
        click.echo(encoded, nl=False)
        return
    try:
        write_output(file, encoded)
    except OSError as error:
        raise ConfigError(f"{option} {file}: {error.strerror}", hint="Name another file.") from error


def _say_left_out(images: ImageSet) -> None:
    """Say on stderr what of a set is not used, and what somebody should know of the rest."""
    for refused in images.refused[:_REFUSED_SHOWN]:
        say(f"refused: {refused.path}: {refused.reason}", err=True)
    if len(images.refused) > _REFUSED_SHOWN:
        more = len(images.refused) - _REFUSED_SHOWN
        click.echo(f"and {more} more files; `headway export --check` names all", err=True)
    for note in images.notes:
        say(f"note: {note}", err=True)
