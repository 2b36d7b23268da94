"""A picture that somebody erases, as one that shows a person, is gone for good or can be erased again; and none
that comes, or goes because there are too many, is left where no sample knows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.sample import SampleStatus
from device_agent.store import Store
from tests.crashes import Cut, Disk, build_tracer, traced, write_out
from tests.erase_scenario import ERASED, FEW, KEPT, LIMITS
from tests.test_store import image_of, label, sample_of


def there(folder: Path) -> set[str]:
    return {path.name for path in (folder / "images").glob("??/*")}


def cut_anywhere(folder: Path, what: str, cut: Cut) -> Iterator[Path]:
    """Yield what a scenario leaves on the disk where it ends at each of its steps."""
    tracer = build_tracer(folder)
    if tracer is None:
        pytest.skip("needs a C compiler to note what a process writes")
    root = folder / "disk"
    root.mkdir()
    disk = Disk(str(root))
    steps = traced(tracer, root, folder / "log", "tests.erase_scenario", what, str(root / "data"))
    for number, step in enumerate(steps):
        disk.do(step)
        if step.kind in "wsur":
            write_out(disk.after(cut), where := folder / f"{number}")
            yield where
            shutil.rmtree(where)


@pytest.mark.parametrize("cut", [Cut.KEPT, Cut.LOST, Cut.HOLLOW])
def test_a_power_cut_at_any_point_leaves_no_picture_that_cannot_be_erased_again(tmp_path: Path, cut: Cut) -> None:
    withdrawn, found = False, []
    for where in cut_anywhere(tmp_path, "erase", cut):
        with Store.open(where / "data", "line-1", limits=LIMITS) as store:
            kept = store.samples.get(ERASED.sample_id)
            withdrawn = withdrawn or (kept is not None and kept.status is SampleStatus.LABELLED)
            if withdrawn and (kept is None or kept.status is SampleStatus.SEEN):
                picture = ERASED.sample_id.hex() in there(where / "data")
                found.append((kept is not None, picture))
                assert store.samples.image(KEPT.sample_id) == image_of(1)
    assert (False, True) not in found, "nothing knows it any more, and it lies there"
    assert (found[0], found[-1]) == ((True, True), (False, False))


@pytest.mark.parametrize("what", FEW)
def test_killed_at_any_point_it_leaves_no_picture_that_no_sample_has(tmp_path: Path, what: str) -> None:
    """Nothing would find it, count it or let it go ever after."""
    most = 0
    for where in cut_anywhere(tmp_path, what, Cut.KEPT):
        with Store.open(where / "data", "line-1", limits=FEW[what]) as store:
            known = {sample.sample_id.hex() for sample in store.samples.newest(limit=100)}
            assert there(where / "data") <= known
            most = max(most, len(known))
    assert 3 <= most < 7


def test_where_the_disk_refuses_it_can_be_erased_again(tmp_path: Path) -> None:
    sample = sample_of(1)
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        store.samples.put(sample, image_of(1))
        (path,) = (tmp_path / "images").glob("??/*")
        path.parent.rename(aside := tmp_path / "aside")
        path.parent.symlink_to(path.parent)  # leads to itself: nothing below it can be named
        with pytest.raises(OSError, match="symbolic links"):
            store.samples.erase(sample.sample_id)
        path.parent.unlink()
        aside.rename(path.parent)
        assert store.samples.get(sample.sample_id) is not None
        assert store.samples.image(sample.sample_id) == image_of(1)
        assert store.samples.erase(sample.sample_id) is True
        assert there(tmp_path) == set()
        assert store.samples.erase(sample.sample_id) is False


def test_a_picture_that_nothing_knows_any_more_is_not_given_and_can_be_erased(tmp_path: Path) -> None:
    """As an earlier version left one, killed while it erased it."""
    sample = sample_of(1)
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        store.samples.put(sample, image_of(1))
        label(store, sample_of(2))
        with store._db.transaction() as db:
            db.execute("DELETE FROM samples")
        assert there(tmp_path) == {sample.sample_id.hex()}
        assert store.samples.image(sample.sample_id) is None
        assert store.samples.erase(sample.sample_id) is True
        assert there(tmp_path) == set()
