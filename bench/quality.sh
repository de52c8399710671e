#!/usr/bin/env bash
# The quality table: what every policy reads of two books, and what that does to attention, one JSON
# file per model and depth in bench/results. Traces are kept in build/traces (3 GB) and made only
# where they are missing, which takes as long as reading the books: most of an hour on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tactic=build/release/apps/tactic/tactic
traces=build/traces
texts=(moby_dick pride_and_prejudice)
# The third is the literal paper.
policies=dense,paper,paper:segment-size=0:sinks=0:recent=0,tactic
mkdir -p "$traces"

run() { # name, depth, options of `tactic trace`
  local name=$1 depth=$2 text files=()
  shift 2
  for text in "${texts[@]}"; do
    files+=("$traces/${text}_$name.safetensors")
    [[ -f ${files[-1]} ]] ||
      "$tactic" trace --file "data/$text.txt" --depth "$depth" --steps 24 --output "${files[-1]}" "$@"
  done
  "$tactic" quality "${files[@]}" --policies "$policies" --targets 0.8,0.9,0.95 \
    --json "bench/results/quality_$name.json"
}

# The deepest first: what was read for it is saved, and begins the others.
for depth in 32768 16384 8192; do
  run "adapter_$depth" "$depth" --lora models/smollm2-135m-32k-lora.gguf --rope-freq-base 1000000
done
run base_8000 8000
