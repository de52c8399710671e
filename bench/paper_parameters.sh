#!/usr/bin/env bash
# Mode paper at 8K tokens of a real text under several parameters: one JSON file each in bench/results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() { # name, options of `tactic bench`
  local name=$1
  shift
  build/release/apps/tactic/tactic bench --depths 8000 --policies dense,paper --repeats 5 \
    --json "bench/results/paper_$name.json" "$@"
}

run literal --segment-size 0 --sinks 0 --recent 0
run literal_segments --sinks 0 --recent 0
run default
run cluster32 --cluster-size 32
run segments512 --segment-size 512
run segments2048 --segment-size 2048
