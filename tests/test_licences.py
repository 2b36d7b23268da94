"""Licences: named as SPDX names them, refused where unknown or not allowed, accepted only on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sdk.bundle import Bundle, write_bundle
from sdk.errors import LicenceRefused
from sdk.licences import ALLOWED, LIST_NAME, RECORD_NAME, Ruling, allowed, normalise, read_list, rule
from tests.commands import headway
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("licences") / "plain", per_class=8)


def licensed(plain: Bundle, out: Path, licence: str, **lineage: Any) -> Bundle:
    """Write a bundle whose weights state a licence."""
    changed = msgspec.structs.replace(
        plain.manifest.lineage,
        **{
            "weights_licence": licence,
            "weights_sha256": "ab" * 32,
            "weights_source": "file w.safetensors",
            **lineage,
        },
    )
    names = [name for name in plain.file_names() if name != "manifest.json"]
    files = {name: (plain.path / name).read_bytes() for name in names}
    return write_bundle(out, files, msgspec.structs.replace(plain.manifest, lineage=changed))


@pytest.mark.parametrize(
    ("text", "spdx"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("MIT", "MIT"),
        ("bsd-3-clause", "BSD-3-Clause"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("gpl-3.0", "GPL-3.0-only"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("apache-2.0 with llvm-exception", "Apache-2.0 WITH LLVM-exception"),
    ],
)
def test_what_hubs_write_is_named_as_spdx_does(text: str, spdx: str) -> None:
    assert normalise(text) == spdx


@pytest.mark.parametrize(
    "text",
    ["unknown", "", "other", "dinov3-license", "MIT OR", "(((", "see LICENSE", "not applicable", "MIT WITH x"],
)
def test_what_is_no_spdx_licence_is_none_and_never_allowed(text: str) -> None:
    assert normalise(text) is None
    assert not allowed(text)


@pytest.mark.parametrize(
    ("text", "list_", "verdict"),
    [
        ("mit", ALLOWED, True),
        ("cc-by-nc-4.0", ALLOWED, False),
        ("GPL-3.0-only OR mit", ALLOWED, True),
        ("mit AND cc-by-nc-4.0", ALLOWED, False),
        ("mit AND bsd-3-clause", ALLOWED, True),
        ("(mit AND gpl-3.0) OR isc", ALLOWED, True),
        ("(mit OR gpl-3.0) AND cc-by-nc-4.0", ALLOWED, False),
        ("apache-2.0 WITH llvm-exception", ALLOWED, False),
        ("apache-2.0 WITH llvm-exception", ("Apache-2.0 WITH LLVM-exception",), True),
        ("mit", (), False),
    ],
)
def test_any_of_an_or_and_all_of_an_and(text: str, list_: tuple[str, ...], verdict: bool) -> None:
    assert allowed(text, list_) is verdict


def test_random_weights_need_no_licence(plain: Bundle) -> None:
    assert rule(plain, (), ()) == Ruling("none", None, None)


@pytest.mark.parametrize(
    ("licence", "words", "hint"),
    [
        ("unknown", "'unknown' of its weights (file w.safetensors) is unknown", "--accept-licence unknown,"),
        ("cc-by-nc-4.0", "is CC-BY-NC-4.0, which is not on the list", "--accept-licence CC-BY-NC-4.0,"),
        ("dinov3-license", "is no SPDX id", "--accept-licence dinov3-license,"),
        ("MIT AND cc-by-nc-4.0", "is MIT AND CC-BY-NC-4.0", "--accept-licence 'MIT AND CC-BY-NC-4.0',"),
    ],
)
def test_what_may_not_be_published_says_how_it_might(
    licence: str, words: str, hint: str, plain: Bundle, tmp_path: Path
) -> None:
    bundle = licensed(plain, tmp_path / "b", licence)
    with pytest.raises(LicenceRefused) as told:
        rule(bundle, ALLOWED, ["MIT"])
    assert words in str(told.value)
    assert hint in told.value.hint


@pytest.mark.parametrize("accept", ["CC-BY-NC-4.0", "cc-by-nc-4.0", "Cc-By-Nc-4.0"])
def test_an_acceptance_names_the_licence_however_it_is_spelled(accept: str, plain: Bundle, tmp_path: Path) -> None:
    bundle = licensed(plain, tmp_path / "b", "cc-by-nc-4.0")
    assert rule(bundle, ALLOWED, ["MIT", accept]) == Ruling("cc-by-nc-4.0", "CC-BY-NC-4.0", accept)


def test_a_fleets_own_list_replaces_ours(tmp_path: Path) -> None:
    assert read_list(tmp_path) == ALLOWED
    (tmp_path / LIST_NAME).write_text("# ours\napache-2.0\n\ncc-by-nc-4.0  # research line only\n")
    assert read_list(tmp_path) == ("Apache-2.0", "CC-BY-NC-4.0")


@pytest.mark.parametrize("content", [b"Apache-2.0\nmy licence\n", b"\xff\xfe", b"x" * 70_000])
def test_a_list_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LIST_NAME).write_bytes(content)
    with pytest.raises(LicenceRefused, match=LIST_NAME):
        read_list(tmp_path)


def test_publishing_refuses_then_accepts_and_keeps_a_record(
    plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, fleet = licensed(plain, tmp_path / "b", "unknown"), tmp_path / "fleet"
    refused = headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet)
    assert refused.code == 2
    assert "is unknown" in refused.err
    assert not fleet.exists()  # nothing was stored

    done = headway(
        capsys, "fleet", "publish", bundle.path, "--dir", fleet, "--accept-licence", "unknown", "--json"
    )
    assert done.code == 0
    assert json.loads(done.out)["licence"] == {"stated": "unknown", "spdx": None, "accepted": "unknown"}
    (line,) = [json.loads(line) for line in (fleet / RECORD_NAME).read_text().splitlines()]
    assert (line["bundle_sha256"], line["accepted"], line["weights_sha256"]) == (
        bundle.digest(),
        "unknown",
        "ab" * 32,
    )


def test_publishing_shows_the_licence(plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, fleet = licensed(plain, tmp_path / "b", "apache-2.0"), tmp_path / "fleet"
    done = headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet)
    assert "weights: file w.safetensors; licence: Apache-2.0" in done.out
    assert not (fleet / RECORD_NAME).exists()
