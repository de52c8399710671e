# shellcheck shell=bash
# Shared by the scripts beside it: messages, elapsed times, and long commands that stay quiet.
# When the outermost script began: scripts that it starts go on counting from there.
export TACTIC_STARTED_AT=${TACTIC_STARTED_AT:-$EPOCHSECONDS}

say() { printf '%s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# 75 -> 1:15
clock() { printf '%d:%02d' "$(($1 / 60))" "$(($1 % 60))"; }

# A heading with the time since the beginning, for logs that are read afterwards.
section() { printf '\n==== [%s] %s\n' "$(clock $((EPOCHSECONDS - TACTIC_STARTED_AT)))" "$*"; }

logged_child=
# Ends the command that run_logged started, with everything it started in turn.
stop_logged_child() {
  [[ -n $logged_child ]] || return 0
  kill -TERM -- "-$logged_child" 2>/dev/null || true
  wait "$logged_child" 2>/dev/null || true
  logged_child=
}

# run_logged WHAT LOG COMMAND...: runs COMMAND with its output in LOG. Shows that it is alive: one
# line that is rewritten on a terminal, otherwise a line every 30 s. The end of LOG is shown when
# COMMAND fails. COMMAND gets a process group of its own, so that an interrupt can end all of it.
run_logged() {
  local what=$1 log=$2 start=$SECONDS told=$SECONDS status=0 steps
  shift 2
  mkdir -p "$(dirname "$log")"
  [[ -t 1 ]] || say "$what ..."
  setsid "$@" >"$log" 2>&1 </dev/null &
  logged_child=$!
  while kill -0 "$logged_child" 2>/dev/null; do
    # Builds driven by Ninja count their steps: [17/203].
    steps=$(tail -c 20000 "$log" 2>/dev/null | grep -aoE '\[[0-9]+/[0-9]+\]' | tail -n 1) || steps=
    if [[ -t 1 ]]; then
      printf '\r\033[K%s ... %s %s' "$what" "$(clock $((SECONDS - start)))" "$steps"
    elif ((SECONDS - told >= 30)); then
      told=$SECONDS
      say "  still at it, $(clock $((SECONDS - start))) $steps"
    fi
    sleep 0.3
  done
  wait "$logged_child" || status=$?
  logged_child=
  [[ ! -t 1 ]] || printf '\r\033[K'
  if ((status != 0)); then
    say "$what: FAILED after $(clock $((SECONDS - start))). The end of $log:" >&2
    tail -n 25 "$log" | cut -c 1-300 | sed 's/^/  | /' >&2
    return "$status"
  fi
  say "$what: done in $(clock $((SECONDS - start)))"
}
