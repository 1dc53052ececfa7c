#!/bin/sh
# Installs Edge SDK from the folder that this script is in, without internet.
#
#     sh install.sh [--python PYTHON] [--system-site-packages] FOLDER
#
# FOLDER/bin/edge-sdk is the command then. FOLDER is a link to a virtual environment beside it, in FOLDER.versions: another
# one is made whole before the link turns to it, and the last one is kept. If FOLDER is a virtual environment already,
# such as one made by hand, the packages are installed there, in place.
#
# --python                what runs it (default: the pythonX.Y that was packed for, or python3)
# --system-site-packages  it sees the board's own packages, such as JetPack's TensorRT or ROS
set -eu
unset PYTHONPATH PYTHONHOME  # ROS sets the first, and pip would take what it finds there for installed

fail() { echo "error: $1: expected $2, found $3. $4" >&2; exit 1; }

python="" site="" folder=""
while [ $# -gt 0 ]; do
  case $1 in
    --python) [ $# -gt 1 ] || fail "--python" "a program" "none" "Name one."; python=$2; shift ;;
    --system-site-packages) site=$1 ;;
    -*) fail "The command" "--python or --system-site-packages" "$1" "The head of $0 says what there is." ;;
    *) folder=$1 ;;
  esac
  shift
done
[ -n "$folder" ] || fail "The command" "a folder" "none" "sh install.sh FOLDER, such as \$HOME/edge"
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$folder")"
folder=$(cd "$(dirname "$folder")" && pwd)/$(basename "$folder")

# ---- Is the pack whole, and this the board that it is for? ----

wrong=$(cd "$here" && sha256sum --check --strict --quiet SHA256SUMS 2>&1) \
  || fail "The pack" "the files that were packed" "$wrong" "Copy it here again."
. "$here/board.sh"
[ -n "$python" ] || python=$(command -v "python$python_version" || command -v python3) \
  || fail "This board" "Python $python_version" "none" "sudo apt install python3"
found=$("$python" -c 'import os, platform, sys
print("%d.%d" % sys.version_info[:2], platform.machine(), os.confstr("CS_GNU_LIBC_VERSION").split()[1])') \
  || fail "$python" "Python $python_version" "what does not run" "Name another with --python."
set -- $found
[ "$1" = "$python_version" ] || fail "$python" "Python $python_version" "$1" "Pack for this board, or name another with --python."
[ "$2" = "$machine" ] || fail "This board" "$machine" "$2" "Pack for this board with --target."
[ "$(printf '%s\n' "$glibc" "$3" | sort -V | head -n 1)" = "$glibc" ] \
  || fail "This board" "glibc $glibc or newer" "$3" "Pack for this board with --target."
free_kib=$(df -Pk "$(dirname "$folder")" | awk 'END { print $4 }')
[ "$free_kib" -ge "$needed_kib" ] \
  || fail "The disk of $folder" "$needed_kib KiB" "$free_kib KiB free" "Make room, or choose another folder."

# ---- Where to? ----

if [ ! -e "$folder" ] || [ -L "$folder" ]; then
  versions=$folder.versions
  mkdir -p "$versions"
  environment=$(mktemp -d "$versions/XXXXXX")
  chmod 755 "$environment"
  trap 'rm -rf "$environment"' EXIT
  "$python" -m venv --without-pip $site "$environment"
elif [ -f "$folder/pyvenv.cfg" ]; then
  environment=$folder
else
  fail "$folder" "nothing, or a virtual environment" "another" "Choose another folder."
fi

# ---- Install ----

echo "installing into $folder ..."
# A wheel is an archive that Python can run: pip needs no installation.
for pip in "$here"/wheels/pip-[0-9]*.whl; do :; done
"$environment/bin/python" "$pip/pip" install --isolated --quiet --disable-pip-version-check \
  --no-warn-script-location --no-index --find-links "$here/wheels" --require-hashes --requirement "$here/requirements.txt" \
  || fail "pip" "success" "what it says above" "What was in $folder is as it was, unless it was a virtual environment."
"$environment/bin/python" -I -c 'import edge_plugins as plugins, edge_sdk
print("Edge SDK", edge_sdk.__version__, "" if plugins.native_library() else "without native kernels, which is slower")'

if [ "$environment" != "$folder" ]; then
  sync
  last=$(readlink "$folder" || true)
  ln -s "$environment" "$environment.link"
  mv -T "$environment.link" "$folder"
  trap - EXIT
  for old in "$versions"/*; do
    [ "$old" = "$environment" ] || [ "$old" = "$last" ] || rm -rf "$old"
  done
fi
echo "$folder/bin/edge-sdk"
