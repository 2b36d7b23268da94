"""Each build has a version of its own, whichever way the sources came."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sdk.version import headway_version

ROOT = Path(__file__).parents[1]
PLACE = "scripts/version.py"
WHO = ("-c", "user.name=a", "-c", "user.email=a@example.com")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *WHO, *words], cwd=folder, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def built(root: Path) -> str:
    """Return what hatchling takes for the version of these sources."""
    spec = importlib.util.spec_from_file_location("version", root / PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.__version__)


def add_commit(sources: Path, when: str) -> None:
    (sources / "what").write_text(when)
    git(sources, "add", ".")
    at = f"{when}T10:00:09+09:00"
    committed = ["git", *WHO, "commit", "-qm", when, "--date", at]
    env = {**os.environ, "GIT_COMMITTER_DATE": at}
    subprocess.run(committed, cwd=sources, check=True, capture_output=True, timeout=60, env=env)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A repository of one commit."""
    folder = tmp_path / "sources"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / PLACE, folder / "scripts")
    (folder / ".gitignore").write_text("__pycache__\n")
    git(folder, "init", "-q")
    add_commit(folder, "2026-11-27")
    return folder


def test_a_build_is_named_after_its_commit_and_a_later_one_is_newer(sources: Path) -> None:
    first = built(sources)
    assert first == f"0.1.0+20261127010009.g{git(sources, 'rev-parse', 'HEAD')[:9]}"
    add_commit(sources, "2026-11-28")
    assert re.fullmatch(r"0\.1\.0\+20261128010009\.g[0-9a-f]{9}", built(sources))
    (sources / "what").write_text("tried here")
    assert built(sources).endswith(".changed")


def shallow(sources: Path, to: Path) -> None:
    add_commit(sources, "2026-11-28")
    git(to.parent, "clone", "-q", "--depth", "1", "--no-tags", f"file://{sources}", str(to))


def worktree(sources: Path, to: Path) -> None:
    git(sources, "worktree", "add", "-q", str(to))


@pytest.mark.parametrize("way", [shallow, worktree])
def test_a_shallow_clone_and_a_worktree_have_the_same_name(
    sources: Path, tmp_path: Path, way: Callable[[Path, Path], None]
) -> None:
    way(sources, tmp_path / "other")
    assert built(tmp_path / "other") == built(sources) != "0.1.0"


def test_sources_without_git_are_the_release_also_inside_somebodys_repository(sources: Path) -> None:
    inside = sources / "vendor"
    (inside / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / PLACE, inside / "scripts")
    assert built(inside) == "0.1.0"


def test_a_repository_that_git_cannot_read_is_built_as_the_release(sources: Path) -> None:
    (sources / ".git" / "HEAD").unlink()
    assert built(sources) == "0.1.0"


def test_the_installed_one_is_a_version_of_these_sources() -> None:
    assert headway_version().partition("+")[0] == built(ROOT).partition("+")[0]
