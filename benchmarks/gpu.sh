#!/usr/bin/env bash
# Everything that needs an accelerator, in under 8 minutes: checks, speed, and CIFAR-100-LT in full where there is data.
#
#   benchmarks/gpu.sh OUT [DATA.npz]
#
# Writes OUT/checks.json and OUT/speed.json. Needs a Python with torch, torchvision, timm and safetensors ($PYTHON), no
# network and nothing installed. DATA.npz is what `python benchmarks/gpu.py pack` makes of a local CIFAR-100, below 60 MB.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:?usage: benchmarks/gpu.sh OUT [DATA.npz]}
export PYTHONPATH=src

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no GPU that torch can use here: nothing was run"
  exit 0
fi
mkdir -p "$out"
status=0
timeout 300 "$python" benchmarks/gpu.py check --json "$out/checks.json" ${2:+--data "$2"} || status=$?
timeout 170 "$python" benchmarks/speed.py classifier loop --device cuda --json "$out/speed.json" || status=$?
exit "$status"
