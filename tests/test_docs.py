"""The documents say what the code does: variables, operators, commands, links."""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest
from typer.testing import CliRunner

from bitsandbytes_intel import env, ops
from bitsandbytes_intel.cli.app import app

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / "benchmarks").glob("**/*.md")])


def table_rows(title: str) -> list[list[str]]:
    """The rows of the table under a heading of the README, cell by cell."""
    section = README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_variable_is_in_the_readme_with_its_default() -> None:
    rows = {cells[0].strip("`"): cells[1].strip("`") for cells in table_rows("Environment variables")}
    assert rows == {variable.name: variable.default or "none" for variable in env.VARIABLES}


def test_no_document_names_a_variable_that_does_not_exist() -> None:
    known = {variable.name for variable in env.VARIABLES}
    for path in DOCUMENTS:
        assert set(re.findall(r"\bBNB_INTEL_[A-Z0-9_]+\b", path.read_text())) <= known, path.name


def test_every_operator_is_in_the_readme_as_ours_on_its_devices() -> None:
    ours = {"xpu": set(), "cpu": set()}
    for names, *cells in table_rows("Operators"):
        for device, cell in zip(("xpu", "cpu"), cells, strict=True):
            if cell.startswith("ours"):
                ours[device] |= set(re.findall(r"`([^`]+)`", names))
    for device in ours:
        assert ours[device] == {operator.name for operator in ops.OPERATORS if device in operator.devices}


def commands() -> list[str]:
    """Every ``python -m bitsandbytes_intel …`` of the documents, of the make file, and of ``--help`` itself."""
    texts = [path.read_text() for path in [*DOCUMENTS, ROOT / "Makefile", ROOT / "docker" / "setup.sh"]]
    texts.append(CliRunner().invoke(app, ["--help"]).stdout)
    found = set()
    for text in texts:
        for arguments in re.findall(r"-m bitsandbytes_intel((?:[ \t]+(?:[a-z-][\w-]*|\d+))*)", text):
            found.add(arguments.strip())
    return sorted(found)


PROSE = {
    "and",
    "it",
    "prints",
    "repeats",
    "says",
    "then",
    "validates",
    "with",
}  # what may follow a command in a sentence


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_documents_is_accepted(command: str) -> None:
    words = shlex.split(command)
    words = words[: next((index for index, word in enumerate(words) if word in PROSE), len(words))]
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_exist(path: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{path.name}: {target}"
        if anchor:
            headings = [
                re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in place.read_text().splitlines()
                if line.startswith("#")
            ]
            assert anchor in headings, f"{path.name}: {target}"
