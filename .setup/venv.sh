#!/usr/bin/env bash
# Makes .venv and installs the pinned packages. Safe to run again: pip skips what is there.
set -euo pipefail
source "$(dirname "$0")/route.sh"

# 1. What pip cannot bring. Said now, in words, rather than in the middle of a build log.
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "there is no $python; install Python 3.10 or newer, or name it: make PYTHON=…"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$python" --version) is too old; Python 3.10 or newer is needed. Name it: make PYTHON=python3.12 …"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[[ -f $headers/Python.h ]] ||
  fail "there is no $headers/Python.h, which compiled messages need; on Debian and Ubuntu: apt install python3-dev"
command -v "${CXX:-c++}" >/dev/null ||
  fail "there is no C++ compiler (${CXX:-c++}); on Debian and Ubuntu: apt install build-essential"

# 2. The virtual environment. One made for the other route, or by another Python, is created again.
key="$route $("$python" -c 'import sys; print(sys.base_prefix, sys.version)' | tr '\n' ' ')"
if [[ ! -x $venv/bin/python || $(cat "$venv/route" 2>/dev/null) != "$key" ]]; then
  options=(--clear)
  [[ $route == wheels ]] || options+=(--system-site-packages)
  "$python" -m venv "${options[@]}" "$venv"
  printf '%s' "$key" >"$venv/route"
fi
activate

# 3. Packages. The files say what and why.
pins=$root/.setup
pip_install() {
  # Without PYTHONPATH: pip would count what lies there as installed, and leave out the commands that come with it.
  env -u PYTHONPATH python -m pip install --disable-pip-version-check --no-input \
    --constraint "$pins/constraints.txt" "$@" >>"$venv/install.log" 2>&1 || {
    tail -n 40 "$venv/install.log" >&2
    fail "pip could not install the packages; its last lines are above, all of them in $venv/install.log"
  }
}
echo "installing the pinned packages into .venv (minutes the first time; progress in .venv/install.log) …"
requirements=()
for name in ${PAM_REQUIREMENTS:-model training view dev}; do # a robot needs `model` only
  requirements+=(--requirement "$pins/$name.txt")
done
if [[ $route == wheels ]]; then
  requirements+=(--requirement "$pins/arrays.txt" --requirement "$pins/ros_wheels.txt")
else
  # The distribution's OpenCV is compiled against its NumPy: pip must not bring a newer one.
  system_numpy=$("$python" -c 'import numpy; print(numpy.__version__)') ||
    fail "the distribution's NumPy is missing; install this package's dependencies first: rosdep install --from-paths . -y"
  requirements+=("numpy==$system_numpy")
fi
pip_install setuptools wheel # PyTorch, and the build of sam2, want newer ones than Python 3.10 ships
if [[ -n ${PAM_LOCKED:-} ]]; then
  # Everything by its hash, as PyPI has it; without the constraints, which the lock holds already.
  [[ $route == wheels ]] || fail "PAM_LOCKED needs the ROS wheels: a distribution brings packages of its own"
  pip_install --require-hashes --requirement "$pins/requirements.lock"
  SAM2_BUILD_CUDA=0 pip_install --require-hashes --no-build-isolation --no-deps --requirement "$pins/no_deps.lock"
fi
pip_install "${requirements[@]}"
# Without its dependencies, because torchvision is not needed; without isolation, so that it is built beside this torch.
SAM2_BUILD_CUDA=0 pip_install --no-build-isolation --no-deps sam2==1.1.0
pip_install --no-deps --requirement "$pins/openvino.txt" --requirement "$pins/quantization.txt"

if [[ $route == wheels ]]; then
  # 4. Mends. CMake from pip where the machine's is missing or too old.
  if ! cmake -E capabilities 2>/dev/null | python -c 'import json, sys
version = json.load(sys.stdin)["version"]; sys.exit((version["major"], version["minor"]) < (3, 20))' 2>/dev/null; then
    pip_install cmake==3.31.10
  fi
  python "$pins/mend_wheels.py"
fi
