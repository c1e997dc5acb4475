"""The documentation names what exists: pages, files, modules."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# Entries of the log and the changelog stay as they were written.
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/log.md"}
)
FOLDERS = "|".join(("ai_wam", "backbones", "tasks", "datamodules", "benchmarks"))


def name(path):
    return str(path.relative_to(ROOT))


def anchors(page):
    """The headings of a page as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def defined(dotted):
    """Whether a dotted name is a package, a module, or a name that a module defines or imports."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:end])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.exists():
            text, rest = file.read_text(), parts[end:]
            return not rest or bool(
                re.search(rf"^(class|def|from .*) {rest[0]}\b|^{rest[0]}\b", text, re.MULTILINE)
            )
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        assert not heading or heading in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_modules_that_a_page_names_exist(page):
    text = page.read_text()
    for file in re.findall(r"\b(?:configs|tests|docs|docker|backbones|benchmarks)/[\w./-]*\w\.\w+", text):
        assert (ROOT / file).exists(), file
    for dotted in re.findall(rf"(?<![\w./-])((?:{FOLDERS})(?:\.(?!md\b)\w+)+)", text):
        assert defined(dotted), dotted


def test_the_index_lists_every_page_once():
    listed = re.findall(r"\| \[(\w+\.md)\]", (ROOT / "docs/README.md").read_text())
    assert sorted(listed) == sorted(
        page.name for page in (ROOT / "docs").glob("*.md") if page.name not in ("README.md", "index.md")
    )


def test_the_citation_names_the_latest_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert (citation["version"], citation["license"]) == (latest, project["license"])


def test_the_readme_is_short_and_its_picture_light():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
    assert (ROOT / "docs/rollout.webp").stat().st_size <= 400_000
