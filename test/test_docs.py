"""The documentation is current: file tree, links, commands, named files, glossary, README."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pam_ros.cli.main import app
from pam_ros.share import version

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("models/*/README.md"),
        ROOT / ".setup/README.md",
        *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")),
    ]
)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\s-]", "", heading.strip().lower())
    return re.sub(r"\s", "-", kept)


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            broken.append(target)
        elif fragment:
            headings = re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)
            if fragment not in {anchor(heading) for heading in headings}:
                broken.append(target)
    return broken


def commands(page: Path) -> Iterator[list[str]]:
    """Every shell command of a page's code blocks, as its words."""
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text_of(page), re.MULTILINE)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose in a code block
            continue
        if words[:1] == [".setup/run.sh"]:
            words = words[1:]
        if words:
            yield words


def check_pam(arguments: list[str]) -> None:
    """Parses a `pam` command line without running it. Raises if a command or an option does not exist."""
    group: Any = typer.main.get_command(app)
    command = group
    while hasattr(command, "commands"):
        if not arguments or arguments[0] == "--help":
            return
        name, arguments = arguments[0], arguments[1:]
        if name not in command.commands:
            raise ValueError(f"`pam` has no command {name}")
        command = command.commands[name]
    if "--help" not in arguments:
        command.make_context(command.name, list(arguments))


def test_the_file_tree_is_current():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import tree
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert text_of(tree.PAGE) == tree.page_with_tree(), "run: python docs/tree.py"
    remarks = {
        path: tree.first_line(path) for path in (ROOT / "pam_ros").rglob("*.py") if path.name != "__init__.py"
    }
    assert [path for path, remark in remarks.items() if not remark] == [], "modules without a docstring"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[good](#one-heading) [file](gone.md) [anchor](page.md#gone)\n", encoding="utf-8"
    )
    assert broken_links(page) == ["gone.md", "page.md#gone"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_documented_commands_exist(page: Path):
    for words in commands(page):
        if words[0] == "pam":
            check_pam(words[1:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("pam_ros."):
            assert importlib.util.find_spec(words[2]), f"no module {words[2]}"


def test_the_check_of_commands_finds_a_wrong_one(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n    pam perceive a.png --boxes 1,2,3,4  # comment\n", encoding="utf-8")
    ((program, *arguments),) = commands(page)
    assert program == "pam"
    with pytest.raises(Exception, match="--boxes"):
        check_pam(arguments)


def test_named_files_exist():
    """Files in code font: with their top-level folder, or modules by the end of their path."""
    folders = re.compile(r"`((?:pam_ros|docs|config|models|test|\.setup|launch)/[\w./-]+\.\w+)`")
    files = {name for page in PAGES for name in folders.findall(text_of(page))}
    modules = {name for page in PAGES for name in re.findall(r"`([\w/]+\.py)`", text_of(page))}
    paths = [f"/{path.relative_to(ROOT)}" for path in (ROOT / "pam_ros").rglob("*.py")]
    assert len(files) > 3
    assert len(modules) > 10
    assert sorted(name for name in files if not (ROOT / name).exists()) == []
    assert sorted(m for m in modules - files if not any(path.endswith(f"/{m}") for path in paths)) == []


def test_the_readme_is_short_and_honest():
    assert len(README.splitlines()) <= 200
    assert "demonstration model" in README[README.index("pam-tiny") :][:120]


def test_the_glossary_has_at_most_forty_terms_each_once():
    rows = re.findall(r"^\| (.+?) \| (.+) \| (.+) \|$", text_of(ROOT / "docs" / "glossary.md"), re.MULTILINE)
    terms = [term for term, _, _ in rows[1:]]
    assert 25 <= len(terms) <= 40
    assert len(set(terms)) == len(terms)


def test_the_changelog_names_the_version_of_the_manifest():
    headings = re.findall(r"^## \[(.+)\]", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version()]


def test_issue_forms_ask_for_the_doctor():
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(text_of(path))
        assert {"name", "description", "body"} <= form.keys()
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert "Output of `pam doctor --json`" in [field["attributes"]["label"] for field in fields]
    check_pam(["doctor", "--json"])
