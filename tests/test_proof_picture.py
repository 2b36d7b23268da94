"""A proof and the picture of its part: which picture was decided, and whether its code is the one that was."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from device_agent.camera import Box, Shot, encode_png
from device_agent.config import RecipeSettings
from device_agent.history import History
from device_agent.parts import Finding, Part
from device_agent.proof import check_proof, make_proof
from device_agent.recipe import Recipe
from device_agent.runtime import CODE_TOLERANCE, SCORE_TOLERANCE
from device_agent.station import Station
from sdk.bundle import MANIFEST_NAME, Bundle, golden_bytes, write_bundle
from sdk.errors import BadImages, ConfigError, HeadwayError, InferenceFailed, LabelError
from sdk.images import decode
from sdk.wire import Verdict
from tests.commands import headway
from tests.test_person_undo import clean, station_at
from tests.test_proof import of_part, tampered
from tests.tiny import picture, tiny_bundle

__all__ = ["clean"]  # fixtures


def decide(station: Station, shot: Shot, part: str) -> str:
    """Decide a frame or tile as the line does, into the history; return its decision."""
    seen = station.see(shot)
    finding, now_s = Finding(shot, seen.decision), time.monotonic()
    history = History(station.store.folder, 1000)
    history.send(Part(1, part, Verdict.REJECT, "", finding, 1, 1, 1, time.time(), now_s, now_s + 0.01))
    history.close()
    return seen.decision.shown


def shot_of(data: bytes) -> Shot:
    return Shot(decode(data), time.time(), "line-1/part", "", data)


def made_code(proof: Path) -> np.ndarray[Any, np.dtype[np.int8]]:
    code = json.loads(proof.open(encoding="utf-8").readline())["part"]["code"]
    return np.frombuffer(bytes.fromhex(code), np.int8)


@pytest.fixture
def station(tmp_path: Path, clean: Bundle) -> Iterator[Station]:
    with station_at(tmp_path / "data", clean, None) as station:
        yield station


@pytest.fixture
def proof(station: Station, tmp_path: Path) -> Path:
    """Of a pit, whose picture lies beside it, and that of a part that passes."""
    for name in ("pit", "good"):
        data = picture(name, 300)
        (tmp_path / f"{name}.png").write_bytes(data)
        assert decide(station, shot_of(data), name) == name
        make_proof(station.store.folder, tmp_path / f"{name}.jsonl", part=name)
    return tmp_path / "pit.jsonl"


def test_the_code_of_the_parts_picture_is_made_again(
    proof: Path, clean: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = headway(capsys, "proof", "check", proof, clean.path, "--picture", tmp_path / "pit.png")
    assert told.code == 0
    assert told.out.endswith("it holds\n")
    assert "picture  it is the one that was decided, by its SHA-256 " in told.out
    assert "its code, made here again, is the one in the file, number by number" in told.out
    assert "its id, time, verdict and reason," in told.out
    said = json.loads(
        headway(capsys, "proof", "check", proof, clean.path, "--picture", tmp_path / "pit.png", "--json").out
    )
    assert (said["holds"], said["decision_checked"]) == (True, True)
    assert said["picture"]["again"]["decision"] == said["again"]["decision"] == "pit"
    assert (said["picture"]["code_off"], said["picture"]["score_off"]) == (0.0, 0.0)


def test_another_picture_is_not_the_parts(proof: Path, clean: Bundle, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="this is not the picture that was decided") as caught:
        check_proof(proof, clean, picture=tmp_path / "good.png")
    assert "/api/samples/" in caught.value.hint


def test_pixels_that_were_saved_anew_without_loss_are_the_picture_that_a_device_stored(
    station: Station, clean: Bundle, tmp_path: Path
) -> None:
    """A camera gives pixels, and the device packs them; a delivered file is its bytes and no others."""
    frame = decode(picture("pit", 300))
    decide(station, Shot(frame, time.time(), "line-1/part", ""), "part")
    make_proof(station.store.folder, tmp_path / "part.jsonl", part="part")
    assert cv2.imwrite(str(tmp_path / "part.bmp"), frame)
    made = check_proof(tmp_path / "part.jsonl", clean, picture=tmp_path / "part.bmp").made
    assert made is not None
    assert made.picture is not None
    assert not made.picture.cut
    assert cv2.imwrite(str(tmp_path / "part.jpg"), frame)
    with pytest.raises(LabelError, match="not the picture"):
        check_proof(tmp_path / "part.jsonl", clean, picture=tmp_path / "part.jpg")


def test_the_code_of_another_part_is_not_that_of_the_picture(proof: Path, clean: Bundle, tmp_path: Path) -> None:
    """Code and figures of a part that passes: alone the proof holds."""
    of_good = json.loads((tmp_path / "good.jsonl").open(encoding="utf-8").readline())["part"]
    taken = {name: of_good[name] for name in ("code", "decision", "probability", "novelty", "verdict")}
    forged = tampered(proof, of_part(**taken))
    assert check_proof(forged, clean).holds
    with pytest.raises(LabelError, match=r"not that of this picture: it is off by \d+\.\d of 127 on average"):
        check_proof(forged, clean, picture=tmp_path / "pit.png")


def test_a_code_that_lies_between_runtimes_is_told_how_far(
    proof: Path, clean: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a machine that rounds otherwise makes it: one number in four is one off."""
    code = made_code(proof).copy()
    code[::4] -= np.sign(code[::4])
    rounded = tampered(proof, of_part(code=code.tobytes().hex()))
    said = json.loads(
        headway(capsys, "proof", "check", rounded, clean.path, "--picture", tmp_path / "pit.png", "--json").out
    )
    assert 0 < said["picture"]["code_off"] <= 0.25 < CODE_TOLERANCE
    assert 0 < said["picture"]["score_off"] < SCORE_TOLERANCE
    shown = headway(capsys, "proof", "check", rounded, clean.path, "--picture", tmp_path / "pit.png")
    assert "as machines round differently" in shown.out


def test_without_a_code_the_picture_makes_the_decision_again(
    proof: Path, clean: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codeless = tampered(proof, of_part(code=None))
    told = headway(capsys, "proof", "check", codeless, clean.path, "--picture", tmp_path / "pit.png")
    assert told.code == 0
    assert "by it: pit" in told.out
    assert "there is none in the file to compare it with" in told.out
    for decision in ("good", "unknown"):
        forged = tampered(proof, of_part(code=None, decision=decision, verdict="pass"))
        with pytest.raises(LabelError, match="does not decide part"):
            check_proof(forged, clean, picture=tmp_path / "pit.png")


@pytest.mark.parametrize("between", [("pit", "scratch"), ("pit", "unknown")])
def test_a_decision_that_rounding_may_turn_is_neither_refused_nor_said_to_hold(
    tmp_path: Path, clean: Bundle, capsys: pytest.CaptureFixture[str], between: tuple[str, str]
) -> None:
    """Where two decisions meet a device may have made either."""
    strange = np.broadcast_to((np.arange(48) % 4 < 2)[:, None, None] * 255, (48, 48, 3))
    one, other = (strange if name == "unknown" else decode(picture(name, 300)) for name in between)
    frames = [np.asarray(one * (1 - share) + other * share, np.uint8) for share in np.linspace(0, 1, 400)]
    with station_at(tmp_path / "data", clean, None) as station:
        serving = station.require()
        head, names = serving.learner.head.head, clean.class_names()
        decided = head.decide(serving.pipeline.codes(frames))
        shown = [
            "unknown" if unknown else names[head.class_ids[best]]
            for unknown, best in zip(decided.unknown, decided.class_index, strict=True)
        ]
        at = next(i for i in range(1, 400) if {shown[i - 1], shown[i]} == set(between))
        data = encode_png(frames[at])
        assert decide(station, shot_of(data), "part") == shown[at]
        make_proof(station.store.folder, tmp_path / "part.jsonl", part="part")
    (tmp_path / "part.png").write_bytes(data)
    forged = tampered(tmp_path / "part.jsonl", of_part(code=None, decision=shown[at - 1]))
    told = headway(capsys, "proof", "check", forged, clean.path, "--picture", tmp_path / "part.png")
    assert told.code == 3
    assert f"not checked: this machine decides {shown[at]} by the picture, and the device may have" in told.out


# Tiles


@pytest.fixture
def tiled(station: Station, tmp_path: Path) -> tuple[Path, Path, Shot]:
    """The proof of a part that one of several tiles decided, the camera's frame, and that tile."""
    frame = np.tile(decode(picture("good", 300)), (2, 3, 1))
    frame[48:96, 96:144] = decode(picture("pit", 300))
    data = encode_png(frame)
    tiles = Recipe(RecipeSettings(tile_px=48, overlap=0.0)).tiles(shot_of(data), (32, 32))
    assert len(tiles) == 6
    assert decide(station, tiles[5], "sheet") == "pit"
    make_proof(station.store.folder, tmp_path / "sheet.jsonl", part="sheet")
    (tmp_path / "frame.png").write_bytes(data)
    return tmp_path / "sheet.jsonl", tmp_path / "frame.png", tiles[5]


def test_a_tile_is_cut_out_of_the_cameras_frame(
    tiled: tuple[Path, Path, Shot], clean: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof, frame, tile = tiled
    assert tile.box == Box(96, 48, 48, 48)
    told = headway(capsys, "proof", "check", proof, clean.path, "--picture", frame)
    assert told.code == 0
    assert "picture  the tile that was decided lies in it" in told.out
    (tmp_path / "tile.png").write_bytes(tile.data)
    alone = headway(capsys, "proof", "check", proof, clean.path, "--picture", tmp_path / "tile.png")
    assert "picture  it is the one that was decided" in alone.out


@pytest.mark.parametrize(
    "box", [(0, 0, 48, 48), (-48, 48, 96, 96), (2**40, 0, 48, 48), (0, 0, 0, 0), (5, 5, -9, 9)]
)
def test_a_tile_lies_where_the_proof_says_and_nowhere_else(
    tiled: tuple[Path, Path, Shot], clean: Bundle, box: tuple[int, ...]
) -> None:
    proof, frame, _ = tiled
    with pytest.raises(LabelError, match=r"not the picture that was decided") as caught:
        check_proof(tampered(proof, of_part(box=box)), clean, picture=frame)
    assert "Behind a mask" in caught.value.hint


def test_a_part_of_a_whole_frame_has_no_tile_in_its_proof(proof: Path) -> None:
    """So that a Headway of before reads it."""
    assert "box" not in json.loads(proof.open(encoding="utf-8").readline())["part"]


# What cannot be checked


def test_what_is_no_picture_of_a_part_is_said(
    proof: Path, station: Station, clean: Bundle, tmp_path: Path
) -> None:
    make_proof(station.store.folder, tmp_path / "head.jsonl")
    (tmp_path / "text.png").write_bytes(b"no picture")
    refused: list[tuple[Path, Path, type[HeadwayError], str]] = [
        (tmp_path / "head.jsonl", tmp_path / "pit.png", ConfigError, "is of no part"),
        (proof, tmp_path / "text.png", BadImages, "text.png: not a JPEG"),
        (proof, tmp_path, BadImages, "Is a directory"),
        (tampered(proof, of_part(sample="")), tmp_path / "pit.png", LabelError, "not said in the proof"),
    ]
    for file, shown, kind, told in refused:
        with pytest.raises(kind, match=told):
            check_proof(file, clean, picture=shown)


def test_a_machine_that_computes_wrongly_judges_no_picture(tmp_path: Path) -> None:
    """Its own fault would look like the device's: golden inputs first."""
    bundle = tiny_bundle(tmp_path / "bundle", per_class=40)
    with station_at(tmp_path / "data", bundle, None) as station:
        decide(station, shot_of(picture("pit", 300)), "pit")
        make_proof(station.store.folder, tmp_path / "pit.jsonl", part="pit")
    (tmp_path / "pit.png").write_bytes(picture("pit", 300))
    files = {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != MANIFEST_NAME}
    golden = bundle.golden()
    elsewhere = replace(golden, codes=np.roll(golden.codes, 1, axis=1))
    files[bundle.manifest.golden] = golden_bytes(golden.frames, {bundle.precision().precision: elsewhere})
    other = write_bundle(tmp_path / "other", files, bundle.manifest)
    with pytest.raises(InferenceFailed, match="on the golden inputs"):
        check_proof(tmp_path / "pit.jsonl", other, picture=tmp_path / "pit.png")
