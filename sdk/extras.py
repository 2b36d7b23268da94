"""How an optional part of Headway is installed, in the words of a hint.

Headway is on no package index. Where it is installed, pip knows it by its name and fetches only what an extra
adds, from an index or from a folder of wheels (docs/agent.md, "Get Headway").
"""

from __future__ import annotations

from sdk.version import DISTRIBUTION


def installing(extra: str, *more: str) -> str:
    """Return how to add an extra to the Headway that runs.

    Args:
        extra: Its name; several with a comma between.
        more: What pip is to be given besides, quoted for the shell.

    >>> installing("plot")
    "pip install 'headway-edge[plot]' (without the internet: --no-index --find-links FOLDER, where its wheels lie)"
    """
    wanted = " ".join([f"'{DISTRIBUTION}[{extra}]'", *more])
    return f"pip install {wanted} (without the internet: --no-index --find-links FOLDER, where its wheels lie)"
