#!/usr/bin/env bash
# GRPO with rule rewards on real and synthesised speech: R1, R1+R2, R1+R2+R3, and random data (D0) against chosen data (D1-D3).
# The control is SFT for the same number of steps. The test speakers, noises and texts are in no training set.
#   DATA   folder with manifest.jsonl, manifest_digits.jsonl, speech/ and noise/;  OUT  where everything goes (default runs/asr-real)
#   MODEL  the recogniser to start from (default embedded);  SEEDS  of the main arms (default "0 1 2");  STEPS  default 50, the long arms 120
#   MATERIAL  output of asr_material.py, to reuse it;  ARMS  further arms of one seed, of "both graded reference" (default none)
#   TINY=1 a few steps of everything, for tests.  Needs the program flite and the Python package pocketsphinx (the second recogniser).
# Read sentences are left out, because the embedded recogniser does not know their words. `read` shows its output for them.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with manifest.jsonl, manifest_digits.jsonl and noise/}}
out=${OUT:-runs/asr-real}; model=${MODEL:-embedded}; steps=${STEPS:-50} more=120; material=${MATERIAL:-$out/material}
here=$(cd "$(dirname "$0")" && pwd)
most=110; real=150; tempting=40; rows=500; test_most=40; test_real=60; test_tempting=16; test_long=40; size=() valid=(12 12 3 12)
few=(); eval_few=(); seeds=${SEEDS:-0 1 2}
if [ -n "${TINY:-}" ]; then
  most=2 real=2 tempting=1 rows=12 test_most=1 test_real=1 test_tempting=1 test_long=2 valid=(2 2 1 2) steps=2 more=3 seeds=0 size=(--spoken 20 --strings 20)
  few=(--set valid_items=3 --set prompts_per_step=2 --set group=2 --set save_every=2 --set valid_every=2); eval_few=(--set limit=5)
fi
sets() { python "$here/asr_sets.py" "$@"; }
pair() { # NAME PART MOST REAL TEMPTING LONG SEED LOW HIGH NOISE...: noisy, tempting and long rows of a part of the material
  local name=$1 part=$2 n_most=$3 n_real=$4 n_tempting=$5 n_long=$6 seed=$7 low=$8 high=$9; shift 9
  local noise=(); for n in "$@"; do noise+=(--noise "$data/noise/$n"); done
  sets pick "$material/$part.jsonl" --out "$out/$name/picked.jsonl" --most "$n_most" --real "$n_real" --without read --seed "$seed"
  rlspeech prepare mix --clean "$out/$name/picked.jsonl" "${noise[@]}" --snr "$low" "$high" --level -35 -15 --set limits.bandwidth=0 \
    --render "$(wc -l < "$out/$name/picked.jsonl")" --render-s 0 --seed "$seed" --out "$out/$name/noisy"
  rlspeech prepare nonspeech "${noise[@]}" --clean "$out/$name/picked.jsonl" --count "$n_tempting" --max-s 12 --seed "$seed" --out "$out/$name/tempting"
  [ "$n_long" = 0 ] || sets long "$out/$name/noisy" --out "$out/$name/long" --count "$n_long" --seed "$seed"
}

[ -f "$material/test.jsonl" ] || python "$here/asr_material.py" --data "$data" --out "$material" "${size[@]}"
pair train train "$most" "$real" "$tempting" 0 1 0 20 esc10 long
rlspeech prepare join "$out/train/noisy/manifest.jsonl:condition=noisy" "$out/train/tempting/manifest.jsonl" --out "$out/train/all"
rlspeech prepare rl-asr --data "$out/train/all/manifest.jsonl" --recogniser "$model" --recogniser pocketsphinx --rows "$rows" \
  --set "long_s=[8, 19]" --out "$out/rl"
pair test test "$test_most" "$test_real" "$test_tempting" "$test_long" 5 0 15 speechbrain clearervoice
rlspeech prepare join "$out/test/picked.jsonl:condition=clean" "$out/test/noisy/manifest.jsonl:condition=noisy" "$out/test/long/manifest.jsonl" \
  "$out/test/tempting/manifest.jsonl" --out "$out/test/all"
pair valid valid "${valid[@]}" 9 0 15 esc10
rlspeech prepare join "$out/valid/noisy/manifest.jsonl:condition=noisy" "$out/valid/long/manifest.jsonl" "$out/valid/tempting/manifest.jsonl" --out "$out/valid/all"

tune() { # NAME SET SEED OPTIONS...
  local name=$1 set=$2 seed=$3; shift 3
  rlspeech rl --preset asr-demo-rl --model "$model" --data "$out/rl/$set.jsonl" --valid "$out/valid/all" --set steps="$steps" --set valid_every=25 \
    --set save_every=25 --set valid_items=60 --seed "$seed" --out "$out/$name" "$@" "${few[@]}"
}
models=(--model "base=$model")
for seed in $seeds; do
  tune "sft-d123-$seed" d123 "$seed" --set policy_weight=0 --set supervised_weight=1
  tune "r123-d123-$seed" d123 "$seed"
  models+=(--model "sft-$seed=$out/sft-d123-$seed" --model "grpo-$seed=$out/r123-d123-$seed")
done
echo 'rewards: [{name: asr_accuracy, scale: none}]' > "$out/r1.yaml"
echo 'rewards: [{name: asr_accuracy, scale: none}, {name: asr_hallucination, scale: none}]' > "$out/r12.yaml"
echo 'rewards: [{name: asr_accuracy, scale: none}, {name: "asr_hallucination[graded=true]", scale: none}, {name: asr_keywords, scale: none}]' > "$out/graded.yaml"
declare -A how=([both]="--set supervised_weight=0.2" [graded]="--config $out/graded.yaml" [reference]="--set reference_in_group=true")
for arm in ${ARMS:-}; do
  read -ra options <<< "${how[$arm]}"
  tune "$arm-d123" d123 0 "${options[@]}"
  models+=(--model "$arm=$out/$arm-d123")
done
tune r1-d123 d123 0 --config "$out/r1.yaml"
tune r12-d123 d123 0 --config "$out/r12.yaml"
tune r123-d0 d0 0
tune sft-d0 d0 0 --set policy_weight=0 --set supervised_weight=1
tune long-d123 d123 0 --set steps="$more" --set valid_every=60 --set save_every=60
tune sft-long d123 0 --set policy_weight=0 --set supervised_weight=1 --set steps="$more" --set valid_every=60 --set save_every=60
models+=(--model "long=$out/long-d123" --model "sftlong=$out/sft-long" --model "r1=$out/r1-d123" --model "r12=$out/r12-d123" --model "d0=$out/r123-d0" --model "sft-d0=$out/sft-d0")
rlspeech eval --task asr --data "$out/test/all" "${models[@]}" --baseline base --out "$out/eval" "${eval_few[@]}"
for against in base sft sftlong; do python "$here/seeds.py" "$out/eval" --baseline "$against"; done
echo "the report is $out/eval/report.html"
