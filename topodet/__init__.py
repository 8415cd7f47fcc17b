"""topodet: backbones whose wiring is learned (TopoNets) for timm, MMDetection and Detectron2.

`import topodet` registers the networks in timm (`timm.create_model("toponet50")`); `import topodet.mmdet` and
`import topodet.detectron2` register the backbones there. The graphs of `topodet.topology` need no torch.
"""

import importlib

import wrapt

__version__ = "0.1.0"

# The networks are registered when timm is imported, or at once if it already is: a program that only works with
# graphs does not import torch.
wrapt.register_post_import_hook(lambda timm: importlib.import_module("topodet.models"), "timm")
