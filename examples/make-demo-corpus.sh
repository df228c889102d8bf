#!/bin/sh
# Rebuild the embedded demo corpus (rlspeech/assets/demo). Needs flite and espeak-ng: apt-get install flite espeak-ng
# usage: examples/make-demo-corpus.sh [OUT]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[ -x "$python" ] || python=python3
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec "$python" "$here/make_demo_corpus.py" --out "${1:-$here/../rlspeech/assets/demo}"
