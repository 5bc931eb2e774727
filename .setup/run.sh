#!/usr/bin/env bash
# Runs a command inside the virtual environment with the built packages: .setup/run.sh pam --help
set -euo pipefail
source "$(dirname "$0")/route.sh"
activate
[[ -f $build/install/setup.bash ]] || fail "nothing is built yet; run: make setup"
set +u # colcon's scripts read variables that nobody set
# shellcheck disable=SC1091
source "$build/install/setup.bash"
exec "$@"
