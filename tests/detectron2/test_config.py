import pytest
from detectron2.config import get_cfg

from topodet.detectron2 import add_topodet_config, load_config
from topodet.errors import ConfigError


def test_the_node_is_added_once_and_to_an_unchanged_config():
    cfg, plain = get_cfg(), get_cfg()
    add_topodet_config(cfg)
    cfg.MODEL.TOPONET.ARCH = "toponet_nano"
    add_topodet_config(cfg)
    assert cfg.MODEL.TOPONET.ARCH == "toponet_nano"
    del cfg.MODEL["TOPONET"], cfg.MODEL["CONNECT"], cfg.MODEL["CONNECTED_TIMM"], cfg.SOLVER["OPTIMIZER"]
    assert cfg == plain


def test_a_file_and_options(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {TOPONET: {ARCH: toponet_small, TOPOLOGY: {NAME: random, P: 0.8}}}\nVERSION: 2\n")
    cfg = load_config(path, ["SOLVER.MAX_ITER", "7", "MODEL.TOPONET.SEED", 3])
    node = cfg.MODEL.TOPONET
    assert (node.ARCH, dict(node.TOPOLOGY), node.SEED) == ("toponet_small", {"NAME": "random", "P": 0.8}, 3)
    assert cfg.SOLVER.MAX_ITER == 7
    assert not cfg.is_frozen()
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(cfg.dump())
    assert load_config(dumped).MODEL.TOPONET == cfg.MODEL.TOPONET


@pytest.mark.parametrize(
    ("text", "opts", "words"),
    [
        (
            "MODEL: {TOPONET: {ARHC: toponet50}}",
            [],
            "unknown key MODEL.TOPONET.ARHC in .*Did you mean 'MODEL.TOPONET.ARCH'",
        ),
        ("SOLVER: {BASE_LRR: 1}", [], "unknown key SOLVER.BASE_LRR in .*Did you mean 'SOLVER.BASE_LR'"),
        ("", ["MODEL.TOPONET.PRETRAIND", "x"], "MODEL.TOPONET.PRETRAIND.*Did you mean 'MODEL.TOPONET.PRETRAINED'"),
        ("", ["SOLVER.MAX_ITER", "many"], "options at the end.*SOLVER.MAX_ITER"),
        ("", ["SOLVER.MAX_ITER"], "must be KEY VALUE pairs, got 1 words: SOLVER.MAX_ITER"),
    ],
)
def test_mistakes_are_named(text, opts, words, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"{text}\nVERSION: 2\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path, opts)


def test_a_missing_file():
    with pytest.raises(ConfigError, match=r"no config file at nowhere\.yaml .*--config-file"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("lazy.py", "model = None\n", r"lazy\.py is Python, not YAML.*lazyconfig_train_net\.py.*DetectionCheckpointer"),
        ("prose.yaml", "no keys at all\n", r"prose\.yaml contains a str; a config has keys such as MODEL"),
        ("list.yaml", "- MODEL\n", r"list\.yaml contains a list"),
    ],
)
def test_a_file_that_is_not_a_yaml_config(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / name)
