#!/usr/bin/env bash
# Every algorithm from one enhancer, on real speech and noise: the same three rewards, start, prompts and adapters, three seeds each.
#   DATA   folder with speech/, noise/ and rir/ below it (see train-embedded-flowse.sh);  OUT  where runs go (default runs/algorithms)
#   MODEL  checkpoint to tune (default: the embedded one);  SEEDS  default "0 1 2";  ARMS  default: all
#   TINY=1 a few steps of the arms that no other script has, for tests
# GRPO and AWR roll out 2,560 times, DPO and the best of eight learn from as many stored samples; DiffRO and the control take 320 clips.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with speech/, noise/ and rir/}}
out=${OUT:-runs/algorithms} model=${MODEL:-embedded} seeds=${SEEDS:-0 1 2} arms=${ARMS:-control grpo awr diffro anchored sum dpo best}
here=$(cd "$(dirname "$0")" && pwd)
few=(); group=(); count=60 draws=8 prompts=320; eval_few=()
if [ -n "${TINY:-}" ]; then
  few=(--set steps=1 --set prompts_per_step=2 --set valid_items=2); group=(--set group=2); count=4 draws=2 prompts=4 seeds=0 arms=${ARMS:-sum dpo}
  eval_few=(--metric estoi --metric si_sdr)
fi
clean=(); for c in ${CLEAN:-librispeech_train_clean_100 vctk ljspeech cmu_arctic common_voice picovoice_commands}; do clean+=(--clean "$data/speech/$c"); done
rlspeech prepare mix "${clean[@]}" --noise "$data/noise/esc10" --noise "$data/noise/long" --rir "$data/rir" \
  --snr -5 15 --level -35 -15 --reverb 0.15 --out "$out/data"
for part in heldout valid; do
  seed=$([ "$part" = heldout ] && echo 1 || echo 2)
  rlspeech prepare mix --clean "$data/speech/librispeech_test_other" --noise "$data/noise/speechbrain" --noise "$data/noise/clearervoice" \
    --snr -5 15 --level -35 -15 --render "$count" --render-s 4 --seed "$seed" --out "$out/$part"
done

cat > "$out/three.yaml" <<'YAML'
rewards: [dnsmos_fast_ovrl=0.6, speaker_similarity=1.0, speech_bert_score=1.0]
guards: [si_sdr, estoi]
lora: {targets: attention+ff}
steps: 20
prompts_per_step: 16
group: 8
micro_batch: 4
lr: 5e-3
valid_every: 20
valid_items: 4
save_every: 20
YAML
echo "explore: {kind: gain, noise: 0.3, bands: 4, basis: [level, contrast], window: 1, start: last, antithetic: true}" > "$out/gains.yaml"
gradient=(--set diffro.smooth=1 --set diffro.last_steps=1)
tune() { # NAME SEED OPTIONS...
  local name=$1 seed=$2; shift 2
  rlspeech rl --task flowse --config "$out/three.yaml" --model "$model" --valid "$out/valid/manifest.jsonl" --seed "$seed" --out "$out/$name-$seed" \
    "$@" "${few[@]}"
}
models=(--model "base=$model")
for seed in $seeds; do
  online=(--data "$out/data/mix.json" --config "$out/gains.yaml" "${group[@]}") stored=(--algo dpo --samples "$out/samples-$seed")
  if [[ " $arms " == *" dpo "* || " $arms " == *" best "* ]]; then
    rlspeech sample --task flowse --model "$model" --data "$out/data/mix.json" --draws "$draws" --limit "$prompts" --set explore.noise=0.3 --set clip_s=2 --seed "$seed" --out "$out/samples-$seed"
    rlspeech reward "$out/samples-$seed" --reward dnsmos_fast_ovrl --reward speaker_similarity --reward speech_bert_score
  fi
  for arm in $arms; do
    case $arm in
      control) how=(--algo grpo "${online[@]}" --set policy_weight=0 --set supervised_weight=1 --set lr=1e-3) ;;
      diffro) how=(--algo diffro "${online[@]}" "${gradient[@]}" --set group=1 --set lr=1e-2) ;;
      anchored) how=(--algo diffro "${online[@]}" "${gradient[@]}" --set group=1 --set lr=1e-2 --reward dnsmos_fast_ovrl=0.6 --reward speaker_similarity=1 \
        --reward speech_bert_score=1 --reward si_sdr=1 --reward estoi=1) ;;
      sum) how=(--algo grpo+diffro "${online[@]}" "${gradient[@]}" --set diffro.on=all) ;;
      dpo) how=("${stored[@]}" --set dpo.beta=500 --set dpo.margin=0.5) ;;
      best) how=("${stored[@]}" --set dpo.loss=sft) ;;
      *) how=(--algo "$arm" "${online[@]}") ;;
    esac
    tune "$arm" "$seed" "${how[@]}"
    models+=(--model "$arm-$seed=$out/$arm-$seed")
  done
done
for arm in $arms; do # the mean of an arm's seeds
  case $arm in grpo | dpo) ;; *) continue ;; esac
  runs=(); for seed in $seeds; do runs+=("$out/$arm-$seed"); done
  rlspeech convert average "${runs[@]}" --out "$out/$arm-mean"
  models+=(--model "$arm-mean=$out/$arm-mean")
done
rlspeech eval --data "$out/heldout/manifest.jsonl" "${models[@]}" --baseline base --out "$out/eval" "${eval_few[@]}"
python "$here/seeds.py" "$out/eval"
