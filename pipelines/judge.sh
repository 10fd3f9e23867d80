#!/usr/bin/env bash
# A tiny judge from images to GRPO on people's verdicts, and what it looks at, on a CPU.
#
#   ./pipelines/judge.sh [SEED] [OUTPUT_DIR]
#
# Each command below can be run by itself.
set -euo pipefail

seed=${1:-0}
out=${2:-outputs}
launch="accelerate launch --config_file accelerate_configs/cpu.yaml"
grpo=recipes/judge_grpo_tiny.yaml
sft_steps=$(sed -n 's/^max_steps: //p' recipes/reward_model_sft_tiny.yaml)
shapes_first=8960 # 280 steps of 32

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu
source "$(dirname "$0")/begin.sh"
begin "$seed" "$out"
started=$SECONDS
say() { printf '\n\033[1m== %s\033[0m (%d s)\n' "$1" $((SECONDS - started)); }

say "1/9 Write questions about real images, and preferences about their colours and shapes, in both orders for a judge"
python -m data.preferences --source easy_vqa --output_dir "$out/preferences" --seed "$seed" \
    --answers $((32 * sft_steps - shapes_first)) --shapes_first $shapes_first
python -m data.preferences --source easy_vqa --output_dir "$out/pairs" --seed "$seed" --kinds colour shape \
    --attributes_first 6400 --pairs 1 --held_out_pairs 500
python -m rewards.judging rows --dataset_name "$out/pairs" --output_dir "$out/judge"
python -m rewards.judging rows --dataset_name "$out/pairs" --output_dir "$out/judge_hasty" \
    --hasty_share 0.75 --seed "$seed"
for test in test_blank_image test_other_image; do
    python -m rewards.judging rows --dataset_name "$out/pairs/$test.jsonl" --output_dir "$out/judge_tests"
done

say "2/9 Build a tiny model"
cat "$out/preferences/answers/test.jsonl" "$out/judge/test.jsonl" >"$out/corpus.jsonl"
python -m models.tiny --output_dir "$out/tiny" --corpus "$out/corpus.jsonl" \
    --hidden_size 128 --layers 3 --vocab_size 640 --seed "$seed"

say "3/9 Warm start (SFT): it learns to see, by answering questions"
$launch trainers/sft.py --config recipes/reward_model_sft_tiny.yaml --seed "$seed" \
    --model_name_or_path "$out/tiny" --dataset_name "$out/preferences/answers" --output_dir "$out/answer_sft"

judge_sft() { # MODEL ROWS OUTPUT_DIR [--KEY VALUE ..]
    $launch trainers/sft.py --config recipes/judge_sft_tiny.yaml --seed "$seed" --model_name_or_path "$1" \
        --dataset_name "$2" --output_dir "$3" "${@:4}"
}

say "4/9 Warm start (SFT): it learns to write its own answer about a pair, and then which response agrees with it"
judge_sft "$out/answer_sft" "$out/judge" "$out/judge_sft_answers" \
    --per_device_train_batch_size 32 --max_steps 250 --learning_rate 1e-3 --lr_scheduler_type cosine \
    --train_sampling_strategy sequential
judge_sft "$out/judge_sft_answers" "$out/judge" "$out/judge_sft"

say "5/9 A judge from hasty annotators: it can compare, and takes the first response"
judge_sft "$out/judge_sft" "$out/judge_hasty" "$out/judge_hasty_sft" \
    --per_device_train_batch_size 32 --max_steps 50 --learning_rate 3e-4

evaluate() { # MODEL ROWS SPLIT OUTPUT_DIR
    python -m rewards.eval --dataset_name "$2" --split "$3" --model "$1" --config $grpo --batch_size 100 \
        --output_dir "$4" >"$4.log"
}

say "6/9 Evaluate the judge before GRPO"
evaluate "$out/judge_hasty_sft" "$out/judge" test "$out/before"

say "7/9 GRPO on the verdicts of people"
$launch trainers/grpo.py --config $grpo --seed "$seed" --model_name_or_path "$out/judge_hasty_sft" \
    --dataset_name "$out/judge" --output_dir "$out/judge_grpo"

say "8/9 Evaluate again, and compare"
evaluate "$out/judge_grpo" "$out/judge" test "$out/after"
python -m rewards.judging figures --completions "$out/after/completions.jsonl" \
    --before "$out/before/completions.jsonl" --output_dir "$out/after"

say "9/9 With the image grey, and with another image: verdicts at chance show that the judge looks at it"
for test in test_blank_image test_other_image; do
    evaluate "$out/judge_grpo" "$out/judge_tests/$test.jsonl" test "$out/$test"
    echo "$test"
    python -m rewards.judging figures --completions "$out/$test/completions.jsonl" --output_dir "$out/$test"
done
say "Done. Report: $out/judge_grpo/report.html"
