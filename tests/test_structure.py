"""Order: imports without a circle that never run back, names from where they are made, folders that one
can take in at a glance, and a test for every module. Reads the source alone; `CONTRIBUTING.md` says why."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from places import ROOT

USES = {
    "data": (),
    "models": ("data",),
    "filter_agents": ("data", "models"),
    "rewards": ("data", "models", "filter_agents"),
    "rollouts": ("data", "models", "filter_agents", "rewards"),
    "trainers": ("data", "models", "filter_agents", "rewards"),
    "vlm_posttrain": ("data", "trainers"),
}
"""Each package, and those that its modules may import."""
MOST_FILES = 15
"""In one folder of code; recipes and documents are lists to look something up in."""

TESTED_IN = {
    "data/candidates/examples.py": "trainers/groups/test_selector_policy.py",
    "data/cli/arguments.py": "cases/commands/test_arguments.py",
    "data/cli/commands.py": "cases/commands/test_interruptions.py",
    "data/cli/help.py": "cases/commands/test_command_line.py",
    "data/cli/interrupts.py": "cases/commands/test_interruptions.py",
    "data/cli/library_noise.py": "cases/commands/test_library_noise.py",
    "data/cli/locks.py": "cases/commands/test_locks.py",
    "data/cli/processes.py": "cases/commands/test_worker_processes.py",
    "data/cli/ranges.py": "cases/commands/test_arguments.py",
    "data/cli/secret_names.py": "cases/commands/test_secrets.py",
    "data/cli/secrets.py": "cases/commands/test_secrets.py",
    "data/cli/suggestions.py": "cases/commands/test_arguments.py",
    "data/easy_preferences.py": "data/test_preferences.py",
    "data/factor_labels/text_encoder.py": "data/factor_labels/test_clusters.py",
    "data/io/counts.py": "data/test_factors.py",
    "data/io/field_types.py": "cases/inputs/test_rows.py",
    "data/cli/folder_names.py": "cases/models/test_model_places.py",
    "data/io/image_folders.py": "cases/inputs/test_image_folders.py",
    "data/io/image_modes.py": "cases/inputs/test_images.py",
    "data/io/json_text.py": "cases/inputs/test_rows.py",
    "data/io/output_folder.py": "cases/commands/test_data_commands.py",
    "data/io/unreadable.py": "cases/inputs/test_unreadable_images.py",
    "data/rows/answers.py": "cases/rewards/test_reward_columns.py",
    "data/rows/chat.py": "cases/inputs/test_rows_with_prompts.py",
    "data/rows/given_images.py": "cases/inputs/test_given_images.py",
    "data/rows/messages.py": "data/test_preferences.py",
    "data/rows/row_images.py": "cases/inputs/test_rows_with_images.py",
    "data/rows/same_text.py": "data/candidates/test_legacy_formats.py",
    "data/rows/words.py": "cases/rewards/test_agents.py",
    "models/reward/image_places.py": "models/reward/test_response_images.py",
    "models/shared_prefix/conversations.py": "models/reward/test_response_images.py",
    "filter_agents/base.py": "filter_agents/test_executor.py",
    "filter_agents/duplicates.py": "cases/rewards/test_agents.py",
    "filter_agents/measurement_filters.py": "filter_agents/test_registry.py",
    "models/families/adapters.py": "trainers/setup/test_adapters.py",
    "models/factors/model.py": "models/factors/test_predictor.py",
    "models/families/idefics.py": "models/families/test_base.py",
    "models/families/image_counts.py": "models/families/test_loading.py",
    "models/families/internvl.py": "models/families/test_base.py",
    "models/families/qwen3_5.py": "models/shared_prefix/test_families.py",
    "models/families/qwen3_vl.py": "models/shared_prefix/test_families.py",
    "models/families/qwen_vl.py": "models/families/test_loading.py",
    "models/hub_revisions.py": "cases/models/test_hub_revisions.py",
    "models/model_paths.py": "cases/models/test_model_places.py",
    "models/reward/config.py": "models/reward/test_model.py",
    "models/reward/encoding.py": "models/reward/test_model.py",
    "models/reward/inputs.py": "models/reward/test_model.py",
    "models/reward/load.py": "models/reward/test_model.py",
    "models/reward/names.py": "models/reward/test_model.py",
    "models/run_folders.py": "cases/resuming/test_resuming.py",
    "models/selectors/config.py": "models/selectors/test_pointer.py",
    "models/selectors/encoder_inputs.py": "models/selectors/test_encoding.py",
    "models/selectors/encoders.py": "cases/models/test_hub_revisions.py",
    "models/selectors/gpt2.py": "models/selectors/test_pointer.py",
    "models/selectors/pool_batches.py": "models/selectors/test_pointer.py",
    "models/served/address.py": "models/served/test_server.py",
    "models/served/answer_files.py": "models/served/test_server.py",
    "models/served/arguments.py": "models/served/test_vlm.py",
    "models/served/attempts.py": "models/served/test_server.py",
    "models/served/client.py": "models/served/test_server.py",
    "models/served/completions.py": "models/served/test_server.py",
    "models/served/errors.py": "models/served/test_server.py",
    "models/served/messages.py": "models/served/test_server.py",
    "models/served/model_list.py": "models/served/test_server.py",
    "models/served/requests.py": "models/served/test_server.py",
    "models/shared_prefix/attention.py": "models/shared_prefix/test_layout.py",
    "models/shared_prefix/fork.py": "models/shared_prefix/test_families.py",
    "models/shared_prefix/output_gradients.py": "models/shared_prefix/test_sharing.py",
    "models/tiny_families/gemma3.py": "models/test_tiny.py",
    "models/tiny_families/gemma4.py": "models/test_tiny.py",
    "models/tiny_families/llava_onevision.py": "models/test_tiny.py",
    "models/tiny_families/idefics.py": "models/test_tiny.py",
    "models/tiny_families/internvl.py": "models/test_tiny.py",
    "models/tiny_families/qwen3_5.py": "models/test_tiny.py",
    "models/tiny_families/qwen3_vl.py": "models/test_tiny.py",
    "models/tiny_families/size.py": "models/test_tiny.py",
    "models/tiny_reader.py": "models/test_tiny_reader_training.py",
    "models/vlm.py": "models/served/test_vlm.py",
    "models/vlm_places.py": "models/served/test_vlm.py",
    "rewards/base.py": "rewards/test_registry.py",
    "rewards/diagnosis/length_bias.py": "rewards/diagnosis/test_questions.py",
    "rewards/diagnosis/picture.py": "rewards/diagnosis/test_table.py",
    "rewards/diagnosis/verdicts.py": "rewards/diagnosis/test_questions.py",
    "rewards/filtering_quality.py": "rewards/test_agent_selection.py",
    "rewards/benches/base.py": "rewards/benches/test_vl_rewardbench.py",
    "rewards/benches/counts.py": "rewards/benches/test_vl_rewardbench.py",
    "rewards/benches/reading.py": "rewards/test_reward_bench.py",
    "rewards/benches/registry.py": "rewards/test_reward_bench.py",
    "rewards/benches/summary.py": "rewards/test_reward_bench.py",
    "rewards/judging/groups.py": "rewards/test_judge.py",
    "rewards/judging/models.py": "rewards/test_judge.py",
    "rewards/judging/settings.py": "rewards/test_judge.py",
    "rewards/preferences/metric.py": "rewards/benches/test_vl_rewardbench.py",
    "rewards/preferences/scored.py": "rewards/benches/test_vl_rewardbench.py",
    "rewards/scoring/asked.py": "rewards/test_reward_model.py",
    "rewards/scoring/columns.py": "cases/rewards/test_reward_columns.py",
    "rewards/scoring/comparison.py": "rewards/test_eval.py",
    "rewards/scoring/model_scores.py": "rewards/test_score.py",
    "rewards/scoring/own_copies.py": "rewards/scoring/test_failure_policy.py",
    "rollouts/example_selection/proposal_settings.py": "rollouts/example_selection/test_candidate_sets.py",
    "rollouts/example_selection/selection_methods.py": "rollouts/test_in_context.py",
    "rollouts/example_selection/evaluation.py": "rollouts/test_in_context.py",
    "rollouts/example_selection/evaluation_report.py": "rollouts/test_in_context.py",
    "rollouts/example_selection/scored_candidates.py": "rollouts/test_candidates.py",
    "rollouts/factor_reports.py": "rollouts/test_factor_commands.py",
    "rollouts/frozen_vlm/arguments.py": "rollouts/test_beams.py",
    "rollouts/frozen_vlm/image_keys.py": "rollouts/frozen_vlm/test_engine.py",
    "rollouts/frozen_vlm/kv_cache.py": "rollouts/frozen_vlm/test_engine.py",
    "rollouts/frozen_vlm/prompt_pieces.py": "rollouts/frozen_vlm/test_engine.py",
    "rollouts/frozen_vlm/requests.py": "rollouts/frozen_vlm/test_engine.py",
    "rollouts/retrieval/embedding_cache.py": "rollouts/test_embeddings.py",
    "trainers/diagnosis/backends/new_samples.py": "trainers/test_doctor.py",
    "trainers/diagnosis/backends/choice.py": "trainers/test_doctor.py",
    "trainers/report/sampled_tokens.py": "trainers/diagnosis/backends/test_stored.py",
    "trainers/diagnosis/backends/transformers.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/causes.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/completions.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/differences.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/explanations.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/forward_passes.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/log_probs.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/memory.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/prompts.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/rewards.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/rollout.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/diagnosis/sampling_options.py": "trainers/diagnosis/methods/test_grpo.py",
    "trainers/groups/arguments.py": "trainers/setup/test_recipes.py",
    "trainers/groups/from_python.py": "cases/trainers/test_from_python.py",
    "trainers/groups/run.py": "trainers/test_rce.py",
    "trainers/groups/selectors.py": "trainers/groups/test_selector_policy.py",
    "trainers/groups/vlm_policy.py": "trainers/groups/test_policies.py",
    "trainers/labels/data.py": "trainers/test_factors.py",
    "trainers/labels/model.py": "trainers/test_factors.py",
    "trainers/mixins/adaptive_kl.py": "cases/trainers/test_grpo.py",
    "trainers/mixins/advantages.py": "trainers/test_grpo.py",
    "trainers/mixins/checkpoints.py": "cases/resuming/test_resuming_from_python.py",
    "trainers/run/early_stopping.py": "trainers/test_rce.py",
    "trainers/mixins/enough_rows.py": "cases/trainers/test_validation.py",
    "trainers/mixins/non_finite.py": "cases/trainers/test_non_finite.py",
    "trainers/mixins/reward_failures.py": "trainers/test_grpo.py",
    "trainers/mixins/image_bounds.py": "cases/trainers/test_from_python.py",
    "trainers/mixins/rollouts/temperature.py": "trainers/test_schedules.py",
    "trainers/mixins/shared_prompts.py": "trainers/mixins/test_shared_grpo.py",
    "trainers/mixins/vision_tower.py": "trainers/setup/test_adapters.py",
    "trainers/preferences/data.py": "trainers/test_reward.py",
    "trainers/preferences/figures.py": "trainers/test_reward.py",
    "trainers/preferences/model.py": "trainers/test_reward.py",
    "trainers/report/curves.py": "trainers/report/test_page.py",
    "trainers/report/fixed_samples.py": "trainers/report/test_page_samples.py",
    "trainers/report/group_samples.py": "trainers/report/test_page_samples.py",
    "trainers/report/held_out.py": "cases/reports/test_reports.py",
    "trainers/report/logged_figures.py": "cases/reports/test_reports.py",
    "trainers/report/preference_samples.py": "trainers/report/test_page_samples.py",
    "trainers/report/publishing.py": "trainers/report/test_hub.py",
    "trainers/report/record.py": "cases/reports/test_reports.py",
    "trainers/report/samples.py": "trainers/report/test_page_samples.py",
    "trainers/run/console.py": "trainers/report/test_page.py",
    "trainers/run/machine.py": "cases/reports/test_report_machine.py",
    "trainers/run/origin.py": "cases/resuming/test_resuming.py",
    "trainers/run/output_folder.py": "trainers/test_reward.py",
    "trainers/run/resuming.py": "cases/resuming/test_resuming.py",
    "trainers/run/script.py": "cases/commands/test_interruptions.py",
    "trainers/setup/adapter_targets.py": "cases/trainers/test_adapter_targets.py",
    "trainers/setup/checks.py": "cases/trainers/test_validation.py",
    "trainers/setup/evaluation_rows.py": "cases/trainers/test_evaluation_rows.py",
    "trainers/setup/help.py": "cases/commands/test_command_line.py",
    "trainers/setup/keyword_settings.py": "cases/trainers/test_setting_values.py",
    "trainers/setup/model.py": "cases/models/test_hub_revisions.py",
    "trainers/setup/default_config.py": "cases/trainers/test_construction.py",
    "trainers/setup/recipe_keys.py": "cases/commands/test_command_line.py",
    "trainers/setup/setting_rules.py": "cases/trainers/test_setting_types.py",
    "vlm_posttrain/accelerate_process.py": "vlm_posttrain/test_launch.py",
    "vlm_posttrain/import_path.py": "vlm_posttrain/test_commands.py",
    "trainers/vllm_engine/checks.py": "cases/trainers/test_vllm.py",
    "trainers/vllm_engine/versions.py": "cases/trainers/test_vllm.py",
}
"""Modules without a test file of their name, and the test, below `tests/`, that covers each."""


def _modules(root: Path = ROOT) -> dict[str, Path]:
    """Name -> file of every module of the packages."""
    paths = [path for package in USES for path in sorted((root / package).rglob("*.py"))]
    dotted = {path: path.relative_to(root).with_suffix("").parts for path in paths}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in dotted.items()}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _statements(body: list[ast.AST]) -> Iterator[ast.AST]:
    """All of them, also those inside others."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, inner, []))


def _imports(path: Path, modules: dict[str, Path]) -> Iterator[tuple[str, str | None]]:
    """(module, name in it) of all that a file imports of the packages, at its top, in functions and for types alone.

    Of a whole module there is no name.
    """
    for node in _statements(_tree(path).body):
        if isinstance(node, ast.Import):
            yield from ((one.name, None) for one in node.names if one.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: modules of these packages are imported by their full names"
            for one in node.names:
                whole = f"{node.module}.{one.name}"
                if whole in modules:
                    yield whole, None
                elif node.module in modules:
                    yield node.module, one.name


@cache
def _made_in(path: Path) -> set[str]:
    """Names that a module makes at its top, in place of importing them."""
    body = _tree(path).body
    made = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    rest = [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = (node for one in rest for node in ast.walk(one) if isinstance(node, ast.Name))
    return made | {node.id for node in names if isinstance(node.ctx, ast.Store)}


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, in its order, or none."""
    finished: set[str] = set()

    def follow(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in finished:
            return []
        found = next((circle for next_ in sorted(graph[module]) if (circle := follow(next_, [*way, module]))), [])
        finished.add(module)
        return found

    return next((circle for module in graph if (circle := follow(module, []))), [])


def _problems(root: Path) -> list[str]:
    """What is wrong with the imports of the packages below a folder, in words."""
    modules = _modules(root)
    imports = {module: list(_imports(path, modules)) for module, path in modules.items()}
    graph = {module: {other for other, _ in found if other != module} for module, found in imports.items()}
    circle = _circle(graph)
    problems = [f"a circle of imports: {' -> '.join(circle)}"] if circle else []
    for module, found in imports.items():
        package = module.split(".")[0]
        for other, name in found:
            if other.split(".")[0] not in (package, *USES[package]):
                problems.append(f"{module} imports {other}: {package} may use {', '.join(USES[package]) or 'none'}")
            if name is not None and name not in _made_in(modules[other]):
                problems.append(f"{module} imports {name} from {other}, which only imported it")
    return problems


def test_imports_have_an_order():
    assert _problems(ROOT) == []


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"data/a.py": "from data.b import B", "data/b.py": "class B:\n    def f(self):\n        import data.a"},
            "a circle of imports: data.a -> data.b -> data.a",
        ),
        (
            {"data/a.py": "def f():\n    from models.b import C", "models/b.py": "C = 1"},
            "data.a imports models.b: data may use none",
        ),
        (
            {"data/a.py": "from data.b import C", "data/b.py": "from data.c import C", "data/c.py": "C = 1"},
            "data.a imports C from data.b, which only imported it",
        ),
    ],
)
def test_disorder_is_seen(files, problem, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert _problems(tmp_path) == [problem]


def test_no_folder_is_a_long_list():
    places = [ROOT / name for name in (*USES, "tests", "benchmarks", "pipelines")]
    folders = [
        place for top in places for place in (top, *top.rglob("*")) if place.is_dir() and place.name != "__pycache__"
    ]
    sizes = {folder: sum(one.is_file() and one.name != "py.typed" for one in folder.iterdir()) for folder in folders}
    assert len(sizes) > 50
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_FILES} == {}


def test_packages_say_that_their_types_are_checked():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = settings["options.package_data"]
    for package in USES:
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in re.split(r",\s*", listed[package])


def test_nothing_beside_a_script_hides_a_library():
    """`python trainers/grpo.py` looks for every import in trainers/ first."""
    libraries = {*sys.stdlib_module_names, *packages_distributions(), "vllm"}
    beside = {path.name.removesuffix(".py") for path in (ROOT / "trainers").iterdir()}
    assert sorted(beside & libraries) == []


def test_every_module_has_a_test():
    paths = [path.relative_to(ROOT) for path in _modules().values() if not path.name.startswith("__")]
    own = {path.as_posix(): ROOT / "tests" / path.parent / f"test_{path.name}" for path in paths}
    without = {path for path, test in own.items() if not test.is_file()}
    assert sorted(without - TESTED_IN.keys()) == []  # write a test file of its name, or say above which test covers it
    assert sorted(TESTED_IN.keys() - without) == []
    assert sorted(test for test in set(TESTED_IN.values()) if not (ROOT / "tests" / test).is_file()) == []
