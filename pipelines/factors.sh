#!/usr/bin/env bash
# Factor predictors from annotated images to measured models, on a CPU: which damages an image has, and what is on it.
#
#   ./pipelines/factors.sh [SEED] [OUTPUT_DIR]
#
# Each command below can be run by itself.
set -euo pipefail

seed=${1:-0}
out=${2:-outputs/factors}
launch="accelerate launch --config_file accelerate_configs/cpu.yaml"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
source "$(dirname "$0")/begin.sh"
begin "$seed" "$out"
started=$SECONDS
say() { printf '\n\033[1m== %s\033[0m (%d s)\n' "$1" $((SECONDS - started)); }

say "1/5 Damage real images in known ways, and read off what the questions about them state"
python -m data.easy_factors --kind damages --images 4000 --output_dir "$out/damages_annotated" --seed "$seed"
python -m data.easy_factors --kind attributes --images 3000 --output_dir "$out/attributes_annotated" --seed "$seed"

say "2/5 Make factors of what the annotators wrote"
python -m data.factors --dataset_name "$out/damages_annotated" --output_dir "$out/damages" --allow_empty
python -m data.factors --dataset_name "$out/attributes_annotated" --output_dir "$out/attributes"

say "3/5 Learn the damages"
$launch trainers/factors.py --config recipes/factors_tiny.yaml --seed "$seed" \
    --dataset_name "$out/damages" --output_dir "$out/damages_model"

say "4/5 Learn the attributes"
$launch trainers/factors.py --config recipes/factors_tiny.yaml --seed "$seed" \
    --dataset_name "$out/attributes" --output_dir "$out/attributes_model"

say "5/5 Suggest a filtering agent for each damage"
python -m rollouts.factor_routing suggest --model "$out/damages_model" --output "$out/routing.yaml"
python - "$out" <<'PYTHON'
import json, sys
print(f"\n{'held out':<12}{'F1 micro':>10}{'F1 macro':>10}{'mAP':>8}   majority: F1 micro")
for name in ("damages", "attributes"):
    found = json.load(open(f"{sys.argv[1]}/{name}_model/factor_results.json"))
    final = found["final"]
    print(f"{name:<12}{final['f1_micro']:>10.3f}{final['f1_macro']:>10.3f}{final['map']:>8.3f}"
          f"{found['majority']['f1_micro']:>21.3f}")
PYTHON
say "Done. Reports: $out/damages_model/report.html, $out/attributes_model/report.html"
