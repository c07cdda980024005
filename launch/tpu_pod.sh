#!/usr/bin/env bash
# Trains on a Cloud TPU slice with gcloud; see launch/README.md.
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v5p-32 [--version=IMAGE] [--spot]
#       [--project=P] [--prepare=COMMAND] [--dry_run] -- --config=FILE --workdir=DIR [...]
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --follow | --stop | --delete [--dry_run]
# Creates the slice or takes the one of that name, copies the commit that is checked out, installs,
# starts on every worker and follows worker 0. Ctrl-C ends the following, not the training: --follow
# goes on with it, --stop saves and ends the training, --delete gives the slice back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/options.sh

name='' zone='' type='' version='' project='' prepare=':' action=train spot=0
parse "name zone type version project prepare" "spot dry_run" "follow stop delete" "$@"
set -- "${rest[@]}"
[ -n "$name" ] && [ -n "$zone" ] || usage "--name and --zone are required"
if [ "$action" = train ]; then
  [ -n "$type" ] || usage "--type is required: v5p-32, v5litepod-16, v6e-16, ..."
  [ $# -gt 0 ] || usage "nothing to train: give the flags of experiments.train behind --"
fi

tpu=(gcloud compute tpus tpu-vm)
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

on() { run "${tpu[@]}" ssh "$name" "${where[@]}" --worker="$1" --command="$2"; }

# The runtime image that the maker of the slice names for each generation.
image() {
  case "$type" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) usage "no image is known for --type=$type: name it with --version=IMAGE" ;;
  esac
}

state() {
  "${tpu[@]}" describe "$name" "${where[@]}" --format='value(state)' 2> /dev/null || true
}

create() {
  local options=(--accelerator-type="$type" --version="$version")
  [ "$spot" -eq 0 ] || options+=(--spot)
  run "${tpu[@]}" create "$name" "${where[@]}" "${options[@]}"
}

# A slice of that name that is ready: an old one that was preempted is removed first.
have_slice() {
  show "${tpu[@]}" describe "$name" "${where[@]}" --format='value(state)'
  if [ "$dry_run" -eq 1 ]; then
    echo "# only where there is none:"
    create
    return
  fi
  local found
  found="$(state)"
  case "$found" in
    READY) echo "using the slice that is there" ;;
    '') create ;;
    PREEMPTED | TERMINATED)
      run "${tpu[@]}" delete "$name" "${where[@]}" --quiet
      create
      ;;
    *) echo "error: $name is $found: wait for it, or give another --name" >&2 && exit 1 ;;
  esac
}

install() {
  local archive
  archive="$(mktemp --dry-run --suffix=.tar.gz)"
  run git archive --format=tar.gz --output="$archive" HEAD
  run "${tpu[@]}" scp "$archive" "$name:remix.tar.gz" "${where[@]}" --worker=all
  if [ "$dry_run" -eq 0 ]; then rm "$archive"; fi
  # The images' own Python is older than what the trainer needs, and the newest Python has the newest
  # JAX: from Ubuntu's well-known archive of Pythons where it can be reached, else the image's own.
  # shellcheck disable=SC2016 # expanded over there
  on all 'set -e
mkdir -p remix && tar -xzf remix.tar.gz -C remix && cd remix
if [ ! -x .venv/bin/python ]; then
  sudo add-apt-repository -y ppa:deadsnakes/ppa > /dev/null || true
  sudo apt-get update -qq || true
  for version in 3.13 3.12 3.11; do
    if sudo apt-get install -y -qq python$version python$version-venv > /dev/null 2>&1; then
      export PYTHON=python$version
      break
    fi
  done
fi
bash -c "source launch/setup.sh"
.venv/bin/python -m pip install --quiet "jax[tpu]"
.venv/bin/python -c "import jax, platform; print(platform.node(), platform.python_version(), jax.__version__)"'
  on all "$prepare"
}

start() {
  local train all
  train="$(printf ' %q' .venv/bin/python -m experiments.train --distributed "$@")"
  # SIGTERM goes to the whole group (--stop); this shell stays to write down how it ended.
  all="$(printf '%q' "trap : TERM; bash launch/again.sh$train; echo \$? > run.code")"
  on all "cd remix && rm -f run.code
[ ! -f run.pid ] || ! kill -0 \"\$(cat run.pid)\" 2> /dev/null || { echo 'already training'; exit 1; }
nohup setsid bash -c $all > run.log 2>&1 < /dev/null &
echo \$! > run.pid"
}

# Ends with the exit code of worker 0; a preempted slice ends the connection instead.
follow() {
  # shellcheck disable=SC2016 # expanded over there
  on 0 'cd remix && tail -n +1 --pid="$(cat run.pid)" -f run.log; exit "$(cat run.code)"'
}

if [ "$action" = train ] && [ -z "$version" ]; then version="$(image)"; fi
case "$action" in
  follow) follow ;;
  stop)
    # shellcheck disable=SC2016 # expanded over there
    on all 'kill -TERM -- "-$(cat remix/run.pid)"'
    ;;
  delete) run "${tpu[@]}" delete "$name" "${where[@]}" --quiet ;;
  train)
    while true; do
      have_slice
      install
      start "$@"
      code=0
      follow || code=$?
      if [ "$dry_run" -eq 1 ] || [ "$(state)" = READY ]; then break; fi
      echo "$name was preempted: making it anew, the run continues from its newest checkpoint" >&2
    done
    echo "$name is still there and costs money: bash launch/tpu_pod.sh --name=$name --zone=$zone --delete"
    exit "$code"
    ;;
esac
