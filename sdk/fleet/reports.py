"""What happens at a fleet's service, as people and logs are told: a kind, and its particulars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Happened = tuple[str, dict[str, Any]]
"""A kind, such as "stored", and its particulars."""

Report = Callable[[str, dict[str, Any]], None]
"""Called with what happened, as it happens."""
