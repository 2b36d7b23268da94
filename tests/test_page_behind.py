"""The pictures behind a figure of the quality report: as many as it counts, of the same head, to be corrected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdk.bundle import Bundle
from tests.pages import ASK_ALL, Device, serving, write_stream
from tests.tiny import class_id, picture, tiny_bundle

LOTS = 4
"""Parts of each of two lots: more than a slice needs."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("behind") / "bundle", maps=True)


@contextlib.contextmanager
def station(folder: Path, bundle: Bundle) -> Iterator[Device]:
    """A device with two lots of labelled pits, two of which somebody called scratches."""
    stream = write_stream(folder / "stream", {"pit": 2})
    with serving(folder / "data", stream, bundle, ASK_ALL) as found:
        for i in range(2 * LOTS):
            asked = {"keep": "true", "part": f"p{i}", "lot": f"B{i % 2}"}
            seen = found.http.post("/api/inspect", params=asked, content=picture("pit", 300 + i)).json()
            say(found, seen["sample"], "scratch" if i < 2 else "pit")
        found.settle()
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[Device]:
    """One that is only looked at."""
    with station(tmp_path_factory.mktemp("behind"), bundle) as found:
        yield found


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    with station(tmp_path, bundle) as found:
        yield found


def say(device: Device, sample: str, name: str | None) -> dict[str, Any]:
    said = {"class_id": None} if name is None else {"class_id": class_id(name).hex()}
    body = {"sample": sample, "operator": "Ann", **said}
    return dict(device.http.post("/api/labels", json=body).raise_for_status().json())


def behind(device: Device, **figure: Any) -> dict[str, Any]:
    asked = {"limit": 200, **figure}
    return dict(device.http.get("/api/quality/pictures", params=asked).raise_for_status().json())


def test_each_figure_counts_exactly_the_pictures_behind_it(shared: Device) -> None:
    report = shared.http.get("/api/quality").json()
    head, ids = report["head"]["number"], [row["id"] for row in report["confusion"]]
    seen: list[str] = []
    for row in report["confusion"]:
        of = sum(row["counts"]) + row["unknown"]
        for said, count in zip([*ids, "unknown"], [*row["counts"], row["unknown"]], strict=True):
            found = behind(shared, figure="cell", truth=row["id"], said=said)
            assert (found["head"], found["count"], found["of"], found["newest"]) == (head, count, of, None)
            for each in found["pictures"]:
                assert each["labelled_class_id"] == row["id"]
                assert (each["class_id"] or "unknown") == said
                assert each["right"] == (said == row["id"])
            seen += [each["sample"] for each in found["pictures"]]
    assert len(seen) == len(set(seen)) == sum(sum(row["counts"]) + row["unknown"] for row in report["confusion"])

    for each in report["slices"]:
        found = behind(shared, figure=each["kind"], name=each["name"])
        assert (found["count"], found["right"]) == (each["right"]["samples"], each["right"]["count"])
        order = [picture["right"] for picture in found["pictures"]]
        assert order == sorted(order), "what is wrong comes first"
    assert {each["kind"] for each in report["slices"]} == {"origin", "lot"}

    for each in shared.state()["score"]["classes"]:
        found = behind(shared, figure="recall", truth=each["id"])
        assert (found["count"], found["right"] / found["count"]) == (each["samples"], each["recall"])


@pytest.mark.parametrize("by_threshold", [False, True])
def test_escapes_and_overkill_are_those_of_the_rule_that_is_asked_for(shared: Device, by_threshold: bool) -> None:
    operating = shared.http.get("/api/operating").json()
    for point in operating["points"] if by_threshold else [operating["by_class"]]:
        rule = {"escape_rate": point["target"]} if by_threshold else {}
        for figure in ("escapes", "overkill"):
            found = behind(shared, figure=figure, **rule)
            assert (found["count"], found["of"]) == (point[figure]["count"], point[figure]["samples"])
            assert {each["labelled"] == "good" for each in found["pictures"]} <= {figure == "overkill"}
            assert found == behind(shared, figure=figure, good=operating["good"], **rule)
    # Whoever calls pits good has other escapes: scratches alone.
    good = [class_id(name).hex() for name in ("good", "pit")]
    assert {each["labelled"] for each in behind(shared, figure="escapes", good=good)["pictures"]} <= {"scratch"}


def test_a_list_stays_as_its_figure_counted_while_newer_heads_learn(device: Device) -> None:
    asked = {"figure": "recall", "truth": class_id("scratch").hex()}
    before = behind(device, **asked)
    wrong = before["pictures"][0]
    assert (wrong["kept"]["label"], wrong["last"]["who"], wrong["changed"]) == ("scratch", "Ann", False)
    assert wrong["kept"]["lot"] in ("B0", "B1")
    say(device, wrong["sample"], "pit")
    device.settle()
    then, now = behind(device, head=before["head"], **asked), behind(device, **asked)
    assert [each["sample"] for each in then["pictures"]] == [each["sample"] for each in before["pictures"]]
    assert (then["head"], then["count"]) == (before["head"], before["count"])
    changed = then["pictures"][0]
    assert (changed["labelled"], changed["label"], changed["changed"]) == ("scratch", "pit", True)
    assert then["newest"] == {"head": now["head"], "count": before["count"] - 1, "of": before["count"] - 1}
    assert (now["newest"], now["head"] > then["head"]) == (None, True)
    say(device, wrong["sample"], None)
    taken_back = behind(device, head=before["head"], **asked)["pictures"][0]
    assert (taken_back["label"], taken_back["changed"], taken_back["where"]) == (None, True, "here")


def test_a_list_is_given_in_pages(shared: Device) -> None:
    asked = {"figure": "recall", "truth": class_id("pit").hex()}
    whole = behind(shared, **asked)
    pages = [behind(shared, **asked, limit=7, offset=at) for at in range(0, whole["count"] + 7, 7)]
    assert [each["sample"] for page in pages for each in page["pictures"]] == [
        each["sample"] for each in whole["pictures"]
    ]
    assert {page["count"] for page in pages} == {whole["count"]}


def test_a_picture_that_is_not_here_says_where_it_is(device: Device) -> None:
    store = device.station.store
    found = behind(device, figure="recall", truth=class_id("pit").hex())
    mine = {each["sample"] for each in found["pictures"] if each["where"] == "here"}
    assert len(mine) == 2 * LOTS - 2
    away = [each for each in found["pictures"] if each["sample"] not in mine]
    assert {(each["where"], each["device"], each["last"], each["kept"]) for each in away} == {
        ("release", None, None, None)
    }
    one = mine.pop()
    device.http.delete(f"/api/samples/{one}").raise_for_status()
    assert store.samples.get(bytes.fromhex(one)) is None
    gone = behind(device, head=found["head"], figure="recall", truth=class_id("pit").hex())
    assert gone["count"] == found["count"]
    assert [each["where"] for each in gone["pictures"] if each["sample"] == one] == ["gone"]


@pytest.mark.parametrize(
    ("asked", "status", "error"),
    [
        ({"figure": "cell"}, 422, "truth"),
        ({"figure": "cell", "truth": class_id("pit").hex()}, 422, "said"),
        ({"figure": "lot"}, 422, "name"),
        ({"figure": "everything"}, 422, "figure"),
        ({"figure": "lot", "name": "B0", "colour": "red"}, 422, "colour"),
        ({"figure": "recall", "truth": "ab" * 16}, 404, "no class abab"),
        ({"figure": "lot", "name": "B0", "head": 999}, 404, "head 999"),
        ({"figure": "escapes", "good": ["ab" * 16]}, 400, "good parts"),
    ],
)
def test_what_is_no_figure_is_refused(shared: Device, asked: dict[str, Any], status: int, error: str) -> None:
    answer = shared.http.get("/api/quality/pictures", params=asked)
    assert (answer.status_code, error in answer.json()["error"]) == (status, True), answer.text
