"""`mlbom.cdx.json`: the bundle's papers for machines, as a CycloneDX 1.6 ML-BOM.

What it was made from (base weights, image set, earlier bundles), by what (procedure, tools with versions), how
good it is and what it cannot do, with a digest for every file. `cyclonedx-python-lib` writes it, but for the
model card, which the library does not know yet: that is added to its JSON, and a test holds the whole against
the standard's schema. The same export gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from export.papers import LIMITS, NOT_FOR, USERS, Papers, use_of
from export.report import Report
from sdk.bundle import Manifest
from sdk.licences import NO_WEIGHTS, normalise
from sdk.lineage import FINETUNED, PREFIX, Link, own_link, properties_of

BUNDLE: Final = "bundle"
WEIGHTS: Final = "base-weights"
DATA: Final = "image-set"
CARD_NAME: Final = "card.md"
_HUB: Final = "hf-hub:"


def mlbom(report: Report, papers: Papers, manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Return the ML-BOM of a bundle.

    Args:
        report: What the export came to.
        papers: What is known beside it.
        manifest: As far as it is known: `files` are not yet in it.
        files: All other files of the bundle, by name.
    """
    own = own_link(manifest, "")
    weights, data = _weights(WEIGHTS, own), _data(report, papers)
    parts = [_file(name, content) for name, content in sorted(files.items())]
    made = properties_of(own)
    del made["bundle_sha256"], made["missing_parents"]  # neither can be known in here
    bundle = Component(
        name=manifest.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=BUNDLE,
        version=manifest.lineage.created_utc,
        description=use_of(report),
        properties=_properties({**made, **_procedure(report, manifest)}),
        pedigree=Pedigree(
            ancestors=[_weights("ancestor/weights", own), *_bundles(papers.parents, "ancestor")],
            notes="Trained on from the base weights. Of earlier bundles the class ids are kept, not the weights.",
        ),
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.MODEL_CARD,
                url=XsUri(CARD_NAME),
                hashes=[_sha256(hashlib.sha256(files[CARD_NAME]).hexdigest())],
            )
        ],
    )
    tools = [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"tool/{name}",
            purl=None if name == "python" else PackageURL("pypi", name=name, version=version),
        )
        for name, version in sorted(report.tool_versions.items())
    ]
    content = json.dumps([made, sorted((f.name, str(f.hashes)) for f in parts)]).encode()
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(content).hexdigest()),
        metadata=BomMetaData(
            component=bundle,
            timestamp=datetime.fromisoformat(manifest.lineage.created_utc.replace("Z", "+00:00")),
            tools=ToolRepository(components=tools),
        ),
        components=[weights, data, *parts],
    )
    bom.register_dependency(bundle, [weights, data, *parts])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(report, papers)
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode(errors="replace") + b"\n"


def _weights(ref: str, link: Link) -> Component:
    """Return the base weights as a component: name, licence, digest, and where they are to be had."""
    weights = link.weights
    hub = weights.source.removeprefix(_HUB) if weights.source.startswith(_HUB) else ""
    owner, _, rest = hub.partition("/")
    repository, _, revision = rest.partition("@")
    return Component(
        name=link.backbone,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=ref,
        version=revision or None,
        description=weights.source,
        hashes=[] if weights.sha256 is None else [_sha256(weights.sha256)],
        licenses=_licences(weights.licence),
        purl=PackageURL("huggingface", namespace=owner, name=repository, version=revision) if repository else None,
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION, url=XsUri(f"https://huggingface.co/{owner}/{repository}")
            )
        ]
        if repository
        else [],
    )


def _licences(stated: str) -> list[LicenseExpression | DisjunctiveLicense]:
    if stated in ("", NO_WEIGHTS):
        return []
    spdx = normalise(stated)
    return [DisjunctiveLicense(name=stated) if spdx is None else LicenseExpression(spdx)]


def _data(report: Report, papers: Papers) -> Component:
    images = report.images
    return Component(
        name="labelled images",
        type=ComponentType.DATA,
        bom_ref=DATA,
        description=f"{images.usable} images of {len(images.classes)} classes. They stay with the plant.",
        licenses=_licences(papers.data_licence),
        properties=_properties(
            {
                "data_sha256": images.sha256,
                "images": str(images.usable),
                "groups": str(images.groups) if images.grouped else "none named",
                "refused": str(len(images.refused)),
                "licence": papers.data_licence or "not stated",
            }
        ),
    )


def _bundles(links: Iterable[Link], ref: str) -> Iterator[Component]:
    """Yield earlier bundles, each with its own ancestors inside. `sdk.lineage` reads them back."""
    for number, link in enumerate(links):
        here = f"{ref}/{number}"
        yield Component(
            name=link.name,
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=here,
            version=link.created_utc,
            properties=_properties(properties_of(link)),
            pedigree=Pedigree(ancestors=[_weights(f"{here}/weights", link), *_bundles(link.parents, here)]),
        )


def _file(name: str, content: bytes) -> Component:
    return Component(
        name=name,
        type=ComponentType.FILE,
        bom_ref=f"file/{name}",
        hashes=[_sha256(hashlib.sha256(content).hexdigest())],
        properties=_properties({"size_bytes": str(len(content))}),
    )


def _procedure(report: Report, manifest: Manifest) -> dict[str, str]:
    strategy = report.strategy
    return {
        "split_seed": str(report.seed),
        "held_back": ", ".join(report.held_back),
        "base_samples": str(report.base_samples),
        "base_codes": str(report.base_codes),
        "strategy_reason": strategy.reason,
        "epochs": f"{strategy.best_epoch} of {strategy.epochs}",
        "trained_weights": str(strategy.trained_weights),
        "precisions": ", ".join(entry.precision for entry in manifest.precisions),
        "precision_reason": report.precision_reason,
        **{
            FINETUNED + how.profile: how.finetuned.words()
            for how in report.quantization
            if how.finetuned is not None
        },
        **{f"space.{entry.precision}": entry.space for entry in manifest.precisions},
        **{f"live_set.{entry.precision}": entry.head.live_set_digest for entry in manifest.precisions},
    }


def _model_card(report: Report, papers: Papers) -> dict[str, Any]:
    width, height = report.backbone.input_px
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image classification with an unknown class",
            "architectureFamily": report.backbone.name.partition(",")[0],
            "modelArchitecture": f"{report.backbone.name}; {report.backbone.feature_size} features; "
            "shrunken, whitened nearest-direction head",
            "datasets": [{"ref": DATA}],
            "inputs": [{"format": f"image, resized to {width} x {height} pixels"}],
            "outputs": [{"format": "a class with its probability, or unknown"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(report))},
        "considerations": {
            "users": list(USERS),
            "useCases": [use_of(report)],
            "technicalLimitations": [*LIMITS, *report.warnings],
            "ethicalConsiderations": [{"name": words} for words in NOT_FOR],
        },
        "properties": [{"name": f"{PREFIX}data_licence", "value": papers.data_licence or "not stated"}],
    }


def _metrics(report: Report) -> Iterator[dict[str, Any]]:
    score = report.score

    def metric(kind: str, value: float, low: float, high: float, slice_: str) -> dict[str, Any]:
        interval = {"lowerBound": f"{low:.4f}", "upperBound": f"{high:.4f}"}
        return {"type": kind, "value": f"{value:.4f}", "slice": slice_, "confidenceInterval": interval}

    whole = f"{score.samples} images of {score.groups} groups, each left out; {report.precision}"
    what = "balanced accuracy, unknown is a miss" if report.only_class is None else report.measure
    if score.balanced_accuracy is not None:
        yield metric(what, score.balanced_accuracy, score.low, score.high, whole)
    if report.only_class is None and score.forced_choice is not None:
        yield {"type": "balanced accuracy, best class", "value": f"{score.forced_choice:.4f}", "slice": whole}
    for c in score.classes:
        if c.scored:
            yield metric(
                "recall", c.recall, c.low, c.high, f"class {c.name}: {c.samples} images, {c.groups} groups"
            )
    for column in report.image_set.columns:
        for one in column.slices:
            if one.score is not None and one.low is not None and one.high is not None:
                of = f"{column.column} {one.value or '(empty)'}: {one.scored} images"
                yield metric(what, one.score, one.low, one.high, of)


def _properties(values: Mapping[str, str]) -> list[Property]:
    return [Property(name=f"{PREFIX}{name}", value=value) for name, value in values.items()]


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
