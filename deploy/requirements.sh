#!/usr/bin/env bash
# The part of requirements.lock that one role needs, with its hashes, on standard output.
#
#   deploy/requirements.sh coordinator   no torch
#   deploy/requirements.sh site          with torch and what it needs of CUDA, as the lock has it
#   deploy/requirements.sh site-cpu      the same without torch, torchvision and CUDA (but with what torch needs
#                                        beside it): their CPU builds come from PyTorch's own index, which the
#                                        lock does not know
#   deploy/requirements.sh build         what building the few packages without wheels needs
#
# It starts from the names in pyproject.toml and follows the lock's own notes on who needs what ("# via"). The
# lists are whole, so that pip installs them with --no-deps.
set -euo pipefail

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -eq 1 ] || usage
case "$1" in
    coordinator | build) extra="" ;;
    site | site-cpu) extra="client" ;;
    *) usage ;;
esac
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The names in pyproject.toml, without versions and in the lock's spelling.
named() {
    awk -v extra="$extra" '
        /^dependencies = \[/ { inside = 1; next }
        extra != "" && $0 ~ "^" extra " = \\[" { inside = 1; next }
        /^\]/ { inside = 0 }
        inside && match($0, /"[A-Za-z0-9._-]+/) { print substr($0, RSTART + 1, RLENGTH - 1) }
    ' "$root/pyproject.toml" | tr 'A-Z._' 'a-z--'
}

if [ "$1" = build ]; then roots="setuptools"; else roots="$(named | tr '\n' ' ')"; fi

awk -v roots="$roots" -v role="$1" '
    function left_out(name) {
        return role == "site-cpu" && name ~ /^(torch|torchvision|triton|nvidia-.*|cuda-.*)$/
    }
    /^[a-z0-9]/ {
        name = $1
        sub(/(==|\[).*/, "", name)
        # Two versions of one package stand one after the other.
        if (!(name in text)) order[++count] = name
    }
    name == "" { next }
    /^[a-z0-9]/ || /^    --hash=/ { text[name] = text[name] $0 "\n"; next }
    # "# via x" on one line, or a list below "# via".
    /^    #   [a-z0-9]/ { needs[$2] = needs[$2] " " name; next }
    /^    # via [a-z0-9]/ { needs[$3] = needs[$3] " " name; next }
    END {
        waiting = split(roots, queue, " ")
        for (at = 1; at <= waiting; at++) {
            name = queue[at]
            if (name in taken) continue
            if (!(name in text)) { print name ": not in requirements.lock" > "/dev/stderr"; exit 1 }
            taken[name] = 1
            if (role == "build") continue
            many = split(needs[name], next_names, " ")
            for (each = 1; each <= many; each++) queue[++waiting] = next_names[each]
        }
        for (each = 1; each <= count; each++) if (order[each] in taken && !left_out(order[each])) printf "%s", text[order[each]]
    }
' "$root/requirements.lock"
