"""The memory that one step takes: a forward and backward pass of a micro-batch, and what the optimizer will add."""

import resource
from typing import Any

import psutil
import torch

from trainers.diagnosis import causes
from trainers.diagnosis.findings import Finding
from trainers.diagnosis.rollout import Observed
from trainers.mixins.rollouts.batch import Batch, rows_in, take_rows

GB = 1e9
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def check_memory(trainer: Any, observed: Observed) -> Finding:
    """The peak of one micro-batch with the optimizer's state, beside what the machine has."""
    check = "memory of one step"
    device = trainer.accelerator.device
    there = _total(device)
    rows = min(trainer.args.per_device_train_batch_size, rows_in(observed.batch))
    try:
        peak = _peak(trainer, observed, rows, device)
    except OUT_OF_MEMORY as error:
        return Finding(check, f"{rows} completions do not fit: {error}", _limit(there), "note", causes.MEMORY)
    trained = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    optimizer = trained * (2 if "8bit" in str(trainer.args.optim).lower() else 8)  # two moments of each parameter
    found = f"{peak / GB:.2f} GB for {rows} completions, {optimizer / GB:.2f} GB more for the optimizer"
    if peak + optimizer > there:
        return Finding(check, found, _limit(there), "note", causes.MEMORY)
    return Finding(check, found, _limit(there))


def _limit(there: float) -> str:
    return f"{there / GB:.0f} GB"


def _total(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _peak(trainer: Any, observed: Observed, rows: int, device: torch.device) -> float:
    """Bytes at the peak of one forward and backward pass: of the device, or of this process so far on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # which a run sets
    with trainer.accelerator.autocast():
        loss = trainer._compute_loss(trainer.model, first_rows(observed.batch, rows))
    trainer.accelerator.backward(loss)
    trainer.model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def first_rows(batch: Batch, rows: int) -> Batch:
    """The first rows of a batch, with their images."""
    from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

    return unsplit_pixel_values_by_grid(take_rows(split_pixel_values_by_grid(batch), range(rows)))
