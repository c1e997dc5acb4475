"""What the documentation's pages hold: blocks of code, and the files that they show."""

import atexit
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
INDEX = re.findall(r"\| \[(\S+)\]", (ROOT / "docs/README.md").read_text())
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in INDEX)]
ADD_BACKBONE = ROOT / "docs/add_backbone.md"


def fenced(page: Path, language: str) -> list[str]:
    """The page's blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def files(page: Path) -> Iterator[tuple[str, str]]:
    """Name and content of the files that a page shows: blocks whose first line is a comment with the name."""
    for block in (*fenced(page, "python"), *fenced(page, "yaml")):
        if found := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            yield found[1], block


@cache
def backbone_of_the_page() -> Path:
    """The YAML file of docs/add_backbone.md; both of its files are written once a process, to be imported."""
    folder = Path(tempfile.mkdtemp(prefix="add_backbone"))
    atexit.register(shutil.rmtree, folder)
    for name, text in files(ADD_BACKBONE):
        (folder / name).write_text(text)
    sys.path.append(str(folder))
    return next(folder.glob("*.yaml"))
