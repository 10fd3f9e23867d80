"""Trains a tiny Qwen2-VL that reads its answers from the examples it is shown, for the task of data/dialects.py.

    python -m models.tiny_reader --output_dir outputs/vlm --seed 0

1. Vision: the tower learns colour and shape of easy-VQA's training images, through heads that are then dropped.
2. Reading: the language model learns to answer in conversations of several turns, each about an image of its own. The
   nouns of a conversation are drawn anew, so that only earlier turns can tell an answer, and no vocabulary can be
   learned by heart. It learns from those answers that earlier turns do tell, whatever their number.

Prompts are those of `data.prompts.in_context_messages`, style "chat", with the default system text. The model and its
processor are saved with `save_pretrained`.
"""

from dataclasses import dataclass
from pathlib import Path

from data.cli.arguments import option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1


@dataclass(kw_only=True)
class TinyReaderArguments:
    """How long the model is trained."""

    output_dir: Path = option("folder to write the model to")
    seed: int = seed_option("of weights, batches and nouns")
    vision_epochs: int = option("times that the tower sees every image", 10, within=AT_LEAST_1)
    reading_steps: int = option("batches of conversations", 450, within=AT_LEAST_1)


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(TinyReaderArguments, argv)

    from models.tiny_reader_training import train

    model, processor, accuracy = train(arguments.seed, arguments.vision_epochs, arguments.reading_steps)
    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)
    print(f"{accuracy:.3f} of the nouns that earlier turns tell are read, about images it was not trained on")
    print(f"{model.num_parameters():,} parameters, written to {arguments.output_dir}")


if __name__ == "__main__":
    main()
