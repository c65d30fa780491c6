"""The documents say what the code does: variables, operators, commands, links."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bitsandbytes_intel import env, ops
from bitsandbytes_intel.cli.app import app

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
FOLDERS = ("docs", "benchmarks", "examples", "tests", "docker")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *itertools.chain(*((ROOT / folder).glob("**/*.md") for folder in FOLDERS))])


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


# ---- every command and every piece of Python -------------------------------------------------------------------------
# What cannot run here, by how it begins, and why. All else in the documents is run: see `run`.
CANNOT_RUN = {
    "docker ": "needs Docker",
    "sudo ": "changes the machine",
    "apt-get ": "changes the machine; .ci/run does it",
    "apt ": "changes the machine; .ci/run does it",
    "usermod ": "changes the machine",
    "clinfo": "a program of the driver's",
    "ls -l /dev/dri": "there is no such folder without a GPU",
    "compute-sanitizer ": "needs an NVIDIA GPU",
    "pip install dist/": "needs a wheel, and replaces the package under test; make wheel-test does it",
    "pip install torch": "downloads torch and replaces the installed one",
    "pip install intel-": "replaces the SYCL runtime under the running tests",
    "pip install bitsandbytes-intel": "downloads, and replaces the package under test",
    "pip install --force-reinstall": "replaces the package under test",
    "pip install -e": "replaces the package under test; the Makefile does it",
    "pip install 'bitsandbytes-intel[": "downloads, and replaces the package under test",
    "pip install --upgrade": "replaces what is under test",
    "git clone": "downloads",
    "pre-commit ": "downloads its hooks",
    "act ": "needs Docker",
    "ocloc ": "a program of Debian's package intel-opencl-icd; benchmarks/machine_code.py calls it where it is",
}
PROGRAMS = ("python", "python3", "make", "pip", "torchrun", "accelerate", "docker", "sudo", "apt-get", "apt", "git",
            "cd", "pre-commit", "compute-sanitizer", "for", "ls", "qemu-x86_64", "auditwheel", "clinfo", "usermod",
            "ocloc", "bash", "sh", "export", "ruff", "mypy", "act", "cp", "mkdir")  # fmt: skip
ASSIGNMENT = r"[A-Z_][A-Z0-9_]*=(?:\$\([^)]*\)|\S*)"
ASSIGNMENTS = rf"^(?:{ASSIGNMENT}\s+)+"


def blocks(path: pathlib.Path) -> list[tuple[str, str]]:
    """The fenced blocks of a document: language, text."""
    found = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found]


def is_command(line: str) -> bool:
    words = re.sub(ASSIGNMENTS, "", line).split()
    program = words[0] if words else ""
    return program in PROGRAMS or (program.startswith(("./", "docker/", ".ci/")) and (ROOT / program).exists())


def shell_commands(path: pathlib.Path) -> list[str]:
    """The commands of a document: of its shell blocks, of blocks that name no language, and in its sentences."""
    found = []
    for language, text in blocks(path):
        lines = text.replace("\\\n", " ").splitlines()
        lines = [re.sub(r"\s+# .*|^#.*", "", line.strip().removeprefix("$ ")).strip() for line in lines]
        if language in ("sh", "bash", "shell", "console"):
            found += [line for line in lines if line]
        elif not language:
            found += [line for line in lines if is_command(line)]
    prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    spans = [re.sub(r"\s+", " ", span.replace("\\|", "|")) for span in re.findall(r"`([^`]+)`", prose)]
    found += [span for span in spans if is_command(span) and " " in span and "…" not in span and "..." not in span]
    return list(dict.fromkeys(found))


COMMANDS = sorted({(path.relative_to(ROOT), command) for path in DOCUMENTS for command in shell_commands(path)})
PYTHON_BLOCKS = [
    pytest.param(text, id=f"{path.relative_to(ROOT)}-{i}")
    for path in DOCUMENTS
    for i, (language, text) in enumerate(blocks(path))
    if language in ("python", "py")
]


def pieces(command: str) -> list[list[str]]:
    """The simple commands of a line, word by word, without assignments before them."""
    found = []
    for piece in re.split(r"&&|;|\|\|?", command):
        words = shlex.split(re.sub(r"\s[12]?>&?\s?\S+", "", piece))
        while words and (re.fullmatch(ASSIGNMENT, words[0]) or words[0] in ("do", "then")):
            words = words[1:]
        if words and words[0] not in ("for", "done", "export", "fi", "if"):
            found.append(words)
    return found


@functools.cache
def help_of(script: pathlib.Path) -> str:
    """What a script says to ``--help``."""
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=120, cwd=script.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_script(words: list[str], folder: pathlib.Path) -> None:
    """A script with ``--help`` in the place of its arguments, and a look whether it has their options."""
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    assert at is not None, f"no script in {words}"
    script = next((place / words[at] for place in (folder, ROOT) if (place / words[at]).is_file()), None)
    assert script is not None, f"there is no {words[at]}"
    text = help_of(script)
    for word in words[at + 1 :]:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}\b", text), f"{words[at]} has no {word}"


def run_pip(words: list[str]) -> None:
    """``pip install .``, as far as it goes without a network and without a change."""
    assert words[1] == "install", words
    assert any(word.startswith(".") for word in words[2:]), f"{words}: what cannot run here is listed in CANNOT_RUN"
    dry = ["--dry-run", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *dry, *words[2:]], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def run(words: list[str], folder: pathlib.Path) -> None:
    """One command, in the cheapest form that notices a wrong name."""
    program = pathlib.PurePath(words[0]).name
    if words[:3] == ["python", "-m", "bitsandbytes_intel"] or program == "bitsandbytes-intel":
        arguments = words[3:] if program == "python" else words[1:]
        result = CliRunner().invoke(app, [*(word for word in arguments if word != "-v"), "--help"])
        assert result.exit_code == 0, result.output
    elif program == "make":
        assert shutil.which("make"), "make is not installed"
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[1:3] == ["-m", "pytest"]:
        for word in words[3:]:
            assert not word.startswith("tests") or (ROOT / word.partition("::")[0]).exists(), word
    elif program in ("python", "python3", "torchrun", "accelerate"):
        run_script(words, folder)
    elif program == "pip":
        run_pip(words)
    elif program == "cd":
        assert (folder / words[1]).is_dir() or (ROOT / words[1]).is_dir(), words[1]
    elif program in ("ruff", "mypy", "auditwheel", "qemu-x86_64"):
        pass  # a tool of others; that it is there and clean is `make lint`'s
    elif (ROOT / words[0]).is_file() or (folder / words[0]).is_file():
        script = ROOT / words[0] if (ROOT / words[0]).is_file() else folder / words[0]
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    else:
        raise AssertionError(f"{shlex.join(words)}: say in test_docs.py how to run it, or in CANNOT_RUN why not")


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[f"{path}: {command}"[:90] for path, command in COMMANDS])
def test_every_command_runs(path, command, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    bare = re.sub(ASSIGNMENTS, "", command)
    for words in [bare.split()] if bare.startswith(tuple(CANNOT_RUN)) else pieces(command):
        if not shlex.join(words).startswith(tuple(CANNOT_RUN)) and not bare.startswith(tuple(CANNOT_RUN)):
            run(words, (ROOT / path).parent)


def test_commands_are_found():
    found = {command for _, command in COMMANDS}
    assert {"make test", "pip install .", "make bench", "make upstream-tests"} <= found
    assert any(command.startswith("RENDER_GID=") for command in found)
    assert pieces("for a in b; do x $a; done && A=1 make y > z") == [["x", "$a"], ["make", "y"]]


@pytest.mark.parametrize("command", ["make no-such-target", "python tools/upstream_tests.py --no-such-option",
                                     "python no.py", "python -m bitsandbytes_intel fly",
                                     "unheard-of --option"])  # fmt: skip
def test_a_wrong_command_would_be_noticed(command):
    with pytest.raises(AssertionError):
        run(shlex.split(command), ROOT)


@pytest.mark.parametrize("text", PYTHON_BLOCKS)
def test_every_piece_of_python_runs(python, text):
    python(text)
