"""The graphs that tests share: the very ones that torch writes, and never one of another backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from export.backbones import Backbone, load_backbone
from export.graph import to_onnx
from tests.graphs import kept_in, key_of

pytestmark = pytest.mark.torch


def backbone() -> Backbone:
    return load_backbone("test_resnet", "none", input_size_px=32, levels=1)


def test_a_kept_graph_is_the_one_that_torch_writes(tmp_path: Path) -> None:
    alone = to_onnx(backbone())
    with kept_in(tmp_path):
        assert to_onnx(backbone()) == alone
        assert to_onnx(backbone()) == alone
        assert len(list(tmp_path.iterdir())) == 1
        to_onnx(load_backbone("test_resnet", "none", input_size_px=32, levels=1, seed=1))
    assert len(list(tmp_path.iterdir())) == 2


def weight(module: torch.nn.Module) -> None:
    next(module.parameters()).data.view(-1)[0] += 1e-6


def attribute(module: torch.nn.Module) -> None:
    norm = next(each for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d))
    norm.eps *= 2


def mode(module: torch.nn.Module) -> None:
    module.train()


@pytest.mark.parametrize("change", [weight, attribute, mode])
def test_a_module_that_is_changed_has_another_key(change: Callable[[torch.nn.Module], None]) -> None:
    one, other = backbone().module.eval(), backbone().module.eval()
    assert key_of(one) == key_of(other) is not None
    change(other)
    assert key_of(one) != key_of(other)


def test_another_question_has_another_key_and_what_cannot_be_told_has_none() -> None:
    assert key_of(torch.zeros(2, 3)) != key_of(torch.zeros(3, 2)) != key_of(torch.zeros(3, 2, dtype=torch.int32))
    assert key_of({"opset_version": 18}) != key_of({"opset_version": 19})
    assert key_of(lambda: None) is None
