#!/usr/bin/env bash
# The tables of what policies do to answers: one JSON file per evaluation and depth in bench/results.
# Reading the texts takes most of the time, half an hour on two cores; what was read is saved.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tactic=build/release/apps/tactic/tactic
adapter=(--lora models/smollm2-135m-32k-lora.gguf --rope-freq-base 1000000)

# The deepest first: what was read for it begins the text of the others.
for depth in 32768 16384 8192; do
  "$tactic" eval kl "${adapter[@]}" --depths "$depth" \
    --json "bench/results/eval_kl_adapter_$depth.json"
done
# Every depth has a text of its own.
for depth in 8192 16384 32768; do
  "$tactic" eval retrieval "${adapter[@]}" --depths "$depth" \
    --json "bench/results/eval_retrieval_adapter_$depth.json"
done
