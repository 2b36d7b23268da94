"""A label that is withdrawn while the trial of its head ends: the head from before serves, whoever comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agent.courtesy import Courtesy
from device_agent.heads_and_updates import Outcome
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.bundle import Bundle
from tests.builders import make_bundle
from tests.test_learner import SCRATCH, assert_exact, decide, see


class Between(Courtesy):
    """Has something happen once, at the n-th step from now at which a thread would give way."""

    def __init__(self) -> None:
        super().__init__()
        self._steps, self._then = 0, None

    def at(self, steps: int, then: Callable[[], None]) -> None:
        self._steps, self._then = steps, then

    def give_way(self) -> None:
        self._steps -= 1
        if self._then is not None and self._steps == 0:
            then, self._then = self._then, None
            then()

    _then: Callable[[], None] | None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "two-classes")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1", limits=StoreLimits(reserve_bytes=0)) as opened:
        yield opened


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_head_confirmed_while_its_label_is_unlearned_does_not_serve_on(
    bundle: Bundle, store: Store, step: int
) -> None:
    between = Between()
    learner = Learner(bundle, None, store, courtesy=between)
    before, sample = learner.head, see(store, bundle, "scratch", 1)
    learner.label(sample, SCRATCH, "anna")
    learner.run_until_idle(trials=False)
    learner.label(sample, None, "anna")
    outcomes: list[Outcome] = []

    def end_the_trial() -> None:
        learner._trials.step()
        outcomes.append(learner.status().outcome)

    between.at(step, end_the_trial)
    learner.run_until_idle()
    assert outcomes == [Outcome.CONFIRMED], "the trial came in between"
    assert (learner.head.digest, learner.head.samples) == (before.digest, before.samples)
    assert learner.head.digest == learner.live_set().digest
    assert decide(learner, bundle, "scratch", 99) == "scratch"
    assert_exact(learner, store, bundle)
