"""One rule for class names: the same wherever a name is typed, read from a file or sent by another device."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.accepting import OperatingTarget
from device_agent.labelling import class_name
from device_agent.learner import Learner
from device_agent.parts import Ledger
from device_agent.station import Decision
from device_agent.store import Store
from export.selection import _check_name
from sdk.class_names import is_reserved, key_of
from sdk.errors import BadImages, LabelError
from sdk.fleet.cli_classes import _checked
from sdk.fleet.store import Learned
from sdk.images import _alike_names
from sdk.labels import Fold
from tests.tiny import class_id, tiny_bundle

ALIKE = [
    ("scratch", "SCRATCH"),
    ("deep scratch", "Deep   Scratch"),
    ("scratch", "ｓｃｒａｔｃｈ"),
    ("ﾋﾟｯﾄ", "ピット"),
    ("groß", "GROSS"),
    ("Löcher", "Lo\u0308cher"),
    ("LÖCHER", "lo\u0308cher"),
    ("pit", "p\u200bi\u200dt\ufeff"),
    ("soft spot", "so\u00adft\u00a0spot"),
    ("ﬁssure", "fissure"),
    ("good", "good\ufe0f"),
]
DIFFERENT = [("pit", "pits"), ("Löcher", "Locher"), ("scratch 1", "scratch 2"), ("deepscratch", "deep scratch")]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_read_alike_are_one_classs(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_names_that_read_otherwise_are_not(one: str, other: str) -> None:
    assert key_of(one) != key_of(other)


@given(st.text(max_size=20))
def test_a_key_is_its_own_key_and_that_of_every_form(name: str) -> None:
    key = key_of(name)
    assert key_of(key) == key
    assert {key_of(unicodedata.normalize(form, name)) for form in ("NFC", "NFD", "NFKC", "NFKD")} == {key}
    assert key_of(name.casefold()) == key
    assert key_of(f" {name}\u200b") == key


@pytest.mark.parametrize("name", ["unknown", "Unknown", "ＵＮＫＮＯＷＮ"])
def test_the_word_for_no_class_is_refused_however_it_is_written(name: str) -> None:
    assert is_reserved(name)
    with pytest.raises(LabelError, match="no name for a class"):
        class_name(name)
    with pytest.raises(BadImages, match="no class can be called"):
        _check_name(name)


@pytest.mark.parametrize("typed", ["ＰＩＴ", "Pit", " pit "])
def test_a_name_that_another_class_has_is_refused_and_finds_it(tmp_path: Path, typed: str) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    with Store.open(tmp_path / "data", "line-1") as store:
        learner = Learner(bundle, None, store)
        with pytest.raises(LabelError, match="there is a class 'pit' already"):
            learner.define_class(typed, "ann")
        loecher = learner.define_class("Löcher", "ann")
        with pytest.raises(LabelError, match="there is a class 'Löcher' already"):
            learner.rename_class(class_id("pit"), "LO\u0308CHER", "ann")
        assert {info.class_id for info in learner.classes()} >= {loecher}


def test_good_is_good_however_the_settings_write_it() -> None:
    names = {b"a" * 16: "Größe i.O.", b"b" * 16: "Kratzer"}
    target = OperatingTarget()
    target.default_names(["GRO\u0308SSE I.O."])
    assert target.good(names) == {b"a" * 16}
    ledger = Ledger(["GRO\u0308SSE I.O."])
    assert [ledger.bad(decision(name)) for name in names.values()] == [False, True]


def test_a_name_comes_in_composed_from_whoever_types_it() -> None:
    nothing = Learned(Fold("ab" * 32, 4).live_set(), {}, [], set(), {}, {}, [])
    assert class_name("O\u0308l  fleck") == "\u00d6l fleck"
    assert _checked("O\u0308l", nothing, (b"a" * 16, b"b" * 16)) == "\u00d6l"


def decision(shown: str) -> Decision:
    return Decision(shown, b"a" * 16, shown, b"a" * 16, 0.9, 0.1, 0.5, False, {}, 1, None)


def test_a_data_set_with_one_class_in_two_ways_is_told() -> None:
    (note,) = _alike_names(["Löcher", "pit", "Lo\u0308cher"])
    assert "are taken as different ones" in note
    assert _alike_names(["pit", "pits"]) == []
