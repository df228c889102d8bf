#!/usr/bin/env bash
# A real recogniser, tuned: Whisper with rule rewards, against supervision and both, decoded here and by plain transformers.
# Further arms: graded (inserted and repeated words cost by their number), reference (one more member of each group), dpo (on stored samples,
# as many as are rolled out).
#   MODEL  folder of a Whisper in transformers' layout (default $RLSPEECH_REALMODELS/whisper-tiny.en)
#   DATA   folder with manifest.jsonl, speech/ and noise/;  OUT  where everything goes (default runs/whisper);  SEEDS  default "0 1 2";  STEPS  default 60
#   ARMS   default "sft grpo both"
#   TINY=1 a few steps of everything, for tests
# A Whisper as it comes may not write nothing at all: its generation config forbids the stop token at the start. The tuned ones may, here and
# in what is saved (suppress=allow_empty).
# Speech in noise at -5 to 10 dB, and sound in which nothing is said; test speakers and noises are in no training set.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with manifest.jsonl, speech/ and noise/}}
model=${MODEL:-${RLSPEECH_REALMODELS:?set MODEL to the folder of a Whisper model}/whisper-tiny.en}
out=${OUT:-runs/whisper} seeds=${SEEDS:-0 1 2} steps=${STEPS:-60}
here=$(cd "$(dirname "$0")" && pwd)
each=150; empty=60; test_each=50; test_empty=25; test_long=30; few=(); fewer=(); arms=${ARMS:-sft grpo both}
if [ -n "${TINY:-}" ]; then
  each=2 empty=1 test_each=1 test_empty=1 test_long=1 steps=1 seeds=0 arms=${ARMS:-grpo}
  fewer=(--set valid_items=2 --set prompts_per_step=2); few=("${fewer[@]}" --set group=2)
fi
part() { # NAME COUNT EMPTY SEED LOW HIGH NOISE...: recordings as they are, in noise, and sound without words
  local name=$1 count=$2 none=$3 seed=$4 low=$5 high=$6; shift 6
  local noise=(); for n in "$@"; do noise+=(--noise "$data/noise/$n"); done
  python "$here/whisper_real.py" rows "$data" --part "$name" --count "$count" --seed "$seed" --out "$out/$name/clean.jsonl"
  rlspeech prepare mix --clean "$out/$name/clean.jsonl" "${noise[@]}" --snr "$low" "$high" --level -35 -15 --set limits.bandwidth=0 \
    --render "$(wc -l < "$out/$name/clean.jsonl")" --render-s 0 --seed "$seed" --out "$out/$name/noisy"
  rlspeech prepare nonspeech "${noise[@]}" --condition silence --condition noise --condition music --count "$none" --max-s 8 --seed "$seed" --out "$out/$name/empty"
}
part train "$each" "$empty" 1 -5 10 esc10 long
rlspeech prepare join "$out/train/noisy/manifest.jsonl" "$out/train/empty/manifest.jsonl" --out "$out/train/all"
part test "$test_each" "$test_empty" 2 -5 10 speechbrain clearervoice
python "$here/asr_sets.py" long "$out/test/noisy" --out "$out/test/long" --count "$test_long" --seed 2
rlspeech prepare join "$out/test/clean.jsonl:condition=clean" "$out/test/noisy/manifest.jsonl:condition=noisy" "$out/test/long/manifest.jsonl" \
  "$out/test/empty/manifest.jsonl" --out "$out/test/all"

tune() { # NAME SEED OPTIONS...
  local name=$1 seed=$2; shift 2
  rlspeech rl --preset asr-demo-rl --model "$model" --data "$out/train/all" --set steps="$steps" --set prompts_per_step=8 --set group=6 \
    --set suppress=allow_empty --set valid_every=60 --set save_every=60 --set valid_items=24 --seed "$seed" --out "$out/$name" "$@" "${few[@]}"
}
prefer() { # NAME SEED: one epoch of pairs
  rlspeech rl --task asr --algo dpo --model "$model" --samples "$out/samples" --config "$out/pairs.yaml" --set suppress=allow_empty \
    --steps "$steps" --set prompts_per_step=8 --set lr=3e-5 --set valid_every=60 --set save_every=60 --set valid_items=24 \
    --seed "$2" --out "$out/$1" "${fewer[@]}"
}
r12() { echo "{name: asr_accuracy, scale: none}, {name: \"$1\", scale: none}"; } # DETECTOR: R1 and R2; R3 is nothing without keywords
echo "rewards: [$(r12 'asr_hallucination[graded=true]')]" > "$out/graded.yaml"
echo "rewards: [$(r12 asr_hallucination)]" > "$out/pairs.yaml"
if [[ " $arms " == *" dpo "* ]]; then
  rlspeech sample --task asr --model "$model" --data "$out/train/all" --draws 6 --limit $((8 * steps)) --set suppress=allow_empty \
    --set sampling.temperature=0.5 --out "$out/samples"
  rlspeech reward "$out/samples" --reward asr_accuracy --reward asr_hallucination
fi
models=(--model "base=$model"); plain=("base=$model")
for seed in $seeds; do
  for arm in $arms; do
    how=()
    case $arm in
      sft) how=(--set policy_weight=0 --set supervised_weight=1) ;;
      both) how=(--set supervised_weight=0.2) ;;
      graded) how=(--config "$out/graded.yaml") ;;
      reference) how=(--set reference_in_group=true) ;;
    esac
    if [ "$arm" = dpo ]; then prefer "$arm-$seed" "$seed"; else tune "$arm-$seed" "$seed" "${how[@]}"; fi
    models+=(--model "$arm-$seed=$out/$arm-$seed")
    plain+=("$arm-$seed=$out/$arm-$seed/checkpoints/$(cat "$out/$arm-$seed/checkpoints/latest")")
  done
done
if [[ " $arms " == *" grpo "* ]]; then # the mean of GRPO's seeds, and half as far beyond it
  grpo=(); for seed in $seeds; do grpo+=("$out/grpo-$seed/checkpoints/$(cat "$out/grpo-$seed/checkpoints/latest")"); done
  for step in 1 1.5; do
    rlspeech convert average "${grpo[@]}" --step "$step" --out "$out/mean${step/./}"
    models+=(--model "mean${step/./}=$out/mean${step/./}")
  done
fi
systems=()
for arm in "${plain[@]}"; do
  python "$here/whisper_real.py" generate "${arm#*=}" "$out/test/all" --out "$out/plain/${arm%%=*}.jsonl"
  systems+=(--system "plain-${arm%%=*}=$out/plain/${arm%%=*}.jsonl")
done
rlspeech eval --task asr --data "$out/test/all" "${models[@]}" "${systems[@]}" --baseline base --out "$out/eval"
table() { python "$here/seeds.py" "$out/eval" --data "$out/test/all/manifest.jsonl" --baseline base "$@"; }
table --condition clean
table --condition noisy
table --condition noisy --condition long
table --condition silence --condition noise --condition music
echo "the report is $out/eval/report.html"
