#!/usr/bin/env bash
# Builds the packages with colcon into .build/install. Python files become links: edits are live, only new files need this again.
set -euo pipefail
source "$(dirname "$0")/route.sh"
activate

# 1. A colcon workspace of links. CMake must not see this folder as the source: .venv lies in it, and CMake refuses to
#    export the include folders of packages (NumPy's) that lie inside the source.
source_folder=$build/src/pam_ros
mkdir -p "$source_folder"
for name in CMakeLists.txt package.xml LICENSE msg srv action pam_ros config launch models test; do
  ln -sfn "$root/$name" "$source_folder/$name"
done

# 2. The interface packages that the wheels lack, each only where nobody else provides it.
paths=("$build/src")
for package in "$root"/.setup/interfaces/*/; do
  name=$(basename "$package")
  [[ $route != wheels && -n $(find -L ${AMENT_PREFIX_PATH//:/ } -maxdepth 2 -path "*/share/$name" 2>/dev/null) ]] || paths+=("$package")
done

# 3. Build. The wheels' CMake files are found through the virtual environment.
if [[ $route == wheels ]]; then
  export AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv
fi
cd "$build"
if ! colcon --log-base "$build/log" build --symlink-install --build-base "$build/build" --install-base "$build/install" \
  --base-paths "${paths[@]}" --event-handlers console_direct- console_cohesion- \
  --cmake-args -DPython3_EXECUTABLE="$venv/bin/python" -DBUILD_TESTING=OFF >"$build/colcon.out" 2>&1; then
  cat "$build/colcon.out" >&2
  fail "colcon could not build the packages; everything it said is above and in $build/log/latest_build"
fi

# 4. colcon leaves links to files that are gone.
find "$build/install" -xtype l -delete
