#!/usr/bin/env bash
# Everything that needs an accelerator, in under 8 minutes: checks, speed, and CIFAR-100-LT in full where there is data.
#
#   benchmarks/gpu.sh [OUT [DATA.npz]]
#
# Writes OUT/checks.json and OUT/speed.json (OUT: gpu). Needs a Python with torch, torchvision, timm and safetensors
# ($PYTHON), no network and nothing installed. DATA.npz is what `python benchmarks/gpu.py pack` makes of a local CIFAR-100,
# below 60 MB.
set -euo pipefail
python=${PYTHON:-python3}
out=$(realpath -m "${1:-gpu}")
data=${2:+$(realpath "$2")}

if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "no GPU here: nothing was run"
  exit 0
fi
cd "$(dirname "$0")/.."
export PYTHONPATH=src
"$python" -c 'import safetensors, torch; assert torch.cuda.is_available(), "torch cannot use the GPU"'
mkdir -p "$out"
status=0
timeout 300 "$python" benchmarks/gpu.py check --json "$out/checks.json" ${data:+--data "$data"} || status=$?
timeout 170 "$python" benchmarks/speed.py classifier loop --device cuda --json "$out/speed.json" || status=$?
exit "$status"
