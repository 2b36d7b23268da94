"""Preprocessing, codes and splits: the small definitions that everything rests on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdk.codes import code_digest, encode, feature_space_id, fit_scale, rooted
from sdk.errors import FeatureSizeError
from sdk.preprocess import Preprocess, resize
from sdk.splits import Part, split

FEATURES = arrays(np.float32, (4, 6), elements=st.floats(-100, 100, width=32))


@given(FEATURES)
@settings(deadline=None)
def test_codes_follow_the_sign_and_order_of_features(
    features: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> None:
    codes = encode(features, 0.5)
    assert ((codes > 0) <= (features > 0)).all()
    assert ((codes < 0) <= (features < 0)).all()
    for code, row in zip(codes, features, strict=True):
        assert (np.diff(code[np.argsort(row)].astype(int)) >= 0).all()


def test_scaling_all_features_changes_no_code() -> None:
    features = np.random.default_rng(0).exponential(size=(5, 16)).astype(np.float32)
    assert (encode(features, 0.4) == encode(features * 8, 0.4)).all()


def test_a_black_frame_has_a_code_of_zeros() -> None:
    assert not encode(np.zeros((1, 8), np.float32), 0.5).any()


def test_the_scale_clips_one_value_in_ten_thousand() -> None:
    features = np.random.default_rng(0).exponential(size=(400, 100)).astype(np.float32)
    scale = fit_scale(features)
    assert np.isclose((np.abs(rooted(features)) > scale).mean(), 1e-4, atol=5e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features = np.ones((2, 4), np.float32)
    features[1, 2] = value
    with pytest.raises(FeatureSizeError, match="finite"):
        encode(features, 0.5)
    with pytest.raises(ValueError, match="finite"):
        fit_scale(features)


def test_nothing_to_fit_a_scale_on_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        fit_scale(np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match="empty"):
        fit_scale(np.zeros((0, 4), np.float32))
    with pytest.raises(FeatureSizeError):
        encode(np.zeros(4, np.float32), 0.5)


def test_any_change_is_another_feature_space() -> None:
    one = feature_space_id("00" * 32, Preprocess(), 0.5)
    others = {
        feature_space_id("01" * 32, Preprocess(), 0.5),
        feature_space_id("00" * 32, Preprocess(height=192), 0.5),
        feature_space_id("00" * 32, Preprocess(), np.nextafter(0.5, 1)),
    }
    assert len(others | {one}) == 4


def test_equal_codes_have_equal_digests_whatever_their_memory() -> None:
    codes = np.arange(12, dtype=np.int8).reshape(3, 4)
    assert code_digest(codes[:, 1]) == code_digest(codes[:, 1].copy())


def test_the_tensor_is_red_green_blue_normalised() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[:, :, 2] = 255
    tensor = Preprocess(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).apply(frame)
    np.testing.assert_allclose(tensor[0, :, 7, 9], [1, -1, -1], atol=1e-6)


def test_a_pixel_wide_scratch_survives_shrinking() -> None:
    """Area averaging keeps it; plain bilinear sampling of every fourth pixel could miss it."""
    visible = []
    for column in range(100, 108):
        frame = np.full((896, 896, 3), 128, np.uint8)
        frame[:, column] = 255
        tensor = Preprocess(height=224, width=224).apply(frame)
        visible.append(np.ptp(tensor[0, 0, 100]))
    assert min(visible) > 0.8 * max(visible) > 0


@pytest.mark.parametrize("shape", [(32, 48, 3), (20, 31, 3), (200, 150, 3)])
def test_a_tensor_has_the_bits_of_the_plain_formula(shape: tuple[int, int, int]) -> None:
    """Whether it is looked up or computed: releases of before were learned from the latter."""
    preprocess = Preprocess(height=32, width=48, mean=(0.485, 0.1, 0.9), std=(0.229, 1.0, 0.01))
    backwards = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)[::-1, ::-1]
    for frame in (backwards, np.ascontiguousarray(backwards)):
        rgb = resize(frame, 32, 48)[:, :, ::-1].astype(np.float32)
        mean, std = np.array(preprocess.mean, np.float32) * 255, np.array(preprocess.std, np.float32) * 255
        plain = ((rgb - mean) * (np.float32(1) / std)).transpose(2, 0, 1)[None]
        tensor = preprocess.apply(frame)
        assert np.array_equal(tensor, plain)
        assert tensor.flags.c_contiguous
        assert tensor.dtype == np.float32
        batch = np.zeros((2, 3, 32, 48), np.float32)
        preprocess.apply(frame, out=batch[1:])
        assert np.array_equal(batch[1:], plain)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((1, 3, 32, 33), np.float32),
        np.zeros((1, 3, 32, 32)),
        np.zeros((1, 3, 64, 32), np.float32)[:, :, ::2],
    ],
)
def test_a_tensor_that_would_not_be_written_is_refused(
    out: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    with pytest.raises(ValueError, match="in one piece"):
        Preprocess(height=32, width=32).apply(np.zeros((40, 40, 3), np.uint8), out=out)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    with pytest.raises(ValueError, match="a frame is"):
        Preprocess().apply(frame)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=1, max_size=120),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_groups_are_never_divided_and_order_does_not_matter(
    samples: list[tuple[int, str]], seed: int, random: object
) -> None:
    order = list(range(len(samples)))
    random.shuffle(order)  # type: ignore[attr-defined]
    parts = split([f"g{g}" for g, _ in samples], [c for _, c in samples], seed)
    shuffled = split([f"g{samples[i][0]}" for i in order], [samples[i][1] for i in order], seed)
    assert [parts[i] for i in order] == list(shuffled)
    by_group: dict[int, set[Part]] = {}
    for (group, _), part in zip(samples, parts, strict=True):
        by_group.setdefault(group, set()).add(part)
    assert all(len(seen) == 1 for seen in by_group.values())


def test_shares_are_kept_in_every_class() -> None:
    labels = ["rare"] * 20 + ["frequent"] * 400
    parts = split([f"g{i}" for i in range(420)], labels)
    for name, n in (("rare", 20), ("frequent", 400)):
        count = Counter(p for p, label in zip(parts, labels, strict=True) if label == name)
        assert count == {Part.TRAIN: n * 0.4, Part.VALIDATION: n * 0.1, Part.STREAM: n / 4, Part.TEST: n / 4}


def test_another_seed_is_another_split() -> None:
    groups, labels = [f"g{i}" for i in range(40)], ["a"] * 40
    assert list(split(groups, labels, 0)) != list(split(groups, labels, 1))


def test_groups_and_labels_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="groups"):
        split(["a"], [])
