#!/usr/bin/env bash
# Sourced by scripts in the root of the checkout: their options, and commands shown before they run.
dry_run=0 rest=()

# What the script's first comment says of its use, what is wrong, and the end.
usage() {
  grep '^#   ' "launch/$(basename "$0")" >&2
  echo "error: $1" >&2
  exit 2
}

# parse "NAMES" "SWITCHES" "ACTIONS" ARGUMENTS: --NAME=VALUE and --SWITCH (to 1) set variables of
# these names, --ACTION sets $action; what follows -- is $rest.
parse() {
  local names=" $1 " switches=" $2 " actions=" $3 " option
  shift 3
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    option="${1%%=*}"
    option="${option#--}"
    [[ "$1" == --* && "$option" =~ ^[a-z_]+$ ]] || usage "unknown option $1"
    if [[ "$1" == *=* && "$names" == *" $option "* ]]; then
      printf -v "$option" %s "${1#*=}"
    elif [[ "$1" != *=* && "$switches" == *" $option "* ]]; then
      printf -v "$option" 1
    elif [[ "$1" != *=* && "$actions" == *" $option "* ]]; then
      # shellcheck disable=SC2034 # read by the script
      action="$option"
    else
      usage "unknown option $1"
    fi
    shift
  done
  rest=("${@:2}") # behind the --
}

show() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}
# Prints a command, and runs it unless this is a dry run.
run() {
  show "$@"
  if [ "$dry_run" -eq 0 ]; then "$@"; fi
}
