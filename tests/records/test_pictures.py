from matplotlib.figure import Figure

from topodet.records.pictures import digest, is_current, save_picture


def drawn(value=2.0, title="a title", bars=(1.0, 2.0)):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [1.0, value], label="line")
    left.set_title(title)
    right.bar([0, 1], bars)
    return figure


def test_a_picture_is_current_while_it_shows_the_same(tmp_path):
    path = save_picture(drawn(), tmp_path / "picture.png")
    assert is_current(drawn(), path)
    assert is_current(drawn(2.0 + 1e-9), path)
    for other in (drawn(2.001), drawn(title="another"), drawn(bars=(1.0, 2.5))):
        assert not is_current(other, path)


def test_other_files_are_not_current(tmp_path):
    assert not is_current(drawn(), tmp_path / "picture.png")
    drawn().savefig(tmp_path / "picture.png")
    assert not is_current(drawn(), tmp_path / "picture.png")


def test_drawing_changes_no_digest(tmp_path):
    figure = drawn()
    before = digest(figure)
    save_picture(figure, tmp_path / "picture.png")
    assert digest(figure) == before
