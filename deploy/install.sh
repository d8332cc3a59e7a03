#!/usr/bin/env bash
# Installs a bundle into a folder of its own, without internet: ./install.sh FOLDER
#
# It checks every file of the bundle against SHA256SUMS and every wheel against requirements.txt, and takes
# nothing from anywhere else. It needs the Python that the bundle was made for, named in the file PYTHON;
# another one is chosen with: PYTHON=/usr/bin/python3.11 ./install.sh FOLDER
set -euo pipefail

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { echo "install.sh: $*" >&2; exit 1; }

[ $# -eq 1 ] || usage
case "$1" in -*) usage ;; esac
case "$1" in /*) target="$1" ;; *) target="$PWD/$1" ;; esac
python="${PYTHON:-python3}"
cd "$(dirname "${BASH_SOURCE[0]}")"

[ -f SHA256SUMS ] || fail "expected to lie in an unpacked bundle, beside SHA256SUMS"
sha256sum --quiet --check SHA256SUMS || fail "a file of this bundle is not the one that was packed; nothing was done"

found="$("$python" -c 'import platform, sys
print(f"{sys.version_info[0]}.{sys.version_info[1]} {platform.system()} {platform.machine()}")')" ||
    fail "expected a Python named $python; choose another with PYTHON=..."
[ "$found" = "$(cat PYTHON)" ] || fail "expected Python $(cat PYTHON), got $found; choose another with PYTHON=..."
[ ! -e "$target" ] || fail "$target is there already; choose a new folder"

here="$PWD"
# A half-made folder would be in the way of the next try.
trap 'rm -rf "$target"' EXIT
"$python" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-cache-dir \
    --only-binary :all: --find-links "$here/wheels" --require-hashes --requirement "$here/requirements.txt"
cp -R "$here/deploy" "$target/deploy"
trap - EXIT
echo "installed in $target; its commands are in $target/bin"
