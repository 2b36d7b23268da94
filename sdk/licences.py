"""Licences of weights: named as SPDX names them, and held against a list of those that may be published.

Weights carry free text ("apache-2.0", "dinov3-license"). `normalise` gives the SPDX expression that it means, by
the `license-expression` library, and nothing where it means none. What is not on the list, unknown licences
among it, is published only by an explicit acceptance, which is recorded (`headway fleet publish
--accept-licence`).

Whether a licence allows what a plant does is for people to read: this makes sure that somebody did.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sdk.bundle import Bundle
from sdk.errors import LicenceRefused

UNKNOWN: Final = "unknown"
NO_WEIGHTS: Final = "not applicable"
"""What the exporter writes for weights drawn at random: nobody's work is in them."""
ALLOWED: Final = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "MIT-0",
    "Unlicense", "Zlib",
)  # fmt: skip
"""Licences that ask for no more than attribution. A fleet's own list stands in `LIST_NAME` in its directory."""
LIST_NAME: Final = "licences.txt"
RECORD_NAME: Final = "accepted-licences.jsonl"
MAX_LIST_BYTES: Final = 64 * 1024


@functools.cache
def _spdx() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def _parsed(text: str) -> Any:
    """Return the library's expression; None where the text is none."""
    from boolean.boolean import ParseError
    from license_expression import ExpressionError

    try:
        return _spdx().parse(text, validate=True)
    except (ExpressionError, ParseError):
        return None


def normalise(text: str) -> str | None:
    """Return the SPDX expression that a licence's text means; None where it means none.

    >>> normalise("apache-2.0"), normalise("mit or gpl-3.0"), normalise("dinov3-license")
    ('Apache-2.0', 'MIT OR GPL-3.0-only', None)
    """
    found = _parsed(text)
    return None if found is None else str(found.render())


def name_of(text: str) -> str:
    """Return how people should read a licence: as SPDX names it, with the remark where it does not."""
    spdx = normalise(text)
    if spdx is not None:
        return spdx
    return text if text == NO_WEIGHTS else f"{text} (no licence that SPDX names: read it before use)"


def allowed(text: str, list_: Collection[str] = ALLOWED) -> bool:
    """Return whether a licence is allowed: itself, any part of an OR, every part of an AND.

    >>> allowed("apache-2.0"), allowed("MIT OR GPL-3.0-only"), allowed("MIT AND CC-BY-NC-4.0"), allowed("unknown")
    (True, True, False, False)
    """
    found = _parsed(text)
    return found is not None and _allowed(found, frozenset(list_))


def _allowed(expression: Any, list_: frozenset[str]) -> bool:
    # "X WITH exception" is one symbol, rendered whole, and must be on the list as that.
    if not expression.args or str(expression.render()) in list_:
        return str(expression.render()) in list_
    parts = [_allowed(part, list_) for part in expression.args]
    return any(parts) if type(expression).__name__ == "OR" else all(parts)


def read_list(directory: Path) -> tuple[str, ...]:
    """Return the licences that a fleet allows: one SPDX id a line of its `licences.txt`, else `ALLOWED`.

    Raises:
        LicenceRefused: a line is no SPDX id, or the file cannot be read.
    """
    file = directory / LIST_NAME
    try:
        if not file.exists():
            return ALLOWED
        if file.stat().st_size > MAX_LIST_BYTES:
            raise LicenceRefused(f"{file} is too large", hint="One SPDX id a line, '#' before remarks.")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LicenceRefused(f"{file} cannot be read", hint="One SPDX id a line, in UTF-8.") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            spdx = normalise(text)
            if spdx is None:
                raise LicenceRefused(
                    f"{file}, line {number}: {text[:80]!r} is no SPDX id", hint="See https://spdx.org/licenses."
                )
            found.append(spdx)
    return tuple(found)


@dataclass(frozen=True)
class Ruling:
    """Why a bundle's weights may be published.

    Attributes:
        stated: The licence as the weights state it.
        spdx: What that means; None where it means no SPDX licence.
        accepted: The id that somebody accepted for it; None where the list allows it.
    """

    stated: str
    spdx: str | None
    accepted: str | None


def rule(bundle: Bundle, list_: Collection[str], accept: Iterable[str]) -> Ruling:
    """Return why a bundle may be published.

    Args:
        bundle: Its lineage states the licence of its weights.
        list_: SPDX ids that may.
        accept: Ids that somebody accepts for this publishing, as stated or as SPDX.

    Raises:
        LicenceRefused: it may not.
    """
    lineage = bundle.manifest.lineage
    stated = lineage.weights_licence
    if lineage.weights_sha256 is None:
        return Ruling(stated, None, None)  # random at the start: all that is in them came from the plant's images
    spdx = normalise(stated)
    if allowed(stated, list_):
        return Ruling(stated, spdx, None)
    for one in accept:
        if one.casefold() == stated.casefold() or (spdx is not None and normalise(one) == spdx):
            return Ruling(stated, spdx, one)
    words = (
        f"is {spdx}, which is not on the list" if spdx else "is unknown" if stated == UNKNOWN else "is no SPDX id"
    )
    name = spdx or stated
    raise LicenceRefused(
        f"{bundle.manifest.name}: the licence {stated!r} of its weights ({lineage.weights_source[:100]}) {words}",
        hint=f"Read it. Then use --accept-licence {_quoted(name)}, or list it in the fleet's {LIST_NAME}.",
    )


def _quoted(text: str) -> str:
    return text if text.replace("-", "").replace(".", "").isalnum() else f"'{text}'"


def record(directory: Path, bundle: Bundle, ruling: Ruling) -> None:
    """Add a line to the fleet's record that somebody accepted a licence, on disk when this returns."""
    line = {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.digest(),
        "weights": bundle.manifest.lineage.weights_source,
        "weights_sha256": bundle.manifest.lineage.weights_sha256,
        "stated": ruling.stated,
        "spdx": ruling.spdx,
        "accepted": ruling.accepted,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / RECORD_NAME).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
