#!/usr/bin/env bash
# One-liners that combine rlspeech with the tools of a shell: find, xargs, jq, sed, sort. They run on the embedded corpora.
#   OUT=FOLDER  where everything goes (default runs/pipelines)
#   TINY=1      fewer files and one step of training, for tests
# Data goes to stdout, everything else to stderr; --quiet leaves only errors; - reads paths from stdin, one a line or as `find -print0`.
# Exit codes: 0 done, 2 a user error, 130 Ctrl-C, 141 the reader closed the pipe, 1 a bug. With pipefail they reach the end of a pipe.
set -euo pipefail
out=${OUT:-runs/pipelines}
some=12; few=(--set valid_items=12); [ -z "${TINY:-}" ] || { some=2; few=(--set prompts_per_step=2 --set group=2 --set micro_batch=1 --set valid_items=2 --set clip_s=1); }
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
say() { printf '\n== %s\n' "$1" >&2; }
# json FILTER: a field of the one object that --json prints, by jq where it is installed
json() { if command -v jq > /dev/null; then jq -r ".$1"; else python3 -c 'import functools, json, sys
print(functools.reduce(lambda o, k: o[k], sys.argv[1].split("."), json.load(sys.stdin)))' "$1"; fi; }
mkdir -p "$out"

say "a corpus, and a check of it: the exit code is the answer"
rlspeech prepare demo --out "$out/data" --quiet
rlspeech check "$out/data/test.jsonl" --quiet && echo "the test set has no mistakes"

say "a preset, edited in the pipe, is a config; the JSON has the place of the run"
run=$(rlspeech presets show flowse-demo-rl | sed -e 's/^steps: .*/steps: 1/' -e 's/^rewards: .*/rewards: [estoi]/' -e 's/^guards: .*/guards: []/' \
  | rlspeech rl --config - --out "$out/rl" "${few[@]}" --quiet --json | json run)

say "files with any names, through find and xargs, to that run's enhancer"
find "$out/data/audio/test" -name '*.flac' -print0 | sort -z | sed -z -n "1,${some}p" | xargs -0 rlspeech enhance --model "$run" --out "$out/enhanced" --set nfe=1 --quiet

say "a list of files on stdin into the scorer, one number out"
find "$out/enhanced" -name '*.flac' | rlspeech reward - --reward dnsmos_fast_ovrl --out "$out/scores" --quiet --json | json metrics.dnsmos_fast_ovrl.mean

say "the worst first: score rows are JSON lines"
if command -v jq > /dev/null; then jq -r '[.dnsmos_fast_ovrl, .key] | @tsv' "$out/scores/scores.jsonl" | sort -n | sed -n 1,3p; fi

say "the words of a few recordings, sorted by how often they occur"
rlspeech prepare demo --commands --out "$out/speech" --quiet
find "$out/speech/audio/test/clean" -name '*.flac' | sort | sed -n "1,${some}p" | rlspeech transcribe - --quiet | cut -f 2 | tr ' ' '\n' | sort | uniq -c | sort -rn

say "presets are text: which forms of LR-AVSE leave out supervision?"
rlspeech presets ls avse-lr --quiet | while read -r name; do printf '%s: ' "$name"; rlspeech presets show "$name" | grep '^supervised_weight'; done

say "done; everything is in $out"
