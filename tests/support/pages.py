"""The pages of the documentation: their programs, how they are run, and their headings.

A program is a block of Python in a page. All programs of a page run in order, in one namespace, in
a folder of their own. A block of text that follows a program directly is what the program prints
(`...` stands for anything). A program with prompts (`>>>`) shows what its expressions give. A
comment before a block, `<!-- not run: the reason -->`, leaves it out.
"""

import contextlib
import doctest
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
"""The pages with programs in them."""

_FENCE: Final = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    r"(?:\n+```text\n(?P<printed>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_HEADING: Final = re.compile(r"^#{1,6} +(.*?)(?: +\{#([\w-]+)\})?$", re.MULTILINE)
_CHECKER: Final = doctest.OutputChecker()
_LOOSE: Final = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: Path
    line: int
    """The number of lines before its first one."""
    language: str
    text: str
    printed: str | None
    """What it says that it prints."""
    not_run: str | None
    """Why it is not run."""


def blocks_of(page: Path, language: str = "python") -> list[Block]:
    """The blocks of a page in one language, in their order."""
    text = page.read_text()
    return [
        Block(
            page, text.count("\n", 0, found.start("text")), found["language"], found["text"],
            found["printed"], found["reason"],
        )
        for found in _FENCE.finditer(text)
        if found["language"] == language
    ]  # fmt: skip


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block among `names`; `AssertionError` where it shows or prints something else."""
    if block.text.startswith(">>> "):
        _run_with_prompts(block, names)
        return
    # Tracebacks have the lines of the page.
    code = compile("\n" * block.line + block.text, str(block.page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    if block.printed is not None and not _CHECKER.check_output(
        block.printed, printed.getvalue(), _LOOSE
    ):
        raise AssertionError(f"{block.page}:{block.line}: it prints\n{printed.getvalue()}")


def run_page(
    page: Path, folder: Path, changes: Mapping[str, str] | None = None, last: int | None = None
) -> dict[str, Any]:
    """Run the programs of a page in `folder`, with texts in them changed; the names they made.

    What is written to `/runs` is in `folder`, too. `last` is the number of those that are run.
    """
    names: dict[str, Any] = {"__name__": page.stem}
    with contextlib.chdir(folder):
        for block in blocks_of(page)[:last]:
            if block.not_run is not None:
                continue
            text = block.text
            for old, new in {'"/runs': f'"{folder}/runs', **(changes or {})}.items():
                text = text.replace(old, new)
            run(Block(page, block.line, block.language, text, block.printed, None), names)
    return names


def headings(text: str) -> Iterator[str]:
    """The anchors of the headings of a page, as GitHub and the site make them."""
    for heading, anchor in _HEADING.findall(re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        yield anchor or re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


def _run_with_prompts(block: Block, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(
        block.text, {}, block.page.name, str(block.page), block.line
    )
    test.globs = names  # As it is: what the program makes stays.
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=_LOOSE, verbose=False)
    runner.run(test, out=report.write, clear_globs=False)
    if runner.failures:
        raise AssertionError(report.getvalue())


def shown(path: Path) -> str:
    """A page's path as in the repository."""
    return os.fspath(path.relative_to(ROOT))
