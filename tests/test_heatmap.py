"""Evidence has a place: it sums to the score, lies where the frame differs, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import UNSET, UnsetType, structs

from device_agent.config import RuntimeSettings
from device_agent.heatmap import draw, heatmap, usual_class
from device_agent.pipeline import Pipeline
from device_agent.runtime import MappingRuntime, open_runtime
from device_agent.runtime.onnx import OnnxRuntime
from sdk.bundle import Bundle, MapEntry, Pool, ReadEntry, decode_manifest, encode_manifest
from sdk.codes import encode, fit_scale
from sdk.errors import BadFormat, FeatureSizeError, InferenceFailed, NoMaps, UnknownClassError
from sdk.head import Head, solve
from sdk.heatmap import Map, Spatial, evidence
from sdk.images import decode
from sdk.moments import Moments
from tests.tiny import FEATURE_SIZE, SIDE, backbone, class_id, maps_of, picture, tiny_bundle

GOOD, PIT = b"g" * 16, b"p" * 16
SHAPE = (3, SIDE, SIDE)


def entry(channels: int, height: int, width: int, *reads: tuple[int, Pool], output: str = "map0") -> MapEntry:
    return MapEntry(
        output=output,
        channels=channels,
        height=height,
        width=width,
        reads=[ReadEntry(start=start, pool=pool) for start, pool in reads],
    )


LAYOUTS: dict[str, tuple[int, list[MapEntry]]] = {
    "averages": (6, [entry(6, 4, 5, (0, "avg"))]),
    "maxima": (6, [entry(6, 4, 5, (0, "max"))]),
    "both": (12, [entry(6, 4, 5, (0, "avg"), (6, "max"))]),
    "a class token": (6, [entry(6, 4, 5, (0, "near"))]),
    "two levels on unlike grids": (
        16,
        [entry(4, 9, 7, (6, "avg"), (10, "max")), entry(6, 4, 3, (0, "avg"), output="map1")],
    ),
    "columns without a map": (9, [entry(6, 4, 5, (3, "avg"))]),
}


def seen(layout: list[MapEntry], d: int, seed: int, *, signed: bool = False) -> Spatial:
    """Return random maps and the features pooled from them; other columns are random."""
    rng = np.random.default_rng(seed)
    features = rng.gamma(1.0, 1.0, (1, d)).astype(np.float32)
    maps: list[Map] = []
    for each in layout:
        values = rng.gamma(0.3, 1.0, (each.channels, each.height, each.width)).astype(np.float32)
        if signed:
            values -= np.float32(0.3)
        maps.append(values)
        for read in each.reads:
            pooled = values.max((1, 2)) if read.pool == "max" else values.mean((1, 2))
            features[0, read.start : read.start + each.channels] = pooled
    return Spatial(features, tuple(maps))


def learned(samples: list[Spatial], classes: int = 2) -> tuple[Head, float]:
    """Return a head of these samples, every second one a pit, and the code scale."""
    features = np.concatenate([sample.features for sample in samples])
    scale = fit_scale(features)
    moments = Moments(features.shape[1])
    moments.add(encode(features, scale), [(GOOD, PIT)[i % classes] for i in range(len(samples))])
    return solve(moments), scale


@pytest.mark.parametrize("signed", [False, True], ids=["positive", "signed"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_evidence_sums_to_the_score(name: str, signed: bool) -> None:
    d, layout = LAYOUTS[name]
    samples = [seen(layout, d, seed, signed=signed) for seed in range(20)]
    head, scale = learned(samples)
    for sample in samples[:5]:
        scores = head.scores(encode(sample.features, scale))[0]
        for class_index, each in enumerate(head.class_ids):
            found = evidence(head, each, sample, layout, scale)
            assert found.shape == (max(e.height for e in layout), max(e.width for e in layout))
            assert found.sum() == pytest.approx(scores[class_index], abs=1e-5)


def test_with_one_class_it_sums_to_minus_the_distance() -> None:
    d, layout = LAYOUTS["averages"]
    samples = [seen(layout, d, seed) for seed in range(20)]
    head, scale = learned(samples, classes=1)
    found = evidence(head, GOOD, samples[0], layout, scale)
    assert found.sum() == pytest.approx(-head.novelty(encode(samples[0].features, scale))[0], rel=1e-5)


def test_a_head_that_was_only_updated_has_its_evidence_too() -> None:
    d, layout = LAYOUTS["both"]
    samples = [seen(layout, d, seed) for seed in range(20)]
    head, scale = learned(samples)
    new = seen(layout, d, 99)
    updated = head.with_sample(encode(new.features, scale)[0], b"s" * 16)
    found = evidence(updated, b"s" * 16, new, layout, scale)
    expected = updated.scores(encode(new.features, scale))[0, updated.class_ids.index(b"s" * 16)]
    assert found.sum() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pool", ["avg", "max", "near"])
def test_evidence_lies_where_the_defect_is(pool: Pool) -> None:
    layout = [entry(6, 4, 5, (0, pool))]

    def sample(i: int, place: tuple[int, int] | None) -> Spatial:
        values = np.random.default_rng(i).gamma(2.0, 0.5, (6, 4, 5)).astype(np.float32)
        if place is not None:
            values[2, place[0], place[1]] += 20
        pooled = values.max((1, 2)) if pool == "max" else values.mean((1, 2))
        return Spatial(pooled[None], (values,))

    samples = [sample(i, (i % 4, i % 5) if i % 2 else None) for i in range(40)]
    head, scale = learned(samples)
    found = evidence(head, PIT, sample(100, (3, 1)), layout, scale)
    assert divmod(int(found.argmax()), 5) == (3, 1)


def test_equal_maxima_share_the_evidence() -> None:
    layout = [entry(2, 1, 3, (0, "max"))]
    samples = [Spatial(np.array([[a, 1.0]], np.float32), ()) for a in (1, 9, 2, 8, 1, 9)]
    head, scale = learned(samples)
    values = np.array([[[7, 7, 0]], [[1, 1, 1]]], np.float32)
    found = evidence(head, PIT, Spatial(values.max((1, 2))[None], (values,)), layout, scale)
    assert found[0, 0] == pytest.approx(found[0, 1])
    assert found[0, 0] > found[0, 2]


SAMPLE = seen(LAYOUTS["averages"][1], 6, 0)


@pytest.mark.parametrize(
    ("sample", "layout"),
    [
        (Spatial(SAMPLE.features, ()), LAYOUTS["averages"][1]),
        (SAMPLE, []),
        (SAMPLE, [entry(6, 5, 4, (0, "avg"))]),
        (replace(SAMPLE, features=np.repeat(SAMPLE.features, 2, 0)), LAYOUTS["averages"][1]),
        (replace(SAMPLE, features=SAMPLE.features[:, :5]), LAYOUTS["averages"][1]),
        (replace(SAMPLE, features=np.full((1, 6), np.nan, np.float32)), LAYOUTS["averages"][1]),
    ],
    ids=["no map", "no layout", "another grid", "two frames", "another size", "not finite"],
)
def test_what_does_not_belong_together_is_refused(sample: Spatial, layout: list[MapEntry]) -> None:
    head, scale = learned([seen(LAYOUTS["averages"][1], 6, seed) for seed in range(8)])
    with pytest.raises(FeatureSizeError):
        evidence(head, GOOD, sample, layout, scale)


def test_a_class_that_the_head_does_not_know_is_refused() -> None:
    head, scale = learned([seen(LAYOUTS["averages"][1], 6, seed) for seed in range(8)])
    with pytest.raises(UnknownClassError):
        evidence(head, b"?" * 16, SAMPLE, LAYOUTS["averages"][1], scale)


# -- the manifest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("heatmap") / "bundle", maps=True)


def test_a_bundle_with_maps_is_of_version_2_and_one_without_of_version_1(bundle: Bundle, tmp_path: Path) -> None:
    old = tiny_bundle(tmp_path / "old")
    assert (bundle.manifest.format, old.manifest.format) == (2, 1)
    assert bundle.precision().layout == tuple(maps_of())
    assert old.precision().layout == ()
    assert b"maps" not in encode_manifest(old.manifest)


HALF = FEATURE_SIZE // 2
GRID = SIDE // 4


@pytest.mark.parametrize(
    ("version", "maps", "says"),
    [
        (1, maps_of(), "not what format 1 says"),
        (2, UNSET, "not what format 2 says"),
        (2, [], "maps"),
        (2, [entry(HALF, GRID, GRID, (0, "avg"), (HALF - 1, "max"))], "taken or not there"),
        (2, [entry(HALF, GRID, GRID, (0, "avg"), (HALF + 1, "max"))], "taken or not there"),
        (2, [entry(2, 2, 2, (0, "avg")), entry(2, 2, 2, (2, "avg"))], "an output twice"),
        (2, [entry(HALF, 2048, 2048, (0, "avg"))], "over 4194304 values"),
        (2, [entry(HALF, GRID, 0, (0, "avg"))], "width"),
        (2, [entry(HALF, GRID, GRID)], "reads"),
        (2, [entry(HALF, GRID, GRID, (-1, "avg"))], "start"),
        (2, [entry(HALF, GRID, GRID, (0, "avg"), output="a map")], "output"),
    ],
)
def test_maps_that_cannot_be_are_refused(
    bundle: Bundle, version: int, maps: list[MapEntry] | UnsetType, says: str
) -> None:
    manifest = bundle.manifest
    precision = structs.replace(manifest.precisions[0], maps=maps)
    with pytest.raises(BadFormat, match=says):
        decode_manifest(encode_manifest(structs.replace(manifest, format=version, precisions=[precision])))


# -- the runtime


def frames(*names: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    from sdk.preprocess import Preprocess

    preprocess = Preprocess(height=SIDE, width=SIDE)
    return np.concatenate([preprocess.apply(decode(picture(name, 7))) for name in names])


def test_maps_come_from_the_pass_that_gives_the_features(bundle: Bundle) -> None:
    runtime = open_runtime(bundle, None, RuntimeSettings(threads=1))
    assert isinstance(runtime, MappingRuntime)
    batch = frames("good", "pit", "scratch")
    features, (values,) = runtime.spatial(batch)
    np.testing.assert_array_equal(features, runtime.features(batch))
    half = FEATURE_SIZE // 2
    np.testing.assert_allclose(values.mean((2, 3)), features[:, :half], atol=1e-5)
    np.testing.assert_allclose(values.max((2, 3)), features[:, half:], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "maps"),
    [
        (backbone(maps=True), []),
        (backbone(), maps_of()),
        (backbone(maps=True), [*maps_of(), entry(2, 2, 2, (0, "avg"), output="e")]),
    ],
    ids=["one too many", "one too few", "another too few"],
)
def test_outputs_that_the_manifest_does_not_name_are_refused(model: bytes, maps: list[MapEntry]) -> None:
    with pytest.raises(InferenceFailed, match="beside features"):
        OnnxRuntime(model, "backbone", SHAPE, FEATURE_SIZE, RuntimeSettings(threads=1), maps)


def zero_divided() -> bytes:
    model = onnx.load_from_string(backbone(maps=True))
    model.graph.node.append(onnx.helper.make_node("Div", ["d", "nothing"], ["m"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    model.graph.output[1].name = "m"
    return bytes(model.SerializeToString())


def told(output: str, height: int) -> MapEntry:
    return entry(FEATURE_SIZE // 2, height, SIDE // 4, (0, "avg"), output=output)


@pytest.mark.parametrize(
    ("model", "said"),
    [(backbone(maps=True), told("d", SIDE // 8)), (zero_divided(), told("m", SIDE // 4))],
    ids=["another size", "not finite"],
)
def test_a_map_that_is_not_what_the_manifest_says_is_refused(model: bytes, said: MapEntry) -> None:
    runtime = OnnxRuntime(model, "backbone", SHAPE, FEATURE_SIZE, RuntimeSettings(threads=1), [said])
    runtime.features(frames("pit"))  # features are given all the same
    with pytest.raises(InferenceFailed, match="gives a map"):
        runtime.spatial(frames("pit"))


# -- the drawing


def test_the_heatmap_shows_what_the_head_decided(bundle: Bundle) -> None:
    from device_agent.runtime import base_head

    pipeline, head = Pipeline(bundle, None, open_runtime(bundle, None)), base_head(bundle)
    frame = decode(picture("pit", 7))
    found = heatmap(pipeline, head, frame)
    assert found.class_id == head.class_ids[int(head.decide(pipeline.code(frame)).class_index[0])]
    assert found.against is None  # no class has most of the labels
    lead = heatmap(pipeline, head, frame, class_id("pit"), class_id("good"))
    score = dict(zip(head.class_ids, head.scores(pipeline.code(frame))[0], strict=True))
    assert lead.evidence.sum() == pytest.approx(score[class_id("pit")] - score[class_id("good")], abs=1e-4)


def test_the_usual_class_has_most_of_the_labels() -> None:
    moments = Moments(3)
    codes = np.random.default_rng(0).integers(-90, 90, (9, 3), dtype=np.int8)
    moments.add(codes, [GOOD] * 6 + [PIT] * 3)
    assert usual_class(solve(moments)) == GOOD
    moments.add(codes[:3], [PIT] * 3)
    assert usual_class(solve(moments)) is None


def test_evidence_against_the_class_is_not_drawn() -> None:
    frame = np.full((40, 60, 3), 100, np.uint8)
    found = np.array([[0.5, -0.5]])
    drawn = draw(frame, found)
    assert drawn.shape == frame.shape
    assert (drawn[:, :10] != 100).any()
    assert (drawn[:, -10:] == 100).all()
    assert (draw(frame, np.zeros((2, 2))) == frame).all()


def test_a_release_without_maps_says_so(tmp_path: Path) -> None:
    old = tiny_bundle(tmp_path / "old")
    with pytest.raises(NoMaps, match="no maps") as refusal:
        Pipeline(old, None, open_runtime(old, None)).spatial(decode(picture("pit", 7)))
    assert "Export it again" in refusal.value.hint


class FeaturesOnly:
    """A runtime that gives no maps."""

    name = "features only"
    feature_size = FEATURE_SIZE

    def __init__(self, inner: OnnxRuntime) -> None:
        self.features = inner.features


def test_a_runtime_without_maps_says_so(bundle: Bundle) -> None:
    inner = open_runtime(bundle, None)
    assert isinstance(inner, OnnxRuntime)
    with pytest.raises(NoMaps, match="features only gives no maps"):
        Pipeline(bundle, None, FeaturesOnly(inner)).spatial(decode(picture("pit", 7)))
