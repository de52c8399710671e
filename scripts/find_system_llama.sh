#!/usr/bin/env bash
# Prints the prefix of a llama.cpp that is installed on this system and that Tactic can use, or
# nothing. Usable means: CMake finds it by itself, and a program that names what Tactic needs
# compiles and links against it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

probe=build/probe_llama
rm -rf "$probe"
mkdir -p "$probe"
if cmake -S cmake/probe_llama -B "$probe" -G Ninja && cmake --build "$probe"; then
  prefix=$(sed -n 's/^LLAMA_PREFIX:INTERNAL=//p' "$probe/CMakeCache.txt")
fi >"$probe/log" 2>&1
printf '%s' "${prefix-}"
