"""`headway`: fast help, two-line errors with exit code 2, interruption in a line, missing extras named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from sdk.cli import headway, missing_extra
from sdk.version import headway_version
from tests.tiny import tiny_bundle, write_pictures


def run(
    *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdk.cli", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )


def with_commands(folder: Path, **commands: str) -> dict[str, str]:
    """Return an environment in which a distribution with these commands is installed: name to module source."""
    info = folder / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    lines = ["[headway.commands]"]
    for name, source in commands.items():
        (folder / f"plug_{name}.py").write_text(f"import click\n{source}")
        lines.append(f"{name} = plug_{name}:command")
    (info / "entry_points.txt").write_text("\n".join(lines))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[1]}"}


REPOSITORY = Path(__file__).parents[1]
COMMAND = "@click.command()\ndef command():\n    {}\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("cli") / "bundle").path


def command_lines(command: click.Command, path: tuple[str, ...] = ("headway",)) -> Iterator[tuple[str, str]]:
    """Yield every command below one, with the line that its group's help has for it at 80 columns."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            width = 80 - 6 - max(map(len, command.list_commands(context)))
            if command is not headway:  # its own help has lines of its own, and imports no command
                yield " ".join((*path, name)), found.get_short_help_str(width)
            yield from command_lines(found, (*path, name))


def test_no_commands_summary_is_cut_short() -> None:
    lines = dict(command_lines(headway))
    assert {"headway agent backup", "headway fleet rollout halt"} <= set(lines)
    assert {path: line for path, line in lines.items() if line.endswith("...") or not line} == {}


def test_help_imports_no_command(tmp_path: Path) -> None:
    env = with_commands(tmp_path, loud="raise SystemExit('imported')")
    result = run("--help", env=env)
    assert result.returncode == 0
    assert "loud" in result.stdout
    loaded = "import sys, sdk.cli\ntry:\n    sdk.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
    loaded += "bad = {'device_agent', 'export', 'torch', 'numpy', 'cv2', 'rich'} & set(sys.modules)\n"
    loaded += "sys.exit(str(bad) if bad else 0)"
    lazy = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=60, check=False)
    assert lazy.returncode == 0, lazy.stderr


def test_the_version_is_told() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert headway_version() in result.stdout


def complete(line: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    asked = {"_HEADWAY_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    return run(env={**(env or {}), **asked})


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    script = run(env={"_HEADWAY_COMPLETE": "bash_source"})
    assert script.returncode == 0
    assert "complete -o nosort -F _headway_completion headway" in script.stdout
    assert complete("headway fl").stdout == "plain,fleet\n"
    assert complete("headway fleet rollout ha").stdout == "plain,halt\n"
    assert complete("headway bundle show --js").stdout == "plain,--json\n"
    assert (
        "plain,loud\n" in complete("headway ", with_commands(tmp_path, loud="raise SystemExit('imported')")).stdout
    )


def test_completion_is_silent_where_an_extra_is_missing() -> None:
    asked = {"_HEADWAY_COMPLETE": "bash_complete", "COMP_WORDS": "headway fleet r", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", WITHOUT.format("msgspec", None)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **asked}
    )
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")


@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_python_that_is_not_there_is_named(tmp_path: Path, target: str) -> None:
    """The environment is made first, so that nothing else of the target is reached."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "scripts").mkdir()
    for name in ("system-packages", "version.py"):
        shutil.copy(REPOSITORY / "scripts" / name, tmp_path / "scripts")
    made = subprocess.run(
        ["make", target, "PYTHON=python9.9"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 2
    assert "There is no python9.9 here" in made.stderr
    assert "not found" not in made.stderr


def test_a_headway_error_is_two_lines_and_exit_2(tmp_path: Path) -> None:
    result = run("bundle", "verify", str(tmp_path))
    assert result.returncode == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert "is not a bundle" in error
    assert hint.startswith("hint: ")
    assert result.stdout == ""


@pytest.mark.parametrize(
    "args", [["nope"], ["bundle"], ["bundle", "verify"], ["--nope"], ["bundle", "show", "a", "b"]]
)
def test_wrong_usage_is_exit_2_without_a_traceback(args: list[str]) -> None:
    result = run(*args)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_missing_third_party_module_names_the_extra() -> None:
    told = missing_extra("export", ModuleNotFoundError("No module named 'timm'", name="timm.layers"))
    assert told is not None
    assert str(told) == "headway export needs the export extra: module timm is not installed"
    assert told.hint.startswith(
        "pip install 'headway-edge[export]' (without the internet: --no-index --find-links"
    )
    demo = missing_extra("demo", ModuleNotFoundError(name="torch"))
    assert demo is not None
    assert demo.hint.startswith("pip install 'headway-edge[demo]' ")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("export", ModuleNotFoundError(name="export.nothing")),
        ("export", ImportError("cannot import name", name="timm")),
        ("export", ModuleNotFoundError()),
        ("bundle", ModuleNotFoundError(name="numpy")),
        ("somebody-elses", ModuleNotFoundError(name="theirs")),
    ],
)
def test_our_own_bugs_are_not_called_missing_extras(command: str, error: ImportError) -> None:
    assert missing_extra(command, error) is None


WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {0!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Without())
import sdk.cli
sdk.cli.main({1!r})
"""


@pytest.mark.parametrize(
    ("module", "args", "extra"),
    [
        ("onnxruntime", ["evaluate", "{bundle}", "--data", "{data}"], "agent"),
        ("fastapi", ["agent", "run", "{site}"], "agent"),
        ("cv2", ["rehearse", "{bundle}", "--data", "{data}", "--labels", "1"], "agent"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    bundle: Path, tmp_path: Path, module: str, args: list[str], extra: str
) -> None:
    """The module is blocked as if it were not installed."""
    data, site = write_pictures(tmp_path / "data", per_class=1), tmp_path / "site.toml"
    site.write_text(
        f'device = "a"\nbundle = "{bundle}"\n[page]\nport = 0\n[camera]\nkind = "folder"\npath = "data"\n'
    )
    filled = [arg.format(bundle=bundle, data=data, site=site) for arg in args]
    command = [sys.executable, "-c", WITHOUT.format(module, filled)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert f"module {module} is not installed" in result.stderr
    assert f"hint: pip install 'headway-edge[{extra}]'" in result.stderr


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    result = run("bug", env=with_commands(tmp_path, bug=COMMAND.format("raise KeyError('x')")))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_so_in_a_line_and_removes_its_temporary_files(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "temporary").mkdir()
    wait = (
        "import tempfile, signal\n"
        "    with tempfile.TemporaryDirectory(): print('ready', flush=True); signal.pause()"
    )
    env = with_commands(tmp_path, wait=COMMAND.format(wait)) | {"TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr == "stopped\n"
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("much", [1, 100_000])
def test_a_full_disk_behind_standard_output_is_two_lines(tmp_path: Path, much: int) -> None:
    env = with_commands(tmp_path, much=COMMAND.format(f"click.echo('x' * {much})"))
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "sdk.cli", "much"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            timeout=60,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: standard output: No space left on device",
        "hint: Free some space, and repeat it.",
    ]


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    env = with_commands(tmp_path, much=COMMAND.format("[click.echo('x' * 100) for _ in range(100_000)]"))
    with subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", "much"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_bundle_show_and_verify_say_what_it_is(bundle: Path) -> None:
    shown = json.loads(run("bundle", "show", str(bundle), "--json").stdout)
    assert [c["name"] for c in shown["classes"]] == ["good", "pit", "scratch"]
    assert shown["split"]["parts"] == {"stream": 18, "test": 18, "train": 30, "validation": 6}
    verified = json.loads(run("bundle", "verify", str(bundle), "--json").stdout)
    assert verified["ok"] is True
    assert verified["digest"] == shown["digest"]
    plain = run("bundle", "show", str(bundle))
    assert plain.returncode == 0
    assert "scratch" in plain.stdout
    assert run("bundle", "verify", str(bundle)).stdout.startswith("whole: ")


@pytest.mark.parametrize("name", ["backbone.fp32.onnx", "samples.fp32.safetensors", "splits.safetensors"])
def test_one_flipped_byte_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    file = copy / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    result = run("bundle", "verify", str(copy))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 2
