"""The documents: their code runs, their links lead somewhere, their commands are the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def read_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.M | re.S)


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_the_code_runs(path):
    """The blocks of one document run one after the other, in one namespace."""
    namespace = {"__name__": path.stem}
    for block in read_blocks(path, "python"):
        exec(compile(block, str(path), "exec"), namespace)


def test_that_there_is_code():
    assert sum(len(read_blocks(path, "python")) for path in DOCUMENTS) >= 8


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_the_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


def test_the_commands_are_the_real_ones():
    commands = [
        line for block in read_blocks(ROOT / "README.md", "sh") for line in block.splitlines()
    ]
    demo, tests = commands
    assert demo.endswith("crisscross demo")
    assert tests.endswith("-m pytest -n auto")
    screen = (ROOT / "README.md").read_text().splitlines()[:24]
    assert demo in screen and tests in screen
    script = (ROOT / ".ci" / "run").read_text()
    assert "read_command tests" in script and "read_command demo" in script
    assert tests in read_blocks(ROOT / "CONTRIBUTING.md", "sh")[0]


def test_the_changelog_knows_the_version():
    import crisscross

    assert f"\n## {crisscross.__version__}" in (ROOT / "CHANGELOG.md").read_text()
