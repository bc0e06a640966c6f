#!/bin/sh
# Builds the libFuzzer targets and runs each for its share of the time: csrc/fuzz/run.sh SECONDS
# Inputs worth keeping go to build/fuzz/<target>/, findings to build/fuzz/.
set -eu
seconds=${1:?"usage: $0 SECONDS"}
root=$(cd "$(dirname "$0")/../.." && pwd)

compiler=${CXX:-}
for name in clang++ clang++-22 clang++-21 clang++-20 clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14; do
    [ -n "$compiler" ] || compiler=$(command -v "$name" || true)
done
if [ -z "$compiler" ]; then
    echo "fuzzing needs Clang with libFuzzer, which is not on PATH; on Debian: apt-get install clang libclang-rt-dev" >&2
    exit 1
fi

cd "$root/csrc"
cmake --preset fuzz -DCMAKE_CXX_COMPILER="$compiler"
cmake --build --preset fuzz

# Shallow traces and a small quarantine make the runs about twice as fast. To look into a finding, run the target
# on its file without them.
export ASAN_OPTIONS=malloc_context_size=0:quarantine_size_mb=1:use_sigaltstack=0:max_malloc_fill_size=0
cd "$root"
set -- build/csrc-fuzz/fuzz_*
share=$((seconds / $#))
for binary; do
    target=${binary##*/fuzz_}
    mkdir -p "build/fuzz/$target"
    "$binary" -max_total_time=$((share > 0 ? share : 1)) -max_len=400 -artifact_prefix=build/fuzz/ \
        "build/fuzz/$target" "csrc/fuzz/corpus/$target"
done
