#!/usr/bin/env bash
# What predicted factors are worth to agent selection: reports that say that something is wrong and not what, the same
# reports with the factors that a predictor finds on their images, and a tiny VLM trained on either.
#
#   ./pipelines/factors.sh [SEED] [FACTORS_DIR]
#   ./pipelines/factor_agents.sh [SEED] [OUTPUT_DIR] [FACTORS_DIR]
#
# Each command below can be run by itself. A stage whose result is there already is passed over.
set -euo pipefail

seed=${1:-0}
out=${2:-outputs/factor_agents}
factors=${3:-outputs/factors}
agents="blur_filter exposure_filter resolution_filter aspect_ratio_filter"
launch="accelerate launch --config_file accelerate_configs/cpu.yaml"
sft=recipes/agent_selection_sft_tiny.yaml
grpo=recipes/agent_selection_tiny.yaml
sft_steps=${SFT_STEPS:-300}
grpo_steps=${GRPO_STEPS:-40}

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu
source "$(dirname "$0")/begin.sh"
begin "$seed" "$out"
started=$SECONDS
say() { printf '\n\033[1m== %s\033[0m (%d s)\n' "$1" $((SECONDS - started)); }

say "1/6 Vague reports on damaged pools"
[ -f "$out/without/test.jsonl" ] || python -m data.quality_reports --source easy_vqa --output_dir "$out/without" \
    --seed "$seed" --reports 1600 --pool_size 8 --damages 1 2 --vague --agent_list $agents \
    --train_split .8 --val_split .05 --test_split .15

say "2/6 The same with predicted factors"
[ -f "$out/with/test.jsonl" ] || python -m rollouts.factor_reports --dataset_name "$out/without" \
    --factors "$factors/damages_model" --output_dir "$out/with"

say "3/6 Build a tiny Qwen2-VL"
[ -f "$out/tiny/model.safetensors" ] || python -m models.tiny --output_dir "$out/tiny" \
    --corpus "$out/with/train.jsonl" --hidden_size 96 --seed "$seed"

say "4/6 Warm start (SFT) on demonstrations of hasty annotators, and GRPO, on either"
for kind in without with; do
    [ -f "$out/demonstrations_$kind/train.jsonl" ] || python -m data.annotators --dataset_name "$out/$kind" \
        --output_dir "$out/demonstrations_$kind" --hasty_share 0.5 --seed "$seed"
    [ -f "$out/sft_$kind/model.safetensors" ] || $launch trainers/sft.py --config $sft --seed "$seed" \
        --agents $agents --max_steps "$sft_steps" --model_name_or_path "$out/tiny" \
        --dataset_name "$out/demonstrations_$kind" --output_dir "$out/sft_$kind"
    [ -f "$out/grpo_$kind/model.safetensors" ] || $launch trainers/grpo.py --config $grpo --seed "$seed" \
        --agents $agents --max_steps "$grpo_steps" --lr_scheduler_kwargs '{"num_decay_steps": 15}' \
        --model_name_or_path "$out/sft_$kind" --dataset_name "$out/$kind" --output_dir "$out/grpo_$kind"
done

say "5/6 The head of a vision tower learns the same factors"
[ -f "$out/qwen_head/model.safetensors" ] || $launch trainers/factors.py --config recipes/factors_qwen_tiny.yaml \
    --seed "$seed" --dataset_name "$factors/damages" --model_name_or_path "$out/tiny" --output_dir "$out/qwen_head"

say "6/6 Compare on the same held-out reports"
python -m rollouts.compare_factors --dataset_name "$out/without" --split test --config $grpo --agents $agents \
    --routing "$factors/routing.yaml" --predictors resnet="$factors/damages_model" qwen_head="$out/qwen_head" \
    --vlm "$out/grpo_without" --vlm_with_factors "$out/grpo_with" --output_dir "$out/comparison"
say "Done. Table: $out/comparison/comparison.json"
