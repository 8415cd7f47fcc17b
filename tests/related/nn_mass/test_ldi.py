import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topodet.errors import ConfigError
from topodet.related.nn_mass.dense_cells import dense_cnn, dense_mlp
from topodet.related.nn_mass.ldi import ldi


def reference(maps, layer_inputs):
    """Mean and standard deviation of the singular values: autograd's Jacobians, numpy's SVD, in float64."""
    expected = []
    for function, batch in zip(maps, layer_inputs):
        values = []
        for x in batch:
            jacobian = torch.autograd.functional.jacobian(lambda v, f=function: f(v[None])[0], x)
            values.append(np.linalg.svd(jacobian.reshape(-1, x.numel()).numpy(), compute_uv=False))
        values = np.concatenate(values)
        expected.append((values.mean(), values.std()))
    return expected


def check(found, expected):
    assert [(layer.mean, layer.spread) for layer in found.layers] == [
        pytest.approx(pair, abs=1e-9) for pair in expected
    ]
    assert found.mean == pytest.approx(np.mean([mean for mean, _ in expected]))
    assert found.spread == pytest.approx(np.mean([spread for _, spread in expected]))


@pytest.mark.parametrize("act_layer", [nn.ReLU, nn.ELU, nn.Tanh])
def test_an_mlp_with_skips(act_layer):
    """Each layer's map is written out again; the classifier's has no derivative of an activation."""
    model = dense_mlp([(4, 5, 6), (3, 3, 2)], in_features=7, num_classes=5, act_layer=act_layer).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too
    x = images = torch.randn(3, 7, dtype=torch.float64)
    act, maps, inputs = act_layer(), [], []
    for cell in model.cells:
        outputs = torch.zeros(3, 0, dtype=torch.float64)
        for i, layer in enumerate(cell.layers):
            linear = layer.layer[0] if i else layer[0]
            maps.append(lambda v, linear=linear: act(F.linear(v, linear.weight.detach(), linear.bias.detach())))
            inputs.append(outputs[:, layer.reads] if i else x)
            outputs = torch.cat([outputs, maps[-1](inputs[-1])], dim=1)
        x = outputs[:, -cell.width :]
    maps.append(lambda v: v @ model.head.weight.detach().T)
    inputs.append(x)
    found = ldi(model, images)
    check(found, reference(maps, inputs))
    assert found.layers[-1].name == "head"
    alone = np.linalg.svd(model.head.weight.detach().numpy(), compute_uv=False)
    assert found.layers[-1].mean == pytest.approx(alone.mean())


@pytest.mark.parametrize(
    ("conv", "follow"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), [nn.ReLU(inplace=True)]),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), [nn.BatchNorm2d(4), nn.ELU()]),
        (nn.Conv2d(2, 4, 2, groups=2), []),
        (nn.Conv2d(2, 3, 3, padding=2, dilation=2, padding_mode="reflect"), [nn.BatchNorm2d(3)]),
        (nn.Conv2d(2, 3, 3, padding="same"), [nn.Dropout(0.5), nn.SiLU()]),
    ],
    ids=["relu in place", "stride, norm, elu", "grouped, alone", "norm alone", "dropout, silu"],
)
def test_a_convolution_is_its_map_at_the_given_size(conv, follow):
    for module in follow:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    images = torch.randn(2, 2, 5, 6)
    model = nn.Sequential(conv, *follow)
    copy = nn.Sequential(conv, *follow).double().eval().requires_grad_(False)
    expected = reference([copy], [images.double()])
    check(ldi(model, images), expected)


def test_a_cnn_layer_by_layer():
    model = dense_cnn([(2, 3, 1), (3, 2, 2)], in_chans=1, num_classes=2)
    images = torch.randn(2, 1, 6, 6)
    found = ldi(model.train(), images)
    assert [layer.name for layer in found.layers] == [
        "cells.0.layers.0.0",
        "cells.0.layers.1.layer.0",
        "cells.0.layers.2.layer.0",
        "cells.1.layers.0.0",
        "cells.1.layers.1.layer.0",
        "head",
    ]
    model = model.double().eval().requires_grad_(False)
    inputs = {}
    maps = [model.cells[0].layers[0], model.cells[0].layers[2].layer, model.cells[1].layers[0]]
    for function in maps:
        function.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}))
    model(images.double())
    expected = reference(maps, [inputs[function] for function in maps])
    for k, pair in zip((0, 2, 3), expected):
        assert (found.layers[k].mean, found.layers[k].spread) == pytest.approx(pair, abs=1e-9)


def test_an_orthogonal_layer_is_an_isometry():
    model = nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 6))
    for layer in (model[0], model[2]):
        nn.init.orthogonal_(layer.weight)
    found = ldi(model, torch.randn(4, 6))
    assert (found.mean, found.spread) == (pytest.approx(1, abs=1e-6), pytest.approx(0, abs=1e-6))


def test_an_activation_that_another_layer_reads_belongs_to_its_own_layer():
    """Two branches of one input; only the second is followed by an activation."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()

        def forward(self, x):
            return self.a(x) + self.act(self.b(x))

    model = Branches()
    found = ldi(model, torch.randn(3, 4))
    alone = np.linalg.svd(model.a.weight.detach().double().numpy(), compute_uv=False)
    assert found.layers[0].mean == pytest.approx(alone.mean())
    assert found.layers[1].mean < np.linalg.svd(model.b.weight.detach().numpy(), compute_uv=False).mean()


def test_the_model_is_left_alone():
    model = dense_cnn([(2, 3, 1)], in_chans=1, num_classes=2).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ldi(model, torch.randn(2, 1, 5, 5))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.ReLU(), (1, 4), "ReLU calls no nn.Linear and no nn.Conv2d"),
        (nn.Sequential(nn.Linear(4, 2)), (1, 3, 4), "0 reads [1, 3, 4]; a linear layer of an MLP reads [B, C]"),
        (
            nn.Sequential(nn.Conv2d(3, 64, 3)),
            (1, 3, 224, 224),
            "the Jacobian of 0 would be 3,154,176 x 150,528; give smaller inputs",
        ),
    ],
)
def test_what_has_no_jacobian_is_named(model, inputs, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ldi(model, torch.zeros(inputs))
