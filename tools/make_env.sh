#!/usr/bin/env bash
# Makes (or updates) .venv with everything the quickstart and the tests need. Safe to repeat: a finished
# environment takes well under a second, an interrupted one continues where it stopped.
#
#   PYTHON=python3.13      interpreter to use (default: the first of 3.11, 3.12, 3.13, 3.10, 3.14 that is found)
#   TORCH_INDEX=URL        an extra package index for torch, e.g. https://download.pytorch.org/whl/cpu
#   TOPODET_MMCV=compiled  mmcv with all of its operators: needs a C++ compiler (and nvcc for those on a GPU) and half an
#                          hour. Without it nms, roi_align and the focal loss are torchvision's, as fast or faster
#   TOPODET_VENV=DIR       folder of the environment (default: .venv)
#   TOPODET_VERSIONS=NAME  the versions of requirements/NAME.txt: tested (the default), lowest or newest
#   TOPODET_WHEELS=DIR     folder of the compiled mmcv wheel (default: ~/.cache/topodet/wheels)
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m[env]\033[0m %s\n' "$*"; }
die() { printf '[env] error: %s\n' "$*" >&2; exit 1; }

versions=requirements/${TOPODET_VERSIONS:=tested}.txt
[ -f "$versions" ] || die "TOPODET_VERSIONS=$TOPODET_VERSIONS: no file $versions"
pin() { sed -n "s/^$1==//p" "$versions"; }

pythons=${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3.14 python3}

find_python() {
  local candidate
  for candidate in $pythons; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python from 3.10 to 3.14 found (looked for $pythons); set PYTHON=/path/to/python"
}

case ${TOPODET_MMCV:=plain} in plain | compiled) ;; *) die "TOPODET_MMCV=$TOPODET_MMCV: must be compiled, or not set" ;; esac

venv=${TOPODET_VENV:-.venv}
recipe=$({ cat pyproject.toml "$versions" tools/make_env.sh; echo "$TOPODET_MMCV"; } | sha256sum | cut -c1-16)
if [ "$(cat "$venv/.recipe" 2>/dev/null || true)" = "$recipe" ] && "$venv/bin/python" -c '' 2>/dev/null; then
  exit 0
fi

started=$SECONDS
if ! "$venv/bin/python" -c '' 2>/dev/null; then
  python=$(find_python)
  say "1/4 creating $venv with $("$python" --version) ($python)"
  rm -rf "$venv"
  "$python" -m venv "$venv" || die "'$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Progress bars only in a terminal: a log gets one line per step.
if [ -t 1 ]; then pip_flags=(-q --progress-bar on); else pip_flags=(-q --progress-bar off); fi
pip() { "$venv/bin/python" -m pip "$@"; }

say "2/4 torch $(pin torch), torchvision $(pin torchvision) and build tools ($versions; about a minute)"
pip install "${pip_flags[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c "$versions" \
  torch torchvision "setuptools>=77,<82" wheel ninja packaging

version=$(pin onedl-mmcv)
if [ "$TOPODET_MMCV" = plain ]; then
  say "3/4 onedl-mmcv $version, with operators from torchvision"
  # Without torch at build time, mmcv leaves its operators out; pip's cache may contain a compiled one.
  mmcv=(--no-cache-dir "onedl-mmcv${version:+==$version}")
else
  # Compiled operators need the same torch, Python and architecture: the wheel is kept under those names.
  tag=$("$venv/bin/python" -c 'import platform, sys, torch; print(f"py{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-{platform.machine()}" + ("-cuda" if torch.cuda.is_available() else "") + "-O3")')
  wheels=${TOPODET_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/topodet/wheels}/$tag
  wheel=$(ls "$wheels"/onedl_mmcv-${version:-*}-*.whl 2>/dev/null | head -n 1 || true)
  if [ -z "$wheel" ]; then
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || die "no C++ compiler found; on Debian and Ubuntu: apt-get install g++"
    say "3/4 compiling onedl-mmcv $version with its operators: once, about half an hour on 2 cores"
    mkdir -p "$wheels"
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    # CFLAGS replaces Python's own flags, including optimization; debug symbols would only take time.
    CFLAGS="-O3 -DNDEBUG -g0 ${CFLAGS:-}" PATH="$(realpath "$venv")/bin:$PATH" pip wheel --no-deps --no-build-isolation \
      --no-cache-dir --no-binary onedl-mmcv -w "$build" "onedl-mmcv${version:+==$version}" >"$build/log" 2>&1 &
    job=$!
    while kill -0 $job 2>/dev/null; do
      for _ in $(seq 30); do kill -0 $job 2>/dev/null || break; sleep 1; done
      printf '[env]     %d s\n' $((SECONDS - started))
    done
    wait $job || { tail -n 40 "$build/log" >&2; die "onedl-mmcv did not build; the end of its log is above"; }
    mv "$build"/onedl_mmcv-*.whl "$wheels/"
    wheel=$(ls "$wheels"/onedl_mmcv-${version:-*}-*.whl | head -n 1)
  else
    say "3/4 onedl-mmcv $version: using the wheel kept in $wheels"
  fi
  # Replace the same version without compiled operators, if it is installed.
  mmcv=(--force-reinstall "$wheel")
  rm -f "$venv"/lib/python3*/site-packages/mmcv/_ext.py
fi
pip install "${pip_flags[@]}" --no-deps "${mmcv[@]}"

say "4/4 topodet with mmdet, test and dev extras (one to two minutes)"
pip install "${pip_flags[@]}" -c "$versions" -e '.[mmdet,test,dev]'
[ "$TOPODET_MMCV" = compiled ] || "$venv/bin/topodet" install-mmcv-ops
"$venv/bin/python" -W ignore -c 'import mmcv.ops, mmdet, timm, topodet' || die "the environment does not import; remove $venv and run again"
printf '%s' "$recipe" >"$venv/.recipe.new" && mv "$venv/.recipe.new" "$venv/.recipe"
say "done in $((SECONDS - started)) s: source $venv/bin/activate"
