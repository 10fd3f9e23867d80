"""What changes while training goes on: the KL coefficient, the temperature of rollouts, the curriculum."""

from dataclasses import dataclass


def adaptive_kl_beta(
    beta: float,
    kl: float,
    target_min: float = 0.01,
    target_max: float = 0.1,
    factor: float = 1.5,
    beta_min: float = 0.001,
    beta_max: float = 10.0,
) -> float:
    """The next KL coefficient: larger after too much divergence, smaller after too little, else the same.

    Args:
        kl: mean KL divergence from the reference since the last change, nats a token.
        target_min, target_max: strictly outside of them the coefficient changes.

    >>> adaptive_kl_beta(0.1, kl=0.2)
    0.15000000000000002
    """
    if kl > target_max:
        beta *= factor
    elif kl < target_min:
        beta /= factor
    return min(max(beta, beta_min), beta_max)


def linear_temperature(step: int, total_steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at the last step, `total_steps - 1`, and `end` from then on."""
    if total_steps <= 1:
        return end
    share = min(max(step / (total_steps - 1), 0.0), 1.0)
    return start + share * (end - start)


def kl_temperature(
    temperature: float,
    kl: float,
    target_min: float,
    target_max: float,
    factor: float = 1.05,
    low: float = 0.5,
    high: float = 1.5,
) -> float:
    """The next rollout temperature: cooler after too much divergence, hotter after too little."""
    if kl > target_max:
        temperature /= factor
    elif kl < target_min:
        temperature *= factor
    return min(max(temperature, low), high)


@dataclass(frozen=True)
class Curriculum:
    """Only the best k candidates of a group in the first part of training, all of them later.

    Attributes:
        top_k: candidates kept, or `None` for all.
        share: of all optimizer steps, how many form the first part.
    """

    top_k: int | None
    share: float

    def k_at(self, step: int, total_steps: int) -> int | None:
        """How many candidates count at an optimizer step, or `None` for all."""
        return self.top_k if self.top_k is not None and step < self.share * total_steps else None
