"""The backbone that comes with Headway: whole, small, its papers true, and usable without a network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from sdk.bundle import Bundle
from sdk.errors import UnknownBackbone
from sdk.licences import allowed
from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES, draw_sheet
from tests.commands import headway
from tests.schemas import bom_problem
from tests.tiny import write_pictures

pytest.importorskip("torch")

from export.backbones import BUILTIN, BUILTIN_FOLDER, Backbone, load_backbone
from export.embed import features
from export.pretrain import recipe_of

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("graphs_once")]

MAX_BYTES = 4_000_000


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(BUILTIN)


def test_it_is_small_and_its_papers_are_those_of_its_files() -> None:
    record = json.loads((BUILTIN_FOLDER / "record.json").read_text())
    weights = (BUILTIN_FOLDER / "model.safetensors").read_bytes()
    assert sum(path.stat().st_size for path in BUILTIN_FOLDER.iterdir()) <= MAX_BYTES
    assert record["sha256"] == hashlib.sha256(weights).hexdigest()
    text = (BUILTIN_FOLDER / "mlbom.cdx.json").read_text()
    assert bom_problem(text) is None
    listed = {part["name"]: part["hashes"][0]["content"] for part in json.loads(text)["components"][1:]}
    for name in ("card.md", "config.json", "model.safetensors", "recipe.json", "record.json"):
        assert listed[name] == hashlib.sha256((BUILTIN_FOLDER / name).read_bytes()).hexdigest()
    assert record["sha256"] in (BUILTIN_FOLDER / "card.md").read_text()


def test_its_recipe_can_be_trained_again() -> None:
    record = json.loads((BUILTIN_FOLDER / "record.json").read_text())
    recipe = recipe_of((BUILTIN_FOLDER / "recipe.json").read_bytes(), "recipe.json")
    assert json.loads(json.dumps(asdict(recipe))) == record["recipe"]
    assert recipe.architecture in load_backbone(BUILTIN).name


def test_it_loads_without_being_told_anything(backbone: Backbone) -> None:
    record = json.loads((BUILTIN_FOLDER / "record.json").read_text())
    assert backbone.feature_size == record["feature_size"]
    assert backbone.parameters() == record["parameters"] <= 2_000_000
    assert backbone.origin.pretrained
    assert allowed(backbone.origin.licence)
    assert backbone.name.startswith("builtin (")


def test_it_tells_pictures_apart_that_random_weights_do_not(backbone: Backbone) -> None:
    """Six surfaces without their colours, of recipes it never saw: two pieces of each teach, four are told."""
    recipes = [KIND_NAMES.index(kind) for kind in ("cast", "felt", "stone", "leather", "rolled", "wood")]
    none = frozenset((kind, name) for kind in KIND_NAMES for name in DEFECT_NAMES if name != "bump")

    def right(of: Backbone) -> float:
        side = of.preprocess.height
        frames = [draw_sheet(r, p, seed=991, size_px=side, without=none).frame for r in recipes for p in range(6)]
        grey = np.stack([np.repeat(frame.mean(2, keepdims=True), 3, 2).astype(np.uint8) for frame in frames])
        found = features(of, grey).reshape(len(recipes), 6, -1)
        found = (found - found.mean((0, 1))) / (found.std((0, 1)) + 1e-6)
        means = found[:, :2].mean(1)
        far = np.linalg.norm(found[:, 2:, None] - means, axis=3)
        return float((far.argmin(2) == np.arange(len(recipes))[:, None]).mean())

    told = right(backbone)
    assert told >= 0.7
    assert told > right(load_backbone(BUILTIN, "none")) + 0.15


def test_its_architecture_can_be_had_with_random_weights(backbone: Backbone) -> None:
    random = load_backbone(BUILTIN, "none", seed=3)
    assert random.feature_size == backbone.feature_size
    assert not random.origin.pretrained


def test_other_weights_are_refused() -> None:
    with pytest.raises(UnknownBackbone, match="comes with its own") as refused:
        load_backbone(BUILTIN, "weights/other")
    assert "--weights" in refused.value.hint


def test_a_tag_is_refused() -> None:
    with pytest.raises(UnknownBackbone, match="no architecture"):
        load_backbone("builtin.imagenet")


def test_a_bundle_says_where_its_backbone_comes_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_pictures(tmp_path / "parts", ("good", "pit"), per_class=8)
    out = tmp_path / "bundle"
    ended = headway(
        capfd, "export", data, "--backbone", "builtin", "--input-size", "64", "--precision", "fp32", "--out", out
    )
    assert ended.code == 0, ended.err
    lineage = Bundle.open(out).manifest.lineage
    record = json.loads((BUILTIN_FOLDER / "record.json").read_text())
    assert (lineage.weights_source, lineage.weights_licence) == ("comes with Headway", "apache-2.0")
    assert lineage.weights_sha256 == record["sha256"]
    assert lineage.backbone.startswith("builtin (")


def test_its_papers_name_the_files_that_are_shipped() -> None:
    parts = json.loads((BUILTIN_FOLDER / "mlbom.cdx.json").read_text())["components"]
    named = {part["name"]: part["hashes"][0]["content"] for part in parts if part["bom-ref"].startswith("file/")}
    shipped = {file for file in BUILTIN_FOLDER.iterdir() if file.is_file() and file.name != "mlbom.cdx.json"}
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in shipped} == named
