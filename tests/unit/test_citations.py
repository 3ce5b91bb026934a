"""Every citation can be followed: the pages that code and documentation cite exist, with the sections and rules cited.

A citation is a path like `docs/upstream/lessons.md`, or in Markdown a link, and what directly follows it: "section
3.1", "sections 2-4", "(T1-T10)", "R24, R25", a quoted phrase, or of the recorded traffic the number of a recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UPSTREAM = ROOT / "docs" / "upstream"
UPSTREAM_PAGES = sorted(UPSTREAM.glob("*.md"))
RECORDED_TRAFFIC = UPSTREAM / "recorded-traffic.md"

PYTHON = [
    path
    for folder in ("dcsync", "tests", "bench", "tools", "docs", ".")
    for path in sorted((ROOT / folder).glob("*.py" if folder == "." else "**/*.py"))
    if path != Path(__file__).resolve()
]
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])

PATH = re.compile(r"(?<![\w/.-])docs/[\w/-]+\.md")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
TAIL_LENGTH = 300
TAIL = re.compile(
    r"""`?\s*(?:(?P<word>sections?\b|and\b|to\b|[-,()])|(?P<rule>[A-Z]\d+)\b|(?P<number>\d+(?:\.\d+)*)\b|"(?P<phrase>[^"]+)")"""
)
STEMS = "|".join(re.escape(page.stem) for page in UPSTREAM_PAGES if page.stem != "README")
BARE = re.compile(
    rf"(?<![\w/.-])(?:{STEMS})\.md\b|(?<![\w./-])(?:spec|contracts)/[\w./-]+|(?<![\w/.-])platform-facts\b|(?<![\w/-])recorded/\d\d"
    r"|\blessons [RW]\d+|\bspec sections?\b|\b(?:DESIGN|EXPECTATIONS|STYLE)\b"
)
"""What reads like a citation and cannot be followed: a page without its path, or one outside this repository."""


@dataclass(frozen=True, kw_only=True)
class Citation:
    """What is cited of one page; `line` is where."""

    line: int
    page: Path
    anchor: str | None = None
    sections: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    recordings: list[str] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        """One sentence for each thing that is cited and does not exist."""
        name = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        if not self.page.exists():
            yield f"line {self.line}: {name} does not exist"
            return
        if self.page.suffix != ".md":
            return
        page = contents(self.page)
        missing = [f"#{self.anchor}"] if self.anchor and self.anchor not in page.anchors else []
        missing += [f"section {number}" for number in self.sections if number not in page.sections]
        missing += [f"rule {rule}" for rule in self.rules if rule not in page.rules]
        missing += [f"recording {number}" for number in self.recordings if number not in page.recordings]
        missing += [f'"{phrase}"' for phrase in self.phrases if phrase not in page.text]
        for what in missing:
            yield f"line {self.line}: {name} has no {what}"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What can be cited of a page."""

    text: str
    anchors: frozenset[str]
    sections: frozenset[str]
    rules: frozenset[str]
    recordings: frozenset[str]


@cache
def contents(page: Path) -> Contents:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return Contents(
        text=" ".join(text.split()),
        anchors=frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings),
        sections=frozenset(match[1] for heading in headings if (match := re.match(r"(\d+(?:\.\d+)*)[. ]", heading))),
        rules=frozenset(re.findall(r"^\| (?:\*\*)?([A-Z]\d+)\b", text, re.MULTILINE)),
        recordings=frozenset(re.findall(r"^\| (\d\d)-", text, re.MULTILINE)),
    )


def cited(text: str, end: int, *, line: int, page: Path, anchor: str | None = None) -> Citation:
    """The citation whose path or link ends at `end`, with what directly follows it, line breaks ignored."""
    citation = Citation(line=line, page=page, anchor=anchor)
    tail = re.sub(r"\s+(?:#:? )?", " ", text[end : end + TAIL_LENGTH])
    at, of_sections = 0, False
    while match := TAIL.match(tail, at):
        of_sections = of_sections or (match["word"] or "").startswith("section")
        if match["number"] and of_sections:
            citation.sections.append(match["number"])
        elif match["number"] and page == RECORDED_TRAFFIC:
            citation.recordings.append(match["number"])
        elif match["number"]:
            break
        elif match["rule"]:
            citation.rules.append(match["rule"])
        elif match["phrase"]:
            citation.phrases.append(match["phrase"])
        at = match.end()
    return citation


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def by_path(text: str) -> Iterator[Citation]:
    for match in PATH.finditer(text):
        yield cited(text, match.end(), line=line_of(text, match.start()), page=ROOT / match[0])


def by_link(text: str, *, of: Path) -> Iterator[Citation]:
    for match in LINK.finditer(text):
        target, anchor = match.groups()
        if "://" not in target and not target.startswith("mailto:"):
            page = (of.parent / target).resolve() if target else of
            yield cited(text, match.end(), line=line_of(text, match.start()), page=page, anchor=anchor)


def of_its_own(text: str, *, page: Path) -> Iterator[Citation]:
    """Sections that a page cites without a link or a path: its own."""
    followed = {match.end() for pattern in (LINK, PATH) for match in pattern.finditer(text)}
    for match in re.finditer(r"\s\(?(?=sections? \d)", text):
        if match.start() not in followed:
            yield cited(text, match.end(), line=line_of(text, match.start()), page=page)


def problems_of_python(text: str) -> list[str]:
    found = [problem for citation in by_path(text) for problem in citation.problems()]
    return found + [f"line {line_of(text, bare.start())}: {bare[0]} is no page" for bare in BARE.finditer(text)]


def problems_of_markdown(text: str, *, page: Path) -> list[str]:
    citations = [*by_path(text), *by_link(text, of=page)]
    if page.parent == UPSTREAM:
        citations += of_its_own(text, page=page)
    found = [problem for citation in citations for problem in citation.problems()]
    unlinked = LINK.sub(lambda link: " " * len(link[0]), text)
    return found + [f"line {line_of(text, bare.start())}: {bare[0]} is no link" for bare in BARE.finditer(unlinked)]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_code_cites_what_exists() -> None:
    problems = {named(path): problems_of_python(path.read_text(encoding="utf-8")) for path in PYTHON}

    assert {name: found for name, found in problems.items() if found} == {}


@pytest.mark.parametrize("page", MARKDOWN, ids=named)
def test_pages_cite_what_exists(page: Path) -> None:
    assert problems_of_markdown(page.read_text(encoding="utf-8"), page=page) == []


def test_every_upstream_page_is_in_the_index() -> None:
    index = UPSTREAM / "README.md"
    linked = {citation.page for citation in by_link(index.read_text(encoding="utf-8"), of=index)}

    assert set(UPSTREAM_PAGES) - linked == {index}


@pytest.mark.parametrize(
    "text",
    [
        "Source: docs/upstream/initial-sync.md section 3 (T1-T10) and 3.1, with differences.",
        "Source: docs/upstream/identity-sync.md section\n    5, docs/upstream/real-keystone.md R2, R3, R7, and more.",
        "# docs/upstream/identity-sync.md section\n# 5.",
        'docs/upstream/real-keystone.md "What must\n    hold after a sync".',
        "docs/upstream/recorded-traffic.md 03-05, 07: 99.",
        "Since `docs/states.md`, 14 things changed.",
        "a compose-spec/ folder and tests/contract/conftest.py",
    ],
)
def test_a_citation_that_can_be_followed_is_no_problem(text: str) -> None:
    assert problems_of_python(text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("see docs/nowhere.md", "docs/nowhere.md does not exist"),
        ("docs/upstream/lessons.md R15, R99", "docs/upstream/lessons.md has no rule R99"),
        ("docs/upstream/scale.md sections 3\n    and 3.9", "docs/upstream/scale.md has no section 3.9"),
        ("docs/upstream/initial-sync.md section 3\n# (T1-T11)", "docs/upstream/initial-sync.md has no rule T11"),
        ("docs/upstream/recorded-traffic.md 05, 14: 2", "docs/upstream/recorded-traffic.md has no recording 14"),
        ('docs/upstream/lessons.md "never said"', 'docs/upstream/lessons.md has no "never said"'),
        ("Source: spec/initial-sync.md section 3", "spec/initial-sync.md is no page"),
        ("(contracts/real-keystone.md K4)", "contracts/real-keystone.md is no page"),
        ("contracts/recorded/04 and 10", "contracts/recorded/04 is no page"),
        ("recorded/05: 4", "recorded/05 is no page"),
        ("without the defects lessons.md names", "lessons.md is no page"),
        ("(lessons R15)", "lessons R15 is no page"),
        ("platform-facts section 4.2", "platform-facts is no page"),
    ],
)
def test_a_citation_that_cannot_be_followed_is_found(text: str, problem: str) -> None:
    assert problems_of_python(f"first line\n{text}") == [f"line 2: {problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](nowhere.md)", "docs/upstream/nowhere.md does not exist"),
        ("[a](scale.md#1-limits)", "docs/upstream/scale.md has no #1-limits"),
        ("[a](../glossary.md) section 2", "docs/glossary.md has no section 2"),
        ("as in section 99", "docs/upstream/lessons.md has no section 99"),
        ("see initial-sync.md section 2", "initial-sync.md is no link"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(text: str, problem: str) -> None:
    assert problems_of_markdown(text, page=UPSTREAM / "lessons.md") == [f"line 1: {problem}"]


@pytest.mark.parametrize("text", ["[a](scale.md#5-published-claims)", "[a](initial-sync.md) section 14, and section 2"])
def test_a_link_that_leads_somewhere_is_no_problem(text: str) -> None:
    assert problems_of_markdown(text, page=UPSTREAM / "lessons.md") == []
