"""Labels of a whole set: what head and near-duplicates say of them, and the way a corrected label comes back."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from export.audit_page import audit_page
from export.check import Checked, check
from export.index_file import write_index
from export.label_audit import (
    HARD_GROUPS,
    Finding,
    HardPair,
    LabelAudit,
    Opinions,
    Source,
    Why,
    audit_labels,
    audit_table,
    hard_pairs,
    opinions,
)
from export.progress import Log, Unheard
from sdk.cli import main
from sdk.head import Calibration
from sdk.images import open_images
from sdk.score import LeftOut
from tests.commands import headway
from tests.test_leaks import texture, under_another_light
from tests.tiny import picture, tiny_bundle, with_backbone, write_pictures

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IDS = (b"a" * 16, b"b" * 16, b"c" * 16)
CERTAIN = Calibration(temperature=20.0, novelty_threshold=2.0)


def asked(
    scores: Sequence[Sequence[float]],
    given: Sequence[int],
    twins: Sequence[tuple[int, int]] = (),
    orphans: Sequence[int] = (),
) -> Opinions:
    """Return what is said of images whose left-out scores (n, 3) are these."""
    n = len(given)
    orphan = np.zeros(n, bool)
    orphan[list(orphans)] = True
    left_out = LeftOut(
        IDS, np.array(given, np.int64), np.arange(n), np.array(scores, np.float64), np.zeros(n), orphan
    )
    return opinions(left_out, CERTAIN, np.arange(n), np.array(given, np.int64), twins)


def doubtful(found: Opinions, given: Sequence[int]) -> list[int]:
    return np.flatnonzero(found.doubtful(np.array(given, np.int64))).tolist()


A, B, EITHER = (0.9, 0.1, 0.0), (0.1, 0.9, 0.0), (0.5, 0.5, 0.0)


def test_a_label_that_the_head_without_its_group_finds_improbable_is_listed() -> None:
    given = [0, 0, 1]
    found = asked([A, B, B], given)
    assert doubtful(found, given) == [1]
    assert found.probabilities[1].argmax() == 1
    assert not found.contested.any()


def test_of_two_pictures_of_one_part_the_one_that_the_head_contradicts_is_listed() -> None:
    given = [0, 1]
    assert doubtful(asked([A, A], given, [(0, 1)]), given) == [1]
    assert doubtful(asked([B, B], given, [(0, 1)]), given) == [0]


def test_where_the_head_cannot_tell_two_labels_of_one_part_are_both_listed() -> None:
    given = [0, 1]
    assert doubtful(asked([EITHER, EITHER], given), given) == [], "the control: nobody contradicts them"
    assert doubtful(asked([EITHER, EITHER], given, [(0, 1)]), given) == [0, 1]


def test_of_many_pictures_of_one_part_the_odd_one_is_listed_whatever_the_head_thinks() -> None:
    given = [0, 0, 0, 0, 1]
    pairs = [(i, j) for i in range(5) for j in range(i)]
    found = asked([B, EITHER, A, EITHER, B], given, pairs)
    assert doubtful(found, given) == [4]
    assert found.probabilities[4].argmax() == 0


def test_a_part_that_is_labelled_wrongly_as_a_whole_does_not_vouch_for_itself() -> None:
    given = [0, 0, 0]
    pairs = [(0, 1), (1, 2), (0, 2)]
    assert doubtful(asked([B, B, B], given, pairs), given) == [0, 1, 2]


def test_one_slip_of_the_head_among_pictures_of_a_part_lists_nothing() -> None:
    given = [0, 0, 0]
    assert doubtful(asked([B, A, A], given), given) == [0]
    for pairs in ([(0, 1), (0, 2)], [(1, 0), (2, 0)]):
        assert doubtful(asked([B, A, A], given, pairs), given) == []


def test_a_class_of_one_group_is_judged_by_its_near_duplicates_alone() -> None:
    given = [2, 1, 0]
    left = asked([A, B, A], given, orphans=[0])
    assert doubtful(left, given) == []
    assert left.judged.tolist() == [False, True, True]
    assert doubtful(asked([A, B, A], given, [(0, 1)], orphans=[0]), given) == [0]


def hard(groups: Sequence[str], said: Sequence[int], given: Sequence[int]) -> dict[Any, Any]:
    n = len(given)
    yes = np.ones(n, bool)
    found = Opinions(np.zeros((n, 3)), np.array(said), yes, ~yes, ~yes)
    return hard_pairs(found, np.array(given), groups)


def test_classes_that_are_often_taken_for_each_other_are_hard_and_one_wrong_part_makes_none() -> None:
    given, said = [0] * 20 + [1] * 20, [1] * 3 + [0] * 17 + [1] * 20
    many, one = [f"g{i}" for i in range(40)], ["g"] * 3 + [f"g{i}" for i in range(37)]
    assert hard(many, said, given) == {(0, 1): (3, 20, HARD_GROUPS)}
    assert hard(one, said, given) == {}
    assert hard(many, [1] + [0] * 19 + [1] * 20, given) == {}


# -- a whole set

PARTS = 14
CLASSES = ("bar", "blot", "good")


@dataclass(frozen=True)
class Audited:
    """A set, and the files of an audit of it."""

    folder: Path
    page: Path
    index: Path
    figures: dict[str, Any]
    out: str

    def listed(self, why: str) -> dict[str, str]:
        return {f["path"]: f["looks_like"] for f in self.figures["findings"] if f["why"] == why}


def frame_of(label: str, part: int) -> npt.NDArray[np.uint8]:
    frame = texture(part + 1000 * CLASSES.index(label), 96)
    rng = np.random.default_rng(part)
    x, y = (int(v) for v in rng.integers(24, 72, 2))
    if label == "bar":
        cv2.line(frame, (x, 0), (96 - x, 96), (250, 250, 250), 5)
    elif label == "blot":
        cv2.circle(frame, (x, y), 16, (5, 5, 5), -1)
    return frame


def write_set(folder: Path) -> Path:
    """Write parts of three classes, each by day and by night.

    One night picture of a bar is called good, one part with a blot is called bar, and one picture stands under two
    labels.
    """
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
    for label in CLASSES:
        for part in range(PARTS):
            for light in ("day", "night"):
                frame = frame_of(label, part)
                frame = under_another_light(frame) if light == "night" else frame
                called = {("bar", 3, "night"): "good", ("blot", 5, "day"): "bar", ("blot", 5, "night"): "bar"}.get(
                    (label, part, light), label
                )
                cv2.imwrite(str(folder / called / f"{label}-{part}-{light}.png"), frame)
    cv2.imwrite(str(folder / "good" / "twice.png"), frame_of("blot", 99))
    shutil.copy(folder / "good" / "twice.png", folder / "blot" / "twice.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    home = tmp_path_factory.mktemp("audit")
    folder = write_set(home / "set")
    before = contents(folder)
    page, index, figures = home / "page.html", home / "labels.csv", home / "audit.json"
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in ("audit", folder, "--page", page, "--write-index", index, "--json", figures)])
    assert ended.value.code == 0
    assert contents(folder) == before, "nothing in the set is changed"
    return Audited(folder, page, index, json.loads(figures.read_text()), said.getvalue())


ODD, WHOLE = "good/bar-3-night.png", ("bar/blot-5-day.png", "bar/blot-5-night.png")


def test_each_wrong_label_is_listed_for_what_speaks_against_it(audited: Audited) -> None:
    assert set(audited.listed("copy")) == {"good/twice.png", "blot/twice.png"}
    assert audited.listed("near-duplicate") == {ODD: "bar"}
    assert {path: audited.listed("head").get(path) for path in WHOLE} == dict.fromkeys(WHOLE, "blot")
    assert len(audited.figures["findings"]) <= 7
    (odd,) = [one for one in audited.figures["findings"] if one["path"] == ODD]
    assert odd["against"] == [{"path": "bar/bar-3-day.png", "label": "bar"}]
    assert audited.figures["judged"] == audited.figures["images"] == 2 * 3 * PARTS
    assert [one["why"] for one in audited.figures["findings"]][:3] == ["copy", "copy", "near-duplicate"]


def test_the_terminal_names_what_to_look_at_and_how_to_go_on(audited: Audited) -> None:
    assert "a near-duplicate is labelled otherwise" in audited.out
    assert f"{ODD}: good (0%), looks like bar" in audited.out
    assert f"headway export {audited.folder} --index {audited.index}" in audited.out.replace("\n", "")


def rows_of(index: Path) -> list[dict[str, str]]:
    with index.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_index_lists_the_whole_set_what_to_look_at_first(audited: Audited) -> None:
    rows = rows_of(audited.index)
    listed = [one["path"] for one in audited.figures["findings"]]
    assert [row["path"] for row in rows[: len(listed)]] == listed
    assert len(rows) == 2 * 3 * PARTS + 2
    (odd,) = [row for row in rows if row["path"] == ODD]
    assert (odd["label"], odd["audit_looks_like"], odd["audit_confirmed"]) == ("good", "bar", "")
    assert odd["audit_why"] == "a near-duplicate is labelled otherwise"
    images = open_images(audited.folder, index=audited.index)
    assert not any(image.columns for image in images.images), "what the audit says is no slice"
    assert len(images.contradicted) == 2


def test_labels_corrected_on_the_page_are_saved_and_not_listed_again(
    audited: Audited, browser: Browser, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole way: looked at in a browser, saved, given back, audited once more."""
    page = browser.new_page()
    page.goto(audited.page.as_uri())
    card = {path: page.locator("figure", has_text=path).first for path in (ODD, *WHOLE)}
    card[ODD].get_by_role("button", name="It is bar").click()
    card[WHOLE[0]].get_by_role("button", name="It is bar").click()  # somebody insists
    assert not card[WHOLE[1]].get_attribute("class"), "the control: nobody said anything of it yet"
    card[WHOLE[0]].get_by_role("button", name="So is the other of its group").click()
    assert card[WHOLE[1]].get_attribute("class") == "kept"
    assert page.locator(".too:visible").count() == 0
    card[WHOLE[1]].get_by_role("combobox").select_option("blot")
    card[WHOLE[1]].get_by_role("combobox").select_option("good")
    copy = page.locator("figure[data-row]").first
    gone = copy.locator("img").first.get_attribute("alt")
    copy.get_by_role("combobox").select_option("none: leave it out")
    assert page.locator("#done").inner_text() == (
        f"4 of {len(audited.figures['findings'])} decided, 3 of them another label. Not saved yet."
    )
    with page.expect_download() as saving:
        page.locator("#save").click()
    saved = tmp_path / "labels.csv"
    saving.value.save_as(saved)
    page.close()
    label = {row["path"]: (row["label"], row["audit_confirmed"]) for row in rows_of(saved)}
    assert label[ODD] == ("bar", "yes")
    assert label[WHOLE[0]] == ("bar", "yes")
    assert label[WHOLE[1]] == ("good", "yes")
    assert label[str(gone)] == ("", "yes")
    assert len(label) == len(rows_of(audited.index))

    before, again = contents(audited.folder), tmp_path / "again.json"
    ended = headway(capfd, "audit", audited.folder, "--index", saved, "--json", again)
    assert ended.code == 0, ended.err
    figures = json.loads(again.read_text())
    assert {ODD, *WHOLE, str(gone)} & {one["path"] for one in figures["findings"]} == set()
    assert figures["confirmed"] == 3
    assert figures["contradicted"] == 0, "the copy that is left has one label"
    assert figures["images"] == audited.figures["images"] + 1
    assert contents(audited.folder) == before


def test_files_whose_names_are_no_utf8_are_in_what_the_page_saves(browser: Browser, tmp_path: Path) -> None:
    """Byte for byte what `--write-index` writes, beside names that are UTF-8 of two, three and four bytes."""
    folder = write_pictures(tmp_path / "set", ("good", "pit"), 3)
    names = [os.fsdecode(name) for name in (b"Ri\xdf.png", b"Ri\xfc \xe4\xb8.png", "Riß 划 😀.png".encode())]
    for at, name in enumerate(names):
        (folder / "good" / name).write_bytes(picture("pit", 50 + at))
    checked = check(folder, layout=None, unannotated=None, groups=None, log=Log(Unheard()))
    listed = [finding(path=f"good/{name}", group=f"good/{name}") for name in names]
    audit = an_audit(*listed, folder=str(folder))
    table = audit_table(checked, audit)
    audit_page(audit, table, tmp_path / "page.html")

    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert r"good/Ri\xdf.png" in page.locator("figure").first.inner_text()
    for button in page.get_by_role("button", name="It is pit").all():
        button.click()
    with page.expect_download() as saving:
        page.locator("#save").click()
    saved, written = tmp_path / "labels.csv", tmp_path / "written.csv"
    saving.value.save_as(saved)
    page.close()

    label, confirmed = table[0].index("label"), table[0].index("audit_confirmed")
    for row in table[1 : 1 + len(names)]:
        row[label], row[confirmed] = "pit", "yes"
    write_index(table, written)
    assert saved.read_bytes() == written.read_bytes()
    again = open_images(folder, index=saved)
    assert {each.path.name: (each.label, each.confirmed) for each in again.images if each.path.name in names} == (
        dict.fromkeys(names, ("pit", True))
    )
    assert not again.refused


@pytest.mark.parametrize("width_px", [390, 1280])
def test_no_page_is_wider_than_the_screen(audited: Audited, browser: Browser, width_px: int) -> None:
    page = browser.new_page(viewport={"width": width_px, "height": 800})
    page.goto(audited.page.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width_px
    page.close()


def test_a_bundle_judges_by_its_own_backbone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", classes=("good", "pit"))
    folder = write_pictures(tmp_path / "set", ("good", "pit"))
    (folder / "good" / "wrong.png").write_bytes(picture("pit", 50))
    figures = tmp_path / "audit.json"
    ended = headway(capfd, "audit", folder, "--bundle", bundle.path, "--json", figures)
    assert ended.code == 0, ended.err
    found = json.loads(figures.read_text())
    assert found["findings"][0]["path"] == "good/wrong.png"
    assert found["backbone"] == "tiny of tiny (fp32)"

    model = onnx.load_from_string(bundle.backbone())
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with_backbone(bundle, tmp_path / "elsewhere", model.SerializeToString())
    ended = headway(capfd, "audit", folder, "--bundle", tmp_path / "elsewhere")
    assert ended.code == 2
    assert "error: backbone.fp32.onnx" in ended.err


def test_a_stopped_audit_leaves_nothing(tmp_path: Path) -> None:
    bundle, folder = tiny_bundle(tmp_path / "bundle"), write_pictures(tmp_path / "set", per_class=60)
    before = sorted(tmp_path.iterdir())
    files = ("--page", str(tmp_path / "page.html"), "--write-index", str(tmp_path / "labels.csv"))
    args = [sys.executable, "-u", "-m", "sdk.cli", "audit", str(folder), "--bundle", str(bundle.path), *files]
    with subprocess.Popen(args, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Found class folders"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped: nothing was written" in said
    assert sorted(tmp_path.iterdir()) == before


def test_images_that_the_backbone_was_trained_on_are_not_judged_by_the_head(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ("good", "pit"), 20)
    checked = check(folder, layout=None, unannotated=None, groups=None, log=Log(Unheard()))
    assert not checked.near.pairs
    ids = [image.sample_id for image in checked.images.images]
    looks_like_pit = np.array([label == "pit" for label in checked.images.labels])
    looks_like_pit[[3, 12]] = True  # both are labelled good
    noise = np.random.default_rng(0).gamma(4.0, 0.05, (len(ids), 12))
    features = (noise + looks_like_pit[:, None] * (np.arange(12) < 6) + 0.2).astype(np.float32)
    paths = [image.path.relative_to(folder).as_posix() for image in checked.images.images]
    for fitted, listed in ((ids[:10], {12}), ([], {3, 12})):
        found = audit_labels(checked, features, Source("a", "b", "c", frozenset(fitted)))
        assert {one.path for one in found.findings} == {paths[row] for row in listed}
        assert (found.fitted, found.judged) == (len(fitted), len(ids) - len(fitted))


TURNED = 14


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of two classes, each upright and turned; one of each class lies wholly in the other's folder."""
    folder = tmp_path_factory.mktemp("turned")
    for at, label in enumerate(("good", "pit")):
        for part in range(TURNED):
            called = ("pit", "good")[at] if part == 3 else label
            (folder / called).mkdir(exist_ok=True)
            frame = texture(part + 500 * at, 96)
            cv2.imwrite(str(folder / called / f"{label}-{part:02}-0.png"), frame)
            cv2.imwrite(str(folder / called / f"{label}-{part:02}-180.png"), cv2.rotate(frame, cv2.ROTATE_180))
    return folder


def features_of_parts(checked: Checked) -> npt.NDArray[np.float32]:
    """Return what a backbone sees of a part however it lies: half its class, half its own."""
    rng, rows = np.random.default_rng(0), []
    for image in checked.images.images:
        label, part, _ = image.path.stem.split("-")
        own = np.random.default_rng([*label.encode(), int(part)]).gamma(1.0, 1.0, 64)
        rows.append(2 * own + 3 * ((np.arange(64) < 32) == (label == "pit")) + rng.random(64) / 4)
    return np.array(rows, np.float32)


@pytest.mark.parametrize("alike", ["by codes alone", "one pair by pixels too"])
def test_pictures_of_one_part_are_left_out_together_whatever_pixels_show(
    turned: Path, tmp_path: Path, alike: str
) -> None:
    """Pixels see no part that was turned. One pair that they do see says nothing of the others."""
    folder = shutil.copytree(turned, tmp_path / "set")
    if alike != "by codes alone":
        cv2.imwrite(str(folder / "good" / "good-00-night.png"), under_another_light(texture(0, 96)))
    checked = check(folder, layout=None, unannotated=None, groups=None, log=Log(Unheard()))
    assert len(checked.near.pairs) == (alike != "by codes alone")
    audit = audit_labels(checked, features_of_parts(checked), Source("a", "b", "c"))
    assert audit.groups == 2 * TURNED
    listed = {one.path for one in audit.findings}
    assert listed == {f"{a}/{b}-03-{turn}.png" for a, b in (("pit", "good"), ("good", "pit")) for turn in (0, 180)}
    assert "by how alike their codes are" in (audit.grouping_note or "")


def test_groups_that_are_named_are_left_out_as_they_are(turned: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    files = [path.relative_to(turned).as_posix() for path in sorted(turned.rglob("*.png"))]
    rows = [f"{file},{file.partition('/')[0]},shot {at}\n" for at, file in enumerate(files)]
    index.write_text("path,label,group\n" + "".join(rows))
    checked = check(turned, layout=None, unannotated=None, groups=None, index=index, log=Log(Unheard()))
    audit = audit_labels(checked, features_of_parts(checked), Source("a", "b", "c"))
    assert (audit.groups, audit.grouping_note) == (len(files), None)


def finding(**members: object) -> Finding:
    usual: dict[str, Any] = {
        "path": "a.png", "label": "good", "looks_like": "pit", "probability": 0.01, "proposed_probability": 0.9,
        "why": Why.HEAD.value, "group": "a.png", "against": [], "unlike": False,
    }  # fmt: skip
    return Finding(**{**usual, **members})


def an_audit(*findings: Finding, **members: object) -> LabelAudit:
    usual: dict[str, Any] = {
        "folder": "set", "layout": "folders", "found": "class folders", "backbone": "builtin", "weights": "",
        "licence": "apache-2.0", "images": 9, "contradicted": 0, "groups": 9, "groups_from": "derived",
        "grouping_note": None, "judged": 9, "fitted": 0, "alone": 0, "otherwise": 1, "confirmed": 0, "below": 0.1,
        "findings": list(findings), "hard": [], "classes": [], "notes": [], "refused": [], "seconds": {},
    }  # fmt: skip
    return LabelAudit(**{**usual, **members})


def page_of(audit: LabelAudit, file: Path) -> str:
    table = [["path", "label", "audit_confirmed"], *([one.path, one.label, ""] for one in audit.findings)]
    audit_page(audit, table, file)
    return file.read_text(encoding="utf-8")


def test_a_class_name_cannot_put_a_script_on_the_page(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    text = page_of(an_audit(finding(label=name)), tmp_path / "page.html")
    assert "<script>alert" not in text
    assert text.count("</script>") == 2


def test_classes_that_are_hard_to_tell_apart_are_told_with_and_without_labels_to_look_at(tmp_path: Path) -> None:
    pair = HardPair(label="crack", looks_like="free", called=19, judged=63, groups=7)
    for audit in (an_audit(finding(why=Why.HARD.value), hard=[pair]), an_audit(hard=[pair])):
        text = page_of(audit, tmp_path / "page.html")
        assert text.count("<td>crack</td>") == 1
    assert "No label to look at again" in text
    assert "<script" not in text


# -- refused


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--bundle", "b", "--backbone", "builtin"), "--bundle brings its own backbone"),
        (("--weights", "w"), "name its architecture"),
        (("--backbone", "resnet_of_nobody"), "no architecture"),
        (("--page", "nowhere/page.html"), "there is no such folder"),
        (("--index", "gone.csv"), "there is no such file"),
        (("--index", "one.csv"), "has one class, good"),
        (("--write-index", "one.csv"), "may have been corrected by hand"),
        (("--bundle", "gone"), "gone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_audited_is_refused_and_writes_nothing(
    audited: Audited,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"good/good-{part}-day.png,good\n" for part in range(4)]
    (tmp_path / "one.csv").write_text("path,label\n" + "".join(lines))
    ended = headway(capfd, "audit", audited.folder, *args)
    assert ended.code == 2
    assert words in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["one.csv"]
