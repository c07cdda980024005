#!/usr/bin/env bash
# Runs a command, and again as long as it ends with 75 (SIGTERM, state saved): each time it
# continues from its newest checkpoint. Ends as the command ends otherwise.
#   bash launch/again.sh .venv/bin/python -m experiments.train --config=... --workdir=...
set -uo pipefail
readonly PREEMPTED=75
received= # a signal's name
child=
# SIGTERM to this script is passed on and ends both: whoever sent it wants the machine. Ctrl-C
# reaches the command without help.
pass_on() { [ -z "$child" ] || kill -TERM "$child" 2> /dev/null; }
trap 'received=TERM; pass_on' TERM
trap 'received=INT' INT
while true; do
  "$@" &
  child=$!
  if [ "$received" = TERM ]; then pass_on; fi # it came before there was a child
  while true; do
    wait "$child"
    code=$?
    kill -0 "$child" 2> /dev/null || break # a signal ends `wait` early
  done
  if [ "$code" -ne "$PREEMPTED" ] || [ -n "$received" ]; then exit "$code"; fi
  echo "again.sh: ended with $PREEMPTED, starting again" >&2
done
