"""The bundle format: one way to be right, and every other way refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from sdk.bundle import (
    BaseSamples,
    Bundle,
    PicturesEntry,
    decode_manifest,
    encode_manifest,
    write_bundle,
)
from sdk.codes import code_digest
from sdk.errors import BadFormat, BadSignature, BundleError, Incompatible
from sdk.moments import Moments
from sdk.splits import Part
from tests.builders import make_bundle, with_exemplars


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def test_a_bundle_gives_back_what_was_written(bundle: Bundle) -> None:
    base, golden = bundle.base(), bundle.golden()
    assert base.codes.shape == (24, 32)
    assert len(set(base.samples)) == 24
    assert set(base.class_ids) == set(bundle.class_names())
    assert golden.codes.shape == (len(golden.frames), 32)
    assert set(bundle.parts().values()) <= set(Part)
    assert len(bundle.space()) == 64


def test_samples_survive_a_round_trip_whatever_their_groups() -> None:
    groups = ["a", "größer/teil-1", "x" * 100]
    base = BaseSamples(
        [bytes([i]) * 32 for i in range(3)],
        [bytes(16)] * 3,
        groups,
        np.arange(6, dtype=np.int8).reshape(3, 2),
        np.array([True, False, True]),
    )
    again = BaseSamples.from_bytes(base.to_bytes(), "samples", 2)
    assert again.groups == groups
    assert again.samples == base.samples
    assert (again.codes == base.codes).all()
    assert again.fitted.tolist() == [True, False, True]


def test_a_flipped_bit_is_noticed_wherever_it_is(bundle: Bundle) -> None:
    """60 places of each file: nothing opens. A manifest that still reads has another digest."""
    rng = np.random.default_rng(0)
    digest = bundle.digest()
    for name in bundle.file_names():
        file = bundle.path / name
        whole = file.read_bytes()
        for position in rng.integers(0, len(whole), 60):
            broken = bytearray(whole)
            broken[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(broken)
            try:
                opened = Bundle.open(bundle.path)
            except BundleError:
                continue
            assert name == "manifest.json"
            assert opened.digest() != digest
        file.write_bytes(whole)
    assert Bundle.open(bundle.path).digest() == digest


def test_a_file_changed_after_opening_is_not_used(bundle: Bundle) -> None:
    file = bundle.path / "backbone.fp32.onnx"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadSignature):
        bundle.backbone()


def remove(path: Path) -> None:
    (path / "golden.safetensors").unlink()


def add(path: Path) -> None:
    (path / "extra.bin").write_bytes(b"x")


def link(path: Path) -> None:
    file = path / "golden.safetensors"
    target = path.parent / "elsewhere"
    file.rename(target)
    file.symlink_to(target)


def folder(path: Path) -> None:
    (path / "golden.safetensors").unlink()
    (path / "golden.safetensors").mkdir()


def shorten(path: Path) -> None:
    with (path / "golden.safetensors").open("r+b") as file:
        file.truncate(10)


def pipe(path: Path) -> None:
    (path / "golden.safetensors").unlink()
    os.mkfifo(path / "golden.safetensors")


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"")


def huge_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b" " * (1024 * 1024 + 1))


@pytest.mark.parametrize(
    "damage", [remove, add, link, folder, shorten, pipe, no_manifest, empty_manifest, huge_manifest]
)
def test_a_directory_that_is_not_exactly_the_bundle_is_refused(
    bundle: Bundle, damage: Callable[[Path], None]
) -> None:
    damage(bundle.path)
    with pytest.raises(BadFormat) as caught:
        Bundle.open(bundle.path)
    assert caught.value.hint


Edit = Callable[[dict[str, Any]], object]


def edited(bundle: Bundle, edit: Edit) -> bytes:
    tree = json.loads(encode_manifest(bundle.manifest))
    edit(tree)
    return msgspec.json.encode(tree, order="sorted")


EDITS: dict[str, Edit] = {
    "a name that climbs": lambda t: t["files"][0].update(name="../x"),
    "a dot name": lambda t: t["files"][0].update(name=".."),
    "an absolute name": lambda t: t["files"][0].update(name="/etc/passwd"),
    "a look-alike name": lambda t: t["files"][0].update(name="bаckbone"),
    "an upper-case name": lambda t: t["files"][0].update(name="A.onnx"),
    "a name twice": lambda t: t["files"].append(t["files"][0]),
    "the manifest itself": lambda t: t["files"][0].update(name="manifest.json"),
    "no files": lambda t: t.update(files=[]),
    "too many files": lambda t: t.update(files=t["files"] * 40),
    "a negative size": lambda t: t["files"][0].update(size_bytes=-1),
    "a huge size": lambda t: t["files"][0].update(size_bytes=2**40),
    "sizes huge together": lambda t: [f.update(size_bytes=2**31) for f in t["files"]],
    "a float for a version": lambda t: t.update(format=1.0),
    "a text for a version": lambda t: t.update(format="1"),
    "an integer beyond 64 bits": lambda t: t["split"].update(seed=2**70),
    "an unknown member": lambda t: t.update(surprise=1),
    "a missing member": lambda t: t.pop("classes"),
    "a class id twice": lambda t: t["classes"].append({"id": t["classes"][0]["id"], "name": "other"}),
    "a class name twice": lambda t: t["classes"].append({"id": "f" * 32, "name": t["classes"][0]["name"]}),
    "an unnamed class": lambda t: t["classes"][0].update(name=""),
    "no classes": lambda t: t.update(classes=[]),
    "another code scale": lambda t: t["precisions"][0].update(code_scale=0.123),
    "a zero code scale": lambda t: t["precisions"][0].update(code_scale=0.0),
    "another preprocessing": lambda t: t["preprocess"].update(height=32),
    "a giant input": lambda t: t["preprocess"].update(height=100_000),
    "a zero deviation": lambda t: t["preprocess"].update(std=[0.0, 1.0, 1.0]),
    "an unknown precision": lambda t: t["precisions"][0].update(precision="int3"),
    "no precision": lambda t: t.update(precisions=[]),
    "a precision twice": lambda t: t["precisions"].append(t["precisions"][0]),
    "a backbone not listed": lambda t: t["precisions"][0].update(backbone="other.onnx"),
    "a digest too short": lambda t: t["files"][0].update(sha256="00"),
    "an upper-case digest": lambda t: t["files"][0].update(sha256="A" * 64),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_manifest_that_breaks_the_format_is_refused(bundle: Bundle, case: str) -> None:
    with pytest.raises(BadFormat) as caught:
        decode_manifest(edited(bundle, EDITS[case]))
    assert "\n" not in str(caught.value)


PICTURES = {"width": 640, "height": 480}


def test_a_bundle_that_says_how_large_its_pictures_were_is_format_3(bundle: Bundle) -> None:
    said = decode_manifest(edited(bundle, lambda t: t.update(format=3, pictures=PICTURES)))
    assert said.pictures == PicturesEntry(width=640, height=480)
    assert bundle.manifest.pictures is msgspec.UNSET


@pytest.mark.parametrize(
    ("version", "pictures"),
    [
        (1, PICTURES),
        (2, PICTURES),
        (3, None),
        (3, {"width": 640}),
        (3, {"width": 0, "height": 480}),
        (3, {"width": 65_536, "height": 480}),
        (3, {**PICTURES, "depth": 3}),
    ],
)
def test_pictures_of_no_size_or_in_an_older_format_are_refused(
    bundle: Bundle, version: int, pictures: dict[str, int] | None
) -> None:
    with pytest.raises(BadFormat):
        decode_manifest(edited(bundle, lambda t: t.update(format=version, pictures=pictures)))


@pytest.mark.parametrize("format_version", [0, 4, 2**31])
def test_another_format_version_says_to_update(bundle: Bundle, format_version: int) -> None:
    with pytest.raises(Incompatible, match="format"):
        decode_manifest(edited(bundle, lambda t: t.update(format=format_version)))


@pytest.mark.parametrize(
    "spell",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data + b"\n",
        lambda data: data.replace(b'"format":1', b'"format": 1'),
        lambda data: data.replace(b'"format":1', b'"format":1,"format":1'),
        lambda data: data.replace(b'"seed":0', b'"seed":0,"seed":0'),
        lambda data: data.replace(b'"good"', b'"\\u0067ood"'),
        lambda data: data.decode().encode("utf-16"),
        lambda _: b"[" * 100_000,
        lambda data: b"\xff" + data,
    ],
    ids=[
        "byte-order mark",
        "newline",
        "space",
        "format twice",
        "seed twice",
        "escape",
        "UTF-16",
        "depth bomb",
        "not UTF-8",
    ],
)
def test_only_the_canonical_spelling_is_read(bundle: Bundle, spell: Callable[[bytes], bytes]) -> None:
    data = encode_manifest(bundle.manifest)
    assert decode_manifest(data) == bundle.manifest
    with pytest.raises(BadFormat):
        decode_manifest(spell(data))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(BundleError):
        decode_manifest(data)


def tensors(**changes: np.ndarray[Any, Any] | None) -> bytes:
    whole: dict[str, np.ndarray[Any, Any] | None] = {
        "sample_ids": np.arange(64, dtype=np.uint8).reshape(2, 32),
        "class_ids": np.zeros((2, 16), np.uint8),
        "groups": np.full((2, 1), 97, np.uint8),
        "codes": np.zeros((2, 4), np.int8),
        "fitted": np.zeros(2, np.uint8),
        **changes,
    }
    return save({name: value for name, value in whole.items() if value is not None})


@pytest.mark.parametrize(
    "data",
    [
        tensors(codes=None),
        tensors(codes=np.zeros((2, 5), np.int8)),
        tensors(codes=np.zeros((2, 4), np.float32)),
        tensors(codes=np.zeros((3, 4), np.int8)),
        tensors(sample_ids=np.zeros((2, 32), np.uint8)),
        tensors(sample_ids=np.zeros((2, 31), np.uint8)),
        tensors(class_ids=np.zeros((1, 16), np.uint8)),
        tensors(groups=np.full((2, 1), 255, np.uint8)),
        tensors(groups=np.full((2, 201), 97, np.uint8)),
        tensors(fitted=np.zeros((2, 1), np.uint8)),
        b"",
        b"\xff" * 40,
        tensors()[:-3],
    ],
)
def test_a_samples_file_that_does_not_add_up_is_refused(data: bytes) -> None:
    with pytest.raises(BadFormat):
        BaseSamples.from_bytes(data, "samples", 4)


# Exemplars and moments: more samples than codes


@pytest.fixture
def large(bundle: Bundle, tmp_path: Path) -> Bundle:
    """24 samples in groups of two, codes of 8."""
    return with_exemplars(bundle, tmp_path / "large", 8)


def test_moments_and_exemplars_are_the_bundle_with_all_codes(bundle: Bundle, large: Bundle) -> None:
    full, base = bundle.base(), large.base()
    assert (len(base.codes), len(base.summed), len(base.samples)) == (8, 16, 24)
    assert base.moments() == full.moments()
    assert large.precision().head == bundle.precision().head
    assert (large.manifest.format, bundle.manifest.format) == (2, 1)
    row_of = dict(zip(full.samples, zip(full.class_ids, full.groups, full.fitted, strict=True), strict=True))
    assert row_of == dict(
        zip(base.samples, zip(base.class_ids, base.groups, base.fitted, strict=True), strict=True)
    )
    codes = dict(zip(full.samples, full.codes, strict=True))
    for sample, code in zip(base.samples[:8], base.codes, strict=True):
        assert np.array_equal(code, codes[sample])
    assert base.summed == [code_digest(codes[sample]) for sample in base.samples[8:]]


def test_a_moments_file_is_read_as_the_format_page_says() -> None:
    """The example of docs/bundle.md, section 4.7: the file's layout cannot change in silence."""
    good, pit = b"g" * 16, b"p" * 16
    base = BaseSamples(
        samples=[b"1" * 32, b"2" * 32, b"3" * 32],
        class_ids=[good, good, pit],
        groups=["a", "a", "b"],
        codes=np.zeros((0, 2), np.int8),
        fitted=np.zeros(3, bool),
        summed=[bytes(32)] * 3,
    )
    example = {
        "class_ids": np.frombuffer(good + pit, np.uint8).reshape(2, 16),
        "counts": np.array([2, 1]),
        "sums": np.array([[4, -2], [-5, 6]]),
        "squares": np.array([30, 61]),
        "gram": np.array([35, -40, 56]),
    }
    moments = Moments(2)
    moments.add(np.array([[1, 2], [3, -4], [-5, 6]], np.int8), base.class_ids)
    whole = base.with_moments(save(example), "moments")
    assert whole.rest == moments
    written = load(whole.moments_bytes())
    assert {name: tensor.tolist() for name, tensor in written.items()} == {
        name: tensor.tolist() for name, tensor in example.items()
    }


def test_moments_that_were_not_read_are_not_made_up(large: Bundle) -> None:
    file = large.path / large.precision().samples
    unread = BaseSamples.from_bytes(file.read_bytes(), "samples", 32)
    assert unread.rest is None
    with pytest.raises(ValueError, match="not read"):
        unread.moments()


def forged(large: Bundle, name: str, data: bytes | None, **entry: object) -> Bundle:
    """Return a bundle whose file of that name holds other bytes, or is gone, every digest right."""
    files = {n: (large.path / n).read_bytes() for n in large.file_names() if n != "manifest.json"}
    files.pop(name)
    if data is not None:
        files[name] = data
    precision = msgspec.structs.replace(large.precision(), **entry)
    manifest = msgspec.structs.replace(large.manifest, precisions=[precision])
    return write_bundle(large.path.parent / "forged", files, manifest, replace=True)


MISFITS: dict[str, Edit] = {
    "moments in format 1": lambda t: t.update(format=1),
    "format 2 without moments": lambda t: t["precisions"][0].pop("moments"),
    "null for moments": lambda t: t["precisions"][0].update(moments=None),
    "moments not listed": lambda t: t["precisions"][0].update(moments="gone.safetensors"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_format_and_moments_go_together(large: Bundle, case: str) -> None:
    with pytest.raises(BadFormat):
        decode_manifest(edited(large, MISFITS[case]))


def test_a_bundle_with_all_codes_stays_format_1(bundle: Bundle) -> None:
    """Devices of an earlier version go on reading it."""
    assert b"moments" not in encode_manifest(bundle.manifest)
    assert bundle.manifest.format == 1
    with pytest.raises(BadFormat):
        decode_manifest(edited(bundle, lambda t: t.update(format=2)))


def test_samples_without_code_need_their_moments(bundle: Bundle, large: Bundle) -> None:
    with pytest.raises(BadFormat, match="no moments"):
        forged(large, "moments.fp32.safetensors", None, moments=msgspec.UNSET).base()
    samples = (bundle.path / "samples.fp32.safetensors").read_bytes()
    with pytest.raises(BadFormat, match="moments of no samples"):
        forged(large, "samples.fp32.safetensors", samples).base()


Tensors = dict[str, np.ndarray[Any, Any]]


def plus(tensors: Tensors, name: str, by: int) -> Tensors:
    """The first value, changed."""
    changed = tensors[name].copy()
    changed.flat[0] += by
    return tensors | {name: changed}


MOMENTS: dict[str, Callable[[Tensors], Tensors]] = {
    "no Gram matrix": lambda t: {name: tensor for name, tensor in t.items() if name != "gram"},
    "no counts": lambda t: {name: tensor for name, tensor in t.items() if name != "counts"},
    "a negative count": lambda t: plus(t, "counts", -100),
    "one sample too many": lambda t: plus(t, "counts", 1),
    "one sample too few": lambda t: plus(t, "counts", -1),
    "counts of floats": lambda t: t | {"counts": t["counts"].astype(np.float64)},
    "a Gram matrix of NaN": lambda t: t | {"gram": np.full(t["gram"].shape, np.nan)},
    "32-bit sums": lambda t: t | {"sums": t["sums"].astype(np.int32)},
    "sums of another d": lambda t: t | {"sums": t["sums"][:, 1:]},
    "the Gram matrix of another d": lambda t: t | {"gram": t["gram"][:-1]},
    "a square Gram matrix": lambda t: t | {"gram": np.zeros((32, 32), np.int64)},
    "a column of counts": lambda t: t | {"counts": t["counts"][:, None]},
    "a diagonal off by one": lambda t: plus(t, "gram", 1),
    "a class twice": lambda t: t | {"class_ids": t["class_ids"][[0, 0]]},
    "a class nobody has": lambda t: plus(t, "class_ids", 1),
    "a class left out": lambda t: t | {name: t[name][1:] for name in ("class_ids", "counts", "sums", "squares")},
    "classes changed about": lambda t: t | {"class_ids": t["class_ids"][::-1].copy()},
    "a count of half of all integers": lambda t: plus(t, "counts", 2**62),
    "the largest Gram matrix": lambda t: t | {"gram": np.full_like(t["gram"], 2**63 - 1)},
    "the smallest sums": lambda t: t | {"sums": np.full_like(t["sums"], -(2**63))},
}


@pytest.mark.parametrize("case", MOMENTS)
def test_moments_of_no_samples_are_refused(tmp_path: Path, case: str) -> None:
    uneven = make_bundle(tmp_path / "uneven", per_class={"good": 12, "scratch": 16})
    large = with_exemplars(uneven, tmp_path / "large", 8)
    tensors = load((large.path / "moments.fp32.safetensors").read_bytes())
    with pytest.raises(BadFormat) as caught:
        forged(large, "moments.fp32.safetensors", save(MOMENTS[case](tensors))).base()
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x08" + bytes(7) + b"[" * 8])
def test_any_bytes_are_no_moments(large: Bundle, data: bytes) -> None:
    with pytest.raises(BadFormat):
        forged(large, "moments.fp32.safetensors", data).base()


@pytest.mark.parametrize(
    "changes",
    [
        {"code_sha256": None},
        {"code_sha256": np.zeros((2, 32), np.uint8)},
        {"code_sha256": np.zeros((1, 31), np.uint8)},
        {"code_sha256": np.zeros((1, 32), np.int8)},
        {"codes": np.zeros((3, 4), np.int8), "code_sha256": np.zeros((1, 32), np.uint8)},
        {"groups": np.full((2, 1), 97, np.uint8), "code_sha256": np.zeros((1, 32), np.uint8)},
    ],
    ids=[
        "no digest",
        "two digests",
        "a short digest",
        "signed digests",
        "more codes than rows",
        "a divided group",
    ],
)
def test_rows_without_code_that_do_not_add_up_are_refused(changes: dict[str, Any]) -> None:
    one_code = {"codes": np.zeros((1, 4), np.int8), "groups": np.array([[97], [98]], np.uint8)}
    whole = BaseSamples.from_bytes(tensors(**one_code, code_sha256=np.zeros((1, 32), np.uint8)), "samples", 4)
    assert (len(whole.codes), whole.summed) == (1, [bytes(32)])
    with pytest.raises(BadFormat):
        BaseSamples.from_bytes(tensors(**{**one_code, **changes}), "samples", 4)


def test_an_existing_folder_is_not_overwritten(bundle: Bundle) -> None:
    files = {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != "manifest.json"}
    with pytest.raises(BadFormat, match="exists"):
        write_bundle(bundle.path, files, bundle.manifest)
    foreign = bundle.path.parent / "holiday-pictures"
    foreign.mkdir()
    with pytest.raises(BadFormat, match="exists"):
        write_bundle(foreign, files, bundle.manifest, replace=True)
    write_bundle(bundle.path, files, bundle.manifest, replace=True)


def test_a_refused_bundle_leaves_nothing_behind(bundle: Bundle) -> None:
    target = bundle.path.parent / "new"
    with pytest.raises(BadFormat):
        write_bundle(target, {"Not A Name": b""}, bundle.manifest)
    with pytest.raises(BadFormat):
        write_bundle(target, {"golden.safetensors": b""}, bundle.manifest)
    assert [p.name for p in bundle.path.parent.iterdir()] == ["bundle"]


def test_a_precision_it_does_not_have_is_named(bundle: Bundle) -> None:
    with pytest.raises(Incompatible, match="only fp32"):
        bundle.base("int8")
