"""Labelled image folders: what is read, and what is refused with which words."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdk.errors import BadImages
from sdk.images import decode, open_images, read


def encoded(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (32, 24), value: int = 90) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(out, kind)
    return out.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def class_folders(root: Path, n: int = 3) -> Path:
    for label in ("good", "scratch"):
        for i in range(n):
            write(root / label / f"{i}.png", encoded(value=len(label) * 100 + i))
    return root


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def sixteen_bit() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(out, "PNG")
    return out.getvalue()


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"not an image at all", "not a JPEG"),
        (encoded("JPEG")[:-200], "damaged"),
        (encoded("PNG")[:-200], "damaged"),
        (encoded("JPEG")[:3], "not a JPEG"),
        (encoded("JPEG", "CMYK"), "CMYK"),
        (sixteen_bit(), "I;16"),
        (encoded(size=(1, 1)), "too few"),
        (encoded(size=(4000, 7)), "too few"),
        (declared(65_000, 65_000), "too many pixels"),
        (declared(10_000, 6_000), "too many"),
        (animated(), "several pictures"),
        (b"GIF89a" + bytes(50), "not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
    ],
)
def test_what_is_no_usable_picture_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadImages, match=words) as caught:
        decode(data)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_eight_bit_modes_become_colour(mode: str) -> None:
    frame = decode(encoded(mode=mode))
    assert frame.shape == (24, 32, 3)
    assert frame.dtype == np.uint8


def test_frames_are_blue_green_red() -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (255, 0, 0)).save(out, "PNG")
    assert decode(out.getvalue())[0, 0].tolist() == [0, 0, 255]


def test_pictures_are_turned_upright() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (32, 24)).save(out, "JPEG", exif=exif)
    assert decode(out.getvalue()).shape == (32, 24, 3)


def test_class_folders_give_labels_and_own_groups(tmp_path: Path) -> None:
    images = open_images(class_folders(tmp_path))
    assert images.classes == ["good", "scratch"]
    assert len(set(images.groups)) == 6
    assert not images.has_groups


def test_a_flat_folder_is_the_first_day(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", encoded(value=i))
    assert open_images(tmp_path).classes == ["good"]


def test_an_index_gives_groups_and_columns(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "x" / f"{i}.png", encoded(value=i))
    (tmp_path / "index.csv").write_text(
        "path,label,group,camera\nx/0.png,good,p1,left\nx/1.png,good,p1,right\nx/2.png,pit,,left\n"
    )
    images = open_images(tmp_path)
    assert images.groups == ["p1", "p1", "x/2.png"]
    assert images.images[1].columns == {"camera": "right"}
    assert images.has_groups


def test_bad_files_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    class_folders(tmp_path)
    bad = write(tmp_path / "good" / "torn.jpg", encoded("JPEG")[:-200])
    images = open_images(tmp_path)
    assert len(images.images) == 6
    assert [r.path for r in images.refused] == [bad]


def test_the_same_picture_counts_once(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write(tmp_path / "good" / "again.png", (tmp_path / "good" / "0.png").read_bytes())
    images = open_images(tmp_path)
    assert len(images.images) == 6
    assert "same picture as good/0.png" in images.refused[0].reason


def test_one_picture_under_two_labels_is_used_for_neither(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write(tmp_path / "scratch" / "again.png", (tmp_path / "good" / "0.png").read_bytes())
    images = open_images(tmp_path)
    assert sorted(images.labels) == ["good"] * 2 + ["scratch"] * 3
    assert len(images.refused) == 2


def an_index(text: str) -> Callable[[Path], Path]:
    def prepare(root: Path) -> Path:
        write(root / "0.png", encoded())
        (root / "index.csv").write_bytes(text.encode("latin-1"))
        return root

    return prepare


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: root / "nowhere", "not a folder"),
        (lambda root: root, "holds no images"),
        (lambda root: write(root / "good" / "a.jpg", b"").parent.parent, "none of 1 images"),
        (lambda root: write(class_folders(root) / "loose.png", encoded()).parent, "beside class folders"),
        (an_index("file,label\n0.png,good\n"), "no column path"),
        (an_index("path,label\n../0.png,good\n"), "leads out of the folder"),
        (an_index("path,label\n/etc/passwd,good\n"), "leads out of the folder"),
        (an_index("path,label\n0.png\n"), "another number of fields"),
        (an_index("path,label\n0.png,good,extra\n"), "another number of fields"),
        (an_index("path,label\n0.png,\n"), "empty path or label"),
        (an_index("path,label\n0.png,gr\xfcn\n"), "can't decode"),
        (an_index("path,label\nmissing.png,good\n"), "No such file"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used_say_why(tmp_path: Path, prepare: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(BadImages, match=words):
        open_images(prepare(tmp_path))


def test_reading_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(BadImages, match=r"torn\.png"):
        read(write(tmp_path / "torn.png", encoded()[:60]))
