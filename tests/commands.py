"""The `headway` command in this process: as fast as a call, and as the user sees it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sdk.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def headway(capsys: pytest.CaptureFixture[str], *args: object) -> Ended:
    """Run a command to its end."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    code = ended.value.code
    return Ended(code if isinstance(code, int) else int(code is not None), out, err)
