#!/bin/sh
# with_progress.sh WHAT COMMAND...: run a command and say every few seconds what it is doing, in one short line.
# Its whole output is shown only if it fails.
what=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'kill "$job" 2>/dev/null; exit 130' INT TERM
log=$folder/log status=$folder/status
: >"$log"
echo "$what"
{
    "$@" >"$log" 2>&1
    echo $? >"$folder/ending" && mv "$folder/ending" "$status"
} &
job=$!
waited=0
while [ ! -e "$status" ]; do
    sleep 1
    waited=$((waited + 1))
    if [ $((waited % 4)) -eq 0 ]; then
        now=$(grep -v '^WARNING\|^DEPRECATION\|^ *$' "$log" | tail -n 1 | tr -d '\r' | cut -c 1-68)
        printf '  %3d s  %s\n' "$waited" "${now:-...}"
    fi
done
code=$(cat "$status")
if [ "$code" -ne 0 ]; then
    cat "$log" >&2
    exit "$code"
fi
echo "  done in $waited s"
