"""setuptools, with the build requirement that depends on the machine: SYCL's headers, where no environment has them.

pip builds in an environment of its own, where torch is missing and asking for it would download gigabytes; setup.py
finds torch's and SYCL's headers in the environment that pip installs into, and this module asks for the rest.
"""

from __future__ import annotations

import pathlib
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def _sycl_requirement() -> list[str]:
    headers = pathlib.Path(sysconfig.get_paths()["data"]) / "include" / "sycl" / "sycl.hpp"
    return [] if headers.exists() else ["intel-sycl-rt>=2026"]


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    """The requirements of setuptools itself, and SYCL's headers where the target environment has none."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _sycl_requirement()


def get_requires_for_build_editable(config_settings: dict[str, object] | None = None) -> list[str]:
    """As for a wheel."""
    return build_meta.get_requires_for_build_editable(config_settings) + _sycl_requirement()
