"""What a model is asked, and what the right answer looks like."""

from collections.abc import Iterable
from html import escape

SELECTION_FORMAT = (
    "<selection><reasoning>why</reasoning><agents><agent><name>agent name</name><prompt>what to keep</prompt></agent>"
    "</agents></selection>"
)

Messages = list[dict[str, str]]


def selection_system_prompt(agents: Iterable[tuple[str, str]]) -> str:
    """The system text of agent selection.

    Args:
        agents: (name, one-line description) of every agent that may be selected.
    """
    lines = "\n".join(f"- {name}: {description}" for name, description in agents)
    return (
        "You select filtering agents for a data set. Read the report and choose the agents that mend what stands out, "
        f"with a prompt for each.\nAgents:\n{lines}\nAnswer in this format, one agent element for each agent:\n"
        f"{SELECTION_FORMAT}"
    )


def selection_messages(report: str, agents: Iterable[tuple[str, str]]) -> Messages:
    """The conversation that a model completes: system text, then the report. Images come before the report."""
    return [
        {"role": "system", "content": selection_system_prompt(agents)},
        {"role": "user", "content": report},
    ]


def format_selection(prompts: dict[str, str], reasoning: str) -> str:
    """A well-formed answer.

    Args:
        prompts: agent name -> prompt, in the order of the answer.

    >>> format_selection({"blur_filter": "keep blur at most 0.75"}, "Too soft.")
    '<selection><reasoning>Too soft.</reasoning><agents><agent><name>blur_filter</name>\
<prompt>keep blur at most 0.75</prompt></agent></agents></selection>'
    """
    agents = "".join(
        f"<agent><name>{escape(name, quote=False)}</name><prompt>{escape(prompt, quote=False)}</prompt></agent>"
        for name, prompt in prompts.items()
    )
    return f"<selection><reasoning>{escape(reasoning, quote=False)}</reasoning><agents>{agents}</agents></selection>"


VQA_SYSTEM_PROMPT = "Answer the question about the image with a single word or phrase."


def vqa_messages(question: str, answer_tags: bool = False) -> Messages:
    """The conversation of visual question answering.

    Args:
        answer_tags: ask for reasoning, and for the answer between <answer> tags.
    """
    system = VQA_SYSTEM_PROMPT
    if answer_tags:
        system = "Look at the image, think, and give the answer as a word or phrase: <answer>...</answer>"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]
