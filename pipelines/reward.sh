#!/usr/bin/env bash
# A tiny reward model from images to GRPO on it, on a CPU.
#
#   ./pipelines/reward.sh [SEED] [OUTPUT_DIR]
#   FAMILY=qwen3_vl ./pipelines/reward.sh [SEED] [OUTPUT_DIR]
#
# FAMILY is a type of which there is a tiny model (models/tiny.py). Each command below can be run by itself.
set -euo pipefail

seed=${1:-0}
out=${2:-outputs}
family=${FAMILY:-qwen2_vl}
launch="accelerate launch --config_file accelerate_configs/cpu.yaml"
grpo=recipes/grpo_reward_model_tiny.yaml
sft_steps=$(sed -n 's/^max_steps: //p' recipes/reward_model_sft_tiny.yaml)
rm_steps=$(sed -n 's/^max_steps: //p' recipes/reward_model_tiny.yaml)
shapes_first=8960 # 280 steps of 32
attributes_first=6400 # 200 steps of 32

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu
if [ "$family" != qwen2_vl ]; then # its name may be misspelt, or a package be missing: before anything is written
    python -m models.tiny --family "$family" --output_dir "$(mktemp -d)/tiny" >/dev/null
fi
source "$(dirname "$0")/begin.sh"
begin "$seed" "$out" "$family"
started=$SECONDS
say() { printf '\n\033[1m== %s\033[0m (%d s)\n' "$1" $((SECONDS - started)); }

say "1/9 Write preferences about real images: the right answer against a plausible wrong one, both as sentences"
python -m data.preferences --source easy_vqa --output_dir "$out/preferences" --seed "$seed" \
    --pairs $((32 * rm_steps - attributes_first)) --attributes_first $attributes_first \
    --answers $((32 * sft_steps - shapes_first)) --shapes_first $shapes_first --hasty 3200

say "2/9 Build a tiny model ($family)"
python -m models.tiny --family "$family" --output_dir "$out/tiny" --corpus "$out/preferences/answers/test.jsonl" \
    --hidden_size 128 --layers 3 --vocab_size 640 --seed "$seed"

say "3/9 Warm start (SFT): it learns to answer in sentences"
$launch trainers/sft.py --config recipes/reward_model_sft_tiny.yaml --seed "$seed" \
    --model_name_or_path "$out/tiny" --dataset_name "$out/preferences/answers" --output_dir "$out/reward_sft"

say "4/9 Reward model"
$launch trainers/reward.py --config recipes/reward_model_tiny.yaml --seed "$seed" \
    --model_name_or_path "$out/reward_sft" --dataset_name "$out/preferences" --output_dir "$out/reward_model"
trained=$SECONDS

tests="test test_blank_image test_other_image test_blank_question test_other_question"
say "5/9 Evaluate on held-out images; with the image grey, another image, no question; and on true answers beside it"
for test in $tests; do
    diagnose=0
    if [ "$test" = test ]; then diagnose=1000; fi
    python -m rewards.reward_bench --model "$out/reward_model" --dataset_name "$out/preferences/$test.jsonl" --name $test \
        --batch_size 64 --diagnose $diagnose --output_dir "$out/bench/$test" >"$out/bench_$test.log"
done

say "6/9 A policy from hasty demonstrations: it can see, and often answers another question"
$launch trainers/sft.py --config recipes/reward_model_sft_tiny.yaml --seed "$seed" \
    --model_name_or_path "$out/reward_sft" --dataset_name "$out/preferences/hasty" --output_dir "$out/policy" \
    --max_steps 100 --learning_rate 3e-4

say "7/9 Evaluate the policy's answers before GRPO"
python -m rewards.eval --dataset_name "$out/preferences/answers" --split test --model "$out/policy" --config $grpo \
    --rewards vqa_accuracy sentence_format --batch_size 100 --output_dir "$out/before"

say "8/9 GRPO on the reward model"
$launch trainers/grpo.py --config $grpo --seed "$seed" --model_name_or_path "$out/policy" \
    --dataset_name "$out/preferences/hasty" --output_dir "$out/grpo_reward_model" \
    --reward_funcs "{\"name\": \"reward_model\", \"model\": \"$out/reward_model\", \"batch_size\": 128}" \
    sentence_format vqa_accuracy

say "9/9 Evaluate again, and compare"
python -m rewards.eval --dataset_name "$out/preferences/answers" --split test --model "$out/grpo_reward_model" \
    --config $grpo --rewards vqa_accuracy sentence_format --batch_size 100 --output_dir "$out/after"
printf '\n'
python -m rewards.eval --compare "$out/before/scores.jsonl" "$out/after/scores.jsonl" --output_dir "$out/after"
python -m trainers.report --output_dir "$out/grpo_reward_model" --held_out "$out/after/comparison.json"
python -m trainers.report --output_dir "$out/reward_model" --held_out "$out/bench/test/summary.json"
printf '\nReward model: pair accuracy, after %d s of training, warm start included\n' $((trained - started))
for test in $tests; do
    python -c "import json, sys; print(f'  {sys.argv[2]:<22}{100 * json.load(open(sys.argv[1]))[\"overall\"]:.1f}%')" \
        "$out/bench/$test/summary.json" $test
done
printf '\n'
sed -n '/^Does it look at the image/,/^written to/{/^written to/!p}' "$out/bench_test.log"
say "Done. Reports: $out/reward_model/report.html, $out/grpo_reward_model/report.html"
