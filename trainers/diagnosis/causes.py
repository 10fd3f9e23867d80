"""Why an update may not see what its rollout saw: each cause with what mends it. docs/doctor.md tells more of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One reason, as the table names it.

    Attributes:
        name: a few words.
        remedy: what to do about it.
    """

    name: str
    remedy: str


TEMPLATE = Cause(
    "another chat template",
    "let both sides render prompts with the template of the model's processor; samples that were made with another "
    "one are to be made again",
)
DOUBLE_BOS = Cause(
    "double BOS",
    "the template writes the first token and the tokenizer adds it again: tokenize rendered prompts with "
    "add_special_tokens=False, or take the token out of the template",
)
NO_GENERATION_PROMPT = Cause(
    "no generation prompt",
    "the prompt does not open the assistant's turn: render it with add_generation_prompt=True, with a template that "
    "reads it",
)
NO_PREFIX = Cause(
    "template rewrites the prompt",
    "with the answer behind it the prompt has other tokens: take a template that only appends (TRL ships training "
    "templates of several families)",
)
PIXEL_BOUNDS = Cause(
    "other pixel bounds",
    "give both sides the recipe's min_pixels and max_pixels (of vLLM: mm_processor_kwargs)",
)
PIXELS = Cause(
    "images processed otherwise",
    "both sides need one image processor: the same mean, deviation, resampling and patches",
)
DROPPED_IMAGE = Cause(
    "dropped image",
    "the row has an image that this side does not see: look for a limit of images a prompt, for image tokens that do "
    "not match their features, and for a column that is not handed on",
)
OTHER_ROW = Cause(
    "images of another row",
    "rows and their images have come apart: look for one of them that is shuffled, sorted or cut into batches alone",
)
IMAGE_ORDER = Cause(
    "images in another order",
    "a prompt's images are to be handed on in the order of their places in it: look for sorting, or a set",
)
TRUNCATED = Cause(
    "truncated prompt",
    "one side cuts the prompt: give both the same limit (vLLM: max_model_len), or leave long rows out with "
    "max_prompt_length",
)
IMAGE_TOKENS = Cause(
    "image tokens do not match the images",
    "the prompt promises more or fewer tokens than the images have: let one processor make both, and cut no prompts",
)
OTHER_PROMPT = Cause(
    "another prompt",
    "the stored prompt is in none of the recipe's rows: give the data set, agents and split that it was made of",
)
NO_END = Cause(
    "missing end token",
    "completions end without the token that closes the assistant's turn: give model, tokenizer and sampler the same "
    "eos_token, and keep it in stored completions",
)
WRONG_END = Cause(
    "end token of the template is none of the trainer's",
    "the turn is closed by a token that does not stop sampling: make it the tokenizer's eos_token or one of the "
    "generation configuration",
)
MASK = Cause(
    "completion mask does not fit",
    "the loss must count each sampled token once, up to the end token and no padding: look for a shift of labels or a "
    "mask made of texts",
)
OTHER_TOKENS = Cause(
    "completion tokenized anew",
    "the update has other tokens than were sampled: hand over token ids, not texts",
)
VISION_TOKENS = Cause(
    "vision tokens in completions",
    "a sampled image token promises an image that is not there: suppress them (suppress_tokens, or vLLM's bad_words)",
)
TEMPERATURE = Cause(
    "another temperature",
    "sample at the recipe's temperature, by which the trainer divides its logits too",
)
TOP_P = Cause("top-p", "set top_p: 1.0; the update does not know of the cut")
TOP_K = Cause("top-k", "set top_k: 0; the update does not know of the cut")
MIN_P = Cause("min-p", "leave min_p out; the update does not know of the cut")
REPETITION = Cause("repetition penalty", "set repetition_penalty: 1.0; the update does not know of it")
OPTION = Cause(
    "an option of sampling",
    "leave it out of generation_kwargs; the update does not know of it",
)
ORDINARY_END = Cause(
    "an ordinary token ends completions",
    "a token of the text stops sampling: take its id out of eos_token_id in generation_config.json",
)
PADDING = Cause(
    "another padding token",
    "generation_config.json pads by another id than the tokenizer: give both the same; the trainer takes the "
    "tokenizer's",
)
SUPPRESSED = Cause(
    "much weight on suppressed tokens",
    "the model expects vision tokens in its answers: train on completions without them first",
)
PRECISION = Cause(
    "another precision",
    "give the sampler the trainer's dtype (vLLM's `auto` takes half precision for a float32 model)",
)
STALE = Cause(
    "old weights",
    "the samples are of other weights than the update's: send the weights before sampling, or make the samples again",
)
ADAPTER = Cause(
    "adapter not synced",
    "the sampler runs the model without its adapters: merge them before the weights are sent, or load them there",
)
SHIFTED = Cause(
    "log-probabilities shifted",
    "each token has the log-probability of its neighbour: logits at a place belong to the token after it",
)
UNSEEN = Cause(
    "dropped image",
    "the sampler's log-probabilities are those without the images: see that they reach it",
)
UNEXPLAINED = Cause(
    "not found",
    "neither temperature, cuts, weights, images nor precision explain it: compare versions and attention kernels of "
    "both sides, and run both in float32",
)
DROPOUT = Cause(
    "dropout active",
    "set disable_dropout: true (or lora_dropout: 0), so that the update's probabilities are those of the rollout",
)
NOT_ON_POLICY = Cause(
    "two forward passes differ",
    "the trainer's log-probabilities of one batch are not repeatable: look for noise, or routing that depends on the "
    "batch",
)
REFERENCE = Cause(
    "reference is another model",
    "at step 0 policy and reference are to be one model: load them from one revision, in one dtype, without dropout",
)
RIGHT_ANSWERS = Cause(
    "right answers score low",
    "a reward gives them less than its maximum: `vlm-posttrain validate` lists every row",
)
BLIND_REWARD = Cause(
    "rewards do not tell right from wrong",
    "a wrong answer scores as the right one: weigh a reward that reads the answer",
)
LABELS = Cause(
    "labels do not cover the answer",
    "the loss must count the answer's tokens, its end token too, and none of the prompt's (completion_only_loss)",
)
MEMORY = Cause(
    "not enough memory",
    "lower per_device_train_batch_size, switch gradient_checkpointing on, or quantise",
)
