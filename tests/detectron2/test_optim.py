import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.solver.build import get_default_optimizer_params
from omegaconf import OmegaConf

from tests.detectron2.helpers import small_config
from topodet import connectivity
from topodet.detectron2 import build_optimizer, common_config
from topodet.detectron2.optim import EDGE_WEIGHTS_WITHOUT_DECAY, set_edge_weight_decay
from topodet.errors import ConfigError, WeightsError


@pytest.fixture
def detector(nano):
    return build_model(small_config(MODEL__TOPONET__PRETRAINED=str(nano.pth)))


def decays(optimizer):
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def lazy(**changes):
    """Return a LazyConfig's nodes as a shipped config has them, and the model not set yet."""
    call = LazyCall(build_optimizer)(
        params=LazyCall(get_default_optimizer_params)(
            model=None, weight_decay_norm=0.0, overrides=EDGE_WEIGHTS_WITHOUT_DECAY
        ),
        model="${.params.model}",
        image_format="${dataloader.train.mapper.image_format}",
        init_checkpoint="${train.init_checkpoint}",
        **{"sparsity": "adaptive", "sparsity_weight": 0.5, "lr": 0.1, "weight_decay": 1e-4, **changes},
    )
    data = {"train": {"mapper": {"image_format": "RGB"}}}
    content = {"optimizer": call, "dataloader": data, "train": {"init_checkpoint": ""}}
    return OmegaConf.create(content, flags={"allow_objects": True})


def make(config, model):
    """As Detectron2's lazyconfig_train_net.py does."""
    config.optimizer.params.model = model
    return instantiate(config.optimizer)


def test_weight_decay_of_edges(detector):
    optimizer = make(lazy(), detector)
    other = torch.optim.SGD(get_default_optimizer_params(detector), lr=0.1, weight_decay=1e-4)
    set_edge_weight_decay(other, detector, 0.0)
    for made in (optimizer, other):
        found = decays(made)
        for name, parameter in detector.named_parameters():
            assert found.pop(id(parameter)) == (0.0 if name.endswith("wiring.alpha") else 1e-4), name
        assert not found


def test_the_penalty_is_in_the_step(detector):
    optimizer = make(lazy(momentum=0.9), detector)
    assert type(optimizer) is torch.optim.SGD
    alpha = detector.backbone.bottom_up.stages[0].wiring.alpha
    before = alpha.detach().clone()
    expected = torch.autograd.grad(connectivity.penalty(detector, "adaptive"), alpha)[0]
    optimizer.zero_grad()
    optimizer.step()
    torch.testing.assert_close(alpha.detach(), before - 0.1 * 0.5 * expected)


def test_other_optimisers():
    model = build_model(small_config())
    assert isinstance(make(lazy(optimizer="AdamW"), model), torch.optim.AdamW)
    with pytest.raises(ConfigError, match="unknown optimizer 'AdmW'. Did you mean 'AdamW'"):
        make(lazy(optimizer="AdmW"), model)


def test_the_detector_is_checked(detector, nano):
    config = lazy()
    config.dataloader.train.mapper.image_format = "BGR"
    with pytest.raises(ConfigError, match="data loader reads BGR images, but the model expects RGB"):
        make(config, detector)
    detector.pixel_mean[0] = 1.0
    with pytest.raises(ConfigError, match="mean is"):
        make(lazy(), detector)
    other = build_model(small_config(MODEL__PIXEL_STD=[1.0, 1.0, 1.0]))
    make(lazy(), other)  # nothing is known about its weights
    config = lazy()
    config.train.init_checkpoint = str(nano.pth)
    with pytest.raises(ConfigError, match="std is"):
        make(config, other)


def test_a_pickle_as_initial_checkpoint(detector, tmp_path):
    config = lazy()
    config.train.init_checkpoint = str(tmp_path / "model.pkl")
    make(config, detector)  # not there: the checkpointer's to say, if it is needed at all
    torch.save({"model": object()}, tmp_path / "model.pkl")
    with pytest.raises(WeightsError, match="could run code"):
        make(config, detector)


def test_the_config_can_be_saved(tmp_path):
    LazyConfig.save(lazy(), str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    assert isinstance(make(again, build_model(small_config())), torch.optim.SGD)


def test_common_configs():
    first, second = common_config("common/optim.py"), common_config("common/optim.py")
    first.SGD.lr = 7
    assert second.SGD.lr == 0.02
    with pytest.raises(FileNotFoundError, match="ships no config common/nothing.py"):
        common_config("common/nothing.py")
