"""int8 and fp16: near fp32, small, placed as each profile asks; what costs the most stays fp32; refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, TensorsData

from benchmarks.quantization import Row, Split, show, some_rows
from export.backbones import Backbone, load_backbone
from export.graph import OnnxBackbone, Pixels, latencies_ms, to_onnx
from export.int8 import Tried, nearest, worth_training
from export.judged import Form
from export.paired import Paired, paired
from export.parity import TOLERANCES, check_form, code_difference, difference, feature_cosine
from export.profiles import DEQUANTIZE, QUANTIZE, Profile, check_placement, faults, kept_float
from export.qat import MIN_STEPS, finetune_for_int8, left_float
from export.quantize import Method, Prepared, Ranges, calibrate, prepare, stratified, to_fp16, to_int8
from export.sensitivity import GROWTH, find_sensitive, growth, units_of
from export.tensorrt import check_tensorrt
from sdk.codes import encode, fit_scale
from sdk.errors import CalibrationFailed, ExportError, ParityFailed
from sdk.head import Calibration, solve
from sdk.images import decode
from sdk.moments import Moments
from sdk.preprocess import resize
from sdk.score import LeftOut, score
from sdk.splits import Part
from tests.tiny import picture

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("graphs_once")]
torch.set_num_threads(1)  # tests run side by side; spinning threads cost more than they give

SIDE = 64
SIZE = 96


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("test_resnet", "none", input_size_px=SIDE, levels=1)


@pytest.fixture(scope="module")
def frames() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    drawn = [decode(picture(name, i)) for i in range(8) for name in ("good", "pit", "scratch")]
    return np.stack([resize(frame, SIDE, SIDE) for frame in drawn])


@pytest.fixture(scope="module")
def pixels(backbone: Backbone, frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Pixels:
    return np.concatenate([backbone.preprocess.apply(frame) for frame in frames])


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> bytes:
    return to_onnx(backbone)


@pytest.fixture(scope="module")
def prepared(model: bytes) -> Prepared:
    return prepare(model)


@pytest.fixture(scope="module")
def ranges(prepared: Prepared, pixels: Pixels) -> Ranges:
    return calibrate(prepared, np.split(pixels[:12], 12), Method.MINMAX)


@pytest.fixture(scope="module")
def made(prepared: Prepared, ranges: Ranges) -> dict[Profile, bytes]:
    return {profile: to_int8(prepared, ranges, profile, SIZE) for profile in Profile}


@pytest.mark.parametrize("profile", list(Profile))
def test_int8_is_near_fp32_smaller_and_the_same_everywhere(
    model: bytes, pixels: Pixels, made: dict[Profile, bytes], profile: Profile
) -> None:
    int8 = made[profile]
    features = OnnxBackbone(int8).features(pixels)
    assert len(int8) < 0.3 * len(model)
    assert feature_cosine(OnnxBackbone(model).features(pixels), features) > 0.98
    scale = fit_scale(features)
    exact = OnnxBackbone(int8, exact=True).features(pixels)
    # Integer kernels of this processor against the arithmetic of the file: rounding, no overflow.
    assert code_difference(encode(features, scale), encode(exact, scale)) < 2.0
    assert set(latencies_ms({"fp32": model, "int8": int8}, pixels[:1], rounds=2)) == {"fp32", "int8"}


@pytest.mark.parametrize("method", list(Method))
def test_every_way_to_choose_ranges_keeps_the_features(
    prepared: Prepared, model: bytes, pixels: Pixels, method: Method
) -> None:
    ranges = calibrate(prepared, np.split(pixels[:6], 6), method)
    assert ranges.method is method
    int8 = to_int8(prepared, ranges, Profile.CPU, SIZE)
    assert check_form("int8", *(OnnxBackbone(m).features(pixels) for m in (model, int8))).cosine > 0.95


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "no images"),
        ([np.full((1, 3, SIDE, SIDE), np.nan, np.float32)], "quantization failed|no usable range"),
        ([np.zeros((1, 1, SIDE, SIDE), np.float32)], "quantization failed"),
    ],
)
def test_calibration_that_finds_no_range_is_refused(prepared: Prepared, images: list[Pixels], says: str) -> None:
    with pytest.raises(CalibrationFailed, match=says) as caught:
        to_int8(prepared, calibrate(prepared, images, Method.MINMAX), Profile.CPU, SIZE)
    assert "--precision fp32" in caught.value.hint


def test_what_has_no_layers_is_not_quantized() -> None:
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["n", 3, 8, 8]) for n in ("pixels", "features"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["pixels"], ["features"])], "g", [x], [y])
    relu = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(CalibrationFailed, match="nothing in this backbone"):
        prepare(relu.SerializeToString())


def test_calibration_images_are_stratified_by_class_and_group() -> None:
    labels = ["good"] * 900 + ["crack"] * 5 + ["fray"] * 40
    rows = stratified(labels, 60)
    counts = {name: sum(labels[row] == name for row in rows) for name in ("good", "crack", "fray")}
    assert counts == {"crack": 5, "fray": 27, "good": 28}
    assert max(rows) > 940  # spread over each class, not its first ones
    groups = ["burst"] * 890 + [f"good-{i}" for i in range(10)] + ["c"] * 5 + [f"f{i // 2}" for i in range(40)]
    chosen = stratified(labels, 60, groups)
    good = [row for row in chosen if labels[row] == "good"]
    assert {groups[row] for row in good} >= {f"good-{i}" for i in range(10)}
    assert len({groups[row] for row in chosen if labels[row] == "fray"}) == 20
    assert len(chosen) == 60


# --- Placement


def test_each_profile_passes_its_own_rules_and_fails_the_others(made: dict[Profile, bytes]) -> None:
    for profile, int8 in made.items():
        other = next(p for p in Profile if p is not profile)
        graph = onnx.load_from_string(int8)
        assert faults(graph, profile) == []
        assert faults(graph, other)


def test_tensorrts_parser_takes_what_is_made_for_it(made: dict[Profile, bytes], model: bytes) -> None:
    assert check_tensorrt(made[Profile.TENSORRT]) == []
    assert check_tensorrt(to_fp16(model, SIZE)) == []
    assert check_tensorrt(made[Profile.CPU])  # unsigned activations are refused


def quantizers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == QUANTIZE]


def constant(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in graph.initializer if tensor.name == name)
    return found


def offset(graph: onnx.GraphProto) -> None:
    zero = constant(graph, quantizers(graph)[3].input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero.name))


def unsigned(graph: onnx.GraphProto) -> None:
    zero = constant(graph, quantizers(graph)[0].input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(0, np.uint8), zero.name))


def one_scale(graph: onnx.GraphProto) -> None:
    scale = next(t for t in graph.initializer if t.name.endswith("weight_scale"))
    scale.CopyFrom(numpy_helper.from_array(np.array(0.1, np.float32), scale.name))


def integer_bias(graph: onnx.GraphProto) -> None:
    conv = next(node for node in graph.node if node.op_type == "Conv")
    channels = numpy_helper.to_array(
        constant(graph, f"{conv.input[1].removesuffix('_DequantizeLinear_Output')}_scale")
    )
    graph.initializer.append(numpy_helper.from_array(np.ones(len(channels), np.int32), "b"))
    graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "s"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int32), "z"))
    graph.node.insert(0, onnx.helper.make_node(DEQUANTIZE, ["b", "s", "z"], ["bias"]))
    del conv.input[2:]
    conv.input.append("bias")


def skip_left_float(graph: onnx.GraphProto) -> None:
    source = {n.output[0]: n for n in graph.node}
    for node in (n for n in graph.node if n.op_type == "Add"):
        for i, name in enumerate(node.input):
            if name in source and source[name].op_type == DEQUANTIZE:
                node.input[i] = source[source[name].input[0]].input[0]


def half_quantized(graph: onnx.GraphProto) -> None:
    source = {n.output[0]: n for n in graph.node}
    conv = next(n for n in graph.node if n.op_type == "Conv")
    conv.input[0] = source[source[conv.input[0]].input[0]].input[0]


def own_domain(graph: onnx.GraphProto) -> None:
    quantizers(graph)[0].domain = "com.microsoft"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (offset, "symmetrically"),
        (unsigned, "symmetrically"),
        (one_scale, "scales for"),
        (integer_bias, "bias"),
        (skip_left_float, "other side of the sum"),
        (half_quantized, "float input"),
        (own_domain, "not standard"),
    ],
)
def test_tensorrt_rules_refuse(
    made: dict[Profile, bytes], harm: Callable[[onnx.GraphProto], None], says: str
) -> None:
    harmed = onnx.load_from_string(made[Profile.TENSORRT])
    harm(harmed.graph)
    with pytest.raises(CalibrationFailed, match=says):
        check_placement(harmed, Profile.TENSORRT)


def test_transformers_keep_attention_in_float_and_write_no_8_bit_outputs() -> None:
    vit = load_backbone("test_vit", "none", input_size_px=SIDE, levels=1)
    pixels = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    prepared = prepare(to_onnx(vit))
    ranges = calibrate(prepared, np.split(pixels, 3), Method.PERCENTILE)
    for profile in Profile:
        graph = onnx.load_from_string(to_int8(prepared, ranges, profile, vit.feature_size)).graph
        source = {name: node for node in graph.node for name in node.output}
        products = [n for n in graph.node if n.op_type == "MatMul" and source[n.input[1]].op_type != DEQUANTIZE]
        assert products  # of queries and keys, of weights and values
        written = {n.input[0] for n in quantizers(graph)}
        assert not any(n.output[0] in written for n in graph.node if n.op_type == "MatMul")


# --- The ends of a network, and layers left out


def weight_kinds(graph: onnx.GraphProto) -> list[bool]:
    """Return, for each convolution in the order they run, whether its weights are stored in 8 bits."""
    maker = {name: node.op_type for node in graph.node for name in node.output}
    return [maker.get(node.input[1]) == DEQUANTIZE for node in graph.node if node.op_type == "Conv"]


def graphs_of(name: str, *profiles: Profile) -> list[onnx.GraphProto]:
    """Return int8 forms of one network with random weights and features of four levels."""
    network = load_backbone(name, "none", input_size_px=SIDE, levels=4)
    pixels = np.random.default_rng(0).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    prepared = prepare(to_onnx(network))
    ranges = calibrate(prepared, np.split(pixels, 2), Method.MINMAX)
    made = (to_int8(prepared, ranges, each, network.feature_size) for each in profiles)
    return [onnx.load_from_string(each).graph for each in made]


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        ("builtin", 2),  # 3 to 8 and 8 to 8 channels; 8 to 16 fill the kernels
        ("mobilenetv2_100", 1),  # what comes next is depthwise
        ("resnet18", 0),  # pooled at once
    ],
)
def test_first_layers_of_few_channels_and_what_is_pooled_stay_float_on_a_processor(name: str, narrow: int) -> None:
    graph, on_tensorrt = graphs_of(name, Profile.CPU, Profile.TENSORRT)
    in_8_bits = weight_kinds(graph)
    assert in_8_bits == [False] * narrow + [True] * (len(in_8_bits) - narrow)
    written = {node.input[0] for node in graph.node if node.op_type == QUANTIZE}
    pooled = [n for n in graph.node if n.op_type in ("ReduceMean", "ReduceMax", "GlobalAveragePool", "Concat")]
    assert len(pooled) > 4
    assert not any(node.output[0] in written for node in pooled)
    assert all(weight_kinds(on_tensorrt))


def test_what_has_narrow_layers_only_is_quantized_all_the_same() -> None:
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["n", c, 8, 8]) for n, c in (("pixels", 3), ("features", 4)))
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    layer = onnx.helper.make_node("Conv", ["pixels", "w"], ["features"], name="layer")
    graph = onnx.helper.make_graph([layer], "g", [x], [y], [weight])
    assert kept_float(graph, Profile.CPU) == []
    graph.node.add().CopyFrom(onnx.helper.make_node("Conv", ["features", "v"], ["more"], name="wide"))
    graph.initializer.add().CopyFrom(numpy_helper.from_array(np.ones((16, 8, 1, 1), np.float32), "v"))
    assert kept_float(graph, Profile.CPU) == ["layer"]
    assert kept_float(graph, Profile.TENSORRT) == []


@pytest.mark.parametrize(("name", "narrow"), [("builtin", 2), ("resnet18", 0), ("test_vit", 0)])
def test_training_for_int8_leaves_the_same_layers_float(name: str, narrow: int) -> None:
    network = load_backbone(name, "none", input_size_px=SIDE)
    left = left_float(network.module, Profile.CPU)
    kept = kept_float(prepare(to_onnx(network)).model.graph, Profile.CPU)
    assert len(left) == sum(node.startswith("node_Conv") for node in kept) == narrow
    assert left_float(network.module, Profile.TENSORRT) == set()


def test_the_layer_that_int8_harms_is_found_and_left_out(
    prepared: Prepared, ranges: Ranges, model: bytes, pixels: Pixels
) -> None:
    reference = OnnxBackbone(model).features(pixels[:6])
    nodes = list(prepared.model.graph.node)
    readers = [name for node in nodes for name in node.input]
    # A layer that alone reads its input. Untrained branches end in zeros: one of the stem.
    layer = next(n for n in nodes if n.name in prepared.layers[1:-1] and readers.count(n.input[0]) == 1)
    seen = {name: tuple(td.range_value) for name, td in ranges.of_tensor.items()}
    # As if calibration had seen one outlier three hundred times as large as anything else.
    low, high = seen[layer.input[0]]
    seen[layer.input[0]] = (low * 300, high * 300)
    harmed = Ranges(Method.MINMAX, TensorsData(CalibrationMethod.MinMax, seen))
    found = find_sensitive(prepared, harmed, Profile.TENSORRT, reference, pixels[:6], wanted=0.999, budget_s=600.0)
    victim = layer.name
    assert found.excluded == (victim,)
    assert found.cosine > 0.99 > found.base_cosine
    assert feature_cosine(reference, np.zeros_like(reference)) == 0.0  # what is lost wholly is not "equal"
    assert max(found.units, key=lambda unit: unit.cosine).layers == (victim,)
    without = to_int8(prepared, ranges, Profile.TENSORRT, SIZE, without=found.excluded)
    assert faults(onnx.load_from_string(without), Profile.TENSORRT) == []
    assert growth(prepared, found.excluded) <= GROWTH


def test_with_little_time_layers_are_tried_in_blocks(prepared: Prepared, ranges: Ranges, pixels: Pixels) -> None:
    clock = iter(np.arange(0, 1e6, 10.0))
    reference = np.ones((1, SIZE), np.float32)
    found = find_sensitive(
        prepared, ranges, Profile.CPU, reference, pixels[:1], wanted=1.0, budget_s=1.0, clock=lambda: next(clock)
    )
    assert len(found.units) == 4
    assert sum(len(unit.layers) for unit in found.units) == len(prepared.layers)
    assert found.excluded == ()  # the time was over
    assert [len(layers) for layers, _ in units_of(prepared, 1000)] == [1] * len(prepared.layers)


def test_a_layer_that_is_not_there_cannot_be_left_out(prepared: Prepared) -> None:
    with pytest.raises(CalibrationFailed, match="no layer"):
        growth(prepared, ("conv_nowhere",))


# --- Fine-tuning, fp16, parity


def test_fine_tuning_for_int8_leaves_the_given_backbone_alone_and_plans_within_its_budget(
    backbone: Backbone, frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], pixels: Pixels
) -> None:
    before = {name: weight.clone() for name, weight in backbone.module.state_dict().items()}
    seconds = iter(np.arange(0, 1e6, 1.0))
    trained, outcome = finetune_for_int8(
        backbone, frames, np.arange(24), Profile.TENSORRT, seed=0, budget_s=1.0, clock=lambda: next(seconds)
    )
    assert outcome.steps == MIN_STEPS
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.module.state_dict().items())
    assert set(trained.module.state_dict()) == set(before)
    assert any(not torch.equal(w, before[name]) for name, w in trained.module.state_dict().items())
    with torch.inference_mode():
        old, new = (b.module(torch.from_numpy(pixels)).numpy() for b in (backbone, trained))
    assert feature_cosine(old, new) > 0.99  # it learned to bear int8, not to see otherwise


def test_fine_tuning_that_diverges_is_refused(
    backbone: Backbone, frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    broken = load_backbone("test_resnet", "none", input_size_px=SIDE, levels=1)
    with torch.no_grad():
        next(broken.module.parameters()).fill_(float("nan"))
    with pytest.raises(ExportError, match=r"diverged|does not take"):
        finetune_for_int8(broken, frames, np.arange(len(frames)), Profile.CPU, seed=0, steps=2)


def test_fp16_halves_the_file_and_keeps_input_and_output(model: bytes, pixels: Pixels) -> None:
    half = to_fp16(model, SIZE)
    assert len(half) < 0.55 * len(model)
    found = check_form("fp16", OnnxBackbone(model).features(pixels), OnnxBackbone(half).features(pixels))
    assert found.cosine > 0.9999


def test_parity_refuses_features_that_have_nothing_to_do_with_fp32s(model: bytes, pixels: Pixels) -> None:
    features = OnnxBackbone(model).features(pixels)
    for precision, allowed in TOLERANCES.items():
        assert allowed.reason
        with pytest.raises(ParityFailed, match="cosine"):
            check_form(
                precision, features, features * np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
            )
    with pytest.raises(ParityFailed, match="give features"):
        difference(features, features[:, :5])


# --- Two forms on the same images


def left_out(right: list[bool], groups: list[int], labels: list[int]) -> tuple[LeftOut, Calibration]:
    """Return decisions that are right or wrong as listed, of samples numbered in order."""
    truth, n = np.array(labels, np.int64), len(right)
    scores = np.zeros((n, 2))
    scores[np.arange(n), np.where(right, truth, 1 - truth)] = 1
    samples = tuple(bytes([i]) * 32 for i in range(n))
    ids = (b"a" * 16, b"b" * 16)
    found = LeftOut(ids, truth, np.array(groups, np.int64), scores, np.zeros(n), np.zeros(n, bool), samples)
    return found, Calibration(1.0, 1e9, 0.02, 2)


def test_a_difference_is_balanced_over_classes_and_its_error_counts_groups() -> None:
    groups, labels = [0, 0, 1, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 1, 1, 1]
    all_right = left_out([True] * 8, groups, labels)
    assert paired(all_right, all_right) == Paired(0.0, 0.0, 8)
    one_group = left_out([False, False, True, True, True, True, True, True], groups, labels)
    found = paired(all_right, one_group)
    assert found.difference == pytest.approx(-0.25)
    # Class 0: residuals of its two groups are -1 and 1, n = 4, so its variance is 2 * 2 / 16; halved over classes.
    assert found.error == pytest.approx(0.25)
    assert (found.lost, found.gained) == (1, 0)
    assert not found.loses(0.005)
    every = paired(all_right, left_out([False] * 8, groups, labels))
    assert (every.loss, every.error, every.lost) == (1.0, 0.0, 6)
    assert every.loses(0.005)
    assert paired(left_out([False] * 8, groups, labels), all_right).gains(0.005)


@pytest.mark.parametrize(("wrong", "more_than_chance"), [(1, False), (2, False), (3, True)])
def test_an_image_or_two_decided_otherwise_are_chance(wrong: int, more_than_chance: bool) -> None:
    for each in range(
        10, 40
    ):  # groups of one image: the standard error of one image is the very loss, but for rounding
        groups, labels = list(range(2 * each)), [0] * each + [1] * each
        right = left_out([True] * 2 * each, groups, labels)
        worse = left_out([i >= wrong for i in range(2 * each)], groups, labels)
        assert paired(right, worse).loss == pytest.approx(wrong / each / 2)
        assert paired(right, worse).loses(0.005) is more_than_chance
        assert paired(worse, right).gains(0.005) is more_than_chance


def test_forms_judged_on_different_images_are_compared_on_those_they_share() -> None:
    first = left_out([True] * 4, [0, 1, 2, 3], [0, 0, 1, 1])
    short = left_out([False, True], [0, 1], [0, 0])
    assert paired(first, short) == Paired(-0.5, 0.5, 2, lost=1)
    elsewhere = replace(short[0], samples=(b"x" * 32, b"y" * 32)), short[1]
    assert paired(first, elsewhere) == Paired(0.0, 0.0, 0)


def form_of(features: npt.NDArray[np.float32], cosine: float, wrong: int, fitted: int = 0) -> Form:
    """Return a form judged on images `fitted` to 39, one a group; `wrong` of them from 32 on are not right."""
    judged = range(fitted, 40)
    right = [i not in range(32, 32 + wrong) for i in judged]
    found, calibration = left_out(right, list(judged), [i % 2 for i in judged])
    found = replace(found, samples=tuple(bytes([i]) * 32 for i in judged))
    moments = Moments(2)
    moments.add(np.array([[3, 4], [4, 3]], np.int8), [b"a" * 16, b"b" * 16])
    head, said = solve(moments, calibration=calibration), score(found, calibration)
    codes, mask = np.zeros((40, 2), np.int8), np.arange(40) < fitted
    return Form("int8", Profile.CPU, "", b"", features, 1.0, codes, mask, head, said, said, found, cosine=cosine)


@pytest.mark.parametrize(
    ("cosine", "wrong", "trained_wrong", "turned", "taken", "because"),
    [
        (0.9996, 1, 0, 0.0, False, "one image more is chance, and 32 images fewer could be judged"),
        (0.9996, 0, 0, 0.0, False, "nothing is gained"),
        (0.9996, 4, 0, 0.1, True, "better beyond chance on the images it was not fine-tuned on"),
        (0.90, 0, 0, 0.0, True, "the features were far from fp32's, and are nearer"),
        (0.90, 0, 0, 0.9, False, "they are no nearer on images that it was not fine-tuned on"),
        (0.90, 0, 4, 0.0, False, "nearer, but worse beyond chance"),
    ],
)
def test_what_was_fine_tuned_for_int8_is_taken_where_it_is_better_beyond_chance(
    cosine: float, wrong: int, trained_wrong: int, turned: float, taken: bool, because: str
) -> None:
    def features(angle: float) -> npt.NDArray[np.float32]:
        return np.tile(np.array([np.cos(angle), np.sin(angle)], np.float32), (40, 1))

    exact = features(0.0)
    by_heart = np.concatenate([exact[:32], features(turned)[32:]])  # it was fine-tuned on 32 of them
    untrained = form_of(features(float(np.arccos(cosine))), cosine, wrong)
    trained = form_of(by_heart, 0.99, trained_wrong, fitted=32)
    assert worth_training(form_of(exact, 1.0, 0), untrained, trained) is taken, because


@pytest.mark.parametrize(
    ("loses", "method"),
    [([False] * 3, Method.MINMAX), ([True, False, False], Method.PERCENTILE), ([True] * 3, Method.MINMAX)],
)
def test_ranges_are_chosen_by_cosine_and_not_by_the_best_of_three_scores(
    loses: list[bool], method: Method
) -> None:
    figures = zip((0.9985, 0.9981, 0.9971), (0.829, 0.853, 0.792), loses, strict=True)
    tried = [Tried(Ranges(each, TensorsData(CalibrationMethod.MinMax, {})), *of)
             for each, of in zip(Method, figures, strict=True)]  # fmt: skip
    assert nearest(tried).ranges.method is method


@pytest.mark.parametrize(("loss", "size", "met"), [(0.4, 0.29, True), (0.6, 0.29, False), (0.4, 0.31, False)])
def test_the_benchmark_says_whether_a_target_is_met(
    capsys: pytest.CaptureFixture[str], loss: float, size: float, met: bool
) -> None:
    def row(form: str, share: float, ms: float, accuracy: float) -> Row:
        return Row(
            form=form, size=share, size_before_exclusions=share, latency_ms=ms, cosine=0.9, accuracy=accuracy,
            excluded=0, qat=False, how="",
        )  # fmt: skip

    splits = [
        Split(images=10, held_out=10, rows=[row("fp32", 1.0, 10.0, 90.0), row("int8", size, 5.0, 90.0 - change)])
        for change in (loss - 0.1, loss + 0.1)
    ]
    assert show("neu_det", "a backbone", splits) is met
    told = capsys.readouterr().out
    assert ("MISSED" in told) is not met
    assert "0.50 of fp32's time" in told


@pytest.mark.parametrize(("most", "groups"), [(2, {"p", "q"}), (3, {"p", "q", "r"}), (0, {"p", "q", "r"})])
def test_the_benchmark_takes_few_images_of_many_groups(most: int, groups: set[str]) -> None:
    @dataclass
    class Image:
        label: str
        group: str

    @dataclass
    class Images:
        images: list[Image]

    images = Images([Image("pit", group) for group in "ppppqqrs"])
    parts = [Part.TRAIN] * 7 + [Part.TEST]
    taken = some_rows(images, parts, True, most)
    assert {images.images[row].group for row in taken} == groups
    assert len(taken) == (most or 7)
    assert some_rows(images, parts, False, most) == [7]
