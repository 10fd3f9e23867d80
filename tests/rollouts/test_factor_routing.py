"""Factors lead to agents by a table that can be wrong, and agents judge only what leads to them."""

import numpy as np
import pytest
from PIL import Image

from data.easy_factors import PHRASES
from data.factor_labels.clusters import abstract_factors
from data.factor_labels.text_encoder import BUNDLED_MINILM, load_text_encoder
from data.io.records import RecordError
from data.reports.pool import Item, Pool
from filter_agents.registry import build_agents
from rollouts.factor_routing import (
    load_routes,
    routed_agents,
    run_routes,
    suggest_routes,
    unrouted_factors,
    write_routes,
)

FACTORS = ["dark", "small", "red"]
ROUTES = {"dark": "exposure_filter", "small": "resolution_filter", "red": None}


@pytest.fixture(scope="module")
def encode():
    return load_text_encoder(BUNDLED_MINILM, device="cpu")


@pytest.fixture
def pool(tmp_path) -> str:
    """Items 0 and 1 are dark, item 2 is small and dark, item 3 is as it should be."""
    rng = np.random.default_rng(0)
    pictures = [(32, 20), (32, 20), (10, 20), (32, 255)]
    items = []
    for number, (side, brightest) in enumerate(pictures):
        Image.fromarray(rng.integers(0, brightest, (side, side, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        items.append(Item(id=number, image=f"{number}.png"))
    Pool(tmp_path, items).save_items()
    return str(tmp_path)


def test_the_damages_of_the_demonstration_lead_to_their_agents(encode):
    factors = abstract_factors([text for texts in PHRASES.values() for text in texts], encode, BUNDLED_MINILM, 0.625)
    found = suggest_routes(factors.names, build_agents(), encode)
    expected = {
        "blur": "blur_filter",
        "underexposure": "exposure_filter",
        "overexposure": "exposure_filter",
        "pixelation": "resolution_filter",
        "shrinking": "resolution_filter",
        "padding": "aspect_ratio_filter",
    }
    for damage, agent in expected.items():
        assert found[factors.id_of_text[PHRASES[damage][0]]].agent == agent


def test_what_no_agent_mends_has_no_suggestion(encode):
    found = suggest_routes({"red": "colored red", "circle": "a circle"}, build_agents(), encode)
    assert {factor: suggestion.agent for factor, suggestion in found.items()} == {"red": None, "circle": None}
    assert all(0 < suggestion.similarity < 0.27 for suggestion in found.values())


def test_the_table_is_read_as_it_was_written(encode, tmp_path):
    names = {"blurry_image": "blurry image", "yes": "colored red", "überbelichtet": "overexposed"}
    found = suggest_routes(names, build_agents(), encode)
    write_routes(tmp_path / "routes.yaml", found)
    assert "# similarity 0." in (tmp_path / "routes.yaml").read_text(encoding="utf-8")
    read = load_routes(tmp_path / "routes.yaml", list(names), build_agents())
    assert read == {"blurry_image": "blur_filter", "yes": None, "überbelichtet": "exposure_filter"}


def test_a_factor_that_is_not_in_the_table_has_no_agent(tmp_path):
    (tmp_path / "routes.yaml").write_text("dark: exposure_filter\n")
    assert load_routes(tmp_path / "routes.yaml", FACTORS, build_agents()) == ROUTES | {"small": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dark: zoom", "factor 'dark': unknown agent 'zoom'; expected blur_filter, .*or null"),
        ("dim: blur_filter", "unknown factor 'dim'; the model predicts dark, small, red"),
        ("[dark]", "expected a mapping of factors to agents, found list"),
        ("dark: [", "not valid YAML"),
        ("dark: [blur_filter]", "unknown agent"),
    ],
)
def test_broken_tables_are_named(tmp_path, content, message):
    (tmp_path / "routes.yaml").write_text(content)
    with pytest.raises(RecordError, match=f"routes.yaml: .*{message}"):
        load_routes(tmp_path / "routes.yaml", FACTORS, build_agents())
    with pytest.raises(RecordError, match=r"none\.yaml: cannot be read: No such file"):
        load_routes(tmp_path / "none.yaml", FACTORS, build_agents())


def test_agents_of_factors_come_once_and_in_order():
    routes = {"a": "x", "b": "y", "c": "x", "d": None}
    assert routed_agents(["c", "b", "a", "d"], routes) == ["x", "y"]
    assert routed_agents([], routes) == []


def test_an_agent_judges_only_what_leads_to_it(pool):
    """Item 1 is dark too, but nothing says so; item 3 is said to be dark, and is not."""
    predicted = {0: ["dark"], 1: [], 2: ["dark", "small", "red"], 3: ["dark"]}
    removed_by = run_routes(pool, predicted, ROUTES, build_agents())
    assert removed_by == {0: ["exposure_filter"], 2: ["exposure_filter", "resolution_filter"]}


def test_factors_that_lead_nowhere_are_counted():
    found = unrouted_factors({0: ["red", "dark"], 1: [], 2: ["red"], "x": []}, ROUTES | {"small": None})
    assert found == {"small": 0, "red": 2}
