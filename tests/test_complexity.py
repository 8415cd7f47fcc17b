import pytest
import timm
import torch
from torch import nn

from topodet.complexity import multiply_adds, parameters


def test_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4), nn.Flatten()
    )
    model.append(nn.Linear(8 * 8 * 4, 5))
    # 16x8 pixels: 27 products for each of 8*16*8 outputs, 18 for 8*8*4, then a matrix product.
    assert multiply_adds(model, (3, 16, 8)) == 27 * 8 * 16 * 8 + 18 * 8 * 8 * 4 + 8 * 8 * 4 * 5
    assert next(model.parameters()).device == torch.device("cpu")


# The counts that timm's and torchvision's own tables print for these.
@pytest.mark.parametrize(
    ("name", "size", "products"), [("resnet50", 25_557_032, 4.09e9), ("mobilenetv2_100", 3_504_872, 0.30e9)]
)
def test_known_networks(name, size, products):
    model = timm.create_model(name)
    assert parameters(model) == (size, 0)
    assert multiply_adds(model) == pytest.approx(products, rel=0.01)
