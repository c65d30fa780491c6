#!/usr/bin/env bash
# Makes a Debian 12 or Ubuntu 24.04 machine, or the image of docker/Dockerfile, ready for bitsandbytes-intel.
#
#   docker/setup.sh [STEP...]     steps: system, torch, package; without one, all three
#
# Environment:
#   VENV         the virtual environment to make (default: .venv in the project)
#   PYTHON       the Python to make it with (default: python3)
#   TORCH        what to install as torch (default: torch)
#   TORCH_INDEX  where to get it (default: torch's XPU builds); set it to nothing for pip's own default
#   EXTRAS       extras of the package (default: model,test)
#   GPU_PPA      an Ubuntu archive with newer Intel GPU drivers, as in ppa:kobuk-team/intel-graphics (default: none)
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$project/.venv}
python=${PYTHON:-python3}
torch=${TORCH:-torch}
torch_index=${TORCH_INDEX-https://download.pytorch.org/whl/xpu}
extras=${EXTRAS-model,test}
gpu_ppa=${GPU_PPA:-}

# The compiler and Python are needed; the driver packages have other names, or none, from release to release.
needed=(ca-certificates g++ make python3 python3-dev python3-venv)
drivers=(ocl-icd-libopencl1 intel-opencl-icd libze1 libze-intel-gpu1 intel-level-zero-gpu clinfo)

say() { printf '== %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo "$@"
  fi
}

apt_install() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }

available() {
  local candidate
  candidate=$(apt-cache policy "$1" | sed -n 's/^ *Candidate: //p')
  [ -n "$candidate" ] && [ "$candidate" != "(none)" ]
}

step_system() {
  command -v apt-get >/dev/null || {
    echo "this script knows Debian and Ubuntu: install g++, Python 3.10 or later and the GPU's driver yourself" >&2
    exit 1
  }
  say "packages of the system"
  as_root apt-get update
  apt_install "${needed[@]}"
  if [ -n "$gpu_ppa" ]; then
    apt_install software-properties-common
    if as_root add-apt-repository -y "$gpu_ppa"; then
      as_root apt-get update
    else
      say "no $gpu_ppa here: taking the distribution's drivers"
    fi
  fi
  local found=() missing=() name
  for name in "${drivers[@]}"; do
    if available "$name"; then found+=("$name"); else missing+=("$name"); fi
  done
  [ ${#found[@]} -eq 0 ] || apt_install "${found[@]}"
  say "drivers installed: ${found[*]:-none}; not in this release: ${missing[*]:-none}"
}

step_torch() {
  say "torch in $venv"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  local index=()
  [ -z "$torch_index" ] || index=(--index-url "$torch_index")
  "$venv/bin/python" -m pip install --disable-pip-version-check "${index[@]}" "$torch"
  "$venv/bin/python" -m pip install --disable-pip-version-check "setuptools>=77" wheel
  # torch's XPU build brings the SYCL runtime, whose headers the build needs; a CPU build does not.
  [ -e "$venv/include/sycl/sycl.hpp" ] || "$venv/bin/python" -m pip install --disable-pip-version-check "intel-sycl-rt>=2026"
}

# With torch in place, so that the build finds its headers there; editable, so that changes to the Python code count.
step_package() {
  say "bitsandbytes-intel, editable"
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-build-isolation -e "$project${extras:+[$extras]}"
  "$venv/bin/python" -m bitsandbytes_intel --version
  say "done: try $venv/bin/python -m bitsandbytes_intel"
}

[ $# -gt 0 ] || set -- system torch package
for step in "$@"; do
  case $step in
    system | torch | package) "step_$step" ;;
    *)
      echo "no step '$step': system, torch, package" >&2
      exit 2
      ;;
  esac
done
