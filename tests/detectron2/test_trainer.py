import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.detection import write_coco
from tests.detectron2.helpers import trainable_config
from topodet.detectron2 import Trainer
from topodet.errors import ConfigError


def images(trainer, count):
    """Return the ids of the images of the next iterations."""
    batches = iter(trainer.data_loader)
    return [[image["image_id"] for image in next(batches)] for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_goes_on_in_the_sequence_of_images(workers, tmp_path):
    root = write_coco(tmp_path / "set", count=7)
    config = trainable_config(
        root, tmp_path / "out", SOLVER__IMS_PER_BATCH=2, SOLVER__MAX_ITER=6, DATALOADER__NUM_WORKERS=workers, SEED=3
    )
    straight = Trainer(config)
    straight.resume_or_load(resume=True)  # nothing to resume from
    expected = images(straight, 6)
    straight.iter = 1  # as after the second iteration
    straight.checkpointer.save("model_0000001")
    resumed = Trainer(config)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert images(resumed, 4) == expected[2:]
    assert len({image for batch in expected for image in batch}) == 7


def test_a_test_set_without_coco_evaluation_is_refused_at_start(coco, tmp_path):
    config = trainable_config(coco, tmp_path)
    DatasetCatalog.register("in_another_format", list)
    try:
        MetadataCatalog.get("in_another_format").evaluator_type = "lvis"
        config.DATASETS.TEST = ("in_another_format",)
        with pytest.raises(ConfigError, match="in_another_format needs the evaluator 'lvis'"):
            Trainer(config)
    finally:
        DatasetCatalog.remove("in_another_format")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOLVER__MAX_ITER": 0}, "SOLVER.MAX_ITER is 0, .*--eval-only"),
        ({"SOLVER__AMP__ENABLED": True}, "SOLVER.AMP.ENABLED is True, .*add SOLVER.AMP.ENABLED False"),
    ],
)
def test_a_solver_that_cannot_step_is_refused_at_start(coco, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        Trainer(trainable_config(coco, tmp_path, **changes))
