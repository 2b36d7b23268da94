"""Reads `site.toml` into the settings tree of `device_agent.config`, checked once at start.

Unknown keys are refused with the nearest known name; a wrong value is named with its file and key. Relative paths
are relative to the folder of `site.toml`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from device_agent.config import CAMERA_KINDS, CAMERA_TABLES, OUTPUT_KINDS, TABLES, LiveCamera, Section, Site
from device_agent.plugins import CAMERAS, OUTPUTS, installed
from sdk.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SITE_NAME = "site.toml"
MAX_SITE_BYTES = 1024 * 1024


def load_site(file: Path) -> Site:
    """Return the settings in a `site.toml`.

    Raises:
        ConfigError: it cannot be read, or a key or value in it is wrong.
    """
    try:
        size_bytes = file.stat().st_size
        text = file.read_text(encoding="utf-8") if size_bytes <= MAX_SITE_BYTES else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{file}: {reason}", hint="`headway agent init` writes one to start from.") from error
    if size_bytes > MAX_SITE_BYTES:
        raise ConfigError(f"{file}: {size_bytes} bytes are too many", hint="Is this really a settings file?")
    return parse_site(text, file)


def parse_site(text: str, file: Path) -> Site:
    """Return the settings that the text of `file` says; paths are relative to the file's folder.

    Raises:
        ConfigError: a key or value is wrong.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{file}: {error}", hint='Strings stand in quotes: name = "value"; tables in brackets: [camera].'
        ) from error
    raw = _with_plugins(raw)
    _refuse_unknown(raw, file)
    folder = file.resolve().parent

    def to_path(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value:
            return folder / Path(value).expanduser()
        raise ValueError("expected a path in quotes")

    try:
        site = msgspec.convert(raw, Site, dec_hook=to_path)
    except msgspec.ValidationError as error:
        message, key = _explain(str(error))
        raise ConfigError(
            f"{file}: {key}{message}", hint=f"docs/agent.md lists every key; {_hint_for(key, raw)}"
        ) from error
    return msgspec.structs.replace(site, data_dir=folder / site.data_dir)


def _with_plugins(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with tables of plug-ins in the form that `PluginCamera` has."""
    cameras = raw.get("camera")
    kinds = installed(CAMERAS)

    def known(table: Any) -> Any:
        kind = table.get("kind") if isinstance(table, Mapping) else None
        if not isinstance(kind, str) or kind in CAMERA_KINDS or kind not in kinds:
            return table
        common = {name for name in _known(LiveCamera) if name in table}
        options = {key: value for key, value in table.items() if key not in common and key != "kind"}
        return {**{name: table[name] for name in common}, "kind": "plugin", "plugin": kind, "options": options}

    whole = dict(raw)
    if cameras is not None:
        whole["camera"] = [known(each) for each in cameras] if isinstance(cameras, list) else known(cameras)
    if isinstance(raw.get("output"), list):
        whole["output"] = [_plugin_output(table) for table in raw["output"]]
    return whole


def _plugin_output(table: Any) -> Any:
    kind = table.get("kind") if isinstance(table, Mapping) else None
    if not isinstance(kind, str) or kind in OUTPUT_KINDS or kind not in installed(OUTPUTS):
        return table
    options = {key: value for key, value in table.items() if key != "kind"}
    return {"kind": "plugin", "plugin": kind, "options": options}


def _explain(message: str) -> tuple[str, str]:
    """Return msgspec's message in plain words, and "key: " for where it is, if it says."""
    text, _, where = message.partition(" - at `$")
    key = where.rstrip("`").removeprefix(".")
    if not key and text.startswith("Object missing required field"):
        return f"{text.split('`')[1]} is missing", ""
    if text.startswith("Object missing required field"):
        return f"{text.split('`')[1]} is missing in [{key}]", ""
    plain = text.replace("Expected `", "expected ").replace("`, got `", ", got ").replace("`", "")
    return plain[:1].lower() + plain[1:], f"{key}: " if key else ""


def _hint_for(key: str, raw: Mapping[str, Any]) -> str:
    if key.startswith("device"):
        return "a device id has small letters, digits and '-' only, for example line-3."
    about_kind = key.removesuffix(": ").endswith(".kind") or "." not in key
    if "camera" not in raw or (key.startswith("camera") and about_kind):
        return f"kind is one of {', '.join([*CAMERA_KINDS, *installed(CAMERAS)])}."
    if key.startswith("output") and about_kind:
        return f"kind is one of {', '.join([*OUTPUT_KINDS, *installed(OUTPUTS)])}."
    return "`headway agent init` writes an example."


def _known(kind: type[Section]) -> list[str]:
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    return ["kind", *names] if kind in (*CAMERA_KINDS.values(), *OUTPUT_KINDS.values()) else names


def _refuse_unknown(raw: Mapping[str, Any], file: Path) -> None:
    _refuse_in(raw, "", _known(Site), file)
    for name, table in raw.items():
        for one in table if isinstance(table, list) else [table]:
            if not isinstance(one, Mapping):
                continue
            if name == "camera":
                _refuse_in_camera(one, file)
            elif name == "output" and one.get("kind") in OUTPUT_KINDS:
                _refuse_in(one, "output", _known(OUTPUT_KINDS[one["kind"]]), file)
            elif name in TABLES:
                _refuse_in(one, name, _known(TABLES[name]), file)


def _refuse_in_camera(table: Mapping[str, Any], file: Path) -> None:
    kind = CAMERA_KINDS.get(str(table.get("kind")))
    if kind is not None:
        _refuse_in(table, "camera", _known(kind), file)
    for name, section in CAMERA_TABLES.items():
        inner = table.get(name)
        if isinstance(inner, Mapping):
            _refuse_in(inner, f"camera.{name}", _known(section), file)


def _refuse_in(table: Mapping[str, Any], section: str, known: list[str], file: Path) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{file}: unknown key {key!r}" + (f" in [{section}]" if section else ""),
                hint=_nearest(key, section, known),
            )


def _nearest(key: str, section: str, known: list[str]) -> str:
    tables: dict[str, type[Section]] = {**TABLES, "": Site}
    tables.update((f"camera.{name}", section) for name, section in CAMERA_TABLES.items())
    tables.update((f"camera ({kind})", struct) for kind, struct in CAMERA_KINDS.items())
    for name, kind in tables.items():
        if key in _known(kind) and name != section:
            return f"{key!r} belongs in [{name}]." if name else f"{key!r} belongs before the first [table]."
    here = difflib.get_close_matches(key, known, n=1)
    if here:
        return f"Did you mean {here[0]!r}?"
    return f"Known here: {', '.join(sorted(known))}."
