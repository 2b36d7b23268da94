"""A backbone opened for the first time, in a process of its own with little memory and little time.

A file of a few hundred bytes can ask for any amount of memory (`Expand`, `ConstantOfShape`, `Tile` and what
can be computed of them) or of time, some of it while the runtime merely opens it. No list of operators is short
enough to forbid that and long enough for every backbone. So whoever would serve a new release tries it apart
first: where the trial ends badly, the process that inspects parts has lost nothing.

    python -m device_agent.runtime.apart BUNDLE PRECISION EXTRA_BYTES    what the child runs; JSON on stdout
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from device_agent.config import RuntimeSettings
from device_agent.runtime import check_golden, open_runtime
from sdk.bundle import Bundle
from sdk.errors import HeadwayError, InferenceFailed

EXTRA_MEMORY: Final = 2**30
"""Bytes of address space that trying a backbone may take, beside what its file and its head account for.
mobilenetv2_100 and vit_tiny_patch16_224, fp32 and int8, pass with 384 MiB of it and all included."""
FILE_SHARE: Final = 8
"""Times the file's size: its bytes, ONNX Runtime's own copy, and its packed and folded weights."""
HEAD_SHARE: Final = 48
"""Bytes for each number of a d x d matrix: the head that the golden scores are held against is solved from six."""
MAX_SECONDS: Final = 60.0
"""Importing, opening and the golden inputs take a second or two here; slow devices need more."""


class _Answer(msgspec.Struct, frozen=True):
    """What the child says: nothing is wrong, or why."""

    error: str | None = None
    hint: str | None = None


def try_apart(
    bundle: Bundle,
    precision: str | None = None,
    *,
    extra_memory: int = EXTRA_MEMORY,
    max_seconds: float = MAX_SECONDS,
) -> None:
    """Open a bundle's backbone and run its golden inputs in another process, within limits.

    Args:
        bundle: Its files are opened and checked again by the child.
        precision: The channel's; None takes the bundle's first.
        extra_memory: Bytes, beside a multiple of the file.
        max_seconds: Of wall time.

    Raises:
        InferenceFailed: it does not open, gives other figures than the exporter's, or needs too much.
    """
    name = bundle.precision(precision).precision
    again = "Do not use this release: publish one exported by this version of Headway."
    command = [sys.executable, "-m", "device_agent.runtime.apart", str(bundle.path), name, str(extra_memory)]
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            timeout=max_seconds,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **single},
        )
    except subprocess.TimeoutExpired as error:
        raise InferenceFailed(f"the {name} backbone does not end in {max_seconds:.0f} s", hint=again) from error
    answer: _Answer | None = None
    with contextlib.suppress(msgspec.DecodeError):
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    if answer is None:
        raise InferenceFailed(
            f"the {name} backbone ended the process that tried it (exit {done.returncode})", hint=again
        )
    if answer.error is not None:
        raise InferenceFailed(answer.error, hint=answer.hint or again)


def _limit_memory(more: int) -> None:
    """Allow this process what it has and so many bytes more. On Linux; elsewhere nothing is limited."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str]) -> int:
    """Try a bundle, and say on stdout how that went."""
    path, precision, extra = arguments
    answer = _Answer()
    try:
        import device_agent.runtime.onnx  # noqa: F401  # the runtime's own libraries are not the backbone's doing

        bundle = Bundle.open(Path(path))
        size = (bundle.path / bundle.precision(precision).backbone).stat().st_size
        head = HEAD_SHARE * bundle.precision(precision).feature_size ** 2
        _limit_memory(int(extra) + FILE_SHARE * size + head)
        check_golden(open_runtime(bundle, precision, RuntimeSettings(threads=1)), bundle, precision)
    except HeadwayError as error:
        answer = _Answer(str(error), error.hint)
    except MemoryError:
        answer = _Answer(f"the {precision} backbone needs too much memory")
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
