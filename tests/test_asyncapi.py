"""The AsyncAPI document says what `sdk.wire` does: every topic, every message, every field and limit."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from sdk import wire
from sdk.fleet.asyncapi import CHANNELS, document
from sdk.wire import (
    Ack,
    ChannelMeta,
    Desired,
    DeviceState,
    HeadState,
    Quality,
    Refusal,
    ReleaseRef,
    Result,
    Topics,
    UpdateEvent,
    UpdateState,
    Want,
    encode_json,
)
from tests.schemas import validator_of

FILE = Path(__file__).parents[1] / "docs" / "asyncapi.yaml"
PROTOCOL = Path(__file__).parents[1] / "docs" / "protocol.md"
REF = ReleaseRef(release_id="ab" * 32, name="first", size_bytes=7)
EXAMPLES = [
    ChannelMeta(channel="default", release=REF, log_length=7),
    ChannelMeta(channel="default", release=None, log_length=0),
    Desired(release=REF, channel="default", deadline_utc=1.5),
    Ack(through=7, refused=Refusal(seq=8, reason="a gap"), signature="ab" * 64),
    Want(channel="default", chunks=["cd" * 32], log_from=3),
    UpdateEvent(release_id="ab" * 32, state=UpdateState.ROLLED_BACK, reason="too slow"),
    DeviceState(
        device="line-1", channel="default", online=True, head_state=HeadState.CONFIRMED, quality=Quality()
    ),
    Result(
        sample="ab" * 32,
        decision="scratch",
        probability=0.9,
        novelty=0.1,
        unknown=False,
        captured_utc=1.0,
        latency_ms=20.0,
        tile=(0, 1, 2, 3, 4),
    ),
]


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def test_the_file_is_what_the_code_says_now(written: dict[str, Any]) -> None:
    """Where this fails: python -m sdk.fleet.asyncapi > docs/asyncapi.yaml"""
    assert written == document()


def test_every_topic_is_a_channel(written: dict[str, Any]) -> None:
    methods = {
        name
        for name, member in inspect.getmembers(Topics, inspect.isfunction)
        if not name.startswith("_") and name not in ("device_of", "kind_of")
    }
    assert set(written["channels"]) == methods | {"trigger"}
    parameter = {"chunk": "ab" * 32, "meta": "default", "log": "default"}
    for channel in CHANNELS:
        arguments = [] if channel.parameter is None else [parameter.get(channel.name, "line-1")]
        topic = channel.topic(Topics(), *arguments)
        address = written["channels"][channel.name]["address"]
        filled = address.format(prefix="headway/v1", sha256="ab" * 32, channel="default", device="line-1")
        assert filled == topic


def test_every_message_and_every_field_is_there(written: dict[str, Any]) -> None:
    schemas = written["components"]["schemas"]
    kinds = [
        kind
        for kind in vars(wire).values()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind.__module__ == "sdk.wire"
    ]
    for kind in kinds:
        if kind.__name__.startswith("_"):
            continue
        schema = schemas[kind.__name__]
        if kind.__struct_config__.array_like:
            assert len(schema["prefixItems"]) == len(kind.__struct_fields__)
        else:
            assert set(schema["properties"]) == set(kind.__struct_encode_fields__)
            assert schema.get("additionalProperties") is (None if kind is wire.DeviceState else False)
    assert {"Label", "CodeRecord", "MergeClasses", "KeepApart", "Quarantine", "Entry", "Record"} <= set(schemas)


def test_every_channel_is_in_the_prose_too() -> None:
    prose = PROTOCOL.read_text(encoding="utf-8")
    for channel in CHANNELS:
        row = channel.address.replace("{prefix}", "<p>").replace("{device}", "<id>")
        assert row.replace("{", "<").replace("}", ">") in prose, channel.name


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_what_we_send_is_what_the_document_allows(written: dict[str, Any], message: msgspec.Struct) -> None:
    schema = {
        "$ref": f"#/components/schemas/{type(message).__name__}",
        "components": {"schemas": written["components"]["schemas"]},
    }
    said = msgspec.json.decode(encode_json(message))
    validator = validator_of(schema)
    assert [str(error) for error in validator.iter_errors(said)] == []
    assert validator.is_valid({**said, "more": 1}) is isinstance(message, wire.DeviceState)
    assert not validator.is_valid({**said, "v": 2})


def test_every_reference_leads_somewhere(written: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [each for value in node.values() for each in references(value)]
        return [each for value in node for each in references(value)] if isinstance(node, list) else []

    found = references(written)
    assert len(found) > 50
    for reference in found:
        node: Any = written
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
