"""Hooks of the documentation site: the pages at the top of the repository are in it, too.

README.md is its start page. Links between those pages and the ones in this folder are written for
the repository, where they can be followed as well, and are changed here.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/speed.png": "speed.png",
    "benchmarks/speed-targets.png": "speed-targets.png",
}
"""What is outside of this folder, and where it is in the site."""

_LINK = re.compile(r"(\]\(|^\[[\w-]+\]: )(?!https?://)([^)#\s]+)", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add what is outside of this folder."""
    for source, target in TOP.items():
        path = ROOT / source
        if path.suffix == ".md":
            # The start page needs no column for the pages of its section.
            head = "---\nhide: [navigation]\n---\n\n" if target == "index.md" else ""
            content = head + _relinked(path.read_text(), "", "")
            files.append(File.generated(config, target, content=content))
        else:
            files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change the links of a page of this folder that leave it, and bars in tables.

    GitHub needs a backslash before a bar in code in a table, which this site would show.
    """
    markdown = re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)
    if page.file.src_uri in TOP.values():
        return markdown
    return _relinked(markdown, "docs", os.path.dirname(page.file.src_uri))


def _relinked(markdown: str, base: str, folder: str) -> str:
    """The page with its links as they are in the site."""

    def changed(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(base, folder, found[2]))
        if target in TOP:
            inside = TOP[target]
        elif target.startswith("docs/"):
            inside = target.removeprefix("docs/")
        else:
            return found[0]
        return found[1] + os.path.relpath(inside, folder or ".")

    return _LINK.sub(changed, markdown)
