#!/usr/bin/env bash
# Agent selection from raw images to a trained, evaluated and reported model, on a CPU, in about five minutes.
#
#   ./pipelines/quickstart.sh [SEED] [OUTPUT_DIR]
#   FAMILY=qwen3_vl ./pipelines/quickstart.sh [SEED] [OUTPUT_DIR]
#
# FAMILY is one of the files in pipelines/families/, which hold what differs between them: a name, and the options by
# which trainings depart from the recipes. Each command below can be run by itself.
set -euo pipefail

seed=${1:-0}
out=${2:-outputs}
family=${FAMILY:-qwen2_vl}
families=$(dirname "$0")/families
if [[ $family == */* || ! -f $families/$family.conf ]]; then
    echo "error: FAMILY: expected one of $(basename -s .conf -a "$families"/*.conf | paste -sd ' '), found '$family'" >&2
    exit 1
fi
sft_options=() grpo_options=() # below, + keeps the bash of macOS from taking an empty one for unset
source "$families/$family.conf"
agents="blur_filter exposure_filter resolution_filter exact_duplicate_filter text_length_filter answer_consistency_filter"
launch="accelerate launch --config_file accelerate_configs/cpu.yaml"
sft=recipes/agent_selection_sft_tiny.yaml
grpo=recipes/agent_selection_tiny.yaml

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu
source "$(dirname "$0")/begin.sh"
begin "$seed" "$out" "$family"
started=$SECONDS
say() { printf '\n\033[1m== %s\033[0m (%d s)\n' "$1" $((SECONDS - started)); }

say "1/8 Write 2,000 data-quality reports on pools of real images that were damaged in known ways"
python -m data.quality_reports --source easy_vqa --output_dir "$out/data" --seed "$seed" \
    --reports 2000 --pool_size 8 --damages 2 3 --train_split .84 --val_split .08 --test_split .08 --agent_list $agents

say "2/8 Collect demonstrations from annotators, three quarters of whom name one problem and stop"
python -m data.annotators --dataset_name "$out/data" --output_dir "$out/demonstrations" --hasty_share 0.75 --seed "$seed"

say "3/8 Build a tiny $name"
python -m models.tiny --family "$family" --output_dir "$out/tiny" --corpus "$out/data/train.jsonl" --hidden_size 96 \
    --seed "$seed"

say "4/8 Check that the right answers earn full rewards"
python -m rewards.validate --config $grpo --dataset_name "$out/data" --splits test

say "5/8 Warm start (SFT)"
$launch trainers/sft.py --config $sft --seed "$seed" \
    --model_name_or_path "$out/tiny" --dataset_name "$out/demonstrations" --output_dir "$out/sft" \
    ${sft_options[@]+"${sft_options[@]}"}

say "6/8 Evaluate on held-out reports"
python -m rewards.eval --dataset_name "$out/data" --split test --model "$out/sft" --config $grpo --batch_size 80 \
    --output_dir "$out/before"

say "7/8 GRPO"
$launch trainers/grpo.py --config $grpo --seed "$seed" \
    --model_name_or_path "$out/sft" --dataset_name "$out/data" --output_dir "$out/grpo" \
    ${grpo_options[@]+"${grpo_options[@]}"}

say "8/8 Evaluate again, and compare"
python -m rewards.eval --dataset_name "$out/data" --split test --model "$out/grpo" --config $grpo --batch_size 80 \
    --output_dir "$out/after"
printf '\n'
python -m rewards.eval --compare "$out/before/scores.jsonl" "$out/after/scores.jsonl" --output_dir "$out/after"
python -m trainers.report --output_dir "$out/grpo" --held_out "$out/after/comparison.json"
say "Done. Report: $out/grpo/report.html"
