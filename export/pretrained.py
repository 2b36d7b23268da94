"""The folder that pretraining leaves: a timm model folder with its papers, as `--weights` takes it.

config.json         timm's: architecture, model arguments, preprocessing, licence
model.safetensors   weights in fp16, without a classifier
recipe.json         for `headway export pretrain --recipe`
record.json         recipe, seed, steps, losses, figures on drawn tasks, versions: what training it again needs
card.md             for people
mlbom.cdx.json      for machines, CycloneDX 1.6
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec
import safetensors.torch
import torch
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from torch import nn

from export.backbones import CONFIG_NAME, WEIGHTS_NAME, Backbone, Origin, Tapped
from export.checkpoint import Checkpoint, write_whole
from export.drawn_tasks import DrawnScore, draw_tasks, drawn_scores
from export.finetune import OnScalars
from export.mlbom import CARD_NAME
from export.papers import NOT_FOR
from export.pretrain import HELD_OUT, INPUT_PX, MEAN, READ_LEVELS, STD, Outcome, Plan, Recipe, pretrain
from export.progress import Listener
from export.sheet_source import names_without
from sdk.errors import ExportError
from sdk.lineage import MLBOM_NAME, PREFIX
from sdk.preprocess import Preprocess
from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES

RECIPE_NAME: Final = "recipe.json"
RECORD_NAME: Final = "record.json"
CHECKPOINT_NAME: Final = "training.safetensors"
LICENCE: Final = "apache-2.0"
TOOLS: Final = ("headway-edge", "torch", "timm", "numpy", "opencv-python-headless")
DATA: Final = "drawn-surfaces"
MODEL: Final = "backbone"
USE: Final = (
    "Features of whole frames for a head that is taught on a line's own images. It was trained on drawn surfaces "
    "only: it is there so that everything works without a model hub, a licence question or anybody's images, and "
    "for lines whose images look like texture with something on it."
)
LIMITS: Final = (
    "It has never seen a real image. Where pretrained weights of real images may be used, measure both: they are "
    "usually better, most of all with one to five labels.",
    "It knows surfaces, not things: shapes of parts, assemblies, print and text were not in what it saw.",
    "Its figures on drawn tasks are of the same drawing program that trained it, and say little of any line.",
)


class Record(msgspec.Struct):
    """How a backbone was trained, and how good it is on drawn tasks.

    Attributes:
        recipe: As `export.pretrain.Recipe`.
        seed: Of everything.
        mixed: Trained in bfloat16 where that was offered.
        outcome: Steps, time, losses.
        drawn: Figures on drawn tasks.
        parameters, feature_size: Of the network, the latter with all levels that are read.
        made_utc: When.
        machine: What it was trained on, in words.
        tool_versions: Distribution to version.
        sha256: Of the weights file.
    """

    recipe: dict[str, Any]
    seed: int
    mixed: bool
    outcome: Outcome
    drawn: list[DrawnScore]
    parameters: int
    feature_size: int
    made_utc: str
    machine: str
    tool_versions: dict[str, str]
    sha256: str


def machine() -> str:
    """Return what computes here, without a name."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{kind}, {torch.get_num_threads()} threads"


def tool_versions() -> dict[str, str]:
    """Return the versions of what decides the result."""
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def half(network: nn.Module) -> bytes:
    """Return the weights as a safetensors file in fp16.

    Raises:
        ExportError: a weight does not fit into fp16.
    """
    state = {}
    for name, value in network.state_dict().items():
        small = value.half() if value.is_floating_point() else value
        if not bool(small.isfinite().all()):
            raise ExportError(f"{name} does not fit into fp16", hint="Train again with another --seed.")
        state[name] = small.contiguous()
    return safetensors.torch.save(state, {"format": "pt"})


def config(recipe: Recipe, feature_size: int) -> bytes:
    """Return timm's config.json."""
    found = {
        "architecture": recipe.architecture,
        "num_classes": 0,
        "num_features": feature_size,
        "model_args": recipe.model_args,
        "pretrained_cfg": {
            "input_size": [3, INPUT_PX, INPUT_PX],
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "num_classes": 0,
            "license": LICENCE,
        },
    }
    return json.dumps(found, indent=1).encode() + b"\n"


def write_folder(
    folder: Path, network: nn.Module, recipe: Recipe, record: Record, figures: Sequence[str] = ()
) -> Record:
    """Write the folder's files, each whole or not at all; return the record with the weights' digest.

    Args:
        folder: That exists.
        network: timm's, without a classifier.
        recipe: It was trained by.
        record: `sha256` is set here.
        figures: Lines of Markdown for the card: what was measured on real images.

    Raises:
        ExportError: the folder cannot be written, or a weight does not fit into fp16.
    """
    weights = half(network)
    record = msgspec.structs.replace(record, sha256=hashlib.sha256(weights).hexdigest())
    files = {WEIGHTS_NAME: weights, CONFIG_NAME: config(recipe, record.feature_size)}
    files[RECIPE_NAME] = json.dumps(record.recipe, indent=1).encode() + b"\n"
    files[RECORD_NAME] = msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
    files[CARD_NAME] = card(recipe, record, figures).encode()
    files[MLBOM_NAME] = bom(recipe, record, files)
    for name, content in files.items():
        write_whole(folder / name, content)
    return record


def train_folder(
    folder: Path, plan: Plan, recipe: Recipe, listener: Listener, on_scalars: OnScalars, *, measure: bool = True
) -> Record:
    """Train a backbone, measure it on drawn tasks, and write its folder; return its record.

    Where an earlier run of the same plan was killed, it goes on.

    Raises:
        ExportError: training diverged, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{folder}: {error.strerror}", hint="Choose another --out.") from error
    checkpoint = Checkpoint(folder / CHECKPOINT_NAME)
    listener.stage("Training on drawn surfaces")
    network, outcome = pretrain(plan, recipe, checkpoint=checkpoint, on_step=listener.step, on_scalars=on_scalars)
    backbone = as_backbone(network, recipe)
    drawn: list[DrawnScore] = []
    if measure:
        listener.stage("Measuring on drawn tasks")
        drawn = drawn_scores(backbone, draw_tasks())
    record = Record(
        recipe=asdict(recipe),
        seed=plan.seed,
        mixed=plan.mixed,
        outcome=outcome,
        drawn=drawn,
        parameters=sum(weight.numel() for weight in network.parameters()),
        feature_size=backbone.feature_size,
        made_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine(),
        tool_versions=tool_versions(),
        sha256="",
    )
    record = write_folder(folder, network, recipe, record)
    checkpoint.remove()
    return record


def as_backbone(network: nn.Module, recipe: Recipe) -> Backbone:
    """Return a network as a backbone."""
    module = Tapped(network, READ_LEVELS).eval()
    with torch.inference_mode():
        size = int(module(torch.zeros(1, 3, INPUT_PX, INPUT_PX)).shape[1])
    preprocess = Preprocess(height=INPUT_PX, width=INPUT_PX, mean=(MEAN,) * 3, std=(STD,) * 3)
    return Backbone(recipe.architecture, module, size, preprocess, Origin("just trained", None, LICENCE, True))


def card(recipe: Recipe, record: Record, figures: Sequence[str] = ()) -> str:
    """Return the card in Markdown."""
    outcome = record.outcome
    arguments = ", ".join(f"{name} {value}" for name, value in recipe.model_args.items())
    drawn = [f"| {s.task} | {s.labels} | {100 * s.accuracy:.1f} |" for s in record.drawn]
    again = (
        f"headway export pretrain --recipe recipe.json --seed {record.seed} --steps {outcome.steps} --out FOLDER"
    )
    lines = [
        "# A backbone that has seen drawn surfaces only",
        "",
        USE,
        "",
        *(f"- {words}" for words in NOT_FOR),
        "",
        "## Architecture",
        "",
        f"timm `{recipe.architecture}` ({arguments}), {record.parameters:,} weights, "
        f"{record.feature_size} features from the last {READ_LEVELS} levels, {INPUT_PX} x {INPUT_PX} px. "
        f"Licence: Apache-2.0. SHA-256 of the weights: `{record.sha256}`.",
        "",
        "## Data",
        "",
        f"None but drawn (`sdk.surfaces.sheets`, seed {record.seed}): {outcome.sheets:,} sheets of "
        f"{recipe.surfaces} surfaces of {len(KIND_NAMES)} kinds ({', '.join(KIND_NAMES)}) with "
        f"{len(DEFECT_NAMES)} kinds of defect ({', '.join(DEFECT_NAMES)}), "
        f"{f'{recipe.faint:.0%} of them faint, ' if recipe.faint else ''}{outcome.crops:,} crops of them. Never "
        f"drawn, to choose by: "
        f"{names_without(HELD_OUT)}.",
        "",
        "## Procedure",
        "",
        f"Which surface is it, of which kind, and which defects are there"
        f"{', in the crop and in each of its cells' if recipe.cells_weight else ''}? AdamW at {recipe.rate:g}, "
        f"{outcome.steps:,} steps of {recipe.batch} crops of {recipe.sides_px[0]} to {recipe.sides_px[1]} px; "
        f"batch norm's statistics at {INPUT_PX} px at the end. {outcome.seconds / 60:.0f} minutes of wall time on "
        f"{record.machine}; {_versions(record)}. Again:",
        "",
        f"    {again}",
        "",
        "## Measured on drawn tasks",
        "",
        "Balanced accuracy, %, of the head on frozen features; what was never drawn in training.",
        "",
        "| task | labels a class | |",
        "|---|---|---|",
        *drawn,
        "",
        *figures,
        *([""] if figures else []),
        "## Limits",
        "",
        *(f"- {words}" for words in LIMITS),
        "",
    ]
    return "\n".join(lines)


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(record.tool_versions.items()))


def bom(recipe: Recipe, record: Record, files: Mapping[str, bytes]) -> bytes:
    """Return the ML-BOM of the folder; the same record gives the same bytes."""
    outcome = record.outcome
    data = Component(
        name="drawn surfaces",
        type=ComponentType.DATA,
        bom_ref=DATA,
        description=f"{outcome.sheets} sheets of sdk.surfaces.sheets, seed {record.seed}; no photographs.",
        licenses=[LicenseExpression("Apache-2.0")],
    )
    parts = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"file/{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(content).hexdigest())],
        )
        for name, content in sorted(files.items())
    ]
    told = {
        "seed": str(record.seed),
        "steps": str(outcome.steps),
        "crops": str(outcome.crops),
        "seconds": f"{outcome.seconds:.0f}",
        "machine": record.machine,
        "mixed": str(record.mixed).lower(),
        "recipe": json.dumps(record.recipe, sort_keys=True),
    }
    model = Component(
        name="headway-drawn-surfaces",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL,
        version=record.made_utc,
        description=USE,
        licenses=[LicenseExpression("Apache-2.0")],
        properties=[Property(name=f"{PREFIX}{name}", value=value) for name, value in told.items()],
    )
    tools = [
        Component(
            name=name,
            version=number,
            type=ComponentType.LIBRARY,
            bom_ref=f"tool/{name}",
            purl=None if name == "python" else PackageURL("pypi", name=name, version=number),
        )
        for name, number in sorted(record.tool_versions.items())
    ]
    whole = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, record.sha256 + json.dumps(told)),
        metadata=BomMetaData(
            component=model,
            timestamp=datetime.fromisoformat(record.made_utc.replace("Z", "+00:00")),
            tools=ToolRepository(components=tools),
        ),
        components=[data, *parts],
    )
    whole.register_dependency(model, [data, *parts])
    document = json.loads(JsonV1Dot6(whole).output_as_string())
    document["metadata"]["component"]["modelCard"] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image features",
            "architectureFamily": recipe.architecture,
            "modelArchitecture": f"{recipe.architecture} {json.dumps(recipe.model_args)}",
            "datasets": [{"ref": DATA}],
            "inputs": [{"format": f"image, resized to {INPUT_PX} x {INPUT_PX} pixels"}],
            "outputs": [{"format": f"{record.feature_size} features"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": "balanced accuracy",
                    "value": f"{s.accuracy:.4f}",
                    "slice": f"{s.task} (drawn), {s.labels} labels a class",
                }
                for s in record.drawn
            ]
        },
        "considerations": {
            "useCases": [USE],
            "technicalLimitations": list(LIMITS),
            "ethicalConsiderations": [{"name": words} for words in NOT_FOR],
        },
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
