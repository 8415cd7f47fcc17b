"""What is no number to average stays what it is: the graphs of wirings, dense cells and SWNets."""

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn

from tests.models.helpers import create, image
from topodet.models import connect
from topodet.related.nn_mass import dense_mlp
from topodet.related.swnet import swnet

NETWORKS = {
    # More nodes than the smallest that an average of integers at these decays gets wrong, which is 11.
    "toponet": lambda: timm.create_model("toponet_nano", nodes=(3, 14, 3, 2), width=4, num_classes=5),
    "connected": lambda: create("mobilenetv2_x1_connected"),
    "connected blocks": lambda: connect(
        timm.create_model("resnet18", layers=(5, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=5), nodes="blocks"
    ),
    "dense_mlp": lambda: dense_mlp([(8, 4, 20)], in_features=12, num_classes=5),
    "swnet": lambda: swnet(timm.create_model("resnet10t", num_classes=5, channels=(8, 8, 8, 8)), p=0.4, image_size=64),
}


AVERAGERS = {
    "ModelEmaV2": lambda model, decay: ModelEmaV2(model, decay=decay),
    "ModelEmaV3": lambda model, decay: ModelEmaV3(model, decay=decay),
    "ModelEmaV3, one by one": lambda model, decay: ModelEmaV3(model, decay=decay, foreach=False),
    "AveragedModel": lambda model, decay: AveragedModel(
        model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay)
    ),
    "AveragedModel, one by one": lambda model, decay: AveragedModel(
        model, use_buffers=True, avg_fn=get_ema_avg_fn(decay)
    ),
    "AveragedModel, mean": lambda model, _: AveragedModel(model, use_buffers=True, avg_fn=get_swa_avg_fn()),
}


def batch(name):
    return torch.randn(2, 12) if name == "dense_mlp" else image()


@pytest.mark.parametrize("averager", AVERAGERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_average_of_equal_networks_is_the_network(name, averager):
    model = NETWORKS[name]().eval()
    before = copy.deepcopy(model.state_dict())
    for decay in (0.9, 0.999, 0.9998, 0.9999):
        average = AVERAGERS[averager](model, decay)
        for _ in range(3):
            (average.update_parameters if isinstance(average, AveragedModel) else average.update)(model)
        after = average.module.eval().state_dict()
        assert after.keys() == before.keys()
        for key, tensor in before.items():
            # Counters of updates, which nothing is computed with.
            if not tensor.is_floating_point() and not key.endswith("num_batches_tracked"):
                assert torch.equal(after[key], tensor), (key, decay)
        x = batch(name)
        with torch.no_grad():
            torch.testing.assert_close(average.module(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_saved_loaded_moved_and_copied_with_the_weights(name):
    model = NETWORKS[name]().eval()
    state = model.state_dict()
    fixed = [
        (module, attribute)
        for module in model.modules()
        for attribute, persistent in getattr(module, "fixed_tensors", {}).items()
    ]
    assert fixed
    other = copy.deepcopy(model).double()
    x = batch(name)
    with torch.no_grad():
        torch.testing.assert_close(other(x.double()).float(), model(x), rtol=1e-4, atol=1e-4)
    for module, attribute in fixed:
        assert not getattr(module, attribute).is_floating_point()
    assert all(
        getattr(m, a).is_meta
        for m in copy.deepcopy(model).to("meta").modules()
        for a in getattr(m, "fixed_tensors", ())
    )
    # What a state dict holds is no window into the network.
    before = copy.deepcopy(state)
    for tensor in state.values():
        if not tensor.is_floating_point():
            tensor.zero_()
    model.load_state_dict(before)
    key = next(key for key in before if key.rpartition(".")[2] in ("edges", "reads", "mask"))
    with pytest.raises(RuntimeError, match=key):
        model.load_state_dict({name: tensor for name, tensor in before.items() if name != key})
