"""What published schemas say of a document of ours: CycloneDX and JSON Schema.

Their libraries read grammars for two seconds when they are imported, so that happens where one is asked, and not
in each process that only collects tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator


def bom_problem(text: str) -> str | None:
    """Return what is wrong with a CycloneDX 1.6 document in JSON, strictly; None where nothing is."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return None if problem is None else str(problem)


def validator_of(schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator of JSON Schema 2020-12."""
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema)
