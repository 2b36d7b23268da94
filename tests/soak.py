"""How often a fault is tried: a few times in the tests, many with `make soak` (docs/faults.md)."""

from __future__ import annotations

import os
from typing import Final

SOAK: Final = bool(os.environ.get("HEADWAY_SOAK") or os.environ.get("HEADWAY_ALL_CRASHES"))
"""Of the fleet's faults, or the device's: `make soak` runs one after the other."""
SHARE: Final = float(os.environ.get("HEADWAY_SOAK_SHARE", "1"))
"""Of the full number of runs, where there is less time."""


def times(quick: int, full: int) -> int:
    """Return how often to try: `quick` in the tests, a share of `full` in the long run."""
    return max(quick, int(full * SHARE)) if SOAK else quick


def tell(fault: str, runs: int, failures: int, more: str = "") -> None:
    """Say what was run, with the upper 95 % bound of the share of failures where there were none: 3 / n."""
    bound = f"; below {3 / runs:.2g} at 95 %" if not failures and runs > 3 else ""
    print(f"\n{fault}: {runs} runs, {failures} failures{bound}{'; ' if more else ''}{more}", flush=True)
