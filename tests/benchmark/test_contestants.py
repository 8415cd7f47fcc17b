import pytest
import torch
from torch import nn

from topodet.benchmark.contestants import build, names
from topodet.benchmark.pruned import keep_edges
from topodet.benchmark.settings import make_settings
from topodet.errors import ConfigError
from topodet.models import TopoStage
from topodet.topology import Topology, make_topology

STAGE = {"nodes": 5, "in_chs": 3, "out_chs": 4, "size": 6, "batch": 2}
NETWORK = {"what": "network", "arch": "toponet_nano", "size": 32, "batch": 2}
PEER = """
from torch import nn

class Peer(nn.Module):
    def __init__(self, in_chs, out_chs, nodes, edges):
        super().__init__()
        assert len(edges) == nodes * (nodes - 1) // 2
        self.conv = nn.Conv2d(in_chs, out_chs, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)

def make(**arguments):
    return Peer(**arguments)

def wrong_shape(in_chs, out_chs, **_):
    return nn.Conv2d(in_chs, out_chs + 1, 3, stride=2, padding=1)

def no_module(**_):
    return 3

def raises(**_):
    raise RuntimeError("broken")
"""


def settings(**options):
    return make_settings(**{**STAGE, **options})


def gradients(contestant):
    contestant.module.train()
    contestant.step("train")
    return {name: p.grad for name, p in contestant.module.named_parameters()}


@pytest.mark.parametrize(
    ("name", "given"), [("chain", torch.contiguous_format), ("chain_channels_last", torch.channels_last)]
)
def test_the_chain_is_the_nodes_one_after_another(name, given):
    chain, model = build(settings(), name), build(settings(), "model")
    assert chain.inputs[0].is_contiguous(memory_format=given)
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=given)
    expected = x
    for node in model.module.nodes.train():  # in evaluation each has statistics of its own inputs
        expected = node.norm(node.conv_pw(node.conv_dw(expected.relu())))
    assert torch.equal(chain.module.train()(x), expected)
    assert chain.edges is None
    own = {type(module).__module__ for module in chain.module.modules()} - {"topodet.benchmark.stages"}
    assert all(name.startswith("torch.nn") for name in own)  # the floor stays where it is when topodet changes
    assert not any("alpha" in name for name, _ in chain.module.named_parameters())


@pytest.fixture
def in_float64():
    """Where the order of a sum does not show."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "options", [STAGE, {**STAGE, "topology": "residual"}, NETWORK], ids=["stage", "residual", "net"]
)
def test_the_plain_loop_computes_what_the_model_does(options, in_float64):
    made = make_settings(**options)
    plain, model = build(made, "plain"), build(made, "model")
    torch.testing.assert_close(plain.predict(), model.predict())
    expected = gradients(model)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()))


def test_who_takes_part():
    chains = ("chain", "chain_channels_last")
    assert names(settings()) == ("model", "plain", *chains, "fused")
    assert names(settings(compile=True)) == ("model", "plain", *chains, "fused")
    assert names(settings(memory_format="channels_last")) == ("model", "plain", *chains, "fused")
    pruned = ("pruned", "fused_pruned")
    assert names(make_settings(**NETWORK, keep=0.5)) == ("model", "plain", *chains, "resnet50", "fused", *pruned)
    assert names(settings(contestants=("chain", "model"))) == ("model", "chain")
    with pytest.raises(ConfigError, match="unknown --contestants 'modle'. Did you mean 'model'"):
        names(settings(contestants=("modle",)))


@pytest.mark.parametrize(("name", "other"), [("fused", "model"), ("fused_pruned", "pruned")])
def test_the_fused_model_computes_what_the_model_does(name, other):
    # Larger than NETWORK: the statistics of two values, which differ by rounding, would make noise of what follows.
    made = make_settings(**{**NETWORK, "size": 64}, keep=0.8)
    fused, model = (build(made, which) for which in (name, other))
    assert fused.modes == ("eval",)
    assert fused.edges == model.edges
    with torch.no_grad():
        torch.testing.assert_close(fused.predict(), model.predict(), rtol=1e-3, atol=1e-3)


def test_modes_and_gradients():
    model = build(settings(), "model")
    assert model.modes == ("train", "eval")
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model).values())
    assert model.inputs[0].grad.abs().sum() > 0
    first = {name: p.grad.clone() for name, p in model.module.named_parameters()}
    model.step("train")  # gradients are dropped, not summed
    for name, p in model.module.named_parameters():
        torch.testing.assert_close(p.grad, first[name], msg=name)
    model.drop_gradients()
    assert all(p.grad is None for p in [*model.module.parameters(), *model.inputs])
    model.module.eval()
    model.step("eval")
    assert all(p.grad is None for p in model.module.parameters())


def test_resnet_and_precision():
    made = make_settings(**NETWORK, dtype="bfloat16", memory_format="channels_last")
    resnet = build(made, "resnet50")
    assert resnet.predict().dtype == torch.bfloat16
    assert resnet.module.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert resnet.edges is None


@pytest.mark.parametrize(
    "graph",
    [make_topology("complete", 26), make_topology({"name": "random", "p": 0.5}, 20), make_topology("residual", 9)],
)
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_kept_edges_connect_every_node(graph, share):
    kept = keep_edges(graph, share)  # a Topology refuses nodes on no path
    assert kept.num_edges == round(share * graph.num_edges)
    assert set(kept.edges) <= set(graph.edges)
    assert kept == keep_edges(graph, share)


def test_a_fifth_of_the_edges():
    assert keep_edges(make_topology("complete", 26), 0.2).num_edges == 65
    chosen = [len(keep_edges(make_topology("complete", n), 0.2).edges) for n in (14, 20, 26, 14)]
    pruned = build(make_settings(what="network", arch="toponet50", size=32, batch=2, keep=0.2), "pruned")
    assert pruned.edges == sum(chosen) == 18 + 38 + 65 + 18
    with pytest.raises(ConfigError, match=r"--keep 0.1: 1 of 6 edges do not connect 4 nodes; give at least 0.500"):
        keep_edges(Topology(4, make_topology("complete", 4).edges), 0.1)


def test_a_module_of_the_users_own(tmp_path):
    (tmp_path / "peer.py").write_text(PEER)
    peer = build(settings(module=f"{tmp_path}/peer.py:make"), "module")
    assert isinstance(peer.module.conv, nn.Conv2d)
    assert not isinstance(peer.module, TopoStage)
    assert gradients(peer)["conv.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("peer.py", r"give PATH.py:FUNCTION, e.g. peer.py:make"),
        ("nowhere.py:make", r"no file at .*nowhere.py \(working folder"),
        ("peer.py:mkae", r"unknown function of .*peer.py 'mkae'. Did you mean 'make'"),
        ("peer.py:wrong_shape", r"module: its output is \(2, 5, 3, 3\), but must be a tensor of \(2, 4, 3, 3\)"),
        ("peer.py:no_module", "returned int, but must return a torch.nn.Module"),
        ("peer.py:raises", r"raises\(in_chs=3, out_chs=4, nodes=5.* failed: RuntimeError: broken"),
        ("syntax.py:make", "importing .*syntax.py failed: SyntaxError"),
        ("peer.txt:make", r"not a Python file; its name must end in .py"),
    ],
)
def test_a_module_that_cannot_be_used(tmp_path, spec, message):
    (tmp_path / "peer.py").write_text(PEER)
    (tmp_path / "peer.txt").write_text(PEER)
    (tmp_path / "syntax.py").write_text("def make(:")
    with pytest.raises(ConfigError, match=message):
        build(settings(module=f"{tmp_path}/{spec}"), "module")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "stage62"}, "unknown --preset 'stage62'. Did you mean 'stage26'"),
        ({"what": "stages"}, "unknown --what 'stages'. Did you mean 'stage'"),
        ({"arch": "toponet5"}, "Did you mean 'toponet50'"),
        ({"topology": "compete"}, "Did you mean 'complete'"),
        ({"dtype": "float"}, "unknown --dtype 'float'"),
        ({"memory_format": "nhwc"}, "unknown --memory-format 'nhwc'"),
        ({"malloc": "steadi"}, "unknown --malloc 'steadi'. Did you mean 'steady'"),
        ({"frameworks": ("mmdet",)}, "unknown --frameworks 'mmdet'. Did you mean 'mmdetection'"),
        ({"device": "gpu"}, "--device gpu: unknown to torch"),
        ({"device": "cuda:99"}, r"--device cuda:99: this torch .* sees \d+ GPUs; use --device cpu"),
        ({"device": "meta"}, "cpu and cuda only"),
        ({"keep": 0.0}, r"--keep 0.0: .* \(0, 1\]"),
        ({"keep": 1.5}, r"--keep 1.5: .* \(0, 1\]"),
        ({"nodes": 1}, "--nodes 1: a stage needs at least 2 nodes"),
        ({"growth": (7, 1)}, "--growth 1: a stage needs at least 2 nodes"),
        ({"what": "network", "growth": (7,)}, "--growth .* with --what stage"),
        ({"what": "detector", "keep": 0.5}, "not for detectors"),
        ({"rounds": 0}, "--rounds 0: give at least 1"),
        ({"batch": 0}, "--batch 0: give at least 1"),
        ({"what": "network", "batch": 1, "size": 32}, "one value per channel"),
    ],
)
def test_settings_that_make_no_benchmark(options, message):
    with pytest.raises(ConfigError, match=message):
        make_settings(**options)


def test_options_override_a_preset():
    preset = make_settings("stage26")
    assert (preset.nodes, preset.in_chs, preset.out_chs, preset.size, preset.batch) == (26, 256, 512, 28, 8)
    assert (preset.device, preset.dtype, preset.memory_format) == ("cpu", "float32", "channels_last")
    changed = make_settings("toponet50_compiled", batch=4, arch=None)
    assert (changed.what, changed.arch, changed.compile, changed.batch, changed.size) == (
        "network",
        "toponet50",
        True,
        4,
        224,
    )
