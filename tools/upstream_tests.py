"""Runs bitsandbytes' own tests, of the version that is installed, on a device, and says what every failure means.

Their source is no part of this project: it is fetched from GitHub, or taken from a folder or an archive (``--source``).
``tests/upstream_not_applicable.toml`` lists the tests that cannot pass there and those that bitsandbytes skips itself,
each with its reason. Any other failure or skip is an error, and so is a listed failure that has become a pass.

``--without`` runs the tests with bitsandbytes' own operators; ``--compare FILE`` then takes the outcomes of such a run
in place of the list: a test that passes there must pass with our operators, and what fails or is skipped there may. A
test that FILE lacks must not fail.

Every file runs in a process of its own. A test that ends it, or hangs, counts as crashed, and the rest goes on.
With ``--results`` (a file), the outcomes are kept, and a run continues where the last one stopped. The tests need what
this package's extra ``upstream-tests`` brings, and up to 14 GB of memory.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

FILES = (
    "test_ops",
    "test_functional",
    "test_linear4bit",
    "test_linear8bitlt",
    "test_optim",
    "test_parametrize",
    "test_autograd",
    "test_modules",
    "test_generation",
)
ARCHIVE = "https://github.com/bitsandbytes-foundation/bitsandbytes/archive/refs/tags/{version}.tar.gz"
ROOT = pathlib.Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "upstream_not_applicable.toml"
_HANGS_AFTER = 3600  # seconds; float16 products of 4096^3 and tensors of 2^31 elements take a CPU many minutes
_STOPPED = 99  # exit status of a child that ran out of time


# ---- the tests' source ----------------------------------------------------------------------------------------------
def stage(source: str, folder: pathlib.Path) -> None:
    """Copy ``tests`` and ``pyproject.toml`` out of a folder, an archive or an address into an empty folder.

    Only these, since the package beside them would be imported in place of the installed one.
    """
    if "://" in source:
        print(f"fetching {source}", file=sys.stderr)
        archive = folder / "source.tar.gz"
        with urllib.request.urlopen(source, timeout=120) as answer:
            archive.write_bytes(answer.read())
        source = str(archive)
    path = pathlib.Path(source)
    if not path.is_dir():
        with tarfile.open(path) as archive_file:
            archive_file.extractall(folder / "source", filter="data")
        (path,) = (folder / "source").iterdir()
    if not (path / "tests" / "test_ops.py").is_file():
        raise SystemExit(f"{source} must hold bitsandbytes' source: it has no tests/test_ops.py")
    shutil.copytree(path / "tests", folder / "tests")
    shutil.copy(path / "pyproject.toml", folder)


# ---- one process that runs tests ------------------------------------------------------------------------------------
class Recorder:
    """A plugin of pytest's that appends a line of JSON for the start and the end of every test."""

    def __init__(self, results: pathlib.Path, deadline: float) -> None:
        self._done = {outcome["test"] for outcome in read(results)}
        self._deadline = deadline
        self._file = results.open("a")
        self._report: dict[str, Any] = {}

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        done = [item for item in items if item.nodeid in self._done]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in self._done]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        faulthandler.dump_traceback_later(_HANGS_AFTER, exit=True)
        self._report = {"test": nodeid, "outcome": "passed", "text": "", "seconds": 0.0}
        self._write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._report["seconds"] += round(report.duration, 3)
        if report.outcome == "passed" and not hasattr(report, "wasxfail"):
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome, text = ("xfailed" if report.skipped else "failed"), report.wasxfail
        self._report.update(outcome=outcome, text=text)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(**self._report)

    def pytest_runtest_teardown(self, item: Any) -> None:
        if time.time() > self._deadline:
            item.session.shouldstop = "out of time"

    def pytest_sessionfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()


def child(device: str, file: str, results: pathlib.Path, deadline: float, only: str, ours: bool) -> int:
    """Run what is left of one file, in this process and in the folder of the tests."""
    os.environ["BNB_TEST_DEVICE"] = device
    os.environ["BNB_INTEL_AUTOLOAD"] = "1" if ours else "0"
    if device == "xpu":
        from bitsandbytes_intel import virtual_xpu
        from bitsandbytes_intel.cli.environment import let_upstream_run

        let_upstream_run()
        import torch

        if not torch._C._has_xpu:
            virtual_xpu.enable()
            os.environ["BNB_INTEL_VIRTUAL_XPU"] = "1"  # for the programs that tests start
        import bitsandbytes  # noqa: F401 (it registers our operators)

        check_registration(device, ours)
    else:
        os.environ["BNB_INTEL_VIRTUAL_XPU"] = "0"
    import pytest

    sys.path.insert(0, os.getcwd())
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "log_cli=false", "-o", "log_file="]
    options += ["-m", "not benchmark", "-k", only]  # benchmarks time, and assert nothing
    status = pytest.main([*options, f"tests/{file}.py"], plugins=[Recorder(results, deadline)])
    if "bitsandbytes" in sys.modules:
        check_registration(device, ours)
    if status == pytest.ExitCode.INTERRUPTED and time.time() > deadline:
        return _STOPPED
    return 0 if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED) else 1


def check_registration(device: str, ours: bool) -> None:
    """End the process if the wrong operators answer on the device."""
    from bitsandbytes_intel import ops

    if (device in ops.registered()) != ours:
        raise SystemExit(f"our operators are {'not ' if ours else ''}registered on {device}: {ops.failures()}")


# ---- all of them ----------------------------------------------------------------------------------------------------
def read(results: pathlib.Path) -> list[dict[str, Any]]:
    """The last outcome of every test; ``started`` is that of one that ended its process."""
    outcomes: dict[str, dict[str, Any]] = {}
    for line in results.read_text().splitlines() if results.exists() else []:
        outcome = json.loads(line)
        outcomes[outcome["test"]] = outcome
    return list(outcomes.values())


def split(test: str) -> tuple[str, str]:
    """The file of a test, and its name there: ``tests/test_ops.py::test_x[1]`` is ``test_ops``, ``test_x[1]``."""
    path, _, name = test.partition("::")
    return pathlib.PurePosixPath(path).stem, name


def run_file(
    device: str, file: str, folder: pathlib.Path, results: pathlib.Path, deadline: float, only: str, ours: bool
) -> bool:
    """Run one file to its end, over crashes too; whether the time was enough."""
    command = [sys.executable, __file__, "--child", "--device", device, "--results", str(results)]
    command += ["--deadline", str(deadline), "-k", only, *([] if ours else ["--without"]), file]
    # Some of the tests start the commands of this environment.
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}
    while True:
        log = results.with_suffix(f".{file}.log")
        with log.open("w") as output:
            status = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output).returncode
        if status in (0, _STOPPED):
            return status == 0
        crashed = [outcome for outcome in read(results) if outcome["outcome"] == "started"]
        if not crashed:
            raise SystemExit(f"pytest failed on {file} (status {status}):\n{log.read_text()[-4000:]}")
        text = f"exit status {status}\n{log.read_text()[-4000:]}"
        with results.open("a") as lines:
            for outcome in crashed:
                lines.write(json.dumps({**outcome, "outcome": "crashed", "text": text, "seconds": 0}) + "\n")


class Entries:
    """What is known of tests that do not pass: the tables ``fails`` and ``skips`` of the list."""

    def __init__(self, path: pathlib.Path, device: str) -> None:
        try:
            import tomllib
        except ImportError:  # Python 3.10, where pytest brings it
            import tomli as tomllib
        content = tomllib.loads(path.read_text())
        self._of = {
            "failed": [entry for entry in content["fails"] if device in entry["devices"]],
            "skipped": [entry for entry in content["skips"] if device in entry["devices"]],
        }
        self.count: collections.Counter[tuple[str, str, str]] = collections.Counter()

    def _find(self, outcome: dict[str, Any]) -> dict[str, Any] | None:
        table = self._of["skipped" if outcome["outcome"] in ("skipped", "xfailed") else "failed"]
        file, name = split(outcome["test"])
        for entry in table:
            if entry["file"] == file and re.fullmatch(entry["tests"], name) and entry["text"] in outcome["text"]:
                return entry
        return None

    def judge(self, outcome: dict[str, Any]) -> str:
        """The column of the table that an outcome counts in."""
        if outcome["outcome"] == "passed":
            return "passed"
        entry = self._find(outcome)
        if entry is None:
            return "unexpected"
        kind = "skipped" if outcome["outcome"] in ("skipped", "xfailed") else "not applicable"
        self.count[kind, entry["file"], entry["reason"]] += 1
        return kind

    def unused(self, files: list[str]) -> Iterator[str]:
        """Failures that are listed and have not been seen, of the files that have run."""
        for entry in self._of["failed"]:
            seen = self.count["not applicable", entry["file"], entry["reason"]]
            if entry["file"] in files and not seen:
                yield f"{entry['file']}: {entry['tests']}"


class Baseline:
    """What was seen without our operators, in place of the list."""

    def __init__(self, results: pathlib.Path) -> None:
        self._outcomes = {outcome["test"]: outcome["outcome"] for outcome in read(results)}
        self.count: collections.Counter[tuple[str, str, str]] = collections.Counter()

    def judge(self, outcome: dict[str, Any]) -> str:
        """The column of the table that an outcome counts in."""
        before = self._outcomes.get(outcome["test"])
        now, file = outcome["outcome"], split(outcome["test"])[0]
        if now == "passed":
            if before != "passed":
                self.count["passed", file, f"with our operators alone; without, {before or 'not run'}"] += 1
            return "passed"
        kind = "skipped" if now in ("skipped", "xfailed") else "not applicable"
        # One that has not run without ours may be skipped, which bitsandbytes decides, and must not fail.
        if before == "passed" or (before is None and kind != "skipped"):
            return "unexpected"
        self.count[kind, file, f"without our operators, {before or 'not run'}"] += 1
        return kind

    def unused(self, files: list[str]) -> Iterator[str]:
        """There is no list here that could be out of date."""
        return iter(())


class Whatever(Baseline):
    """Nothing is expected: of a run without our operators, of which another will be held to the outcome."""

    def __init__(self) -> None:
        self.count = collections.Counter()

    def judge(self, outcome: dict[str, Any]) -> str:
        """The column of the table that an outcome counts in."""
        names = {"passed": "passed", "skipped": "skipped", "xfailed": "skipped"}
        return names.get(outcome["outcome"], "not applicable")


COLUMNS = ("tests", "passed", "not applicable", "skipped", "unexpected")


def report(outcomes: list[dict[str, Any]], entries: Entries | Baseline, files: list[str], whole: bool) -> int:
    """Print the table, the reasons and whatever is not as listed; the number of errors."""
    rows: dict[str, collections.Counter[str]] = {file: collections.Counter() for file in files}
    unexpected = []
    for outcome in outcomes:
        file = split(outcome["test"])[0]
        column = entries.judge(outcome)
        rows[file].update(["tests", column])
        if column == "unexpected":
            unexpected.append(outcome)
    rows["**all**"] = sum(rows.values(), collections.Counter())
    print("| file |", " | ".join(COLUMNS), "|\n|---" * 1 + "|---:" * len(COLUMNS) + "|")
    for name, row in rows.items():
        print(f"| {name} |", " | ".join(str(row[column]) for column in COLUMNS), "|")
    for (kind, file, reason), count in sorted(entries.count.items()):
        if count:
            print(f"{kind}: {count} of {file}: {reason}")
    for outcome in unexpected:
        last = outcome.get("text", "").strip().splitlines()[-1:] or [""]
        print(f"UNEXPECTED {outcome['outcome']}: {outcome['test']}: {last[0][:300]}")
    stale = list(entries.unused(files)) if whole else []
    for tests in stale:
        print(f"UNEXPECTED: listed as failing, and none does: {tests}")
    return len(unexpected) + len(stale)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="*", help=f"of {', '.join(FILES)} (default: all)")
    parser.add_argument("--source", help="bitsandbytes' source: a folder, an archive or an address (default: GitHub)")
    parser.add_argument("--device", default="xpu", choices=("xpu", "cpu"))
    parser.add_argument("--results", type=pathlib.Path, help="keep the outcomes in this file, and continue from it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after the test that is at work then")
    parser.add_argument("-k", dest="only", default="", help="only the tests that this expression of pytest's names")
    judges = parser.add_mutually_exclusive_group()
    judges.add_argument("--without", action="store_true", help="run bitsandbytes' own operators, and expect nothing")
    judges.add_argument("--compare", type=pathlib.Path, help="expect what passed in these results of --without")
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.device, arguments.file[0], arguments.results, arguments.deadline, arguments.only,
                     not arguments.without)  # fmt: skip
    files = arguments.file or list(FILES)
    if not set(files) <= set(FILES):
        parser.error(f"file must be of {', '.join(FILES)}, got {', '.join(sorted(set(files) - set(FILES)))}")
    version = importlib.metadata.version("bitsandbytes")
    deadline = time.time() + arguments.seconds
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        stage(arguments.source or ARCHIVE.format(version=version), folder)
        results = (arguments.results or folder / "results.jsonl").resolve()
        ours = not arguments.without
        complete = all(
            run_file(arguments.device, file, folder, results, deadline, arguments.only, ours) for file in files
        )
        outcomes = [outcome for outcome in read(results) if split(outcome["test"])[0] in files]
    print(f"bitsandbytes {version}, {arguments.device}, torch {importlib.metadata.version('torch')}")
    judge: Entries | Baseline = Entries(LIST, arguments.device)
    if arguments.without:
        judge = Whatever()
    elif arguments.compare:
        judge = Baseline(arguments.compare)
    errors = report(outcomes, judge, files, complete and not arguments.only)
    if not complete:
        print("stopped: out of time; the same command continues")
    return 1 if errors or not complete else 0


if __name__ == "__main__":
    sys.exit(main())
