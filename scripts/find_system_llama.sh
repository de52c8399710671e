#!/usr/bin/env bash
# Prints the prefix of a llama.cpp that is installed on this system and that Tactic can use, or
# nothing. Usable means: CMake finds it by itself, and a program that calls what Tactic calls
# compiles and links against it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

probe=build/probe_llama
rm -rf "$probe"
mkdir -p "$probe"
"${CMAKE:-cmake}" -S cmake/probe_llama -B "$probe" -G Ninja >"$probe/log" 2>&1 &&
  sed -n 's/^LLAMA_PREFIX:INTERNAL=//p' "$probe/CMakeCache.txt"
exit 0
