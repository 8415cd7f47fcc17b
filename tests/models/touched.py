from collections.abc import Iterator

from torch import nn


def touched(kind: type[nn.Module], *args) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose call somebody waits for or has changed, by what was done to them; they keep the shape of images."""
    yield "subclass", type("Mine", (kind,), {})(*args)
    for name, register, hook in (
        ("doubled by a hook", "register_forward_hook", lambda module, inputs, output: 2 * output),
        ("halved by a hook", "register_forward_pre_hook", lambda module, inputs: inputs[0] / 2),
        ("gradient hook", "register_full_backward_hook", lambda module, inputs, outputs: None),
    ):
        layer = kind(*args)
        getattr(layer, register)(hook)
        yield name, layer
    patched = kind(*args)
    patched.forward = lambda x: x + 1
    yield "patched", patched
