"""What the package never does: unpickle, evaluate text, open a connection. And a short run of the fuzzer."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import bitsandbytes_intel

PACKAGE = pathlib.Path(bitsandbytes_intel.__file__).parent
SOURCES = sorted(PACKAGE.glob("**/*.py"))
FUZZ = pathlib.Path(__file__).parent / "fuzz.py"
# Modules that unpickle, connect, or fetch.
MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml",
    "socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "asyncio", "xmlrpc",
    "huggingface_hub", "webbrowser", "socketserver",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__"}
# A method of these names that is no danger: torch's Module.eval().
METHODS = {"eval": "of a torch module"}
SHELLS = {("os", "system"), ("os", "popen"), ("torch", "load"), ("torch.hub", "load"), ("subprocess", "getoutput")}


def findings(source: str) -> list[str]:
    """What a module does of that."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in MODULES:
            found.append(f"imports from {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS:
                found.append(f"calls {name}")
            if tuple(name.rsplit(".", 1)) in SHELLS:
                found.append(f"calls {name}")
            shell = [keyword.value for keyword in node.keywords if keyword.arg == "shell"]
            if any(not (isinstance(value, ast.Constant) and value.value is False) for value in shell):
                found.append(f"{name} through a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_no_eval_no_network(path):
    assert findings(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "eval('1')", "from urllib.request import urlopen", "import os\nos.system('ls')", "exec('a = 1')",
     "import torch\ntorch.load('x')", "import subprocess\nsubprocess.run('ls', shell=True)", "def f():\n import ssl"],
)  # fmt: skip
def test_it_would_be_found(source):
    assert findings(source)


def test_the_libraries_open_no_connection():
    """No system call of sockets, and no name service, among what our C++ uses; no shell either."""
    for path in (*PACKAGE.glob("*.so"), *PACKAGE.glob("virtual_xpu/csrc/*")):
        content = path.read_bytes()
        for name in (rb"getaddrinfo", rb"gethostby", rb"\0socket\0", rb"\0connect\0", rb"\0system\0", rb"\0popen\0"):
            assert not re.search(name, content), (path.name, name)


@pytest.mark.parametrize(("device", "part"), [("cpu", "all"), ("xpu", "operators")])
def test_fuzz(device, part):
    """Seconds of what `make fuzz` does for half an hour, from the same seed each time."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--device", device, "--part", part, "--seconds", "5", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert re.search(r"[1-9]\d* calls, 0 faults", done.stdout), done.stdout
