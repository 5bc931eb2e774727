#!/usr/bin/env bash
# Runs a command inside the virtual environment with the built packages: .setup/run.sh pam --help
set -euo pipefail
source "$(dirname "$0")/route.sh"
activate
[[ -f $build/install/setup.bash ]] || fail "nothing is built yet; run: make setup"
set +u # colcon's scripts read variables that nobody set
# shellcheck disable=SC1091
source "$build/install/setup.bash"
if [[ $route == wheels && ${1:-} == ros2 ]] && ! command -v ros2 >/dev/null; then
  fail "the ROS wheels bring neither the command ros2 nor launch; the node alone starts with
  .setup/run.sh pam_node --ros-args -p autostart:=true -r image:=/camera/color/image_raw
and this asks it: .setup/run.sh perceive_region --click 320,240"
fi
# In the checkout, Python would find the sources first, which lack the built messages. This keeps the folder of the
# script, and the current one, off its path (Python 3.11+).
[[ ${1:-} != python || $PWD != "$root" ]] || export PYTHONSAFEPATH=1
exec "$@"
