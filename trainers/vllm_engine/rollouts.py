"""GRPO's rollouts by a vLLM engine that computes, resizes and reads prompts as the trainer does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from trl.generation import vllm_generation

from trainers.vllm_engine.engine import engine_settings, most_images
from trainers.vllm_engine.prompts import ExpandedPrompts, check_images_are_runs
from trainers.vllm_engine.server import check_server, forget_all


class NewestPictures:
    """The part of a `vllm.LLM` that keeps no picture as older weights encoded it.

    TRL resets the cache of prompts when it has sent weights. The one of encoded pictures would stay: a picture that
    is seen again would be that of the vision tower at its first sight.
    """

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """The parent's, of encoded pictures too."""
        self.llm_engine.reset_encoder_cache()
        return super().reset_prefix_cache(*args, **kwargs)


class ReplaceableWeights:
    """The part of a `vllm.LLM` whose weights can be replaced on a CPU too.

    The build for a CPU packs them for oneDNN when it loads them, and leaves empty ones, which TRL cannot send to.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        from vllm import _custom_ops

        packs, _custom_ops._supports_onednn = _custom_ops._supports_onednn, False
        try:
            super().__init__(*args, **kwargs)
        finally:
            _custom_ops._supports_onednn = packs


def engine_class(processor: Any) -> type:
    """`vllm.LLM`, taking prompts as this processor writes them."""
    from vllm import LLM

    image_token = getattr(processor, "image_token_id", None)
    parts = (ReplaceableWeights, NewestPictures, ExpandedPrompts, LLM)
    return type("RolloutEngine", parts, {"image_token": image_token})


@contextmanager
def engines_made_by(make: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, TRL makes its engine by this function in place of `vllm.LLM`, which it tells too little."""
    library = vars(vllm_generation).get("LLM")
    if library is None:  # vLLM is not installed, and TRL will say so if it is asked for
        yield
        return
    vllm_generation.LLM = make
    try:
        yield
    finally:
        vllm_generation.LLM = library


class VLLMRollouts:
    """The part of a `trl.GRPOTrainer` that gives vLLM's engine what `VLLMArguments` say."""

    def __init__(self, *args: Any, **kwargs: Any):
        with engines_made_by(self._make_engine):
            super().__init__(*args, **kwargs)
        if self.use_vllm and self.vllm_mode == "server" and self.accelerator.is_main_process:
            client = self.vllm_generation.vllm_client
            check_server(client.base_url, client.get_server_info(), self._engine_settings())
            client.reset_prefix_cache = partial(forget_all, client.base_url, client.reset_prefix_cache)

    def _make_engine(self, **given: Any) -> Any:
        """The engine of TRL's arguments, when model, data and processor are at hand.

        TRL seeds it by the process alone, and the engine then seeds the process anew: every seed of the trainer would
        draw the same.
        """
        check_images_are_runs(self.processing_class)
        seed = self.args.seed + given["seed"]
        return engine_class(self.processing_class)(**{**given, **self._engine_settings(), "seed": seed})

    def _engine_settings(self) -> dict[str, Any]:
        weights = self.accelerator.unwrap_model(self.model).dtype
        images = most_images([self.train_dataset, self.eval_dataset])
        return engine_settings(self.args, weights, self.processing_class, images)
