"""Reasons of a trial: codes with values, stored and told, and worded in every language of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from device_agent.heads_and_updates import HeadRow, Outcome
from device_agent.page.pages import why
from device_agent.page.text import LANGUAGES, TEXTS, Texts
from device_agent.store import Store
from sdk.reason import ENGLISH, Reason, sentences

FULL = Reason("also-knows-price", name="good", share=0.75, before=0.9, classes=(("pit", 0.5), ("dent", 1.0)))


def test_every_code_has_a_sentence_in_every_language() -> None:
    assert {key.removeprefix("trial.") for key in TEXTS if key.startswith("trial.")} == set(ENGLISH)


@pytest.mark.parametrize("language", [code for code, _ in LANGUAGES])
@pytest.mark.parametrize("code", sorted(ENGLISH))
def test_each_is_worded_with_all_of_its_values(code: str, language: str) -> None:
    t = Texts(language)
    reason = Reason(code, name="{Riß}", share=0.25, before=0.5, times=8, classes=(("裂纹", 0.125),))
    said = reason.worded(t(f"trial.{code}"), t.percent, t("common.and"))
    for place, value in (("{name}", "{Riß}"), ("{times}", "8"), ("{classes}", "裂纹")):
        assert (value in said) is (place in ENGLISH[code])
    assert not re.search(r"\{[a-z]", said.replace("{Riß}", ""))


def test_a_reason_says_the_same_in_german_and_chinese() -> None:
    de, zh = Texts("de"), Texts("zh")
    text = f"trial.{FULL.code}"
    assert FULL.worded(de(text), de.percent, de("common.and")).replace("\u00a0", " ") == (
        "Neu bekannt: pit (50 %) und dent (100 %). Der Preis: good wird zu 75 % erkannt (vorher: 90 %)."
    )
    assert "pit (50%)、dent (100%)" in FULL.worded(zh(text), zh.percent, zh("common.and"))


def test_reasons_survive_in_the_history_of_heads(tmp_path: Path) -> None:
    row = HeadRow(1, 0.0, "ab", "cd", 0, 3, Outcome.CONFIRMED, sentences((FULL,)), why=(FULL, Reason("shifted")))
    before = HeadRow(2, 0.0, "ab", "cd", 0, 3, Outcome.CONFIRMED, "Words of an earlier version.")
    with Store.open(tmp_path, "line-1") as store:
        store.heads.put(row)
        store.heads.put(before)
    with Store.open(tmp_path, "line-1") as store:
        assert store.heads.newest(limit=5) == [before, row]


def test_a_code_that_nobody_knows_is_refused_where_it_is_made_and_left_out_where_it_is_shown() -> None:
    with pytest.raises(KeyError):
        Reason("made-up").sentence()
    assert why(Texts("en"), [Reason("made-up"), Reason("better")]) == "Known classes are better."
