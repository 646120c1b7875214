"""The timing loop, on a clock that the test turns."""

import gc

import pytest

from cnnfast.benchmarking.clock import Round, time_round


class FakeClock:
    def __init__(self, cost):
        self.now = 0.0
        self.cost = cost
        self.seen = []

    def __call__(self):
        return self.now

    def step(self, batch):
        self.now += self.cost
        self.seen.append((batch, gc.isenabled()))


@pytest.mark.parametrize("cost", [1e-5, 0.03, 0.7])
def test_round_lasts_long_enough_and_gives_the_cost_of_one_call(cost):
    clock = FakeClock(cost)
    measured = time_round(clock.step, ["a", "b", "c"], 0.2, clock)
    assert measured.seconds >= 0.2
    assert measured.seconds <= max(0.3, cost)
    assert measured.seconds_per_call == pytest.approx(cost)


def test_first_calls_are_warm_up():
    clock = FakeClock(0.01)

    def slow_at_first(batch):
        clock.step(batch)
        clock.now += 5.0 if len(clock.seen) == 1 else 0.0

    assert time_round(slow_at_first, ["a"], 0.2, clock).seconds_per_call == pytest.approx(0.01)


def test_batches_are_used_in_turn_without_garbage_collection():
    clock = FakeClock(0.01)
    measured = time_round(clock.step, ["a", "b"], 0.2, clock)
    calls = clock.seen[-measured.calls :]
    assert [batch for batch, _ in calls[:4]] == ["a", "b", "a", "b"]
    assert not any(collecting for _, collecting in calls)
    assert gc.isenabled()


def test_step_that_takes_no_time_at_first_still_ends():
    clock = FakeClock(0.0)

    def step(batch):
        clock.step(batch)
        clock.cost = 1e-4 if len(clock.seen) > 5 else 0.0

    assert time_round(step, ["a"], 0.01, clock).seconds >= 0.01


def test_round_divides_by_calls():
    assert Round(seconds=2.0, calls=8).seconds_per_call == 0.25
