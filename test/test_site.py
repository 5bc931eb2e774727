"""The documentation builds as a site without a broken link, and its generated pages are current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INTERFACES = (ROOT / "docs" / "interfaces.md").read_text(encoding="utf-8")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_the_site_builds_and_no_link_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs mkdocs-material")
    done = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "images/demo.gif" in page
    assert (tmp_path / "site" / "images" / "demo.gif").is_file()
    assert 'href="contributing.html"' in page
    assert "https://fonts" not in page  # nothing is loaded from elsewhere
    for path in (tmp_path / "site").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        # Not a table or list: a blank line too many or too few.
        assert not re.search(r"<p>\||<p>[^<]*\n(- |\d\. )", text), path.name


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs mkdocs-material")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(
        "# One\n\n[gone](gone.md) [anchor](#gone)\n", encoding="utf-8"
    )
    settings = settings.replace("hooks: [docs/site_pages.py]\n", "")
    (tmp_path / "mkdocs.yml").write_text(settings.partition("\nnav:")[0], encoding="utf-8")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "gone.md" in done.stderr
    assert "'#gone'" in done.stderr


def test_the_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert {path.name for path in pictures} == {"demo.gif", "rviz.jpg", "view.png"}
    assert sum(path.stat().st_size for path in pictures) <= 2_000_000


def names(page: str) -> set[str]:
    """Topics, services and actions: code in the first column of a table, if it is written like a name."""
    cells = "\n".join(re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE))
    return {
        name for name in re.findall(r"`([^`]+)`", cells) if re.fullmatch(r"(~/|/)?[a-z0-9_]+(/\w+)*", name)
    }


def test_the_readme_lists_every_topic_and_service() -> None:
    start, end = README.index("## Topics and services"), README.index("## Models")
    tables = INTERFACES[: INTERFACES.index("## Definitions")]
    assert names(README[start:end]) == names(tables)


def test_the_page_of_interfaces_is_current() -> None:
    """Also that every topic has a meaning, and every meaning a topic."""
    for package in ("pam_ros.msg", "foxglove_msgs.msg"):
        pytest.importorskip(package, reason="needs the built ROS interfaces")
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "interfaces.py"), "-"],
        env=os.environ | {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == INTERFACES, "run: .setup/run.sh python docs/interfaces.py"
