"""What the recipes are made of: order, schedule, average, prefetcher."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from roentgen.errors import UserError
from roentgen.training import progress
from roentgen.training.loader import Prefetcher
from roentgen.training.order import Order, batch_generator, batch_indices
from roentgen.training.schedule import EMA, SCHEDULES, constant_rate, cosine_rate


def test_every_epoch_is_a_permutation_across_batches() -> None:
    seen = torch.cat([batch_indices(None, 10, size=4, seed=3, batch=b) for b in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_weighted_draws_follow_the_weights_and_the_batch_number_alone() -> None:
    weights = torch.tensor([1.0, 0.0, 3.0])
    drawn = torch.cat([batch_indices(weights, 3, size=100, seed=0, batch=b) for b in range(20)])
    assert (drawn == 1).sum() == 0
    assert 2.5 < (drawn == 2).sum() / (drawn == 0).sum() < 3.6
    again = batch_indices(weights, 3, size=100, seed=0, batch=7)
    assert torch.equal(again, drawn[700:800])


def test_the_clock_leaves_pauses_out_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    clock = progress.Clock(SimpleNamespace(waited=0.0), torch.device("cpu"), 0)  # type: ignore[arg-type]
    now = 10.0  # 100 images so far, none of them told yet
    with clock.paused():
        now = 70.0
    now = 75.0
    assert clock.lap(150) == 10.0


def test_streams_of_one_batch_differ() -> None:
    first, second = (torch.rand(1, generator=batch_generator(0, 5, stream)) for stream in (0, 1))
    assert first != second


def test_cosine_rate_by_hand() -> None:
    assert cosine_rate(500, peak=1.0, warmup=0, total=1000) == pytest.approx(0.5)
    assert cosine_rate(1000, peak=1.0, warmup=0, total=1000, floor=0.1) == pytest.approx(0.1)
    assert cosine_rate(0, peak=1.0, warmup=9, total=1000) == pytest.approx(0.1)


def test_ema_moves_half_way_in_a_half_life_and_swaps_back() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    ema = EMA([layer], halflife=10, rampup=1e9)
    nn.init.ones_(layer.weight)
    ema.update(10, 10)
    assert ema.shadow[0].item() == pytest.approx(0.5)
    ema.swap()
    assert layer.weight.item() == pytest.approx(0.5)
    ema.swap()
    assert layer.weight.item() == 1.0


# ------------------------------------------------------------------------------------ order and rates


def groups_of(count: int, kind: str) -> np.ndarray | None:
    return None if kind == "files" else np.arange(count, dtype=np.int32) // 7


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_epochs_are_permutations_across_batches_from_any_start(kind: str) -> None:
    count, size = 23, 5
    order = Order(count, weights=None, groups=groups_of(count, kind), seed=3)
    seen = torch.cat([order.batch(number, size) for number in range(3 * count // size + 1)])
    epochs = [seen[start : start + count].tolist() for start in (0, count, 2 * count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    late = Order(count, weights=None, groups=groups_of(count, kind), seed=3)  # a run that goes on at batch 9
    assert late.batch(9, size).tolist() == seen[9 * size : 10 * size].tolist()
    other = Order(count, weights=None, groups=groups_of(count, kind), seed=4)
    assert other.batch(0, size).tolist() != epochs[0][:size]


def test_one_batch_can_hold_several_epochs() -> None:
    order = Order(3, weights=None, groups=None, seed=0)
    first, second = order.batch(0, 10).tolist(), order.batch(1, 10).tolist()
    together = [*first, *second]
    assert all(sorted(together[start : start + 3]) == [0, 1, 2] for start in range(0, 18, 3))


def test_a_constant_rate_warms_up_and_stays() -> None:
    assert SCHEDULES["constant"] is constant_rate
    rates = [constant_rate(images, peak=2.0, warmup=9, total=100) for images in (0, 4, 9, 50, 1000)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])


# -------------------------------------------------------------------------------------------- average


def test_only_what_is_trained_is_averaged() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    ema = EMA([net], halflife=10)
    assert [shadow.shape for shadow in ema.shadow] == [(2, 2), (2,)]
    before = net[0].weight.clone()
    net[0].weight.data.add_(1)
    net[1].weight.data.add_(1)
    ema.update(100, 10)
    ema.swap()
    assert torch.equal(net[0].weight, before + 1)


def test_an_average_goes_on_where_it_was_saved() -> None:
    nets = [nn.Linear(3, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    averages = [EMA([net], halflife=10) for net in nets]
    nets[0].weight.data.add_(1)
    averages[0].update(10, 10)
    averages[1].load_state_dict(averages[0].state_dict())
    assert torch.equal(averages[0].shadow[0], averages[1].shadow[0])
    averages[0].shadow[0].add_(1)
    assert not torch.equal(averages[0].shadow[0], averages[1].shadow[0])  # copied, not shared


# ----------------------------------------------------------------------------------------- prefetcher


def test_batches_come_in_order_whoever_is_fastest() -> None:
    def make(number: int) -> int:
        time.sleep(0.01 if number % 2 else 0)
        return number * number

    assert list(Prefetcher(make, range(20), ahead=4, threads=3)) == [number**2 for number in range(20)]
    assert list(Prefetcher(make, range(0), ahead=4, threads=3)) == []


def test_a_batch_that_fails_is_an_error_at_its_turn() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise UserError("image 3 is broken")
        return number

    seen = []
    with pytest.raises(UserError, match="image 3"):
        for value in Prefetcher(make, range(10), ahead=4, threads=2):
            seen.append(value)
    assert seen == [0, 1, 2]


def test_no_more_batches_are_made_than_wanted_and_waiting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a batch moves by 1, so that the machine's speed says nothing."""
    made: list[int] = []
    now, looks = [0.0], [0]
    blocked, gate = threading.Event(), threading.Semaphore(0)

    def make(number: int) -> int:
        made.append(number)
        blocked.set()
        gate.acquire()
        now[0] += 1
        return number

    def clock() -> float:
        if looks[0] == 0 or looks[0] % 2:  # the consumer begins to wait; in the other calls it has waited
            blocked.wait()
            blocked.clear()
            gate.release()
        looks[0] += 1
        return now[0]

    monkeypatch.setattr("roentgen.training.loader.time", SimpleNamespace(perf_counter=clock))
    slow = Prefetcher(make, range(100), ahead=1, threads=1)
    taken: Iterator[int] = iter(slow)
    assert [next(taken) for _ in range(5)] == list(range(5))
    assert slow.waited == 4  # four of five batches, the first does not count
    gate.release()
    taken.close()  # type: ignore[attr-defined]
    assert len(made) <= 6  # what was ahead is not made any more
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_batches_that_are_there_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, whole = [0.0], threading.Event()

    def make(number: int) -> int:
        now[0] += 1
        if number == 4:
            whole.set()
        return number

    monkeypatch.setattr("roentgen.training.loader.time", SimpleNamespace(perf_counter=lambda: now[0]))
    quick = Prefetcher(make, range(5), ahead=5, threads=1)
    for _ in quick:
        whole.wait()
    assert quick.waited == 0
