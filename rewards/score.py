"""Scores of responses by a reward model, or by any reward, for every row of a file.

    python -m rewards.score --model outputs/reward_model --dataset_name in.jsonl --output scored.jsonl
    python -m rewards.score --reward my_rewards.agreement --dataset_name in.jsonl --output scored.jsonl
    accelerate launch -m rewards.score --model outputs/reward_model --dataset_name in.jsonl --output scored.jsonl

Rows hold `query` (a question) or `prompt` (a question or chat messages), `image` or `images` (paths, or bytes in a
parquet file; may be missing), and `response`: a text, a response with images (data/rows/responses.py), or a list of
responses. Rows come out in input order with `score`, or `scores` for a list; images that are not paths are left out,
also those of messages, and in a response a text stands for them. With `id` and `human_ranking`
beside, what comes out can be evaluated by `rewards.reward_bench --scores`.

A reward model uses every process that `accelerate launch` starts, and goes on where it was killed. A reward sees the
responses of a row as the completions of one prompt, and its other fields as columns.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, field_validator, model_validator
from pydantic_core import PydanticCustomError

from data.cli.arguments import OptionError, option, rows_file_option, split_option
from data.cli.commands import check_alone, command
from data.cli.locks import parse_and_hold
from data.io.images import resolve_images
from data.io.records import RecordError, base_folder, parse_row, read_some_rows, write_jsonl
from data.io.shards import end_processes
from data.io.unreadable import readable_rows
from data.rows.messages import parse_prompt, place_images, promised_image
from data.rows.responses import Response, image_label, images_by_field, parse_response, resolve_responses
from data.rows.row_images import RecordWithImages, is_image_name
from models.model_paths import model_option
from rewards.eval import choose_specs, read_recipe
from rewards.scoring.model_scores import ScoreRequest, ScoringArguments
from rewards.scoring.row_scores import scores_by_reward


def _holds_several(response: Any) -> bool:
    """Whether it is a list of responses, and neither a text nor the parts or turns of one."""
    return isinstance(response, list | tuple) and not (response and all(isinstance(one, dict) for one in response))


def _parse_scored(response: Any) -> Response:
    """A response; other than people, models may have said nothing."""
    if not isinstance(response, str):
        return parse_response(response)
    token = promised_image(response)
    if token is not None:
        raise PydanticCustomError("response", "the text contains {token}, which promises an image", {"token": token})
    return response


_SCORED = TypeAdapter(list[Annotated[Any, BeforeValidator(_parse_scored)]])


class ResponseRow(RecordWithImages):
    """What is read of a row; further fields are kept beside."""

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)

    query: Any = None
    prompt: Any = None
    response: Any

    @field_validator("query", "prompt")
    @classmethod
    def _parse_prompt(cls, prompt: Any) -> Any:
        return parse_prompt(prompt)

    @model_validator(mode="after")
    def _one_prompt(self) -> "ResponseRow":
        """Places the images in the one prompt."""
        names = [name for name in ("query", "prompt") if getattr(self, name) is not None]
        if len(names) != 1:
            found = "both" if names else "neither"
            raise PydanticCustomError("prompt", "expected 'query' or 'prompt', and {found} is there", {"found": found})
        prompt, self.images = place_images(names[0], getattr(self, names[0]), self.images)
        setattr(self, names[0], prompt)
        return self

    @field_validator("response")
    @classmethod
    def _parse_responses(cls, value: Any) -> Response | tuple[Response, ...]:
        """A response, or a tuple of several."""
        if not _holds_several(value):
            return _parse_scored(value)
        if not value:
            raise PydanticCustomError("response", "expected at least one response")
        return tuple(_SCORED.validate_python(list(value)))

    def request(self) -> ScoreRequest:
        """What the model is asked; paths of images as they stand."""
        prompt = self.prompt if self.query is None else self.query
        responses = self.response if isinstance(self.response, tuple) else (self.response,)
        return ScoreRequest(prompt, tuple(self.images), responses)


def _storable(row: dict) -> dict:
    """A row without the images that are not paths."""
    stored = dict(row)
    for name in filter(is_image_name, row):
        images = row[name]
        kept = [image for image in images if isinstance(image, str)] if isinstance(images, list) else images
        if kept is not None and not isinstance(kept, str | list):
            stored.pop(name)
        else:
            stored[name] = kept
    for name in ("query", "prompt"):
        if name in row:
            stored[name] = _with_paths_alone(row[name], _without_image)
    stored["response"] = _with_paths_alone(row["response"], _named)
    return stored


def _without_image(part: dict) -> dict:
    """The place of an image, with all else that its part says."""
    return {name: value for name, value in part.items() if name != "image"}


def _named(part: dict) -> dict:
    """What stands for an image in a response, which tells it apart from others."""
    return {"type": "text", "text": image_label(part["image"])}


def _with_paths_alone(content: Any, instead: Callable[[dict], dict]) -> Any:
    """Messages or parts, whose images are paths, or something else in place of their parts."""
    if isinstance(content, list):
        return [_with_paths_alone(one, instead) for one in content]
    if not isinstance(content, dict):
        return content
    if content.get("image") is not None and not isinstance(content["image"], str):
        return instead(content)
    return {name: _with_paths_alone(value, instead) for name, value in content.items()}


def load_responses(source: str | Path, split: str) -> tuple[list[dict], list[ScoreRequest]]:
    """Rows as they are, and what is to be scored of each, with absolute paths of images that were all opened.

    Raises:
        RecordError: lists every problem of every row.
    """
    base, rows, requests, problems, places = base_folder(source), [], [], [], []
    for location, row in read_some_rows(source, split):
        try:
            request = parse_row(location, row, ResponseRow).request()
            json.dumps(_storable(row), ensure_ascii=False).encode()
        except RecordError as error:
            problems += error.problems
            continue
        except (TypeError, ValueError) as error:  # dates of parquet, halves of surrogate pairs
            problems.append(f"{location}: cannot be written as a line of JSON: {error}")
            continue
        resolved = resolve_images(list(request.images), base), resolve_responses(request.responses, base)
        places.append(str(location))
        rows.append(row)
        requests.append(ScoreRequest(request.prompt, *map(tuple, resolved)))
    readable_rows(
        requests,
        places,
        problems,
        images_of=lambda one: [image for _, image in images_by_field(one.images, one.responses)],
        name=lambda one: [name for name, _ in images_by_field(one.images, one.responses)],
    )
    return rows, requests


def scored_rows(rows: Sequence[dict], scores: Sequence[Sequence[float | None]]) -> Iterator[dict]:
    """Rows with `score`, or `scores` where the response is a list; `None` where a reward does not apply."""
    for row, found in zip(rows, scores, strict=True):
        own = {"scores": list(found)} if _holds_several(row["response"]) else {"score": found[0]}
        yield {**_storable(row), **own}


@dataclass(kw_only=True)
class ScoreArguments(ScoringArguments):
    """What is scored, by which model or reward."""

    model: str | None = model_option("reward model: folder or Hub id", None)
    reward: str | None = option("in place of it: name of a reward, or dotted path of your own", None)
    config: Path | None = option("recipe that has the parameters of --reward", None)
    dataset_name: str = option(
        "responses: JSONL, JSON or parquet file, folder with splits, or Hub data set", old=("input",)
    )
    output: Path = rows_file_option("JSONL file of the rows with their scores")
    split: str = split_option("test")

    def __post_init__(self):
        if bool(self.model) == bool(self.reward):
            raise OptionError("give either --model or --reward")
        if self.config and not self.reward:
            raise OptionError("--config is for --reward: it has its parameters")


def score_file(arguments: ScoreArguments) -> None:
    """Reads and checks everything, scores what has no score yet, and writes."""
    rows, requests = load_responses(arguments.dataset_name, arguments.split)
    if arguments.reward is not None:
        check_alone()
        recipe = read_recipe(arguments.config) if arguments.config else {}
        [spec] = choose_specs([arguments.reward], recipe, "raise")
        by_reward = scores_by_reward(spec, recipe.get("agents"), rows, requests, arguments.dataset_name)
        _write(arguments.output, rows, by_reward)
        return
    assert arguments.model is not None  # as `ScoreArguments` demands
    stored = arguments.stored_scores(arguments.model, arguments.output)
    scores = stored.score(requests, arguments.dataset_name)
    if scores is None:
        return
    _write(arguments.output, rows, scores)
    stored.forget()


def _write(output: Path, rows: Sequence[dict], scores: Sequence[Sequence[float | None]]) -> None:
    write_jsonl(output, scored_rows(rows, scores))
    print(f"{sum(map(len, scores))} scores of {len(rows)} rows written to {output}")


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    score_file(parse_and_hold(ScoreArguments, argv))
    end_processes()


if __name__ == "__main__":
    main()
