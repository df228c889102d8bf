#!/usr/bin/env bash
# LR-AVSE at a size for two cores, with the control that the paper lacks: real speech and noise, competing talkers, drawn mouths.
# Three arms with three seeds each: SI-SNR alone (no RL), RL-DNSMOS, LR-AVSE. They have the same data, steps and rate.
# Two more are shorter: LR-AVSE with what it costs held, and DiffRO on four measures. The published form runs once.
# The mean of LR-AVSE's seeds is taken whole, and part of the way.
#   DATA  folder with speech/ and noise/ below it;  OUT  where runs go (default runs/avse-real);  MODEL (default: embedded)
#   SEEDS (default "0 1 2");  TINY=1  a few steps of everything, for tests
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with speech/ and noise/}}
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-runs/avse-real}; model=${MODEL:-embedded}
few=(); eval_few=(); count=60; seeds=${SEEDS:-0 1 2}
[ -z "${TINY:-}" ] || { few=(--set steps=2 --set valid_items=2 --set prompts_per_step=2 --set group=2 --set valid_every=2 --set save_every=2 --set clip_s=1)
  eval_few=(--metric si_sdr --metric llm); count=2; seeds=0; }
clean=(); for c in ${CLEAN:-librispeech_train_clean_100 vctk ljspeech cmu_arctic common_voice picovoice_commands}; do clean+=(--clean "$data/speech/$c"); done
mix=(--snr 0 20 --level -30 -20 --talker 0.7 --mouths)

if [ ! -e "$out/test/manifest.jsonl" ]; then
  rlspeech prepare mix "${clean[@]}" --noise "$data/noise/esc10" --noise "$data/noise/long" "${mix[@]}" --out "$out/data"
  for part in valid test; do
    seed=$([ "$part" = valid ] && echo 11 || echo 12)
    rlspeech prepare mix --clean "$data/speech/librispeech_test_other" --noise "$data/noise/speechbrain" --noise "$data/noise/clearervoice" \
      "${mix[@]}" --render "$count" --render-s 4 --seed "$seed" --out "$out/$part"
  done
fi

tune() {  # NAME SEED SETTINGS...
  local name=$1 seed=$2; shift 2
  rlspeech rl "$@" --model "$model" --data "$out/data/mix.json" --valid "$out/valid/manifest.jsonl" --seed "$seed" --out "$out/$name-$seed" "${few[@]}"
}
models=(--model "pretrained=$model")
held=(--set hold.every=2 --set hold.most=3 --set 'hold.gains=[4,0.5,2]')  # softer than the default: three guards share the say
for limit in estoi=0.015 si_sdr=0.35 speaker_similarity=0.025; do held+=(--guard "$limit:hold"); done
for seed in $seeds; do
  tune sisnr "$seed" --preset avse-lr-gain --set policy_weight=0
  tune dnsmos "$seed" --preset avse-lr-gain --reward dnsmos_fast_ovrl=1
  tune llm "$seed" --preset avse-lr-gain
  tune held "$seed" --preset avse-lr-gain --set steps=16 --set lr_schedule=constant "${held[@]}"
  tune mix "$seed" --preset avse-diffro-mix --set steps=20
  for arm in sisnr dnsmos llm held mix; do models+=(--model "$arm-$seed=$out/$arm-$seed"); done
done
runs=(); for seed in $seeds; do runs+=("$out/llm-$seed"); done
for step in 0.45 1; do
  rlspeech convert average "${runs[@]}" --step "$step" --out "$out/mean-x$step"
  models+=(--model "mean-x$step=$out/mean-x$step")
done
tune published 0 --preset avse-lr --set steps=40
tune published-sisnr 0 --preset avse-sisnr --set steps=40
models+=(--model "published=$out/published-0" --model "published-sisnr=$out/published-sisnr-0")

rlspeech eval --task avse --data "$out/test/manifest.jsonl" "${models[@]}" --shuffled pretrained --baseline sisnr-0 --out "$out/eval" "${eval_few[@]}"
python "$here/seeds.py" "$out/eval" --baseline pretrained
