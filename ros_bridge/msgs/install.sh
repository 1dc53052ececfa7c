#!/bin/sh
# Builds edge_sdk_msgs into a virtual environment that holds the wheels of ros_bridge/requirements-jazzy.txt:
#     sh ros_bridge/msgs/install.sh .venvs/ros
# Needs a C++ compiler, and CMake and Ninja in the environment or on PATH. A ROS install uses colcon instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prefix=$(cd "$1" && pwd)
export PATH="$prefix/bin:$PATH" AMENT_PREFIX_PATH="$prefix" CMAKE_PREFIX_PATH="$prefix"

# The wheels' CMake files name the folders of the machine that built them.
include=$("$prefix/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
packages=$("$prefix/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
grep -rl /opt/python/ "$prefix/share" --include='*.cmake' | while read -r file; do
  sed -i -E "s#/opt/python/[^/]+/include/python[0-9.]+#$include#g; s#/opt/python/[^/]+/lib/python[0-9.]+/site-packages#$packages#g" "$file"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  cmake -G Ninja -S "$here" -B "$work" -DPython3_EXECUTABLE="$prefix/bin/python" -DCMAKE_INSTALL_PREFIX="$prefix" \
    -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=MinSizeRel && cmake --build "$work" --target install
} > "$work/log" 2>&1 || { tail -40 "$work/log"; exit 1; }
"$prefix/bin/python" -c 'from edge_sdk_msgs.action import Generate; from edge_sdk_msgs.msg import Piece; Generate.Goal(), Piece()'
