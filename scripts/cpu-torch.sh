#!/bin/sh
# Makes a virtual environment with a CPU build of torch, unless it is there: scripts/cpu-torch.sh VENV PYTHON
set -eu
venv=$1
python=$2
torch=torch==2.13.0

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "setup: $python is $("$python" --version 2>&1), but the lock files are for Python 3.11; run make PYTHON=python3.11" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"

has_cpu_torch() {
    "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None or not torch.__version__.startswith("2.13.0"))' 2>/dev/null
}
index_serves_cuda() {
    $pip install --dry-run --quiet --no-deps --ignore-installed --report - $torch 2>/dev/null | "$venv/bin/python" -c '
import json, sys
needs = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", [])
sys.exit(not any(need.startswith(("nvidia-", "cuda-")) for need in needs))'
}

if ! has_cpu_torch; then
    if index_serves_cuda; then
        # uv knows where PyTorch keeps its CPU builds.
        $pip install --quiet uv
        "$venv/bin/uv" pip install --python "$venv/bin/python" --torch-backend cpu $torch || {
            echo "setup: no CPU build of $torch to be had; point PIP_FIND_LINKS at a folder that holds its wheel" >&2
            exit 1
        }
    else
        $pip install --quiet $torch
    fi
fi
