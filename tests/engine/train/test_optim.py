import math

import pytest
import torch

from lit_guide.engine.train.optim import WarmupCosine


def an_optimizer(lr=0.2):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(steps, **kwargs):
    """The learning rate of every step, and the one that is left after the last."""
    optimizer = an_optimizer()
    schedule = WarmupCosine(optimizer, **kwargs)
    values = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        values.append(optimizer.param_groups[0]["lr"])
    return values


@pytest.mark.parametrize(("warmup", "total", "rising"), [(0.1, 100, 10), (0.05, 100, 5), (0.0, 20, 1), (0.5, 7, 4)])
def test_rates_follow_the_closed_formula(warmup, total, rising):
    up = [0.2 * (step + 1) / rising for step in range(rising)]
    down = [0.1 * (1 + math.cos(math.pi * step / (total - rising))) for step in range(total - rising + 1)]
    assert rates(total, warmup=warmup, total_steps=total) == pytest.approx(up + down, abs=1e-12)


def test_rates_at_known_steps():
    values = rates(100, warmup=0.2, total_steps=100)
    assert values[0] == pytest.approx(0.01)
    assert values[9] == pytest.approx(0.1)
    assert values[19] == values[20] == pytest.approx(0.2) == max(values)
    assert values[60] == pytest.approx(0.1)
    assert values[80] == pytest.approx(0.2 * 0.1464466, abs=1e-7)
    assert values[100] == pytest.approx(0.0, abs=1e-15)


def test_the_rate_stays_zero_after_the_last_step():
    assert rates(30, total_steps=20)[20:] == pytest.approx([0.0] * 11, abs=1e-15)


def test_a_warmup_of_the_whole_run_only_rises():
    assert rates(4, warmup=1.0, total_steps=4)[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_a_run_of_one_step_takes_it_at_the_peak():
    assert rates(0, total_steps=1) == pytest.approx([0.2])


def test_each_parameter_group_has_its_own_peak():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.01)]
    optimizer = torch.optim.SGD(groups)
    WarmupCosine(optimizer, warmup=0.4, total_steps=10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.0025])


def test_a_saved_schedule_goes_on_where_it_stopped():
    expected = rates(20, warmup=0.25, total_steps=20)
    first, second = an_optimizer(), an_optimizer()
    schedule = WarmupCosine(first, warmup=0.25, total_steps=20)
    for _ in range(8):
        first.step()
        schedule.step()
    resumed = WarmupCosine(second, warmup=0.25, total_steps=20)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for rate in expected[8:]:
        assert second.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-12)
        second.step()
        resumed.step()


@pytest.mark.parametrize("total_steps", [None, 0, -1])
def test_the_number_of_steps_must_be_known(total_steps):
    with pytest.raises(ValueError, match=f"needs the run's number of steps, got total_steps={total_steps}"):
        WarmupCosine(an_optimizer(), total_steps=total_steps)
