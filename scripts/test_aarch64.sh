#!/usr/bin/env bash
# Compiles the row kernels with their test driver, and no Python, and runs them:
#
#   scripts/test_aarch64.sh            for AArch64, under qemu-user
#   scripts/test_aarch64.sh --native   for every instruction set of this machine
#
# Needs g++-aarch64-linux-gnu and qemu-user; CXX and CXXFLAGS as usual for --native.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-std=gnu++17 -Wall -Wextra -Wno-psabi -Werror)
kernel_flags=(-O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast)

compile() { # object source flags...
  local object=$1 source=$2
  shift 2
  "$cxx" "${flags[@]}" "$@" -c "$source" -o "$build/$object.o"
}

cxx=aarch64-linux-gnu-g++
run=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
link_flags=()
if [[ ${1:-} == --native ]]; then
  cxx=${CXX:-g++}
  run=()
  read -ra link_flags <<<"${CXXFLAGS:-}"
  flags+=("${link_flags[@]}" -DFD_X86)
  avx2=(-mavx2 -mfma -mf16c)
  compile avx2 csrc/cpu/avx2.cpp "${kernel_flags[@]}" "${avx2[@]}"
  compile avx512 csrc/cpu/avx512.cpp "${kernel_flags[@]}" "${avx2[@]}" \
    -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
fi
compile baseline csrc/cpu/baseline.cpp "${kernel_flags[@]}"
compile isa csrc/cpu/isa.cpp -O1
compile dispatch csrc/dispatch.cpp -O1 -Wno-unknown-pragmas
compile test tests/native/kernels_test.cpp -O1
"$cxx" "${link_flags[@]}" "$build"/*.o -o "$build/kernels_test"
"${run[@]}" "$build/kernels_test"
