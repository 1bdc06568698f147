#!/bin/sh
# Makes the environment of SGLang's tests on a CPU: scripts/setup-sglang.sh VENV [PYTHON]
#
# SGLang is installed without its dependencies, against requirements/sglang-cpu.txt, because most of them are kernels
# for a GPU. Its torch is the CPU build that setup-cpu.sh takes, and the same release.
set -eu
venv=$1
python=${2:-python3}
cd "$(dirname "$0")/.."

scripts/cpu-torch.sh "$venv" "$python"
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet --no-deps -r requirements/sglang-cpu.txt
$pip install --quiet --no-deps --no-build-isolation --editable .
