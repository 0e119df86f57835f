#!/usr/bin/env bash
# The CUDA kernels without a GPU: run on the CPU by tests/cuda_on_cpu and, where nvcc is there, compiled
# for the architectures of a wheel (or for the first argument, such as 90-real). Fails where a kernel spills
# registers or needs more than its budget; prints the table of their resources.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

register_budget=128 # of the 65,536 of a multiprocessor: two blocks of 256 threads always fit

"${CXX:-g++}" -std=gnu++17 -O1 -Wall -Wextra -Wno-psabi -Werror -Itests/cuda_on_cpu \
  tests/cuda_on_cpu/kernels_test.cpp -o "$build/kernels_test"
"$build/kernels_test"

if ! command -v nvcc >/dev/null; then
  echo "nvcc is not here: not compiled for a GPU"
  exit
fi
architectures=()
[[ -z ${1:-} ]] || architectures=("-DCMAKE_CUDA_ARCHITECTURES=$1")
pip install --quiet cmake ninja pybind11
cmake -S . -B "$build/cuda" -G Ninja -DFD_CUDA=ON "${architectures[@]}" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CUDA_FLAGS='-Xptxas -v' -DSKBUILD_PROJECT_NAME=fastdistill -DSKBUILD_PROJECT_VERSION=0 \
  -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)" >"$build/configure.log" ||
  { cat "$build/configure.log"; exit 1; }
started=$SECONDS
cmake --build "$build/cuda" --target cuda_kernels >"$build/build.log" 2>&1 ||
  { cat "$build/build.log"; exit 1; }
echo "compiled in $((SECONDS - started)) s"

# A kernel's line, then the spills of the functions that it calls.
awk -v budget="$register_budget" '
  /Compiling entry function/ {
    name = $0
    sub(/.*entry function ._ZN11fastdistill[0-9]*/, "", name)
    architecture = name
    sub(/.*for ./, "", architecture); sub(/.$/, "", architecture)
    kernel = name; sub(/INS_.*/, "", kernel)
    divergence = name; sub(/[^0-9]*INS_[0-9]*/, "", divergence)
    type = divergence; sub(/E?NS_.*/, "", divergence)
    sub(/[A-Za-z]*NS_[0-9]*/, "", type); sub(/E.*/, "", type)
  }
  /bytes spill stores/ { spilled += $5 + $9 }
  /Used [0-9]+ registers/ {
    for (i = 1; i < NF; ++i) if ($i == "Used") registers = $(i + 1)
    printf "%-8s %-14s %-24s %-14s %4d registers\n", architecture, kernel, divergence, type, registers
    if (registers > most[kernel " " type]) most[kernel " " type] = registers
    ++count
    if (registers > budget) ++beyond
  }
  END {
    for (kind in most) printf "at most %d registers: %s\n", most[kind], kind
    printf "%d kernels; %d beyond the budget of %d registers; %d bytes spilled\n",
      count, beyond, budget, spilled
    exit count == 0 || beyond > 0 || spilled > 0
  }' "$build/build.log"
