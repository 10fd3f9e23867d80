"""How the tiny VLM that reads answers from shown examples is trained; `models.tiny_reader` is the command.

Vision first: the tower learns colour and shape of images, through heads that are then dropped. Then reading: the
language model learns to answer in conversations of several turns, each about an image of its own. The nouns of a
conversation are drawn anew, so that only earlier turns can tell an answer, and no vocabulary can be learned by heart.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl

from data.dialects import DIALECTS, KEYS, NOUNS, Scene, training_and_test_scenes
from data.io.image_sources import EASY_VQA_COLORS as COLORS
from data.io.image_sources import EASY_VQA_SHAPES as SHAPES
from data.io.images import open_image
from data.prompts import in_context_messages
from models.tiny import DEFAULT_CORPUS, PATCH_SIZE, build_model, build_processor, build_tokenizer

MERGE_SIZE = 4
TOKENS_PER_SIDE = 2
TOKENS_PER_IMAGE = TOKENS_PER_SIDE**2
LAYERS = 3
MATCHING_LAYER = 2
"""The layer whose first head learns to look at the noun that is asked for; what is matched is ready before it."""
EMBEDDING_SCALE, FEATURE_SCALE = 0.2, 0.5
"""Standard deviations of embeddings and image features. Beside smaller ones the layers' output drowns the nouns."""
TURNS = 5
NO_KEY = -100
KEY_NUMBERS = {key: number for number, key in enumerate(KEYS)}


def build(seed: int) -> Any:
    """(model, processor) with random weights; every noun is one token."""
    nouns, system = " ".join(NOUNS), in_context_messages("")[0]["content"]
    questions = sorted({scene.question for scene in training_and_test_scenes()[0]})
    corpus = [*DEFAULT_CORPUS, f" {nouns}", nouns.replace(" ", "\n"), system, *questions]
    tokenizer = build_tokenizer(corpus, vocab_size=2048)
    initial = 0.05
    model = build_model(
        tokenizer,
        layers=LAYERS,
        initializer_range=initial,
        seed=seed,
        merge_size=MERGE_SIZE,
        vision_depth=3,
        vision_width=48,
        vision_initializer_range=0.15,
    )
    with torch.no_grad():
        model.get_input_embeddings().weight *= EMBEDDING_SCALE / initial
        model.model.language_model.norm.weight *= 0.1 / EMBEDDING_SCALE  # logits of the same embeddings stay small
    return model, build_processor(tokenizer, merge_size=MERGE_SIZE)


def fit(
    name: str,
    parameters: list[nn.Parameter],
    batches: Iterable,
    loss_of: Callable[..., tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float = 2e-3,
) -> None:
    """AdamW with warm-up and a falling learning rate.

    Args:
        loss_of: (loss, whether each answer is right) of a batch.
    """
    optimizer = torch.optim.AdamW(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, max(2, steps), pct_start=0.1)
    progress = tqdm(batches, desc=name, total=steps)
    for batch in progress:
        loss, right = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", right=f"{right.float().mean().item():.2f}", refresh=False)


# Vision


@dataclass(frozen=True)
class Images:
    """Images as the processor gives them to the vision tower, with what they show."""

    rows: dict[str, int]  # path -> row
    pixels: Tensor  # (N, patches, values of a patch)
    colors: Tensor  # (N,)
    shapes: Tensor  # (N,)


def read_images(scenes: list[Scene], processor: Any) -> Images:
    """Every image of the scenes once."""
    by_path = {scene.image: scene for scene in scenes}
    pixels = []
    for path in tqdm(by_path, desc="images"):
        pixels.append(processor.image_processor(open_image(path), return_tensors="pt")["pixel_values"])
    return Images(
        {path: row for row, path in enumerate(by_path)},
        torch.stack(pixels),
        torch.tensor([COLORS.index(scene.color) for scene in by_path.values()]),
        torch.tensor([SHAPES.index(scene.shape) for scene in by_path.values()]),
    )


def image_tokens(tower: Any, pixels: Tensor) -> Tensor:
    """What the tower makes of images of one size; all at once, where its own attention takes them one by one.

    Args:
        pixels: (B, patches, values of a patch).

    Returns:
        (B, tokens, hidden size).
    """
    count, patches, _ = pixels.shape
    side = MERGE_SIZE * TOKENS_PER_SIDE
    grid = torch.tensor([[1, side, side]]).expand(count, 3)
    states = tower.patch_embed(pixels.flatten(0, 1))
    rotation = tower.rotary_pos_emb(states, qwen2_vl.get_vision_position_ids(grid, MERGE_SIZE, kwargs={}))
    for block in tower.blocks:
        attention = block.attn
        projected = attention.qkv(block.norm1(states)).unflatten(-1, (3, attention.num_heads, -1))
        queries, keys, values = projected.unbind(1)
        queries, keys = qwen2_vl.apply_rotary_pos_emb_vision(queries, keys, *rotation)
        heads = [part.unflatten(0, (count, patches)).transpose(1, 2) for part in (queries, keys, values)]
        attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=attention.scaling)
        states = states + attention.proj(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        states = states + block.mlp(block.norm2(states))
    return tower.merger(states).unflatten(0, (count, -1))


def mirror(pixels: Tensor) -> Tensor:
    """Images with left and right exchanged: of the merged cells, of the patches in them, of the pixels in those."""
    sides = (TOKENS_PER_SIDE, TOKENS_PER_SIDE, MERGE_SIZE, MERGE_SIZE, 3, 2, PATCH_SIZE, PATCH_SIZE)
    return pixels.view(len(pixels), *sides).flip(2, 4, 8).reshape(pixels.shape)


def train_vision(tower: Any, images: Images, epochs: int, batch_size: int = 64) -> None:
    """Colour and shape of each image, read from the mean of its tokens."""
    size = tower.config.hidden_size
    color_head, shape_head = nn.Linear(size, len(COLORS)), nn.Linear(size, len(SHAPES))

    def loss_of(rows: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.pixels[rows]
        pooled = image_tokens(tower, mirror(pixels) if torch.rand(()) < 0.5 else pixels).mean(1)
        color, shape = color_head(pooled), shape_head(pooled)
        right = (color.argmax(-1) == images.colors[rows]) & (shape.argmax(-1) == images.shapes[rows])
        return F.cross_entropy(color, images.colors[rows]) + F.cross_entropy(shape, images.shapes[rows]), right

    steps_per_epoch = len(images.pixels) // batch_size
    orders = (torch.randperm(len(images.pixels)).split(batch_size)[:steps_per_epoch] for _ in range(epochs))
    parameters = [*tower.parameters(), *color_head.parameters(), *shape_head.parameters()]
    fit("vision", parameters, (rows for order in orders for rows in order), loss_of, epochs * steps_per_epoch)


@torch.no_grad()
def image_features(tower: Any, images: Images, batch_size: int = 256) -> Tensor:
    """(N, tokens, hidden size)"""
    return torch.cat([image_tokens(tower, pixels) for pixels in images.pixels.split(batch_size)])


@torch.no_grad()
def scale_features(tower: Any, features: Tensor) -> Tensor:
    """Features of standard deviation `FEATURE_SCALE`, and the tower changed so that it gives these."""
    factor = FEATURE_SCALE / features.std()
    tower.merger.mlp[-1].weight *= factor
    tower.merger.mlp[-1].bias *= factor
    return features * factor


# Conversations


class TurnTokens:
    """The tokens of a conversation's parts: put together, they are those that the processor makes of the whole."""

    def __init__(self, processor):
        self._processor, self.tokenizer = processor, processor.tokenizer
        self._questions: dict[str, list[int]] = {}
        self._system = self._render(in_context_messages("")[:1])
        self.header = self._tokenize(self._system)
        self.end = self._tokenize("<|im_end|>\n")
        self.image_token = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.nouns = [self._noun_tokens(before) for before in ("", " ")]  # of an answer's first and second noun

    def _render(self, messages: list[dict], **settings: Any) -> str:
        return self._processor.apply_chat_template(messages, tokenize=False, **settings)

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _noun_tokens(self, before: str) -> list[int]:
        tokens = [self._tokenize(before + noun) for noun in NOUNS]
        if any(len(noun) > 1 for noun in tokens):
            raise ValueError("the vocabulary has nouns of several tokens")
        return [noun[0] for noun in tokens]

    def question(self, text: str) -> list[int]:
        """A user's turn and the beginning of the assistant's."""
        if text not in self._questions:
            turn = self._render(in_context_messages(text), add_generation_prompt=True).removeprefix(self._system)
            turn = turn.replace("<|image_pad|>", "<|image_pad|>" * TOKENS_PER_IMAGE)
            self._questions[text] = self._tokenize(turn)
        return self._questions[text]


@dataclass(frozen=True)
class Batch:
    """Conversations, padded on the right; attention is causal, so no mask is needed."""

    tokens: Tensor  # (B, T)
    positions: Tensor  # (3, B, T) time, height and width, as Qwen2-VL counts them
    image_rows: Tensor  # (images,) rows of the features, in the order of the image tokens
    noun_keys: Tensor  # (B, T) the key that a noun stands for, NO_KEY at other tokens
    places: Tensor  # (P, 2) (conversation, place) of the tokens that an answer's tokens follow
    labels: Tensor  # (P,) the tokens that follow
    asked_keys: Tensor  # (P,) the key of the noun that follows, NO_KEY where the answer ends

    def telling_nouns(self) -> Tensor:
        """(P, T) bool: the nouns in earlier turns that are the one that follows."""
        rows, places = self.places.unbind(1)
        same = self.noun_keys[rows] == self.asked_keys.unsqueeze(1)
        earlier = torch.arange(self.tokens.shape[1]) < places.unsqueeze(1)
        return same & earlier & (self.asked_keys != NO_KEY).unsqueeze(1)


def count_positions(is_image: Tensor) -> Tensor:
    """Positions by time, height and width: an image's tokens share one time and move on by its side.

    Args:
        is_image: (B, T) bool.

    Returns:
        (3, B, T).
    """
    within = (is_image.cumsum(1) - 1) % TOKENS_PER_IMAGE * is_image
    ends_image = is_image & (within == TOKENS_PER_IMAGE - 1)
    steps = torch.where(is_image, ends_image * TOKENS_PER_SIDE, 1)
    time = steps.cumsum(1) - steps
    return torch.stack([time, time + within // TOKENS_PER_SIDE, time + within % TOKENS_PER_SIDE])


def make_batch(conversations: list[list[Scene]], nouns: np.ndarray, parts: TurnTokens, image_rows: dict) -> Batch:
    """
    Args:
        nouns: (B, keys) number of the noun that stands for each of `KEYS` in each conversation.
        image_rows: path -> row of the features.
    """
    sequences, answers, told, rows = [], [], [], []
    for number, scenes in enumerate(conversations):
        sequence = list(parts.header)
        for scene in scenes:
            sequence += parts.question(scene.question)
            rows.append(image_rows[scene.image])
            for tokens, key in zip(parts.nouns, map(KEY_NUMBERS.get, scene.keys), strict=False):
                noun = tokens[nouns[number, key]]
                answers.append((number, len(sequence) - 1, noun, key))
                told.append((number, len(sequence), key))
                sequence.append(noun)
            answers.append((number, len(sequence) - 1, parts.end[0], NO_KEY))
            sequence += parts.end
        sequences.append(torch.tensor(sequence))
    tokens = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=parts.end[0])
    noun_keys = torch.full_like(tokens, NO_KEY)
    told_rows, told_places, told_keys = torch.tensor(told).unbind(1)
    noun_keys[told_rows, told_places] = told_keys
    places, labels, asked_keys = torch.tensor(answers).split((2, 1, 1), dim=1)
    positions = count_positions(tokens == parts.image_token)
    return Batch(tokens, positions, torch.tensor(rows), noun_keys, places, labels.squeeze(1), asked_keys.squeeze(1))


class Conversations:
    """Draws batches of conversations about the scenes, each with nouns of its own."""

    def __init__(self, scenes: list[Scene], parts: TurnTokens, image_rows: dict[str, int], seed: int):
        self._parts, self._image_rows, self._rng = parts, image_rows, np.random.default_rng(seed)
        self._scenes = defaultdict(list)
        for scene in scenes:
            self._scenes[scene.dialect, scene.color, scene.shape].append(scene)

    def _some(self, values: tuple, most: int) -> list:
        count = self._rng.integers(1, most + 1)
        return [values[number] for number in self._rng.choice(len(values), count, replace=False)]

    def _draw(self) -> list[Scene]:
        """Scenes of few dialects, colours and shapes, so that later turns often need what earlier ones tell."""
        choices = self._some(DIALECTS, 3), self._some(COLORS, 4), self._some(SHAPES, 3)
        scenes = []
        for _ in range(TURNS):
            alike = self._scenes[tuple(values[self._rng.integers(len(values))] for values in choices)]
            scenes.append(alike[self._rng.integers(len(alike))])
        return scenes

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        for _ in range(count):
            conversations = [self._draw() for _ in range(size)]
            nouns = self._rng.permuted(np.tile(np.arange(len(NOUNS)), (size, 1)), axis=1)[:, : len(KEYS)]
            yield make_batch(conversations, nouns, self._parts, self._image_rows)


# Reading


class Reader(nn.Module):
    """The language model, and what only its training needs.

    Left to itself the model finds neither what to match nor that nouns can be copied. So two heads make the states
    before `MATCHING_LAYER` hold which key is asked for, and which key a noun stands for; and that layer's first head
    is led to the nouns that tell the answer. Copying them is then learned in about a hundred steps.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        size = model.config.text_config.hidden_size
        self.asked_head, self.told_head = nn.Linear(size, len(KEYS)), nn.Linear(size, len(KEYS))

    def forward(self, batch: Batch, features: Tensor) -> Any:
        """The language model's output, with hidden states and attention weights."""
        embeddings = self.model.get_input_embeddings()(batch.tokens)
        is_image = batch.tokens == self.model.config.image_token_id
        embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), features[batch.image_rows])
        return self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
            output_attentions=True,
        )

    def logits(self, output: Any, batch: Batch) -> Tensor:
        """(P, vocabulary)"""
        rows, places = batch.places.unbind(1)
        return self.model.lm_head(output.last_hidden_state[rows, places])

    def auxiliary_loss(self, output: Any, batch: Batch) -> Tensor:
        rows, places = batch.places.unbind(1)
        states = output.hidden_states[MATCHING_LAYER][rows, places]
        states = F.rms_norm(states, states.shape[-1:])  # else the states grow instead of turning
        asked = F.cross_entropy(self.asked_head(states), batch.asked_keys, ignore_index=NO_KEY)
        told = F.cross_entropy(self.told_head(states), batch.noun_keys[rows, places], ignore_index=NO_KEY)
        telling = batch.telling_nouns()
        attention = output.attentions[MATCHING_LAYER][rows, 0, places]  # (P, T)
        found = (attention * telling).sum(1)[telling.any(1)]
        return asked + told - found.clamp(min=1e-6).log().mean()


def train_reading(
    reader: Reader,
    features: Tensor,
    conversations: Conversations,
    steps: int,
    batch_size: int = 32,
    auxiliary_weight: float = 0.2,
) -> None:
    """The vision tower stays as it is."""

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        output = reader(batch, features)
        logits = reader.logits(output, batch)
        told = batch.telling_nouns().any(1)
        learned = told | (batch.asked_keys == NO_KEY)
        loss = F.cross_entropy(logits[learned], batch.labels[learned])
        right = (logits.argmax(-1) == batch.labels)[told]
        return loss + auxiliary_weight * reader.auxiliary_loss(output, batch), right

    tower = {id(parameter) for parameter in reader.model.model.visual.parameters()}
    parameters = [parameter for parameter in reader.parameters() if id(parameter) not in tower]
    fit("reading", parameters, conversations.batches(steps, batch_size), loss_of, steps)


@torch.no_grad()
def reading_accuracy(reader: Reader, features: Tensor, conversations: Conversations) -> float:
    """Share of right ones among the nouns that earlier turns tell."""
    right = []
    for batch in conversations.batches(count=4, size=64):
        found = reader.logits(reader(batch, features), batch).argmax(-1) == batch.labels
        right.append(found[batch.telling_nouns().any(1)])
    return torch.cat(right).float().mean().item()


def train(seed: int, vision_epochs: int, reading_steps: int) -> tuple[Any, Any, float]:
    """(model, processor, the share of nouns that it reads) after both parts of training."""
    training, held_out = training_and_test_scenes()
    model, processor = build(seed)

    # Vision
    tower = model.model.visual
    images = read_images(training, processor)
    train_vision(tower, images, vision_epochs)
    features = scale_features(tower, image_features(tower, images))

    # Reading
    parts, reader = TurnTokens(processor), Reader(model)
    model.set_attn_implementation("eager")  # the only one that gives attention weights
    train_reading(reader, features, Conversations(training, parts, images.rows, seed), reading_steps)
    images = read_images(held_out, processor)
    accuracy = reading_accuracy(
        reader, image_features(tower, images), Conversations(held_out, parts, images.rows, seed)
    )
    return model, processor, accuracy
