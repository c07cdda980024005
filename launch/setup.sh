#!/usr/bin/env bash
# Sourced: makes .venv from requirements.txt, with the extras named in $EXTRAS (".[test]"), when it
# is missing or the requirements have changed since. PYTHON= names the interpreter; otherwise it is
# that of .venv, python3, or the first of python3.13, 3.12 and 3.11 that is there.
refuse() {
  echo "error: $1" >&2
  exit 2
}
# Prints the version of an interpreter, as 3.11; fails where remix_jax does not support it.
version_of() {
  "$1" - << 'PROGRAM' 2> /dev/null
import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PROGRAM
}
python="${PYTHON:-}"
if [ -z "$python" ]; then
  for python in .venv/bin/python python3 python3.13 python3.12 python3.11 ''; do
    if [ -z "$python" ] || version_of "$python" > /dev/null; then break; fi
  done
  [ -n "$python" ] || refuse "no Python 3.11 to 3.13 is in reach: name one with PYTHON="
fi
version="$(version_of "$python")" ||
  refuse "PYTHON=$python is ${version:-not there}: remix_jax needs Python 3.11 to 3.13"
[ -x .venv/bin/python ] || "$python" -m venv --without-pip --clear .venv ||
  refuse "$python makes no .venv (on Debian and Ubuntu: apt install python$version-venv)"
there="$(version_of .venv/bin/python)" || there="${there:-that is gone}"
[ "$there" = "$version" ] ||
  refuse ".venv is of a Python $there, PYTHON=$python is $version: remove .venv to make it anew"
# Debian's Python comes without the means to put pip there.
.venv/bin/python -m pip --version > /dev/null 2>&1 ||
  .venv/bin/python -m ensurepip --default-pip > /dev/null 2>&1 ||
  refuse "no pip for .venv (on Debian and Ubuntu: apt install python$version-venv), then again"
stamp=".venv/installed${EXTRAS:-}"
wanted="$(cat requirements.txt setup.py | cksum)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "setting up .venv with Python $version (a few minutes, once)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${EXTRAS:-}" ||
    exit 1
  echo "$wanted" > "$stamp"
fi
