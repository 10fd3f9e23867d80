"""Which groups are drawn anew when their rewards leave nothing to learn, and where the new ones go.

Groups are numbered over all processes; process p holds the completions p * rows to (p + 1) * rows, so a group may lie
on two of them. All processes must generate equally many completions, or collective operations would not match.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Redraw:
    """A plan that is the same on every process.

    Attributes:
        groups: number of each group that is drawn, in the order of the new completions over all processes.
        per_process: groups that each process draws by itself, or `None` if groups lie across processes and every
            completion of the batch is drawn.
    """

    groups: list[int]
    per_process: int | None


def plan_redraw(flat: torch.Tensor, rows: int, size: int) -> Redraw:
    """Draws the flat groups anew, and as many others as it takes for all processes to draw equally many.

    Args:
        flat: (groups,) True where all rewards are equal.
        rows: completions on each process.
        size: completions of a group.
    """
    if rows % size:
        return Redraw(list(range(len(flat))), None)
    by_process = flat.view(-1, rows // size)  # (processes, groups of one)
    count = int(by_process.sum(dim=1).max())
    flat_first = by_process.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    offsets = torch.arange(len(by_process), device=flat.device).unsqueeze(1) * (rows // size)
    return Redraw((flat_first + offsets).flatten().tolist(), count)


def rows_to_draw(plan: Redraw, process: int, rows: int, size: int) -> list[int]:
    """For each completion that a process draws, the position in `plan.groups` of its group."""
    if plan.per_process is None:
        return [(process * rows + row) // size for row in range(rows)]
    first = process * plan.per_process
    return [first + group for group in range(plan.per_process) for _ in range(size)]


def rows_to_replace(
    plan: Redraw, accepted: list[bool], process: int, rows: int, size: int
) -> tuple[list[int], list[int]]:
    """Local rows of the batch that are replaced, and the rows of the new completions that replace them.

    Args:
        accepted: for each of `plan.groups`, whether the new group takes the old one's place.
    """
    drawn = rows_to_draw(plan, process, rows, size)
    replaced, replacements = [], []
    for new_row, position in enumerate(drawn):
        if accepted[position]:
            within = new_row if plan.per_process is None else new_row % size
            old_row = within if plan.per_process is None else plan.groups[position] * size - process * rows + within
            replaced.append(old_row)
            replacements.append(new_row)
    return replaced, replacements
