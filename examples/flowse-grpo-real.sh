#!/usr/bin/env bash
# Several rewards at once against one alone, on real speech and noise: the claim of FlowSE-GRPO at a size for two cores.
#   DATA   folder with speech/, noise/ and rir/ below it (see train-embedded-flowse.sh);  OUT  where runs go (default runs/real)
#   MODEL  checkpoint to tune (default: the embedded one);  TINY=1  a few steps of everything, for tests
# Three (OVRL, speaker, SpeechBERTScore) against OVRL; four (ESTOI, SI-SDR, speaker, PESQ) against PESQ. Arms that are compared differ
# only in the rewards: they have the same start, prompts, noise, learning rate and number of rollouts.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with speech/, noise/ and rir/}}
out=${OUT:-runs/real} model=${MODEL:-embedded}
few=(); count=60; eval_few=()
[ -z "${TINY:-}" ] || { few=(--set steps=1 --set prompts_per_step=2 --set group=2 --set valid_items=2); count=4; eval_few=(--metric estoi --metric si_sdr); }
clean=(); for c in ${CLEAN:-librispeech_train_clean_100 vctk ljspeech cmu_arctic common_voice picovoice_commands}; do clean+=(--clean "$data/speech/$c"); done

rlspeech prepare mix "${clean[@]}" --noise "$data/noise/esc10" --noise "$data/noise/long" --rir "$data/rir" \
  --snr -5 15 --level -35 -15 --reverb 0.15 --out "$out/data"
rlspeech prepare mix --clean "$data/speech/librispeech_test_other" --noise "$data/noise/speechbrain" --noise "$data/noise/clearervoice" \
  --snr -5 15 --level -35 -15 --render "$count" --render-s 4 --seed 1 --out "$out/heldout"

[ -n "${TINY:-}" ] || rlspeech rl --probe --preset flowse-grpo-tiny --model "$model" --data "$out/data/mix.json" --out "$out/probe"
tune() { name=$1; shift; rlspeech rl "$@" --model "$model" --data "$out/data/mix.json" --out "$out/$name" "${few[@]}"; }
tune three --preset flowse-grpo-tiny
tune dnsmos --preset flowse-grpo-tiny --reward dnsmos_fast_ovrl=1
tune four --preset flowse-grpo-four
tune pesq --preset flowse-grpo-four --reward pesq_wb=1
rlspeech eval --data "$out/heldout/manifest.jsonl" --model "pretrained=$model" --model "three=$out/three" --model "dnsmos=$out/dnsmos" \
  --model "four=$out/four" --model "pesq=$out/pesq" --baseline pretrained --out "$out/eval" "${eval_few[@]}"
