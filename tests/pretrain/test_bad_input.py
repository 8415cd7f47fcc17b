"""Input that cannot be used is refused, or put up with, and named."""

from __future__ import annotations

import logging
import os
import re
import resource
import shutil

import pytest
import torch
from PIL import Image

from topodet import weights
from topodet.errors import ConfigError
from topodet.pretrain import main
from topodet.pretrain.command_line import parse
from topodet.pretrain.engine import DivergedError, check_finite

from .helpers import assert_same_tensors, load, options, train, write_images


def refusal(capsys, argv) -> str:
    """Return what the command line tells about input that it refuses."""
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return next(line for line in error.splitlines() if line.startswith("error: "))


class TestData:
    def test_no_folder_given(self, tmp_path, capsys):
        assert "no dataset given: give --data-dir DIR" in refusal(
            capsys, ["--output", str(tmp_path), "--device", "cpu"]
        )

    def test_missing_folder(self, tmp_path, capsys):
        error = refusal(capsys, options(tmp_path / "nowhere", tmp_path / "out"))
        assert "nowhere' does not exist; expected DIR/train/CLASS/IMAGE" in error
        assert not (tmp_path / "out").exists()

    def test_missing_split(self, tmp_path, capsys):
        images = write_images(tmp_path / "images", {"train": 3})
        error = refusal(capsys, options(images, tmp_path / "out"))
        assert "has no folder 'validation'" in error
        assert "--val-split" in error

    def test_empty(self, tmp_path, capsys):
        images = write_images(tmp_path / "images", {"validation": 3})
        (images / "train" / "class0").mkdir(parents=True)
        error = refusal(capsys, options(images, tmp_path / "out"))
        assert "cannot open split 'train'" in error
        assert "Found 0 images" in error

    def test_one_class(self, tmp_path, capsys):
        images = write_images(tmp_path / "images", {"train": 9, "validation": 3}, classes=1)
        assert "has one class, 'class0'; a classifier needs two" in refusal(capsys, options(images, tmp_path / "out"))

    def test_no_class_folders(self, tmp_path, capsys):
        images = write_images(tmp_path / "images", {"train": 9, "validation": 3}, classes=1)
        for split in ("train", "validation"):
            for path in (images / split / "class0").iterdir():
                path.rename(images / split / path.name)
        assert "images outside class folders" in refusal(capsys, options(images, tmp_path / "out"))

    def test_splits_with_other_classes(self, tmp_path, capsys):
        images = write_images(tmp_path / "images", {"train": 3, "validation": 3})
        (images / "validation" / "class2").rename(images / "validation" / "klass2")
        error = refusal(capsys, options(images, tmp_path / "out"))
        assert "1 only in 'train' (class2) and 1 only in 'validation' (klass2)" in error

    def test_names_that_no_checkpoint_gives_back(self, tmp_path, capsys):
        images = write_images(tmp_path / "images", {"train": 3, "validation": 3})
        for split in ("train", "validation"):
            os.rename(os.fsencode(images / split / "class2"), os.fsencode(images / split) + b"/caf\xe9")
        error = refusal(capsys, options(images, tmp_path / "out"))
        assert "class 'caf\\udce9' is not valid UTF-8 or contains a NUL character: rename it" in error
        os.rename(images, os.fsencode(tmp_path) + b"/\xe9")
        error = refusal(capsys, options(tmp_path / "\udce9", tmp_path / "out"))
        assert "--data-dir '" in error
        assert "udce9' is not valid UTF-8" in error
        assert "--output 'a\\x00b' is not valid UTF-8 or contains a NUL" in refusal(capsys, options(images, "a\0b"))

    @pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
    def test_an_experiment_lies_within_output(self, images, tmp_path, capsys, name):
        error = refusal(capsys, options(images, tmp_path / "out", "--experiment", name))
        assert f"--experiment {name!r} is outside --output" in error
        assert not list(tmp_path.iterdir())

    def test_class_map_with_other_capitals(self, images, tmp_path, capsys):
        names = tmp_path / "names.txt"
        names.write_text("class0\nClass1\nclass2\n")
        error = refusal(capsys, options(images, tmp_path / "out", "--class-map", str(names)))
        assert "names.txt has 'Class1' where" in error
        assert "has the folder 'class1': use the same capitalization in both" in error

    def test_other_number_of_classes(self, images, tmp_path, capsys):
        error = refusal(capsys, options(images, tmp_path, "--num-classes", "10"))
        assert "--num-classes 10, but" in error
        assert "has 3 classes" in error

    def test_fewer_images_than_an_update(self, images, tmp_path, capsys):
        error = refusal(capsys, options(images, tmp_path, "--batch-size", "64"))
        assert "an update needs 64 images, but there are 39: give a smaller --batch-size" in error

    def test_unknown_kind_of_dataset(self, images, tmp_path, capsys):
        error = refusal(capsys, options(images, tmp_path, "--dataset", "toch/cifar10"))
        assert "unknown kind of dataset 'toch'. Did you mean 'torch'" in error

    def test_dataset_not_downloaded(self, tmp_path, capsys):
        error = refusal(capsys, options(tmp_path, tmp_path / "out", "--dataset", "torch/cifar10"))
        assert "cannot open split 'train'" in error
        assert "not found" in error

    def test_streamed_data_cannot_stop(self, tmp_path, capsys):
        more = ("--dataset", "wds/some", "--on-bad-image", "stop")
        assert "'wds/some' is streamed" in refusal(capsys, options(tmp_path, tmp_path / "out", *more))


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


class TestBadImages:
    @pytest.fixture
    def spoilt(self, tmp_path):
        """Four unreadable training images, of which one is cut off in the middle, and one for validation."""
        images = write_images(tmp_path / "images", {"train": 8, "validation": 4})
        folder = images / "train"
        large = Image.effect_noise((256, 256), 80).convert("RGB")
        large.save(folder / "class0" / "02.jpg", quality=95)
        truncate(folder / "class0" / "02.jpg")
        (folder / "class1" / "03.png").write_bytes(b"")
        (folder / "class1" / "04.jpg").write_text("no image")
        (folder / "class2" / "05.png").unlink()
        (folder / "class2" / "05.png").symlink_to("nowhere.png")
        truncate(images / "validation" / "class1" / "01.png")
        return images

    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_skip(self, spoilt, tmp_path, capfd, workers):
        assert main(options(spoilt, tmp_path / "out", "--workers", workers)) == 0
        rows = load(tmp_path / "out" / "last.pth.tar")["history"]
        assert [row["bad_images"] for row in rows] == [5, 5]
        # The image that stands in for the unreadable one does not count: 11 of 12 were scored.
        assert rows[0]["eval_top1"] * 11 / 100 == pytest.approx(round(rows[0]["eval_top1"] * 11 / 100), abs=1e-9)
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cannot read the image")]
        # Named once, not once an epoch.
        assert len(lines) == 5
        for name in ("class0/02.jpg", "class1/03.png", "class1/04.jpg", "class2/05.png", "validation/class1/01.png"):
            assert sum(name in line for line in lines) == 1, name

    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_stop(self, tmp_path, capsys, workers):
        images = write_images(tmp_path / "images", {"train": 8, "validation": 4})
        truncate(images / "train" / "class0" / "02.jpg")
        error = refusal(capsys, options(images, tmp_path / "out", "--on-bad-image", "stop", "--workers", workers))
        assert "error: cannot read the image " in error
        assert "class0/02.jpg: " in error
        assert "--on-bad-image skip" in error

    def test_torchvision_folder(self, spoilt, tmp_path):
        # torchvision does not list a link that leads nowhere.
        (spoilt / "train" / "class2" / "05.png").unlink()
        (spoilt / "train" / "class2" / "05.png").write_bytes(b"")
        rows = train(spoilt, tmp_path / "out", "--dataset", "torch/image_folder", "--epochs", "1")
        assert rows[0]["bad_images"] == 5

    def test_none_readable(self, tmp_path, capsys):
        images = write_images(tmp_path / "images", {"train": 3, "validation": 3})
        for path in images.glob("*/*/*"):
            path.write_bytes(b"")
        assert "none of the 9 images can be read" in refusal(capsys, options(images, tmp_path / "out"))


class TestDivergence:
    def test_stops_and_keeps_the_last_good_checkpoint(self, images, tmp_path, capsys):
        # The rate is set each epoch: the first epoch's is tiny, the second's beyond all numbers.
        rate = ("--lr", "1e30", "--warmup-epochs", "2", "--warmup-lr", "1e-6", "--no-sched-on-updates")
        error = refusal(capsys, options(images, tmp_path, *rate, "--epochs", "4", "--log-interval", "50"))
        assert "in epoch 2, update 2 of 4 (update 6 of the run) at learning rate 5e+29" in error
        assert f"The last good checkpoint is {tmp_path / 'last.pth.tar'}" in error
        state = load(tmp_path / "last.pth.tar")
        assert state["epoch"] == 0
        assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
        assert len((tmp_path / "summary.csv").read_text().splitlines()) == 2

    def test_weights_that_are_no_numbers_are_not_saved(self):
        model = torch.nn.Linear(2, 2)
        check_finite(model, 0)
        model.bias.data[1] = float("nan")
        with pytest.raises(DivergedError, match="'bias' has a value that is not finite after .* epoch 4"):
            check_finite(model, 3)


def test_full_disk_leaves_the_old_checkpoint(images, tmp_path, capsys):
    assert main(options(images, tmp_path)) == 0
    state = load(tmp_path / "checkpoint-0.pth.tar")
    for path in tmp_path.glob("*.pth.tar"):
        path.unlink()
    torch.save(weights.with_digests(state), tmp_path / "last.pth.tar")
    shutil.rmtree(tmp_path / "tensorboard")
    before = (tmp_path / "last.pth.tar").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file can grow beyond this: what the operating system answers is what it answers on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        error = refusal(capsys, options(images, tmp_path, "--resume", "auto"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no space left for" in error
    assert ".pth.tar (needs" in error
    assert "Free some space" in error
    assert (tmp_path / "last.pth.tar").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    assert main(options(images, tmp_path, "--resume", "auto")) == 0
    train(images, tmp_path / "whole")
    assert_same_tensors(
        load(tmp_path / "last.pth.tar")["state_dict"], load(tmp_path / "whole/last.pth.tar")["state_dict"]
    )


class TestOptions:
    def test_unknown_model(self, images, tmp_path, capsys):
        error = refusal(capsys, options(images, tmp_path, "--model", "toponet5"))
        assert "unknown model 'toponet5'. Did you mean 'toponet50'" in error

    def test_model_argument(self, images, tmp_path, capsys):
        error = refusal(capsys, options(images, tmp_path, "--model-kwargs", "widht=8"))
        assert "toponet_nano cannot be created with the given arguments" in error
        assert "widht" in error

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("width", "expected KEY=VALUE, got 'width'"),
            ("=8", "expected KEY=VALUE, got '=8'"),
            ("the width=8", "expected KEY=VALUE, got 'the width=8'"),
            ("width={[]: 8}", r"cannot read depth=3 width={\[\]: 8}: unhashable type"),
            ("width=" + 9999 * "-" + "8", "cannot read depth=3 width=---+: it is nested too deeply"),
        ],
    )
    def test_words_that_are_no_arguments(self, images, tmp_path, capsys, word, message):
        error = refusal(capsys, options(images, tmp_path, "--model-kwargs", "depth=3", word))
        assert re.search(f"argument --model-kwargs: {message}", error)

    def test_unknown_optimiser(self, images, tmp_path, capsys):
        error = refusal(capsys, options(images, tmp_path, "--opt", "adamv"))
        assert "--opt 'adamv'" in error
        assert "Did you mean 'adam'" in error

    def test_initial_checkpoint(self, images, tmp_path, capsys):
        (tmp_path / "some.pth").write_bytes(b"no weights")
        error = refusal(capsys, options(images, tmp_path, "--initial-checkpoint", str(tmp_path / "some.pth")))
        assert "some.pth' cannot be read" in error
        code = b"cos\nmkdir\n(V" + str(tmp_path / "executed").encode() + b"\ntR."
        (tmp_path / "some.pth").write_bytes(code)
        error = refusal(capsys, options(images, tmp_path, "--initial-checkpoint", str(tmp_path / "some.pth")))
        assert "some.pth" in error
        assert not (tmp_path / "executed").exists()
        error = refusal(capsys, options(images, tmp_path, "--initial-checkpoint", str(tmp_path / "gone.pth")))
        assert "gone.pth' cannot be read: no weights file at" in error

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("batch_sise: 8", r"unknown key 'batch_sise'\. Did you mean 'batch_size'"),
            ("config: other.yaml", "unknown key 'config'"),
            ("amp: 1", "amp must be true or false, not 1"),
            ("lr: fast", "recipe.yaml: argument --lr: invalid float value: 'fast'"),
            ("sparsity: adaptif", "recipe.yaml: argument --sparsity: invalid choice: 'adaptif'"),
            ("- lr", "must contain one 'option: value' per line, but contains a list"),
            ("lr: [", "cannot be read as YAML"),
        ],
    )
    def test_config_file(self, tmp_path, text, message):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            parse(["-c", str(path)])

    def test_missing_config_file(self):
        with pytest.raises(ConfigError, match=r"no file at gone.yaml"):
            parse(["-c", "gone.yaml"])

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ("--sparsty uniform", "unknown option '--sparsty'. Did you mean '--sparsity'"),
            ("--batch-size 0", "--batch-size must be at least 1, not 0"),
            ("--epochs 0", "--epochs must be at least 1"),
            ("--lr -1", "--lr must be above 0"),
            ("--sparsity-weight -0.1", "--sparsity-weight must be at least 0"),
            ("--smoothing 1", "--smoothing must be at least 0 and below 1"),
            ("--num-classes 1", "--num-classes must be at least 2"),
            ("--jsd-loss", "--aug-splits 2"),
            ("--aug-splits 1", "--aug-splits must be 0 or at least 2"),
            ("--aug-splits 2 --mixup 0.2", "cannot be combined"),
            ("--mixup 0.2 --batch-size 7", "--batch-size must be even, not 7"),
            ("--in-chans 1 --input-size 3 32 32", "--in-chans 1 contradicts --input-size"),
            ("--aug-splits 2 --jsd-loss --bce-loss", "leave one out"),
            ("--val-split= --eval-metric top5", "--eval-metric top5 needs a validation split"),
        ],
    )
    def test_command_line(self, argv, message):
        with pytest.raises(ConfigError) as error:
            parse(argv.split())
        assert message in str(error.value)

    def test_batch_norm_over_processes_needs_gpus(self, images, tmp_path):
        with pytest.raises(ConfigError, match="--sync-bn works on GPUs only"):
            train(images, tmp_path, "--sync-bn")


def test_guard_reads_each_image_as_timm_does(images):
    from timm.data import create_dataset

    from topodet.pretrain.unreadable import SkipUnreadable

    dataset = create_dataset("", root=str(images / "train"))
    guarded = SkipUnreadable(dataset, "stop", count_substitutes=True)
    assert len(guarded) == len(dataset) == 39
    for index in (0, 20, 38):
        image, target = guarded[index]
        expected, label = dataset[index]
        assert (image.tobytes(), target) == (expected.tobytes(), label)
    assert not guarded.bad_images().any()


def test_warning_is_logged_by_name(images, tmp_path, caplog):
    copy = shutil.copytree(images, tmp_path / "images")
    truncate(copy / "train" / "class0" / "02.jpg")
    with caplog.at_level(logging.WARNING, logger="topodet"):
        train(copy, tmp_path / "out", "--epochs", "1")
    assert any("class0/02.jpg" in text and "using another one instead" in text for text in caplog.messages)
