"""That records read what Detectron2 itself writes: its trainer, hooks, evaluator and writer."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer, hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import JSONWriter

from topodet.records.results import framework_of, read_evaluations, read_speed


class OneWeight(torch.nn.Linear):
    def forward(self, batch):
        return {"loss": super().forward(batch).sum()}


@pytest.fixture
def evaluator(tmp_path, request):
    """Of an image with one object of middle size, the box 10, 10, 60, 60."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}
    images = [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}]
    categories = [{"id": 1, "name": "cell"}]
    file = tmp_path / "val.json"
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": [annotation], "categories": categories}))
    name = f"{request.node.name}_{tmp_path.name}"  # Detectron2 keeps names for the life of the process
    register_coco_instances(name, {}, str(file), str(tmp_path))
    DatasetCatalog.get(name)  # as a data loader does: tells it how classes are numbered
    return COCOEvaluator(name, tasks=("bbox",), use_fast_impl=False)


def test_scores_of_a_training_are_read(tmp_path, evaluator):
    """Evaluated after 3, 6 and all 8 iterations, each time with a box that covers the object better."""
    rights = iter((10 + 50 * 0.52, 10 + 50 * 0.72, 60))  # overlaps of 0.52, 0.72 and 1

    def evaluate():
        found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([[10.0, 10.0, next(rights), 60.0]])))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.long)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": found}])
        return evaluator.evaluate()

    model = OneWeight(1, 1)
    trainer = SimpleTrainer(model, [torch.ones(1, 1)] * 8, torch.optim.SGD(model.parameters(), lr=0.1))
    writer = hooks.PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=2)
    trainer.register_hooks([hooks.IterationTimer(), hooks.EvalHook(3, evaluate), writer])
    trainer.train(0, 8)

    assert framework_of(tmp_path) == "detectron2"
    rows = read_evaluations(tmp_path)
    assert [row["step"] for row in rows] == [2, 5, 8]
    # Right at 1, at 5 and at all of the ten thresholds 0.5, 0.55, ..., 0.95.
    assert [row["coco/bbox_mAP"] for row in rows] == pytest.approx([0.1, 0.5, 1])
    assert [row["coco/bbox_mAP_75"] for row in rows] == pytest.approx([0, 0, 1])
    assert [row["coco/bbox_mAP_m"] for row in rows] == pytest.approx([0.1, 0.5, 1])
    assert {row[f"coco/bbox_mAP_{size}"] for row in rows for size in "sl"} == {-1}  # no such objects
    assert read_speed(tmp_path)["iterations_per_second"] > 0


def test_a_resumed_training_is_read_once(tmp_path):
    """Begun again from iteration 4, Detectron2 writes on in the same file."""
    scores = iter((10.0, 20.0, 30.0, 40.0, 50.0))
    for start, stop in ((0, 7), (4, 8)):
        model = OneWeight(1, 1)
        trainer = SimpleTrainer(model, [torch.ones(1, 1)] * 8, torch.optim.SGD(model.parameters(), lr=0.1))
        evaluation = hooks.EvalHook(3, lambda: {"bbox": {"AP": (score := next(scores)), "AP50": score}})
        writer = hooks.PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=1)
        trainer.register_hooks([evaluation, writer])
        trainer.train(start, stop)
    rows = read_evaluations(tmp_path)
    # 2 of the first start; its 5 and its last one, 7, were made again or are void.
    assert [(row["step"], row["coco/bbox_mAP"]) for row in rows] == [(2, 0.1), (5, 0.4), (8, 0.5)]
