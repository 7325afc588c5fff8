#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tools/gpu_check.sh FOLDER: build the operator for the GPU of this machine, test it, look for memory errors and races,
# and time it, the optical flow and the shipped models. Writes gpu.json, gpu.md and log.txt into FOLDER.
#
# It needs nvcc, CMake, compute-sanitizer, and a Python with PyTorch for CUDA and the packages of pyproject.toml; no ROS,
# no network, and no installation: it works on a copy. Each step has a time limit; one that fails is reported, and the
# others run. It takes less than 10 minutes.
#
#   PYTHON=python3   the Python to use
#   LIMIT=1          factor of all time limits
#   STEPS=...        only these steps, such as "build ops"
set -u
[ $# = 1 ] || { sed -n '3,12s/^# \?//p' "$0" >&2; exit 2; }
python=${PYTHON:-python3} limit=${LIMIT:-1} root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" && folder=$(cd "$1" && pwd) || exit 2
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
cp -r "$root"/{netwarp_ros,config,csrc,test,tools,pyproject.toml} "$work" && mkdir "$work/parts" && cd "$work" || exit 2
export PYTHONPATH="$work:$work/test${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec > >(tee "$folder/log.txt") 2>&1

# step NAME SECONDS COMMAND...: run a command, and note its exit status and duration.
step() {
    local name=$1 seconds=$(($2 * limit)) begin status=0
    shift 2
    [[ " ${STEPS:-$name} " == *" $name "* ]] || return 0
    printf '\n== %s (at most %d s)\n' "$name" "$seconds"
    begin=$(date +%s%N)
    timeout -k 5 "$seconds" "$@" || status=$?
    printf '%s\t%d\t%d\n' "$name" "$status" $((($(date +%s%N) - begin) / 1000000)) >>parts/steps.tsv
    printf '== %s: exit status %d\n' "$name" "$status"
}

build() {
    TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))') || return
    export TORCH_CUDA_ARCH_LIST FORCE_CUDA=1
    cmake -S csrc -B build -DPython3_EXECUTABLE="$(command -v "$python")" -DCMAKE_CUDA_FLAGS=-Xptxas=-v &&
        cmake --build build --parallel && cmake --install build --prefix netwarp_ros/ops
}
export -f build
export python

sanitize() {  # memory errors hide in PyTorch's cache of freed blocks
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 --kernel-name kns=netwarp \
        "$python" -m pytest -q -p no:cacheprovider test/test_cuda.py -k "float64 and float16 and not four or arrays and medium"
}
export -f sanitize

step machine 20 bash -c 'nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.draw --format=csv; nvcc --version | tail -n 2; lscpu | grep "Model name"; uname -r'
step build 150 bash -c build
step test 150 "$python" -m pytest -q -p no:cacheprovider -n 4 --tb=short --durations=5 test/test_cuda.py
step ops 100 "$python" -m netwarp_ros.cli benchmark ops --device cuda --no-compiled --seconds 0.3 --json parts/ops.json
step memcheck 60 bash -c 'sanitize memcheck'
step racecheck 60 bash -c 'sanitize racecheck'
step flow 40 "$python" tools/gpu_flow.py cuda parts/flow.json
step models 180 "$python" tools/gpu_models.py cuda parts/models.json
"$python" tools/gpu_report.py parts "$folder"
! cut -f 2 parts/steps.tsv | grep -qv '^0$'
