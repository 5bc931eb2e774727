# Sourced by the other scripts. Two routes, told apart by whether a ROS 2 distribution is sourced:
#   distribution   its packages, and a virtual environment that sees them (--system-site-packages)
#   wheels         no ROS on this machine: ROS 2 Jazzy from Python wheels, all of it inside the virtual environment
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
build=$root/.build
route=${ROS_DISTRO:-wheels}

fail() {
  printf '\npam_ros: %s\n' "$@" >&2
  exit 1
}

if [[ $route == wheels ]]; then
  # What another environment left behind would mix two ROS installations, or two Pythons, in one process.
  unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH PYTHONHOME
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE # the wheels' own mark that their libraries are on LD_LIBRARY_PATH
fi

activate() {
  [[ -x $venv/bin/python ]] || fail "there is no virtual environment yet; run: make setup"
  # shellcheck disable=SC1091
  source "$venv/bin/activate"
}
