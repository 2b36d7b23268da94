"""What is written for people is so: links lead somewhere, every command that is shown is one, with its options.

Documents and error hints alike: a remedy that is no command is none.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from device_agent import config
from sdk.cli import headway

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "export/builtin/*.md")
    for page in ROOT.glob(pattern)
)
SOURCES = sorted(file for folder in ("sdk", "device_agent", "export") for file in (ROOT / folder).rglob("*.py"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTION = re.compile(r"\[[\w.]+\]\((\w+\.md)\),\s+sections?\s+(\d+)|\b(?:docs/)?(\w+\.md),\s+sections?\s+(\d+)")
DECISION = re.compile(r"\b[Dd]ecisions?[ /](\d{4})\b")
OURS = "|".join(headway.list_commands(click.Context(headway)))
COMMAND = re.compile(rf"(?<![\w.-])headway ((?:{OURS})\b.*)$")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the usual viewers make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in words}


def sections_of(page: Path) -> set[str]:
    return set(re.findall(r"^#+ (\d+)\. ", page.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    wrong = []
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_holds_the_place_of_what_was_to_come(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    assert re.findall(r"^\W*(?:[A-Z]{3,}\W*)+$", text, re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_section_and_decision_that_is_named_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [
        f"{there}, section {number}"
        for linked, linked_number, named, named_number in SECTION.findall(text)
        for there, number in [(linked or named, linked_number or named_number)]
        if number not in sections_of(ROOT / "docs" / there)
    ]
    wrong += [number for number in DECISION.findall(text) if not list(ROOT.glob(f"docs/decisions/{number}-*.md"))]
    assert wrong == []


# -- commands


def shown_commands(text: str) -> Iterator[str]:
    """Yield the commands of a page's blocks without their first word, each in one line, the remarks left out."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^ {4}.*\n)+", without_code(text), re.MULTILINE)
    for block in (*fenced, *indented):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s\|\s|&&|;\s", re.sub(r"\s+#.*", "", line)):
                if found := COMMAND.search(part.strip()):
                    yield found[1]


def command_of(words: list[str], *, whole: bool) -> tuple[click.Command, list[str]] | str | None:
    """Return the command that words name and what follows it; or what is wrong; None for a group in prose."""
    command: click.Command = headway
    context = click.Context(command, info_name="headway")
    words = list(words)
    while isinstance(command, click.Group):
        if command.invoke_without_command:  # the group's own options stand before the name of one below it
            known = {opt for param in command.params for opt in param.opts}
            while words and words[0] in known:
                del words[: 1 if words[0] == "--json" else 2]
        if not words or words[0].startswith("-"):
            return (command, words) if command.invoke_without_command else "a group alone" if whole else None
        name = words.pop(0)
        below = [command.get_command(context, each) for each in name.split("|")]
        if not all(below):
            return f"no command {name!r}" if whole or re.fullmatch(r"[a-z-]+", name) else None
        assert below[0] is not None
        command, context = below[0], click.Context(below[0], info_name=name, parent=context)
    if command.name == "export" and words[:1] == ["pretrain"]:
        from export.pretrain_cli import pretrain

        return pretrain, words[1:]
    return command, words


def problem(line: str, *, whole: bool) -> str | None:
    """Return what is wrong with a command, given without its first word; None if nothing is.

    `whole`: it is shown to be typed, so that what is required must be there too.
    """
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    found = command_of(words, whole=whole)
    if found is None or isinstance(found, str):
        return found
    command, words = found
    known = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)} | {"--help"}
    words = [each for word in words for each in (word.split("|") if word.startswith("--") else [word])]
    strange = [
        word for word in words if re.match(r"--[a-z]", word) and not known & {re.split(r"[=.,:;)]", word)[0]}
    ]
    if strange:
        return f"no option {strange[0]}"
    if not whole or isinstance(command, click.Group):
        return None
    try:
        given, _, _ = command.make_parser(click.Context(command)).parse_args(words)
    except click.UsageError as error:
        return error.message
    lacking = [
        each.name
        for each in command.params
        if each.required and not isinstance(given.get(each.name or ""), str | tuple | list)
    ]
    return f"without {lacking[0]}" if lacking else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_shows_or_names_is_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = {line: found for line in shown_commands(text) if (found := problem(line, whole=True))}
    wrong |= {line: found for line in named_commands(without_code(text)) if (found := problem(line, whole=False))}
    assert wrong == {}


def test_the_guides_show_commands() -> None:
    """The check above must have something to check."""
    counts = {
        str(page.relative_to(ROOT)): len(list(shown_commands(page.read_text(encoding="utf-8")))) for page in PAGES
    }
    assert counts["README.md"] >= 12
    assert counts["docs/fleet.md"] >= 20
    assert counts["docs/trust.md"] >= 12
    assert sum(len(list(named_commands(text))) for file in SOURCES for text in strings_of(file)) >= 100


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("fleet publsh my-bundle --dir fleet", "no command 'publsh'"),
        ("fleet publish my-bundle --drr fleet", "no option --drr"),
        ("fleet publish my-bundle", "without directory"),
        ("fleet publish --dir fleet", "without bundle"),
        ("fleet rollout approve|hold --dir fleet", "no command 'approve|hold'"),
        ("fleet rollout approve|halt --dir fleet", None),
        ("fleet classes --dir fleet merge 5c1e07aa 91aa3b02 --name scratch", None),
    ],
)
def test_a_wrong_command_is_found(line: str, wrong: str | None) -> None:
    assert problem(line, whole=True) == wrong


def strings_of(file: Path) -> Iterator[str]:
    """Yield a module's texts, what is filled in as one word."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def named_commands(text: str) -> Iterator[str]:
    """Yield what a text names as a command of ours, without its first word."""
    for quoted in re.findall(r"`headway ([^`]+)`", text):
        if re.match(rf"(?:{OURS})\b", quoted):
            yield " ".join(quoted.split())
    for line in re.sub(r"`[^`]*`", "", text).splitlines():
        if found := COMMAND.search(line):
            yield re.split(r";|, |\. |\s\|\s|\s#\s|\s{2,}", found[1])[0]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_that_a_message_names_is_one(file: Path) -> None:
    wrong = {}
    for text in strings_of(file):
        for line in named_commands(text):
            if found := problem(line, whole=False):
                wrong[line] = found
    assert wrong == {}


@pytest.mark.parametrize("name", sorted([*config.CAMERA_KINDS, *config.OUTPUT_KINDS, *config.TABLES, "site"]))
def test_the_agents_guide_explains_every_key(name: str) -> None:
    """As `headway agent run` says where it refuses one."""
    tables: dict[str, type[msgspec.Struct]] = {**config.CAMERA_KINDS, **config.OUTPUT_KINDS, **config.TABLES}
    guide = (ROOT / "docs" / "agent.md").read_text(encoding="utf-8")
    keys = [field.encode_name for field in msgspec.structs.fields(tables.get(name, config.Site))]
    assert [key for key in keys if not re.search(rf"[`\n.\[ ]{key}(`| =|\]|\.)", guide)] == []


def expanded(name: str) -> set[str]:
    """Return the names that a pattern as in the shell stands for."""
    found = re.fullmatch(r"(.*)\{([a-z,]+)\}(.*)", name)
    return {name} if found is None else {f"{found[1]}{each}{found[3]}" for each in found[2].split(",")}


def test_the_agents_guide_names_every_metric() -> None:
    guide = (ROOT / "docs" / "agent.md").read_text(encoding="utf-8")
    said = {
        name
        for each in re.findall(
            r"`(headway_[a-z_{},]+?)(?:\{(?:class_name|verdict|output)\}|\{device,[^`]*)?`", guide
        )
        for name in expanded(each)
    }
    made = set(
        re.findall(r'"(headway_[a-z_]+)"', (ROOT / "device_agent" / "metrics.py").read_text(encoding="utf-8"))
    )
    assert made - {name.removesuffix("_total") for name in said} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nobody_is_sent_to_an_index_for_headway_itself(page: Path) -> None:
    """It is on none: by its name pip finds it in a folder of wheels, or where it is installed already."""
    lines = [
        line
        for line in page.read_text(encoding="utf-8").splitlines()
        if "pip install" in line and re.search(r"headway-edge\[\w*(agent|fleet|export|demo)", line)
    ]
    assert [line for line in lines if "--no-index --find-links" not in line] == []
