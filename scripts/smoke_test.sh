#!/usr/bin/env bash
# Installs the project tests/downstream, which depends on fastdistill, into the active environment, runs it
# there, and runs the tests of what may differ from one installation to another.
#
#   scripts/smoke_test.sh [PIP_OPTION...]      needs the dependency group smoke-test
set -euo pipefail
cd "$(dirname "$0")/.."

python -m pip install --quiet "$@" ./tests/downstream
python -m student_training
python -m pytest -q -p no:cacheprovider tests/test_package.py tests/test_api.py tests/test_topk.py tests/test_compile.py
