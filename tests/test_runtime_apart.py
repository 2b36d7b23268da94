"""A release is tried in a process of its own first: what asks for endless memory or time ends there."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from device_agent.runtime.apart import try_apart
from sdk.bundle import Bundle
from sdk.errors import InferenceFailed
from tests.tiny import backbone, tiny_bundle, with_backbone

ALLOWED_MIB = 200
"""By which the process that serves may grow while a release is tried."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("apart") / "bundle")


def changed(bundle: Bundle, out: Path, harm: Callable[[onnx.ModelProto], None]) -> Bundle:
    """Return the bundle with a backbone to which something was done."""
    model = onnx.load_from_string(backbone())
    harm(model)
    return with_backbone(bundle, out, bytes(model.SerializeToString()))


def number(model: onnx.ModelProto, name: str, value: npt.NDArray[np.generic]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def added(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes after the backbone; the last one's result is summed into the features."""
    model.graph.node.extend(nodes)
    features = model.graph.output[0].name
    number(model, "nothing", np.zeros((), np.float32))
    model.graph.node.append(helper.make_node("ReduceMax", [nodes[-1].output[0]], ["largest"], keepdims=0))
    model.graph.node.append(helper.make_node("Mul", ["largest", "nothing"], ["no_more"]))
    model.graph.node.append(helper.make_node("Add", [features, "no_more"], ["with_it"]))
    model.graph.output[0].name = "with_it"


def expanded_when_opened(model: onnx.ModelProto) -> None:
    """64 GiB, folded while the file is opened."""
    number(model, "one", np.ones(1, np.float32))
    number(model, "shape", np.array([2**17, 2**17], np.int64))
    added(model, helper.make_node("Expand", ["one", "shape"], ["wide"]))


def expanded_by_arithmetic(model: onnx.ModelProto) -> None:
    """The same, of a shape that is nowhere in the file."""
    number(model, "one", np.ones(1, np.float32))
    number(model, "side", np.array([2**9, 2**9], np.int64))
    number(model, "square", np.array([2**8, 2**8], np.int64))
    shape = helper.make_node("Mul", ["side", "square"], ["shape"])
    added(model, shape, helper.make_node("Expand", ["one", "shape"], ["wide"]))


def tiled_when_run(model: onnx.ModelProto) -> None:
    """The features, 2^30 times."""
    number(model, "times", np.array([1, 2**30], np.int64))
    added(model, helper.make_node("Tile", [model.graph.output[0].name, "times"], ["long"]))


def constant_of_shape(model: onnx.ModelProto) -> None:
    number(model, "shape", np.array([2**34], np.int64))
    added(model, helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))


def for_ever(model: onnx.ModelProto) -> None:
    """Some days of matrix products in 64 MiB."""
    number(model, "one", np.ones(1, np.float32))
    number(model, "shape", np.array([4096, 4096], np.int64))
    nodes = [helper.make_node("Expand", ["one", "shape"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(20_000)]
    added(model, *nodes)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_good_release_passes(bundle: Bundle) -> None:
    try_apart(bundle)


@pytest.mark.parametrize("harm", [expanded_when_opened, expanded_by_arithmetic, tiled_when_run, constant_of_shape])
def test_a_backbone_that_needs_too_much_memory_is_refused(
    harm: Callable[[onnx.ModelProto], None], bundle: Bundle, tmp_path: Path
) -> None:
    bad, before = changed(bundle, tmp_path / "bad", harm), peak_mib()
    with pytest.raises(InferenceFailed, match=r"ONNX Runtime|memory|ended the process") as caught:
        try_apart(bad)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert peak_mib() - before < ALLOWED_MIB


def test_a_backbone_that_does_not_end_is_ended(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InferenceFailed, match="does not end in 3 s"):
        try_apart(changed(bundle, tmp_path / "bad", for_ever), max_seconds=3)


def other_weights(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[::-1].copy(), weights.name))


def test_a_backbone_of_other_figures_is_refused_in_its_own_words(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InferenceFailed, match="golden inputs"):
        try_apart(changed(bundle, tmp_path / "bad", other_weights))


def one_gib(model: onnx.ModelProto) -> None:
    number(model, "one", np.ones(1, np.float32))
    number(model, "shape", np.array([2**14, 2**14], np.int64))
    added(model, helper.make_node("Expand", ["one", "shape"], ["wide"]))


def test_it_is_the_limit_that_refuses(bundle: Bundle, tmp_path: Path) -> None:
    """This machine has that memory: with more allowed, the very same backbone passes."""
    greedy = changed(bundle, tmp_path / "greedy", one_gib)
    with pytest.raises(InferenceFailed):
        try_apart(greedy, extra_memory=2**29)
    try_apart(greedy, extra_memory=4 * 2**30)
