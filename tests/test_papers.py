"""Papers: an ML-BOM that keeps to the standard, says what the manifest says, and leads back to the weights."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from export.card import card
from export.mlbom import CARD_NAME, mlbom
from export.papers import Papers
from export.report import (
    BackboneReport,
    ClassCounts,
    ClassScoreReport,
    Images,
    PrecisionReport,
    QatReport,
    QuantizationReport,
    Report,
    ScoreReport,
    StrategyReport,
    encode_report,
)
from export.terminal import show
from sdk.bundle import Bundle, write_bundle
from sdk.console import Console
from sdk.errors import BadFormat
from sdk.lineage import FINETUNED, MAX_MLBOM_BYTES, MLBOM_NAME, Link, Weights, lineage, properties_of
from tests.builders import set_report_on
from tests.commands import headway
from tests.schemas import bom_problem
from tests.tiny import tiny_bundle

pytestmark = pytest.mark.torch  # needs the export extra, though not torch itself

HUB = "hf-hub:timm/test_resnet.r160_in1k@" + "c0" * 20


def report_on(bundle: Bundle, licence: str = "apache-2.0") -> Report:
    """Return a report that goes with a tiny bundle."""
    made = bundle.manifest.lineage
    classes = [(entry.name, 24) for entry in bundle.manifest.classes]
    return Report(
        bundle="somewhere/bundle",
        bundle_sha256="",
        size_bytes=0,
        name=bundle.manifest.name,
        created_utc=made.created_utc,
        images=Images(
            folder="/home/somebody/parts",
            usable=made.images,
            groups=12,
            grouped=True,
            sha256=made.data_sha256,
            refused=[],
            classes=[
                ClassCounts(name=name, images=n, groups=4, train=8, validation=4, stream=6, test=6, learned=True)
                for name, n in classes
            ],
        ),
        image_set=set_report_on("/home/somebody/parts", made.images),
        seed=3,
        held_back=["stain"],
        base_samples=36,
        base_codes=36,
        backbone=BackboneReport(
            name=made.backbone,
            weights=made.weights_source,
            weights_sha256=made.weights_sha256,
            licence=licence,
            parameters=1000,
            feature_size=48,
            input_px=(32, 32),
        ),
        strategy=StrategyReport(
            strategy=made.strategy, reason="Asked for.", epochs=0, best_epoch=0, trained_weights=0, history=[]
        ),
        torch_onnx_difference=0.0,
        score=ScoreReport(
            balanced_accuracy=0.9,
            low=0.8,
            high=0.95,
            forced_choice=0.92,
            samples=36,
            groups=12,
            classes=[
                ClassScoreReport(
                    name=name, recall=0.9, low=0.7, high=0.97, samples=12, groups=4, scored=name != "pit"
                )
                for name, _ in classes
            ],
        ),
        false_alarm_rate=0.02,
        precision="fp32",
        precision_reason="No other was asked for.",
        precisions=[
            PrecisionReport(
                precision="fp32",
                profile="any",
                name="fp32",
                weights="32-bit float",
                kept=True,
                size_bytes=1000,
                latency_ms=1.0,
                feature_cosine=1.0,
                kernel_difference=0.0,
                balanced_accuracy=0.9,
                images=36,
                forced_choice=0.92,
                difference=0.0,
                difference_error=0.0,
                verdict="first",
            )
        ],
        warnings=["Only a few groups | are here."],
        seconds={},
        tool_versions={"headway-edge": "0.1.0", "python": "3.11.7", "torch": "2.14.1"},
    )


def documented(
    plain: Bundle,
    out: Path,
    *,
    parents: Sequence[Bundle] = (),
    licence: str = "apache-2.0",
    papers: Callable[[bytes], bytes] = lambda data: data,
) -> Bundle:
    """Write a bundle like `plain` with papers, which continues others. `papers` may change the ML-BOM."""
    made = msgspec.structs.replace(
        plain.manifest.lineage, weights_source=HUB, weights_sha256="ab" * 32, weights_licence=licence
    )
    manifest = msgspec.structs.replace(
        plain.manifest, name=out.name, lineage=made, parents=[parent.digest() for parent in parents]
    )
    changed = Bundle(plain.path, manifest)
    told = Papers("Example plant", tuple(lineage(parent) for parent in parents))
    files = {n: (plain.path / n).read_bytes() for n in plain.file_names() if n not in ("manifest.json", CARD_NAME)}
    report = report_on(changed, licence)
    files[CARD_NAME] = card(report, told).encode()
    files[MLBOM_NAME] = papers(mlbom(report, told, manifest, files))
    return write_bundle(out, files, manifest)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("papers") / "plain", per_class=8)


@pytest.fixture(scope="module")
def family(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three bundles, each continuing the one before; only the last is still there."""
    folder = tmp_path_factory.mktemp("family")
    first = documented(plain, folder / "first", licence="mit")
    second = documented(plain, folder / "second", parents=[first])
    third = documented(plain, folder / "third", parents=[second])
    shutil.rmtree(first.path)
    shutil.rmtree(second.path)
    return [first, second, third]


def document(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bundle.read(MLBOM_NAME))
    return found


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {p["name"].removeprefix("headway:"): p.get("value", "") for p in component.get("properties", [])}


# The ML-BOM


def test_it_keeps_to_the_standard(family: list[Bundle]) -> None:
    text = family[-1].read(MLBOM_NAME).decode()
    assert bom_problem(text) is None
    assert json.loads(text)["specVersion"] == "1.6"


def test_the_standard_would_refuse_what_it_does_not_know(family: list[Bundle]) -> None:
    """The control: the model card, which we add ourselves, is really looked at."""
    changed = document(family[-1])
    changed["metadata"]["component"]["modelCard"]["praise"] = "excellent"
    assert bom_problem(json.dumps(changed)) is not None


def test_it_names_weights_data_files_tools_and_procedure(family: list[Bundle]) -> None:
    bundle = family[-1]
    found = document(bundle)
    parts = {c["bom-ref"]: c for c in found["components"]}
    weights = parts["base-weights"]
    assert weights["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert weights["licenses"] == [{"expression": "Apache-2.0"}]
    assert weights["purl"] == f"pkg:huggingface/timm/test_resnet.r160_in1k@{'c0' * 20}"
    assert properties(parts["image-set"])["data_sha256"] == bundle.manifest.lineage.data_sha256
    assert properties(parts["image-set"])["licence"] == "Example plant"
    listed = {f"file/{e.name}": e.sha256 for e in bundle.manifest.files if e.name != MLBOM_NAME}
    assert {ref: parts[ref]["hashes"][0]["content"] for ref in parts if ref.startswith("file/")} == listed
    tools = {t["name"]: t["version"] for t in found["metadata"]["tools"]["components"]}
    assert tools["torch"] == "2.14.1"
    told = properties(found["metadata"]["component"])
    assert (told["split_seed"], told["held_back"]) == ("3", "stain")
    assert told["live_set.fp32"] == bundle.precision().head.live_set_digest


def test_its_model_card_has_metrics_with_intervals_and_limits(family: list[Bundle]) -> None:
    model_card = document(family[-1])["metadata"]["component"]["modelCard"]
    metrics = {
        m["slice"]: m for m in model_card["quantitativeAnalysis"]["performanceMetrics"] if m["type"] == "recall"
    }
    assert set(metrics) == {"class good: 12 images, 4 groups", "class scratch: 12 images, 4 groups"}
    for metric in metrics.values():
        assert metric["confidenceInterval"] == {"lowerBound": "0.7000", "upperBound": "0.9700"}
    of_slices = [
        (m["slice"], m["value"], m["confidenceInterval"])
        for m in model_card["quantitativeAnalysis"]["performanceMetrics"]
        if m["slice"].startswith("camera")
    ]
    assert of_slices == [("camera left: 18 images", "0.9000", {"lowerBound": "0.8000", "upperBound": "0.9500"})]
    assert "Only a few groups | are here." in model_card["considerations"]["technicalLimitations"]


@pytest.mark.parametrize("licence", ["unknown", "dinov3-license"])
def test_a_licence_that_spdx_does_not_name_is_told_as_it_is(licence: str, plain: Bundle, tmp_path: Path) -> None:
    bundle = documented(plain, tmp_path / "b", licence=licence)
    text = bundle.read(MLBOM_NAME).decode()
    assert bom_problem(text) is None
    weights = next(c for c in json.loads(text)["components"] if c["bom-ref"] == "base-weights")
    assert weights["licenses"] == [{"license": {"name": licence}}]
    assert (
        f"licence: {licence} (no licence that SPDX names: read it before use)" in bundle.read(CARD_NAME).decode()
    )


def test_the_same_export_gives_the_same_bytes_and_says_nothing_of_the_machine(
    plain: Bundle, tmp_path: Path
) -> None:
    one, two = documented(plain, tmp_path / "1" / "b"), documented(plain, tmp_path / "2" / "b")
    assert one.digest() == two.digest()
    for name in (MLBOM_NAME, CARD_NAME):
        assert b"/home/" not in one.read(name)
        assert str(tmp_path).encode() not in one.read(name)


def test_card_and_mlbom_say_which_form_was_fine_tuned_for_int8(plain: Bundle) -> None:
    report = report_on(plain, "apache-2.0")
    for used, said in ((True, True), (False, False)):
        how = QuantizationReport(
            profile="cpu", methods=[], sensitivity=None, excluded=[], excluded_share_of_weights=0.0,
            qat=QatReport(steps=60, images=64, first_loss=0.1, last_loss=0.01, seconds=9.0, used=used),
        )  # fmt: skip
        told = msgspec.structs.replace(report, quantization=[how])
        text = card(told, Papers())
        paper = json.loads(mlbom(told, Papers(), plain.manifest, {CARD_NAME: b""}))
        properties = {p["name"]: p["value"] for p in paper["metadata"]["component"]["properties"]}
        assert ("made for cpu was fine-tuned for int8 on 64 images (60 steps)" in text) is said
        words = "fine-tuned for int8 on 64 images (60 steps)" if said else None
        assert properties.get("headway:finetuned_for_int8.cpu") == words


def test_of_one_class_the_share_that_passes_is_told_and_what_that_does_not_say(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "first-day", classes=["good"])
    for report, several in ((report_on(bundle), False), (report_on(tiny_bundle(tmp_path / "b")), True)):
        text = card(report, Papers())
        paper = json.loads(mlbom(report, Papers(), bundle.manifest, {CARD_NAME: b""}))
        component = paper["metadata"]["component"]
        metrics = {m["type"] for m in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
        out = io.StringIO()
        show(report, Console(file=out, width=200))
        for words in ("alanced accuracy", "classes it was taught apart", "Best class whatever"):
            assert (words in text) is several
        assert (f"good passed {report.score.balanced_accuracy:.1%}" in text) is not several
        assert ("classes it was taught apart" in component["description"]) is several
        assert ("balanced accuracy, unknown is a miss" in metrics) is several
        assert ("balanced accuracy" in out.getvalue()) is several
        for told in (text, out.getvalue()):
            assert ("How many defects are noticed it cannot say" in told) is not several


def test_what_no_class_has_two_groups_for_is_not_called_nothing(tmp_path: Path) -> None:
    """Not 0.0 % of all: none was judged."""
    bundle = tiny_bundle(tmp_path / "bundle")
    report = report_on(bundle)
    unjudged = [msgspec.structs.replace(c, scored=False) for c in report.score.classes]
    score = msgspec.structs.replace(
        report.score, balanced_accuracy=None, forced_choice=None, low=0, high=1, samples=0, groups=0, unjudged=36,
        classes=unjudged,
    )  # fmt: skip
    forms = [msgspec.structs.replace(p, balanced_accuracy=None, forced_choice=None) for p in report.precisions]
    report = msgspec.structs.replace(report, score=score, precisions=forms)
    out = io.StringIO()
    show(report, Console(file=out, width=200))
    paper = mlbom(report, Papers(), bundle.manifest, {CARD_NAME: b""})
    metrics = json.loads(paper)["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    for told in (out.getvalue(), card(report, Papers())):
        assert "not known: no class has two groups" in told
        assert " 0.0%" not in told
    assert not [m for m in metrics if not m["slice"].startswith("camera ")]
    assert json.loads(encode_report(report))["score"]["balanced_accuracy"] is None


def test_images_that_are_not_judged_are_no_basis_of_the_score(tmp_path: Path) -> None:
    report = report_on(tiny_bundle(tmp_path / "bundle"))
    report = msgspec.structs.replace(report, score=msgspec.structs.replace(report.score, samples=24, unjudged=12))
    out = io.StringIO()
    show(report, Console(file=out, width=200))
    assert "on 24 images of 12 groups. 12 more are of classes that one group has" in card(report, Papers())
    assert "12 more images are of a class that one group has" in out.getvalue()


def test_the_card_says_what_it_is_for_what_it_is_not_and_what_it_continues(family: list[Bundle]) -> None:
    text = family[-1].read(CARD_NAME).decode()
    for words in ("## Intended use", "Not for the safety of persons", "licence: Apache-2.0", "Example plant"):
        assert words in text
    assert "- Continues the class ids of second" in text
    assert "  - Continues the class ids of first" in text
    assert "licence MIT" in text


# Lineage


def test_it_leads_back_to_the_first_weights_when_all_parents_are_gone(family: list[Bundle]) -> None:
    link = lineage(family[-1])
    names, licences = [], []
    while True:
        names.append(link.name)
        licences.append(link.weights.licence)
        if not link.parents:
            break
        (link,) = link.parents
    assert (names, licences) == (["third", "second", "first"], ["apache-2.0", "apache-2.0", "mit"])
    assert link.bundle_sha256 == family[0].digest()
    assert link.missing == []


def test_a_parent_without_papers_is_found_beside_or_named_as_missing(plain: Bundle, tmp_path: Path) -> None:
    parent = write_bundle(
        tmp_path / "old",
        {n: (plain.path / n).read_bytes() for n in plain.file_names() if n != "manifest.json"},
        plain.manifest,
    )
    (tmp_path / "not-a-bundle").mkdir()
    (tmp_path / "not-a-bundle" / "manifest.json").write_text("{}")
    manifest = msgspec.structs.replace(plain.manifest, name="new", parents=[parent.digest(), "cd" * 32])
    files = {n: (plain.path / n).read_bytes() for n in plain.file_names() if n != "manifest.json"}
    new = write_bundle(tmp_path / "new", files, manifest)
    assert lineage(new).missing == [parent.digest(), "cd" * 32]
    link = lineage(new, [tmp_path])
    assert ([parent.name for parent in link.parents], link.missing) == (["tiny"], ["cd" * 32])


def other_licence(data: bytes) -> bytes:
    return data.replace(b'"value": "apache-2.0"', b'"value": "mit"', 1)


def other_weights(data: bytes) -> bytes:
    return data.replace(b'"value": "' + b"ab" * 32, b'"value": "' + b"ac" * 32, 1)


def no_properties(data: bytes) -> bytes:
    found = json.loads(data)
    del found["metadata"]["component"]["properties"]
    return json.dumps(found).encode()


def not_json(_: bytes) -> bytes:
    return b"{"


def other_standard(data: bytes) -> bytes:
    return data.replace(b'"CycloneDX"', b'"SPDX"', 1)


def no_component(data: bytes) -> bytes:
    found = json.loads(data)
    del found["metadata"]["component"]
    return json.dumps(found).encode()


def too_deep(data: bytes) -> bytes:
    return data.replace(b'"bomFormat"', b'"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "bomFormat"', 1)


def too_large(data: bytes) -> bytes:
    return data + b" " * MAX_MLBOM_BYTES


def half_an_ancestor(data: bytes) -> bytes:
    found = json.loads(data)
    told = [{"name": "headway:bundle_sha256", "value": "ab" * 32}]
    found["metadata"]["component"]["pedigree"]["ancestors"].append({"name": "x", "properties": told})
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_licence, "says weights_licence is 'mit', the manifest 'apache-2.0'"),
        (other_weights, "says weights_sha256 is 'acac"),
        (no_properties, "is 'None', the manifest"),
        (not_json, "mlbom.cdx.json: "),
        (other_standard, "mlbom.cdx.json: "),
        (no_component, "missing required field `component`"),
        (too_deep, "mlbom.cdx.json: "),
        (too_large, "at most|bytes"),
        (half_an_ancestor, "ancestor 'x' lacks 'created_utc'"),
    ],
)
def test_papers_that_are_none_or_contradict_the_manifest_are_refused(
    change: Callable[[bytes], bytes], words: str, plain: Bundle, tmp_path: Path
) -> None:
    bundle = documented(plain, tmp_path / "b", papers=change)
    with pytest.raises(BadFormat, match=words):
        lineage(bundle)


def test_the_format_page_names_every_property() -> None:
    text = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text()
    weights = Weights(source="", sha256=None, licence="")
    link = Link(
        name="",
        bundle_sha256="",
        created_utc="",
        backbone="",
        strategy="",
        weights=weights,
        data_sha256="",
        images=0,
    )
    assert all(f"`headway:{name}`" in text for name in properties_of(link))
    assert f"`headway:{FINETUNED}`" in text


def test_what_was_fine_tuned_for_int8_is_told_of_a_bundle_and_of_those_it_continues(
    plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(data: bytes) -> bytes:
        paper = json.loads(data)
        properties = paper["metadata"]["component"]["properties"]
        properties.append({"name": "headway:finetuned_for_int8.cpu", "value": "fine-tuned for int8 on 64 images"})
        return json.dumps(paper).encode()

    first = documented(plain, tmp_path / "first", papers=add)
    second = documented(plain, tmp_path / "second", parents=[first])
    words = "int8 made for cpu: fine-tuned for int8 on 64 images"
    assert f"\n  {words}" in headway(capsys, "bundle", "lineage", first.path).out
    shutil.move(first.path, tmp_path / "elsewhere")  # its parent is told from its own papers
    told = headway(capsys, "bundle", "lineage", second.path).out
    assert f"\n    {words}" in told
    assert f"\n  {words}" not in told


# The command


def test_the_command_tells_it_to_people_and_programs(
    family: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    third = family[-1]
    told = headway(capsys, "bundle", "lineage", third.path).out
    assert told.startswith(f"third  {third.digest()[:16]}  made ")
    assert f"  weights {HUB}; licence apache-2.0; sha256 {'ab' * 32}" in told
    assert "  continues second" in told
    assert "    continues first" in told
    facts = json.loads(headway(capsys, "bundle", "lineage", third.path, "--json").out)
    assert facts["parents"][0]["parents"][0]["weights"]["licence"] == "mit"
    assert facts["heads"][0]["live_set_digest"] == third.precision().head.live_set_digest
    assert msgspec.convert(facts["weights"], Weights) == Weights(
        source=HUB, sha256="ab" * 32, licence="apache-2.0"
    )


def test_verify_finds_papers_that_contradict_the_bundle(
    plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = documented(plain, tmp_path / "b", papers=other_licence)
    ended = headway(capsys, "bundle", "verify", bundle.path)
    assert (ended.code, "weights_licence" in ended.err) == (2, True)
    assert headway(capsys, "bundle", "verify", plain.path).code == 0


def test_a_fleets_head_is_told_where_its_release_is_this_bundle(
    family: list[Bundle], plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third, fleet = family[-1], tmp_path / "fleet"
    assert headway(capsys, "fleet", "publish", third.path, "--dir", fleet).code == 0
    (head,) = json.loads(headway(capsys, "bundle", "lineage", third.path, "--fleet", fleet, "--json").out)[
        "fleet_heads"
    ]
    assert (head["channel"], head["log_length"]) == ("default", 0)
    assert head["live_set_digest"] == third.precision().head.live_set_digest  # nobody has labelled anything yet
    assert "head of channel default" in headway(capsys, "bundle", "lineage", third.path, "--fleet", fleet).out
    other = json.loads(headway(capsys, "bundle", "lineage", plain.path, "--fleet", fleet, "--json").out)
    assert other["fleet_heads"] == []


def test_a_folder_that_is_no_fleet_is_refused(
    family: list[Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = headway(capsys, "bundle", "lineage", family[-1].path, "--fleet", tmp_path)
    assert (ended.code, "holds no fleet" in ended.err) == (2, True)


def test_reading_a_file_that_is_not_listed_is_refused(plain: Bundle) -> None:
    with pytest.raises(BadFormat, match="has no mlbom"):
        plain.read(MLBOM_NAME)
    assert hashlib.sha256(plain.read("golden.safetensors")).hexdigest() in str(plain.manifest.files)


def test_the_card_tells_the_score_by_slice_and_with_near_duplicates_together(tmp_path: Path) -> None:
    text = card(report_on(tiny_bundle(tmp_path / "plain")), Papers())
    assert "| left | 90.0% | 80.0% to 95.0% | 18 |" in text
    assert "| right |" not in text  # nothing of it was scored
    assert "93.0% with each image as a part of its own, 57.0% where they are kept together" in text
