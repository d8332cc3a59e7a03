#!/usr/bin/env bash
# Packs all that one role needs into one archive, for a hospital whose machines reach no package index.
#
#   deploy/bundle.sh [--dry-run] [--out DIR] coordinator|site
#
# Run it on a machine with internet, with the same Python version, operating system and kind of processor as
# the machine that it is for, after `make test`, which makes .venv. The archive holds wheels of every package in
# the role's part of requirements.lock, each checked against the lock's hash before it is taken, the project's
# own wheel, this folder, and install.sh, which needs nothing but Python. It holds no models and no data.
#
# --dry-run lists what it would take and fetches nothing.
set -euo pipefail

usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { echo "bundle.sh: $*" >&2; exit 1; }

dry="" out="" role=""
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry=yes ;;
        --out) [ $# -ge 2 ] || usage; out="$2"; shift ;;
        coordinator | site) [ -z "$role" ] || usage; role="$1" ;;
        *) usage ;;
    esac
    shift
done
[ -n "$role" ] || usage

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
out="${out:-$root/dist}"
version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")"
name="consilium-$role-$version"

# This folder, without what a trial with compose keeps in it: keys and patients.
deploy_files() {
    (cd "$root" && find deploy -type f ! -path 'deploy/compose/env/*.env' ! -path 'deploy/compose/data/*' \
        ! -path 'deploy/compose/models/*' ! -path 'deploy/compose/exchange/*' | sort)
}

if [ -n "$dry" ]; then
    echo "$out/$name.tar.gz would hold:"
    "$root/deploy/requirements.sh" "$role" | sed -n 's/^\([a-z0-9][^ ]*==[^ ]*\).*/  wheels\/\1/p'
    echo "  wheels/consilium==$version"
    deploy_files | sed 's/^/  /'
    printf '  %s\n' install.sh README.md LICENSE PYTHON requirements.txt SHA256SUMS
    exit 0
fi

[ -x "$python" ] || fail "expected $python; run make test first"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
bundle="$work/$name"
mkdir -p "$bundle/wheels" "$out"

"$root/deploy/requirements.sh" "$role" > "$work/locked.txt"
# The lock's hashes are checked here. A package that has no wheel is built now, so that install.sh builds
# nothing; hence the wheel's own hash in requirements.txt and not the lock's.
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --require-hashes \
    --requirement "$work/locked.txt" --wheel-dir "$bundle/wheels"
(cd "$root" && "$python" -m uv build --quiet --wheel --out-dir "$bundle/wheels" .)
rm -f "$bundle/wheels/.gitignore"

for wheel in "$bundle"/wheels/*.whl; do
    file="$(basename "$wheel")"
    project="$(echo "${file%%-*}" | tr 'A-Z_' 'a-z-')"
    number="$(echo "$file" | cut -d- -f2)"
    echo "$project==$number --hash=sha256:$(sha256sum "$wheel" | cut -d' ' -f1)"
done > "$bundle/requirements.txt"

"$python" -c 'import platform, sys
print(f"{sys.version_info[0]}.{sys.version_info[1]} {platform.system()} {platform.machine()}")' > "$bundle/PYTHON"
deploy_files | tar -C "$root" --files-from=- -cf - | tar -C "$bundle" -xf -
cp "$root/deploy/install.sh" "$bundle/install.sh"
cp "$root/LICENSE" "$bundle/LICENSE"
cat > "$bundle/README.md" <<EOF
# Consilium $version for a $role, without internet

Made for Python $(cat "$bundle/PYTHON").

1. Compare the hash of the archive with the one that whoever made it reads to you: \`sha256sum $name.tar.gz\`
2. \`tar xzf $name.tar.gz && cd $name\`
3. \`./install.sh /opt/consilium\`, with a folder of your choice
4. Go on with "Stand up the coordinator" or "Make a site's home" in deploy/README.md; the commands are in
   /opt/consilium/bin
EOF
(cd "$bundle" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS)

archive="$out/$name.tar.gz"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -czf "$archive.part" "$name"
mv "$archive.part" "$archive"
echo "$archive"
echo "sha256  $(sha256sum "$archive" | cut -d' ' -f1)"
