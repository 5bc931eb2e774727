"""A hook of MkDocs (mkdocs.yml): pages from outside docs/, and links that lead there.

The same Markdown is read in the repository, where links are relative to its files, and on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # file of the repository → page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "vulnerabilities.md",
    "models/pam-tiny/README.md": "pam-tiny.md",
}
PLACES = {page: file for file, page in ELSEWHERE.items()}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from outside docs/."""
    for file, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes the repository's links links of the site."""
    here = page.file.src_uri
    return LINK.sub(lambda link: link[1] + target(link[2], here) + link[3], markdown)


def target(link: str, here: str) -> str:
    """A link on the page `here` of the site; unchanged if it is a URL or leads out of the site."""
    name, mark, anchor = link.partition("#")
    if not name or "://" in name:
        return link
    folder = posixpath.dirname(PLACES.get(here, f"docs/{here}"))
    file = posixpath.normpath(posixpath.join(folder, name))
    page = ELSEWHERE.get(file, file.removeprefix("docs/"))
    return posixpath.relpath(page, posixpath.dirname(here) or ".") + mark + anchor
