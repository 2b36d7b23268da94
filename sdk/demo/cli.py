"""`headway demo`."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.markup import escape
from rich.progress import Progress

from sdk.console import Console
from sdk.demo import report as reports
from sdk.demo.plant import DemoFailed, http_client
from sdk.demo.story import Plan, Shown, play
from sdk.durable import write_output
from sdk.fleet.broker import find_mosquitto
from sdk.surfaces import write_image_set

BUILT_IN_HOLD_BACK: Final = "pit"
BUILT_IN_PARTS: Final = 260
"""Parts of each class; each is photographed once to three times."""
OWN_BACKBONE: Final = "builtin"
"""It comes with Headway, so that no hub is asked and no licence is in question."""
MARK: Final = "headway-demo"
STDOUT: Final = Path("-")


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled images of your own; drawn by the demo itself if absent.",
)
@click.option("--backbone", help="To use with --data: `builtin`, or a timm architecture.  [default: builtin]")
@click.option("--weights", help="Its weights: a safetensors file or a timm model folder; timm's hub if absent.")
@click.option("--strategy", help="How to train, see `headway export --help`.")
@click.option("--hold-back", help="The class that nobody knows at first.  [default: pit]")
@click.option(
    "--labels", type=click.IntRange(1, 200), default=10, show_default=True, help="Labels given on device A."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for everything; an earlier demo there is replaced.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of images, split and streams."
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write report.json's content there; - prints it instead of the table.",
)
@click.option("--stay", is_flag=True, help="Keep the devices and their pages running until Ctrl-C.")
def demo(
    data: Path | None,
    backbone: str | None,
    weights: str | None,
    strategy: str | None,
    hold_back: str | None,
    labels: int,
    out: Path,
    seed: int,
    json_file: Path | None,
    stay: bool,
) -> None:
    """Show the whole product on this machine: one device learns a defect, another knows it.

    Exports a backbone and a head without one class, starts a broker, the fleet service and two devices, sends the
    release over MQTT, labels a few images of the missing class on device A as an operator would, and measures on
    held-out images what A and B know before and after. Writes OUT/report.html and OUT/report.json.

    \b
    With nothing but the defaults it draws castings, for the backbone that comes with Headway:
      headway demo
    On your own images, with this backbone or another:
      headway demo --data parts/ --hold-back scratches
      headway demo --data parts/ --backbone mobilenetv2_100 --weights weights/mobilenetv2_100 \\
          --hold-back scratches --labels 10 --out demo-parts
    """
    console = Console(stderr=True)
    if data is None and (backbone or weights or strategy):
        raise click.UsageError("--backbone, --weights and --strategy go with --data.")
    if data is not None and hold_back is None:
        raise click.UsageError("--data needs --hold-back too.")
    start = time.monotonic()
    _check_json(json_file)
    find_mosquitto()  # before minutes of work, and before anything is emptied
    _prepare(out, data)
    if data is None:
        data = _draw(out / "images", seed, console)
    export_args = ["--backbone", backbone or OWN_BACKBONE]
    for option, value in (("--weights", weights), ("--strategy", strategy)):
        if value is not None:
            export_args += [option, value]
    plan = Plan(data.resolve(), export_args, hold_back or BUILT_IN_HOLD_BACK, labels, out.resolve(), seed)

    def write(shown: Shown) -> None:
        result = reports.write(shown)
        console.print()
        reports.print_table(result, Console(stderr=json_file == STDOUT))
        _write_json(json_file, result)
        page = escape(str(out / "report.html"))
        console.print(f"\n{time.monotonic() - start:.0f} s in all. Open [bold]{page}[/]")
        if not result["digests_equal"]:
            raise DemoFailed("the devices and the fleet hold different live sets", hint=f"See {out / 'logs'}.")

    def linger(shown: Shown, pages: dict[str, str]) -> None:
        write(shown)
        for name, url in pages.items():
            with http_client(url) as http:
                waiting = len(http.get("/api/queue", params={"limit": 200}).raise_for_status().json())
            console.print(f"Device {name}: [bold]{url}label[/]  {waiting} pictures wait for an answer")
        console.print("Label something; any part under Now can be labelled too. Ctrl-C ends the demo.")
        try:
            signal.pause()
        except KeyboardInterrupt:
            console.print("Stopping.")

    shown = play(plan, lambda line: console.print(f"[cyan]•[/] {escape(line)}"), stay=linger if stay else None)
    if not stay:
        write(shown)


def _check_json(file: Path | None) -> None:
    """Refuse now what could not be written in the end."""
    if file not in (None, STDOUT) and (file.is_dir() or not file.parent.is_dir()):
        raise DemoFailed(f"--json {file}: there is no such folder", hint="Name a file in a folder that exists.")


def _write_json(file: Path | None, result: dict[str, Any]) -> None:
    encoded = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if file == STDOUT:
        click.echo(encoded, nl=False)
    elif file is not None:
        try:
            write_output(file, encoded.encode())
        except OSError as error:
            raise DemoFailed(f"--json {file}: {error.strerror}", hint="OUT/report.json has the same.") from error


def _prepare(out: Path, data: Path | None) -> None:
    """Make the folder, or empty one that an earlier demo left; nobody else's, and not one with the images."""
    marker = out / MARK
    if data is not None and data.resolve().is_relative_to(out.resolve()):
        raise DemoFailed(
            f"{data} lies within {out}, which is emptied",
            hint="Name another folder with --out, or move the images.",
        )
    try:
        if out.exists() and any(out.iterdir()):
            if not marker.is_file():
                raise DemoFailed(
                    f"{out} holds other things than a demo", hint="Name a new or empty folder with --out."
                )
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        marker.write_text("Made by `headway demo`, which empties this folder when it runs again.\n")
    except OSError as error:
        raise DemoFailed(f"--out {out}: {error.strerror}", hint="Name another folder with --out.") from error


def _draw(folder: Path, seed: int, console: Console) -> Path:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Drawing surfaces and defects", total=None)
        write_image_set(
            folder,
            parts_per_class=BUILT_IN_PARTS,
            seed=seed,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return folder
