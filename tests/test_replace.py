"""A bundle that takes another's place, and whoever is killed while it does: one of the two is always there."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sdk.bundle import Bundle, write_bundle
from sdk.errors import BadFormat
from sdk.exchange import draft_of, put_back
from tests.crashes import Cut, Disk, build_tracer, steps_in, write_out
from tests.replace_scenario import files_of
from tests.tiny import tiny_bundle

ROOT = Path(__file__).parents[1]

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tracer = build_tracer(tmp_path_factory.mktemp("tracer"))
    if tracer is None:
        pytest.skip("needs a C compiler to kill a process after each of its writes")
    return tracer


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: a hundred bundles are synced to it."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path / "bundles"
        return
    with tempfile.TemporaryDirectory(prefix="headway-", dir=MEMORY) as name:
        yield Path(name)


def run(tracer: Path, log: Path, what: str, folder: Path, *, no_exchange: bool) -> str:
    """Run the scenario; return what it printed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.replace_scenario", what, str(folder), str(int(no_exchange))],
        env={**os.environ, "LD_PRELOAD": str(tracer), "TRACE_ROOT": str(folder), "TRACE_LOG": str(log)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BOTH = pytest.mark.parametrize("no_exchange", [False, True], ids=["exchanged", "by two renames"])


@BOTH
def test_killed_at_any_point_the_old_or_the_new_one_is_there(
    tracer: Path, folder: Path, tmp_path: Path, no_exchange: bool
) -> None:
    tiny_bundle(folder / "bundle", name="old")
    found = [
        json.loads(line)
        for line in run(tracer, tmp_path / "log", "killed", folder, no_exchange=no_exchange).splitlines()
    ]
    assert [each["killed"] for each in found] == [True] * (len(found) - 1) + [False]
    opened = [each["now"] for each in found]
    assert opened == sorted(opened, reverse=True), "the old one to some point, then the new one"
    assert {*opened} == {"old", "new"}
    assert all(each["left"] == ["bundle"] for each in found), "the next replacement clears up"
    gaps = [each["seen"] for each in found if "bundle" not in each["seen"]]
    assert gaps == ([[".bundle.N.old", ".bundle.N.partial"]] if no_exchange else [])


@BOTH
def test_a_power_cut_at_any_point_leaves_the_old_or_the_new_one(
    tracer: Path, folder: Path, tmp_path: Path, no_exchange: bool
) -> None:
    run(tracer, tmp_path / "log", "once", folder, no_exchange=no_exchange)
    names = []
    for cut in (Cut.LOST, Cut.HOLLOW):
        disk, began = Disk(str(folder)), False
        for number, step in enumerate(steps_in(tmp_path / "log")):
            disk.do(step)
            began = began or (step.kind == "s" and "bundle/manifest.json" in disk.after(Cut.LOST))
            if began:
                write_out(disk.after(cut), where := tmp_path / f"{cut.value}-{number}")
                names.append((cut, Bundle.open(where / "bundle").manifest.name))
    assert {*names} == {(cut, name) for cut in (Cut.LOST, Cut.HOLLOW) for name in ("old", "new")}


def test_what_was_set_aside_comes_back_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    bundle.path.rename(tmp_path / ".bundle.4711.old")
    assert Bundle.open(bundle.path).digest() == bundle.digest()
    assert "what was there before is back" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_somebody_is_replacing_is_left_to_them(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    aside = bundle.path.rename(tmp_path / ".bundle.4711.old")
    draft = tmp_path / ".bundle.4712.partial"
    draft.mkdir()
    handles = [os.open(folder, os.O_RDONLY) for folder in (aside, draft)]
    for handle in handles:
        fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(BadFormat, match="not a bundle"):
        Bundle.open(bundle.path)
    with draft_of(bundle.path):
        assert aside.is_dir()
        assert draft.is_dir()
    for handle in handles:
        os.close(handle)
    with draft_of(bundle.path):
        assert not draft.is_dir()
    assert Bundle.open(bundle.path).digest() == bundle.digest()


@pytest.mark.parametrize(
    "name", [".other.1.old", ".bundle.x.old", ".bundle.old", ".bundle.1.old.txt", "bundle.1.old"]
)
def test_another_name_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    tiny_bundle(tmp_path / "there").path.rename(tmp_path / name)
    with pytest.raises(BadFormat, match="not a bundle"):
        Bundle.open(tmp_path / "bundle")
    assert (tmp_path / name).is_dir()


def test_where_nothing_was_set_aside_nothing_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_back(tmp_path / "nowhere" / "bundle")
    put_back(Path("/"))
    assert caplog.text == ""


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    old = tiny_bundle(tmp_path / "v1", name="old")
    link = tmp_path / "current"
    link.symlink_to(old.path.name)
    manifest = msgspec.structs.replace(old.manifest, name="new")
    write_bundle(link, files_of(old), manifest, replace=True)
    assert Bundle.open(link).manifest.name == "new"
    assert Bundle.open(old.path).manifest.name == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"v1", "current"}
