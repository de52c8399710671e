#!/usr/bin/env bash
# scripts/build.sh PRESET [cmake options...] [-- targets...]: configures build/PRESET if what it was
# configured with has changed, then builds the targets, or all. Run scripts/setup.sh first. CMAKE
# names another cmake.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

trap 'stop_logged_child; exit 130' INT
trap 'stop_logged_child; exit 143' TERM HUP

(($#)) || die "usage: scripts/build.sh PRESET [cmake options...] [-- targets...]"
preset=$1
shift
options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
targets=("${@:2}")
cmake=${CMAKE:-cmake}
folder=build/$preset
prefix=$(<.venv/tactic-prefix)
# CMake notices changed CMakeLists.txt by itself; these it does not.
inputs="$(sha256sum <CMakePresets.json) $prefix ${options[*]}"

if [[ ! -f $folder/build.ninja || ! -f $folder/configured_with ||
  $(<"$folder/configured_with") != "$inputs" ]]; then
  # --fresh: a library that CMake found under the old settings must not stay in its cache.
  run_logged "Configuring $folder" "build/logs/configure_$preset.log" \
    "$cmake" --preset "$preset" --fresh -DCMAKE_PREFIX_PATH="$prefix" "${options[@]}"
  printf '%s\n' "$inputs" >"$folder/configured_with"
fi
# Ninja would say that there is nothing to do: say nothing instead.
if [[ $("$cmake" --build "$folder" -- -n "${targets[@]}" 2>&1) != *"no work to do"* ]]; then
  "$cmake" --build "$folder" -- "${targets[@]}"
fi
