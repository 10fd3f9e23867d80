"""The order of prompts: that of the parent's sampler, for each epoch its own, however often it is asked."""

from trl.trainer.utils import RepeatSampler

from trainers.mixins.rollouts.order import OrderOfEpoch

SEED = 7


def made(**settings) -> RepeatSampler:
    return RepeatSampler(range(9), mini_repeat_count=2, batch_size=3, repeat_count=2, **settings)


def test_order_depends_on_the_epoch_alone():
    epoch = 0
    sampler = OrderOfEpoch(made(seed=SEED), SEED, lambda: epoch)
    first = list(sampler)
    assert first == list(made(seed=SEED))
    assert len(sampler) == len(first) == 36
    assert list(sampler) == first
    epoch = 1
    assert list(sampler) == list(made(seed=SEED + 1)) != first


def test_an_order_that_is_not_shuffled_stays():
    sampler = OrderOfEpoch(made(shuffle=False), SEED, lambda: 3)
    assert list(sampler) == list(made(shuffle=False))
