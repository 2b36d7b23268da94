"""Which way the arrows point: export -> sdk <- device_agent, and no torch on the device."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for side in ("sdk", "device_agent", "export") for p in (ROOT / side).rglob("*.py"))
LEARNING = {"torch", "timm", "torchvision", "onnx", "onnxscript"}
"""What only the export side may import."""
LOCKING = "scipy"
"""Its wrappers of LAPACK hold the interpreter's lock, and it is a third of an installation: export and tests only
(docs/decisions/0035)."""


def imported(file: Path, root: Path = ROOT, *, late: bool = True) -> Iterator[str]:
    """Yield every module that a file imports, at its top or, with `late`, anywhere, `TYPE_CHECKING` included."""
    package = file.relative_to(root).with_suffix("").parts[:-1]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong(file: Path, root: Path = ROOT) -> set[str]:
    """Return the imports of a file that point the wrong way."""
    side = file.relative_to(root).parts[0]
    found = set(imported(file, root))
    top = {name: name.partition(".")[0] for name in found}
    forbidden = {
        "sdk": {"device_agent", "export", "tests", LOCKING, *LEARNING},
        "device_agent": {"export", "tests", LOCKING, *LEARNING},
        "export": {"device_agent", "tests"},
    }[side]
    return {name for name in found if top[name] in forbidden}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_no_arrow_points_the_wrong_way(file: Path) -> None:
    assert wrong(file) == set()


def test_only_sdk_mqtt_speaks_mqtt() -> None:
    assert [name_of(f) for f in MODULES if any(m.partition(".")[0] == "paho" for m in imported(f))] == [
        "sdk/mqtt.py"
    ]


def test_only_one_module_of_the_device_speaks_onnx_runtime() -> None:
    users = [name_of(f) for f in MODULES if any(m.partition(".")[0] == "onnxruntime" for m in imported(f))]
    assert [user for user in users if user.startswith("device_agent/")] == ["device_agent/runtime/onnx.py"]


ABOVE = {
    "sdk/errors.py": set[str](),
    "sdk/preprocess.py": {"errors"},
    "sdk/codes.py": {"errors", "preprocess"},
    "sdk/compact.py": set[str](),
    "sdk/shelf.py": {"codes"},
    "sdk/liveset.py": {"codes", "shelf"},
    "sdk/merges.py": set[str](),
    "sdk/sources.py": set[str](),
    "sdk/labels.py": {"errors", "class_ids", "codes", "compact", "liveset", "merges", "shelf", "sources"},
    "sdk/logrows.py": {"errors", "labels", "spreadsheet"},
    "sdk/structs.py": set[str](),
    "sdk/damaged.py": set[str](),
    "sdk/wire.py": {"damaged", "errors", "labels", "structs"},
    "sdk/triangular.py": set[str](),
    "sdk/quantile.py": set[str](),
    "sdk/moments.py": {"errors", "class_ids", "codes", "shelf", "triangular"},
    "sdk/head.py": {"errors", "class_ids", "codes", "moments", "triangular"},
    "sdk/score.py": {"codes", "errors", "head", "moments", "quantile", "shelf", "triangular"},
    "sdk/grouping.py": {"codes", "head", "moments", "shelf", "triangular"},
    "sdk/outlook.py": {"codes", "errors", "head", "moments", "shelf"},
    "sdk/adaptation.py": {"errors", "codes", "head", "labels", "moments", "score", "shelf"},
    "sdk/reason.py": set(),
    "sdk/verdict.py": {"head", "margins", "score", "moments", "reason"},
    "sdk/operating.py": {"errors", "head", "score", "moments"},
    "sdk/audit.py": {"head", "score", "moments"},
    "sdk/drift.py": {"score", "moments"},
    "sdk/durable.py": set[str](),
    "sdk/exchange.py": {"durable"},
    "sdk/bundle.py": {
        *("damaged", "durable", "errors", "exchange", "codes"),
        *("head", "preprocess", "splits", "structs", "moments"),
    },
    "sdk/cuda.py": {"errors", "extras"},
    "sdk/tensorrt_api.py": {"errors", "cuda"},
    "sdk/lineage.py": {"damaged", "errors", "bundle"},
    "sdk/licences.py": {"errors", "bundle"},
    "sdk/engine.py": {"durable", "errors", "bundle", "onnxfile", "tensorrt_api"},
    "sdk/splits.py": set[str](),
    "sdk/class_ids.py": set[str](),
    "sdk/class_names.py": set[str](),
    "sdk/images.py": {"errors", "class_names", "layouts", "preprocess"},
    "sdk/layouts.py": {"damaged", "errors", "shown", "class_names"},
    "sdk/onnxfile.py": {"errors"},
    "sdk/mqtt.py": {"broker_way", "errors", "session_ends", "wire"},
}
"""What each of these may import of sdk: fleet -> (bundle, head) -> moments -> (preprocess, codes, labels, wire) ->
errors."""


@pytest.mark.parametrize("file", sorted(ABOVE))
def test_sdk_modules_import_only_what_lies_below_them(file: str) -> None:
    below = {m.split(".")[1] for m in imported(ROOT / file) if m.startswith("sdk.")}
    assert below <= ABOVE[file]


def circle(files: Sequence[Path], root: Path = ROOT) -> list[str]:
    """Return modules of which each imports the next at its top, and the last the first; none without such."""
    modules = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }
    above = {
        name: set(imported(file, root, late=False)) & modules.keys() - {name} for name, file in modules.items()
    }
    try:
        TopologicalSorter(above).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_modules_import_each_other() -> None:
    assert circle(MODULES) == []


TURN = ("core", "arrivals", "admission", "saying", "notices", "sharing", "seeding", "waves", "registry", "rollout")
"""What a turn of the fleet service consists of."""


@pytest.mark.parametrize("part", TURN)
def test_the_fleet_services_turn_asks_no_clock_and_does_not_wait(part: str) -> None:
    waiting = {"time", "datetime", "queue", "threading", "asyncio", "socket", "sdk.fleet.service"}
    assert waiting & set(imported(ROOT / "sdk" / "fleet" / f"{part}.py")) == set()


def test_a_circle_would_be_found(tmp_path: Path) -> None:
    """The control: over a third module, and not where one of them is imported late."""
    sources = {"a": "import b", "b": "from c import x", "c": "import a"}
    files = [tmp_path / f"{name}.py" for name in sources]
    for file, source in zip(files, sources.values(), strict=True):
        file.write_text(source)
    assert set(circle(files, tmp_path)) == {"a", "b", "c"}
    files[2].write_text("def late():\n    import a\n")
    assert circle(files, tmp_path) == []


def test_a_wrong_arrow_would_be_found(tmp_path: Path) -> None:
    """The control: guarded, late and relative imports are all seen."""
    file = tmp_path / "sdk" / "fleet" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import export.cli\n"
        "def late():\n    from device_agent import store\n    import torch.nn as nn\n"
        "    from .. import mqtt\n    from . import broker\n"
    )
    seen = set(imported(file, tmp_path))
    assert {"export.cli", "device_agent.store", "torch.nn", "sdk.mqtt", "sdk.fleet.broker"} <= seen
    assert {name.partition(".")[0] for name in wrong(file, tmp_path)} == {"export", "device_agent", "torch"}


WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Without())
import {modules}
loaded = {blocked!r} & {{name.partition(".")[0] for name in sys.modules}}
assert not loaded, loaded
"""

DEVICE = "device_agent.agent, device_agent.cli, device_agent.page, device_agent.sync, device_agent.rehearse"


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (DEVICE, LEARNING | {LOCKING, "sklearn", "export"}),
        ("sdk.cli, sdk.cli_bundle", LEARNING | {"numpy", "device_agent", "export", "paho", "cv2"}),
        ("sdk.bundle, sdk.head, sdk.labels, sdk.wire", LEARNING | {"device_agent", "export", "paho"}),
        ("device_agent.cli", LEARNING | {"numpy", "cv2", "onnxruntime", "fastapi", "paho"}),
    ],
    ids=["device", "command", "sdk", "device-command"],
)
def test_it_imports_where_these_are_not_installed(modules: str, blocked: set[str]) -> None:
    code = WITHOUT.format(blocked=blocked, modules=modules)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
