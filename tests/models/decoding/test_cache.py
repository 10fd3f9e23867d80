"""Keys and values of rows and prompts: where they are written, how room grows, and what moves."""

import pytest
import torch
from transformers import DynamicCache, Qwen3_5TextConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from models.decoding.attention import Step
from models.decoding.cache import ROOM, OwnKeys, RolloutCache
from models.decoding.prompts import Begun

HEADS, SIZE, PROMPT = 2, 4, 5


def prompts(count: int = 3, start: int = 0) -> DynamicLayer:
    """Of a cache that has read so many."""
    layer = DynamicLayer()
    layer.update(states(count, PROMPT, start), -states(count, PROMPT, start))
    return layer


def own_keys(most: int, read: DynamicLayer | None = None) -> OwnKeys:
    layer = OwnKeys(most)
    layer.add_prompts(prompts() if read is None else read, 0)
    return layer


def states(rows: int, tokens: int, start: int = 0) -> torch.Tensor:
    """(R, H, T, D), in which each number says whose it is: 100 * row + place."""
    whose = 100 * torch.arange(rows)[:, None] + torch.arange(start, start + tokens)
    return whose[:, None, :, None].expand(rows, HEADS, tokens, SIZE).float().contiguous()


def step(starts: list[int], tokens: int = 1) -> Step:
    even = tokens == 1 and len(set(starts)) == 1
    width = max(starts) + tokens
    return Step(torch.tensor(starts), tokens, starts[0] if even else None, width, 1, len(starts), None, None, None)


def written(layer: OwnKeys, rows: int, count: int) -> None:
    """Token by token."""
    for place in range(count):
        layer.step = step([place] * rows)
        layer.update(states(rows, 1, place), -states(rows, 1, place))


def test_tokens_stand_behind_each_other_and_room_grows():
    layer = own_keys(most=3 * ROOM)
    for place in range(2 * ROOM + 3):
        layer.step = step([place] * 3)
        keys, values = layer.update(states(3, 1, place), -states(3, 1, place))
        assert keys.layer is layer
        assert keys.shape == (3, HEADS, place + 1, SIZE)
        if place in (0, ROOM - 1, ROOM, 2 * ROOM):
            assert torch.equal(keys, states(3, place + 1))
            assert torch.equal(values, -states(3, place + 1))
            assert layer.keys.shape[2] == min(3 * ROOM, ROOM * 2 ** max(0, (place // ROOM).bit_length()))


def test_no_more_room_is_made_than_rows_may_have():
    layer = own_keys(most=7)
    written(layer, 2, 1)
    assert layer.keys.shape[2] == 7
    layer.step = step([5, 3], tokens=4)  # of drafts, more at last
    layer.update(states(2, 4), states(2, 4))
    assert layer.keys.shape[2] == 9


def test_rows_of_other_lengths_write_behind_their_own():
    layer = own_keys(most=20)
    written(layer, 3, 6)
    layer.step = step([6, 2, 4], tokens=3)
    new = states(3, 3, 50)
    keys, values = layer.update(new, -new)
    assert keys.shape[2] == 9
    for row, start in enumerate((6, 2, 4)):
        assert torch.equal(keys[row, :, :start], states(3, start)[row])
        assert torch.equal(keys[row, :, start : start + 3], new[row])
        assert torch.equal(values[row, :, start : start + 3], -new[row])


def test_a_row_takes_the_place_of_another():
    layer = own_keys(most=10)
    layer.move_row(2, 0, 3)  # before anything is written there is nothing to move
    written(layer, 3, 4)
    layer.move_row(2, 0, 4)
    layer.step = step([4, 4])
    keys, values = layer.update(states(2, 1, 4), -states(2, 1, 4))
    assert torch.equal(keys[0, :, :4], states(3, 4)[2])
    assert torch.equal(values[0, :, :4], -states(3, 4)[2])
    assert torch.equal(keys[1], states(2, 5)[1])


def test_prompts_move_with_the_last_in_the_place_of_one_that_leaves():
    layer = own_keys(most=10)
    layer.move_prompt(2, 0)
    keys, values = layer.of_prompts(2)
    assert torch.equal(keys, states(3, PROMPT)[[2, 1]])
    assert torch.equal(values, -states(3, PROMPT)[[2, 1]])


def test_keys_have_the_type_of_values():
    """Under autocast, rotary embeddings leave keys in float32."""
    layer = prompts(2)
    layer.values = layer.values.bfloat16()
    own = own_keys(4, layer)
    written(own, 2, 2)
    assert {one.dtype for one in (own.keys, own.values, *own.of_prompts(2))} == {torch.bfloat16}


def test_lengths_are_those_with_the_prompt():
    layer = own_keys(most=10)
    assert layer.get_seq_length() == PROMPT
    layer.step = step([3, 3])
    assert layer.get_seq_length() == PROMPT + 3
    assert layer.get_mask_sizes(1) == (PROMPT + 4, 0)


def linear(values: list[float]) -> LinearAttentionLayer:
    """A layer with a state for each of these numbers."""
    layer, states = LinearAttentionLayer(), torch.tensor(values)[:, None, None]
    layer.update_conv_state(states.expand(-1, 3, 4).contiguous())
    layer.update_recurrent_state(states.unsqueeze(3).expand(-1, 1, 2, 2).contiguous())
    return layer


def hybrid(*values: float) -> RolloutCache:
    """Of a layer with linear attention, with rows of these states, and one with attention, with two prompts."""
    config = Qwen3_5TextConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    cache = RolloutCache(DynamicCache(config=config).layers, most=10)
    cache.enter(begun([0, 1], prompts(2), list(values)), 0)
    return cache


def begun(numbers: list[int], read: DynamicLayer | None, values: list[float]) -> Begun:
    return Begun([*range(len(values))], numbers, [read] if numbers else [], [linear(values)], torch.empty(0))


def convolved(cache: RolloutCache) -> list[float]:
    return cache.layers[0].conv_states[0][:, 0, 0].tolist()


def recurrent(cache: RolloutCache) -> list[float]:
    return cache.layers[0].recurrent_states[0][:, 0, 0, 0].tolist()


def test_rows_begin_with_states_behind_those_of_others():
    cache = hybrid(10, 0, 0)
    assert cache.has_states
    cache.enter(begun([], None, [7, 8]), 2)
    assert recurrent(cache) == convolved(cache) == [10, 0, 0, 7, 8]
    cache.keep_rows([], 0, [])  # all leave
    cache.enter(begun([], None, [9]), 2)
    assert recurrent(cache) == convolved(cache) == [9]
    assert not RolloutCache([prompts(2)], most=10).has_states


def test_prompts_stand_behind_those_that_are_held():
    layer = own_keys(most=4)
    layer.add_prompts(prompts(2, start=50), 1)
    keys, values = layer.of_prompts(3)
    assert torch.equal(keys, torch.cat([states(1, PROMPT), states(2, PROMPT, 50)]))
    assert torch.equal(values, -keys)


@pytest.mark.parametrize(("moves", "rows", "expected"), [([(3, 1)], 3, [10, 10, 0]), ([], 2, [10, 0])])
def test_states_move_with_their_rows(moves, rows, expected):
    cache = hybrid(10, 0, 0, 10)
    cache.begin(step([0] * 4))
    keys = states(4, 1)
    cache.layers[1].update(keys, -keys)
    cache.keep_rows(moves, rows, [1] * len(moves))
    assert recurrent(cache) == convolved(cache) == expected
    order = list(range(rows))
    for source, target in moves:
        order[target] = source
    assert torch.equal(cache.layers[1].keys[:rows, :, :1], keys[order])


def test_all_layers_learn_of_a_step_and_of_prompts_that_move():
    cache = RolloutCache([prompts(3), prompts(3)], most=4)
    cache.enter(Begun([0, 1, 2], [0, 1, 2], [prompts(3), prompts(3)], [], torch.empty(0)), 0)
    now = step([0, 0, 0])
    cache.begin(now)
    cache.keep_prompts([(2, 1)])
    for layer in cache.layers:
        assert layer.step is now
        assert torch.equal(layer.of_prompts(2)[0], states(3, PROMPT)[[0, 2]])
