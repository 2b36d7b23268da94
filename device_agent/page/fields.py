"""The fields of the HTTP interface that several of its subjects have: ids in hex, names, pages of rows."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

MAX_PAGE: Final = 200
"""Rows of one answer."""

_SAMPLE: Final = r"^[0-9a-f]{64}$"
_CLASS: Final = r"^[0-9a-f]{32}$"

SampleField = Annotated[str, Field(pattern=_SAMPLE)]
SamplePath = Annotated[str, Path(pattern=_SAMPLE)]
ClassField = Annotated[str, Field(pattern=_CLASS)]
ClassPath = Annotated[str, Path(pattern=_CLASS)]
ClassQuery = Annotated[str, Query(pattern=_CLASS)]
ClassName = Annotated[str, Field(min_length=1, max_length=64)]
OperatorName = Annotated[str, Field(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]


class RequestBody(BaseModel):
    """What a request brings; a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class ByIn(RequestBody):
    """Who asks for it; counts only where the device has no accounts."""

    operator: OperatorName = ""
