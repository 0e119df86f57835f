#!/usr/bin/env bash
# The objects of one instruction set must define no weak symbol: the linker keeps one copy of a weak
# function for everyone, and the copy may be the AVX-512 one.
#
#   scripts/check_symbols.sh [BUILD_DIR...]        default: build/*
set -euo pipefail
cd "$(dirname "$0")/.."

(($#)) || set -- build/*
mapfile -t objects < <(find "$@" -path '*/kernels_*.dir/*' -name '*.o')
((${#objects[@]})) || { echo "no kernel objects under $*: build first" >&2; exit 1; }

weak=$(nm --demangle --print-file-name "${objects[@]}" | grep -E ' [WVu] ' || true)
if [[ -n $weak ]]; then
  printf 'weak symbols in the objects of one instruction set:\n%s\n' "$weak" >&2
  exit 1
fi
echo "no weak symbols in ${#objects[@]} kernel objects"
