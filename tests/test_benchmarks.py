"""Every benchmark runs on drawn features, and the measures themselves are right: what nobody runs, rots."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("sklearn", reason="needs the dev extra")
pytest.importorskip("torch", reason="needs the export extra")

from benchmarks import agent, anomalib, ends, fleet, footprint, frame, heatmap, readout, scale
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.features import drawn
from benchmarks.learners import Logistic, Ours, Ridge, group_folds, mean_recall
from benchmarks.report import Target
from device_agent.runtime import open_runtime
from sdk.bundle import Bundle
from sdk.images import read
from sdk.preprocess import resize
from sdk.score import calibration_error
from tests.tiny import picture, tiny_bundle


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmark_answers_in_a_quick_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main([name, "--quick", "--json", str(file)]) == 0
    (report,) = json.loads(file.read_bytes())
    assert report["name"] == name
    assert report["tables"]
    assert "mean nothing" in capsys.readouterr().out


def test_a_large_release_is_made_and_measured_step_by_step(tmp_path: Path) -> None:
    assert scale.make(tmp_path, 400, 16, 4, 100)["exemplars"] == 100
    found = scale.device(tmp_path / "exemplars")
    assert found["scored"] == 100 + scale.LABELS["exemplars"]
    assert {"solve", "leave one group out", "start the learner"} <= set(found["steps"])


def test_what_labels_cost_is_measured_on_a_real_learner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "ROUND", 50)
    bundle = tiny_bundle(tmp_path / "bundle")
    footprint.labels(bundle, bundle.precision().precision, 1)
    said = capsys.readouterr().out
    assert "the same samples: 50 labels" in said
    assert "new samples: 50 labels" in said


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fast"])
    assert "no benchmark 'fast'" in capsys.readouterr().err


def test_without_image_sets_one_line_says_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWAY_SHARED", str(tmp_path))
    assert main(["few"]) == 2
    assert "set HEADWAY_SHARED" in capsys.readouterr().err


@pytest.mark.parametrize("alone", [heatmap, readout], ids=["heatmap", "readout"])
def test_those_that_run_alone_say_so_too(
    alone: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWAY_SHARED", str(tmp_path))
    assert alone.main([]) == 2
    assert "set HEADWAY_SHARED" in capsys.readouterr().err


def test_both_ends_of_a_network_are_measured_in_8_bits_and_float(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ends, "TIMED", 3)
    assert ends.main(["builtin"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "builtin" in line]
    *_, fp32, whole, _first, _both, cosine_whole, cosine_ends = (
        each.strip() for each in row.strip("|").split("|")
    )
    assert all(float(each) > 0 for each in (fp32, whole))
    assert 0.99 < float(cosine_whole) <= float(cosine_ends) <= 1


def test_a_heatmap_is_judged_by_its_highest_point_its_energy_and_its_best_cell() -> None:
    mask = np.zeros((40, 60), bool)
    mask[:10, :10] = True
    right = heatmap.judge(np.array([[2.0, 0.0, 0.0], [0.0, 0.0, -9.0]]), mask)
    assert (right.hit, right.cell_hit) == (1, 1)
    assert right.chance == pytest.approx(100 / 2400)
    assert right.cell_chance == pytest.approx(1 / 6)
    assert right.energy > 3 * right.chance
    wrong = heatmap.judge(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), mask)
    assert (wrong.hit, wrong.cell_hit) == (0, 0)
    assert wrong.energy == pytest.approx(0, abs=1e-6)


def test_halves_share_no_group_and_no_class_is_missing() -> None:
    sample = drawn("magnetic_tile")
    learn, test = sample.halves(0)
    assert not set(sample.groups[learn]) & set(sample.groups[test])
    assert set(sample.labels[learn]) == set(sample.labels[test]) == set(range(len(sample.classes)))


def test_folds_keep_groups_together() -> None:
    sample = drawn("magnetic_tile")
    fold = group_folds(sample.labels, sample.groups)
    for group in set(sample.groups.tolist()):
        assert len(set(fold[sample.groups == group])) == 1


@pytest.mark.parametrize("learner", [Ours(), Ridge(), Logistic()], ids=lambda learner: learner.name)
def test_a_learner_beats_chance_and_never_names_a_class_it_has_not_seen(learner: Ours | Ridge | Logistic) -> None:
    sample = drawn("neu_det")
    learn, test = sample.halves(0)
    learn = learn[sample.labels[learn] != 1]
    codes, k = sample.codes(learn), len(sample.classes)
    scores = learner.fit(codes[learn], sample.labels[learn], sample.groups[learn], k).scores(codes[test])
    assert scores.shape == (len(test), k)
    assert not (scores.argmax(1) == 1).any()
    known = sample.labels[test] != 1
    assert mean_recall(scores[known], sample.labels[test][known]) > 0.5


def test_calibration_error_of_a_perfect_and_of_a_boasting_method() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 30_000)
    right = rng.random(30_000) < sure
    probabilities = np.stack([sure, 1 - sure], 1)
    assert calibration_error(probabilities, np.where(right, 0, 1)) < 0.01
    boasting = np.tile([1.0, 0.0], (1000, 1))
    assert calibration_error(boasting, np.arange(1000) % 2) == pytest.approx(0.5)


def test_a_target_says_on_which_side_it_was_missed() -> None:
    assert Target("recall", 85.0, 85.0).met
    assert not Target("error", 0.07, 0.06, at_least=False).met


@pytest.mark.broker
def test_a_simulated_fleet_loses_no_label_and_ends_by_itself(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--devices", "6", "--minutes", "0.1", "--label-every", "1", "--per-channel", "3"]
    assert fleet.main([*arguments, "--json", str(tmp_path / "fleet.json")]) == 0
    (run,) = json.loads((tmp_path / "fleet.json").read_text())
    assert run["records"] == run["acknowledged"] == run["stored"] > 6 * 3
    # Each of its channel hears of it, its maker too, but for what is on its way at the end.
    assert run["records_heard"] > 2 * run["records"]
    assert "records lost" in capsys.readouterr().out


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, and images to replay."""
    folder = tmp_path_factory.mktemp("line")
    tiny_bundle(folder / "bundle")
    (folder / "images").mkdir()
    for i in range(6):
        (folder / "images" / f"{i}.png").write_bytes(picture("pit" if i % 2 else "rings", 900 + i))
    return folder


def test_what_a_frame_costs_is_measured_step_by_step(line: Path, tmp_path: Path) -> None:
    file = tmp_path / "frame.json"
    arguments = [str(line / "bundle"), "--images", str(line / "images"), "--frames", "3", "--json", str(file)]
    assert frame.main(arguments) == 0
    (report,) = json.loads(file.read_bytes())
    (table,) = report["tables"]
    (one, several) = table["rows"]
    assert one[0] == "one image"
    assert int(several[0].split(", ")[1].split()[0]) > 4  # tiles
    assert all(0 < each < 1e5 for row in (one, several) for each in row[2:6])


def test_a_bench_without_images_is_refused(line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        frame.main([str(line / "bundle"), "--images", str(tmp_path)])
    assert "no images" in capsys.readouterr().err


@pytest.mark.broker
def test_the_whole_agent_is_measured_beside_a_bare_loop(line: Path, tmp_path: Path) -> None:
    file, trace = tmp_path / "agent.json", tmp_path / "reject.svg"
    quick = ["--rounds", "1", "--seconds", "1", "--trace", str(trace), "--json", str(file)]
    assert agent.main([str(line / "bundle"), "--images", str(line / "images"), *quick]) == 0
    (report,) = json.loads(file.read_bytes())
    assert [table["title"].split()[0] for table in report["tables"]] == ["Frames", "Capture", "Reject"]
    measured = {target["what"]: target["measured"] for target in report["targets"]}
    assert measured["parts without a verdict"] == 0
    assert 0 < measured["trigger to reject output, p99, ms"] < 60_000
    assert trace.read_text().startswith("<?xml")


def test_a_comparison_with_what_is_not_installed_says_what_to_install(
    line: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "anomalib", None)  # as where it is not installed
    assert anomalib.main([str(line / "bundle"), "--images", str(line / "images")]) == 2
    assert "pip install 'anomalib[openvino]'" in capsys.readouterr().err


def test_the_model_for_the_comparison_computes_what_the_backbone_does(line: Path) -> None:
    """RGB between 0 and 1 goes in, our largest feature comes out; the picture has the input's size already."""
    bundle = Bundle.open(line / "bundle")
    model = anomalib.with_preprocessing(bundle.backbone(), bundle.manifest.preprocess)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    frame = resize(read(line / "images" / "0.png")[1], *bundle.golden().frames.shape[1:3])
    image = (frame[None, :, :, ::-1].transpose(0, 3, 1, 2) / 255).astype(np.float32)
    (score,) = session.run(None, {"image": image})
    features = open_runtime(bundle, None).features(bundle.manifest.preprocess.apply(frame))
    assert score[0, 0] == pytest.approx(features.max(), rel=1e-4)
