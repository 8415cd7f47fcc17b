import pytest

from topodet.errors import ConfigError
from topodet.new_config import make_schedule


def test_coco_gets_the_1x_schedule():
    """117,266 of train2017's images have a box; the 1x: 12 epochs, steps at 8 and 11, warm-up 500, 0.02."""
    schedule = make_schedule(117_266, batch=16)
    assert schedule.epochs == 12
    assert schedule.epoch_iterations == 7330
    assert schedule.steps == (8 * 7330, 11 * 7330)
    assert schedule.warmup == 500
    assert schedule.eval_epochs == 1
    assert schedule.rate(0.02) == 0.02
    assert make_schedule(117_266, batch=8).rate(0.02) == 0.01


@pytest.mark.parametrize("num_images", [1, 3, 50, 292, 5000])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_small_set_is_trained_on_for_longer(num_images, batch):
    schedule = make_schedule(num_images, batch=batch)
    assert schedule.epoch_iterations * batch >= num_images > (schedule.epoch_iterations - 1) * batch
    assert schedule.iterations >= 1000
    assert (schedule.epochs - 1) * schedule.epoch_iterations < max(1000, 12 * schedule.epoch_iterations)
    assert schedule.warmup < schedule.steps[0] < schedule.steps[1] < schedule.iterations
    assert 10 <= schedule.epochs / schedule.eval_epochs <= 14


def test_a_single_iteration_is_a_schedule():
    schedule = make_schedule(2, batch=2, epochs=1)
    assert schedule.iterations == schedule.eval_epochs == 1
    assert schedule.steps == ()


@pytest.mark.parametrize(("num_images", "warmup"), [(32, 2), (64, 3), (160, 8)])
def test_a_short_training_warms_up_over_a_fifth_and_at_least_two_iterations(num_images, warmup):
    assert make_schedule(num_images, batch=8, epochs=2).warmup == warmup


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, 8, 1), "images"), ((4, 0, 1), "--batch"), ((4, 8, 0), "--epochs"), ((4, -8, 1), "--batch")],
)
def test_what_is_not_positive_is_refused(arguments, name):
    num_images, batch, epochs = arguments
    with pytest.raises(ConfigError, match=f"{name}.*at least 1"):
        make_schedule(num_images, batch=batch, epochs=epochs)
