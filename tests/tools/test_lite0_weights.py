"""The package's weights as a published file, from a file laid out as the package's is."""

import timm
import torch

from tools.lite0_weights import main
from topodet import weights


def test_tensors_get_timms_names(tmp_path, capsys):
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"_{k}": tensor for k, tensor in enumerate(state.values())}, tmp_path / "package.pth")
    assert main([str(tmp_path / "package.pth"), "--output", str(tmp_path / "out")]) == 0
    [path] = (tmp_path / "out").iterdir()
    assert path.name == "tf_efficientnet_lite0.pth"
    file = weights.read(path)
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    assert file.state_dict.keys() == backbone.keys()
    assert all(torch.equal(file.state_dict[name], tensor) for name, tensor in backbone.items())
    assert (file.card["architecture"], file.card["mean"], file.card["std"]) == (
        "tf_efficientnet_lite0",
        [0.498] * 3,
        [0.502] * 3,
    )
    del state["conv_stem.weight"]
    torch.save(state, tmp_path / "other.pth")
    assert main([str(tmp_path / "other.pth"), "--output", str(tmp_path / "out")]) == 1
    assert "does not contain the 296 tensors of tf_efficientnet_lite0 in order" in capsys.readouterr().err
