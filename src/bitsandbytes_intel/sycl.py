"""Where pip puts the SYCL runtime and the OpenCL CPU device, and how a process comes to see them."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import pathlib
import re
import site
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Sycl:
    """A SYCL runtime: its library (``libsycl.so.N``) and the folder of its headers."""

    library: pathlib.Path
    include: pathlib.Path

    @property
    def major(self) -> int:
        """The N of ``libsycl.so.N``; a program must run with the N that it was linked to."""
        return int(self.library.suffix[1:])


def lib_folders() -> list[pathlib.Path]:
    """The folders in which pip puts shared libraries, the most likely first."""
    folders = []
    for name in ("intel-sycl-rt", "intel-opencl-rt"):
        try:
            packages = pathlib.Path(str(importlib.metadata.distribution(name).locate_file("")))
        except importlib.metadata.PackageNotFoundError:
            continue
        folders += [parent / "lib" for parent in packages.resolve().parents[:3]]
    folders.append(pathlib.Path(sys.prefix) / "lib")
    if site.ENABLE_USER_SITE:
        folders.append(pathlib.Path(site.getuserbase()) / "lib")
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def find_all() -> list[Sycl]:
    """Every SYCL runtime with headers of the first folder that has one, the newest first."""
    for folder in lib_folders():
        found = [path for path in folder.glob("libsycl.so.*") if re.fullmatch(r"libsycl\.so\.\d+", path.name)]
        include = folder.parent / "include"
        if found and (include / "sycl" / "sycl.hpp").is_file():
            return sorted((Sycl(path, include) for path in found), key=lambda each: -each.major)
    return []


def find_sycl() -> Sycl | None:
    """The SYCL runtime to use: of those that pip installed the one that is loaded (torch's), else the newest.

    None if there is none with headers.
    """
    found = find_all()
    return next((each for each in found if _is_loaded(each.library.name)), found[0] if found else None)


def _is_loaded(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return True


def find_opencl() -> pathlib.Path | None:
    """The OpenCL CPU device of the package intel-opencl-rt, if it is installed."""
    for folder in lib_folders():
        if (folder / "libintelocl.so").is_file():
            return folder / "libintelocl.so"
    return None


def show_cpu_device() -> None:
    """Let SYCL find the OpenCL CPU device that pip installed, unless the user has said where to look.

    Has an effect only before the SYCL runtime has looked for devices.
    """
    device = find_opencl()
    if device is not None and "OCL_ICD_FILENAMES" not in os.environ:
        os.environ["OCL_ICD_FILENAMES"] = str(device)


def missing() -> str:
    """That there is no SYCL runtime, where it was looked for, and what to do."""
    folders = ", ".join(map(str, lib_folders())) or "no folder of this environment"
    return (
        f"no SYCL runtime is installed (looked for libsycl.so.N in {folders}): "
        "pip install intel-sycl-rt (torch's XPU build brings it)"
    )


def load() -> None:
    """Load the SYCL runtime for libraries that are linked to it, if torch has not done so.

    Raises:
        OSError: there is none, or it does not load.
    """
    sycl = find_sycl()
    if sycl is None:
        raise OSError(missing())
    ctypes.CDLL(str(sycl.library), mode=ctypes.RTLD_GLOBAL)
