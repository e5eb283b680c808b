"""Grad-CAM panels of trained runs: which images, whose maps, what is written beside them."""

import sys

import numpy as np
import pytest
import torch

from tailwise import InputError, fold_tde
from tailwise.adjust import grad_cam
from tailwise.checks import extra
from tailwise.cli import main
from tailwise.experiments import measure
from tailwise.experiments.runs import open_run
from tailwise.experiments.trained import Asked
from tailwise.figures import Source, figure_data, grad_cam_panels
from tailwise.recognizer import Recognizer


def train(folder, name, *settings):
    with pytest.raises(SystemExit) as stopped:
        main(["train", name, "stages.0.epochs=4", *settings, "--seeds", "1", "--out", str(folder), "--json"])
    assert not stopped.value.code
    return Source(open_run(folder), lambda seed: measure.open_trained(seed, None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def lws(folder):
    return train(folder / "lws", "digits-lt/lws", "second.lws.stage.epochs=1")


@pytest.fixture(scope="module")
def causal(folder):
    return train(folder / "tde", "digits-lt/tde")


def expected_images(seed, after, num_images):
    """Of each class of few in turn, rarest first, the images whose prediction changes, in the order of the test set."""
    test = seed.stores.test()
    before = test.logits.argmax(axis=1)
    queues = []
    for c in sorted((c for c in range(10) if seed.published.per_class[c] < 20), key=lambda c: seed.counts.per_class[c]):
        queues.append([i for i in range(len(test)) if test.labels[i] == c and before[i] != after[i]])
    chosen = []
    while any(queues) and len(chosen) < num_images:
        chosen += [queue.pop(0) for queue in queues if queue]
    return chosen[:num_images]


def test_the_images_are_those_that_the_last_method_changes(lws, causal):
    (seed,), (first,) = causal.seeds, lws.seeds
    alpha = 3.0
    data = figure_data("grad-cam", [lws, causal], ["joint", "lws", "de-confound", "tde"], Asked(alpha=alpha))
    assert data.columns == 5
    folded = fold_tde(seed.model.classifier, alpha)
    with torch.no_grad():
        after = folded(torch.tensor(seed.stores.test().features)).argmax(dim=1).numpy()
    images = expected_images(seed, after, 5)
    assert len(images) == 5
    assert data.caption == (
        "digits-lt, imbalance ratio 50; seed 0; rare images whose prediction tde, alpha 3 changes from de-confound's; "
        "each map over its own maximum"
    )

    test, names = seed.data.test, seed.data.class_names
    classifier = measure.load_model(first.folder, "lws").classifier
    models = [
        first.model,
        Recognizer(first.model.backbone, classifier),
        seed.model,
        Recognizer(seed.model.backbone, folded),
    ]
    labels = ["joint", "lws", "de-confound", "tde, alpha 3"]
    for row, i in enumerate(images):
        image, *maps = data.panels[5 * row : 5 * row + 5]
        c = int(test.labels[i])
        np.testing.assert_array_equal(image.image, test.images[i, 0].numpy() / 16)
        assert image.title == f"{names[c]}\n{seed.counts.per_class[c]} training images"
        assert image.where is None
        x = seed.data.normalize(test.images[i : i + 1])
        for panel, model, label in zip(maps, models, labels, strict=True):
            where = grad_cam(model.backbone, model.classifier, x, test.labels[i : i + 1])[0].numpy()
            np.testing.assert_allclose(panel.where, where / max(where.max(), 1e-30), atol=1e-6)
            with torch.no_grad():
                says = int(model(x).argmax())
            assert panel.title == f"{label}\nsays {names[says]}, {'right' if says == c else 'wrong'}"
        assert maps[2].title.split("says ")[1] != maps[3].title.split("says ")[1]  # the prediction changed
    assert any(panel.where is not None and panel.where.max() == 1 for panel in data.panels)


def test_at_alpha_0_nothing_changes(causal):
    data = figure_data("grad-cam", [causal], asked=Asked(alpha=0.0))
    assert data.columns == 3
    assert "the first rare images, for tde, alpha 0 changes no prediction of de-confound's" in data.caption
    for i in range(0, len(data.panels), 3):
        np.testing.assert_allclose(data.panels[i + 1].where, data.panels[i + 2].where, atol=1e-5)


def test_methods_of_the_paper_unless_others_are_asked_for(lws, causal):
    data = figure_data("grad-cam", [lws, causal])
    assert data.columns == 5
    assert [panel.title.split("\n")[0].split(",")[0] for panel in data.panels[1:5]] == [
        "joint",
        "lws",
        "de-confound",
        "tde",
    ]
    ncm = figure_data("grad-cam", [lws], ["ncm"])
    assert ncm.columns == 2
    assert ncm.panels[1].title.startswith("ncm\n")


def test_panels_for_a_page_have_all_in_words(causal):
    panels = grad_cam_panels([causal], 3)
    data = figure_data("grad-cam", [causal])
    assert len(panels) == 3
    for row, (title, png) in enumerate(panels):
        words = [panel.title.replace("\n", " ") for panel in data.panels[3 * row : 3 * row + 3]]
        assert title.split("; ")[1:] == words
        assert title.startswith("digits/")
        assert png.startswith(b"\x89PNG")
        assert len(png) < 30_000
    assert len({png for _, png in panels}) == 3


def test_what_will_not_do_is_named(folder, causal, capsys, monkeypatch):
    other = train(folder / "other", "digits-lt/linear", "data.subset_seed=3")
    with pytest.raises(InputError, match=r"seed-0: expected the test images of .*/other/seed-0, got others"):
        figure_data("grad-cam", [other, causal])
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(SystemExit) as stopped:
        main(["plot", str(causal.run.path), "--figure", "grad-cam"])
    assert stopped.value.code == 2
    expected = f"tailwise: grad-cam: expected the package captum; {extra('explain')}\n"
    assert capsys.readouterr().err == expected
    assert not (causal.run.path / "figures/grad-cam.png").exists()
