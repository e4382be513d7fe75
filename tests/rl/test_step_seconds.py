"""The parts of an update's time, by a clock that is set by hand."""

from __future__ import annotations

import pytest

from sidrec.rl.step_seconds import StepSeconds


def test_a_part_within_another_counts_for_itself_alone():
    now, noted = [10.0], {}
    clock = StepSeconds(noted.__setitem__, lambda: now[0])
    nothing = (None, None, None)

    def wait(seconds: float) -> None:
        now[0] += seconds

    for _ in range(2):  # a step begins anew
        clock.on_step_begin(*nothing)
        wait(1)
        with clock.part("backward"):
            wait(2)
            with clock.part("forward"):
                wait(4)
                with clock.part("rewards"):
                    wait(8)
                wait(16)
        wait(32)
        clock.on_pre_optimizer_step(*nothing)
        wait(64)
        clock.on_optimizer_step(*nothing)
        wait(128)
        clock.on_step_end(*nothing)
    parts = {"seconds/backward": 2, "seconds/forward": 20, "seconds/rewards": 8, "seconds/update": 64}
    assert noted == parts | {"seconds/step": 255}


def test_a_part_that_fails_is_closed():
    clock = StepSeconds(lambda name, seconds: None)
    with pytest.raises(ValueError, match="no such item"), clock.part("rewards"):
        raise ValueError("no such item")
    assert clock.open == []
