"""From a trained run to what is deployed: the adjusted model in plain tensors, and the folder it is written to."""

from pathlib import Path
from typing import Any, Literal, get_args

from tailwise import checks
from tailwise.adjust import fold_linear, fold_tde
from tailwise.backbones import FrozenNet
from tailwise.classifiers import FoldedClassifier, LinearClassifier, MlpClassifier, NormalizedClassifier
from tailwise.deployment.deployed import CONFIG, WEIGHTS, DeployedModel
from tailwise.experiments import files
from tailwise.experiments.build_data import images_of
from tailwise.experiments.settings import flat, recorded
from tailwise.experiments.trained import Asked, Made, Trained
from tailwise.export import model_card, new_folder, write_onnx, write_program, write_weights
from tailwise.recognizer import Recognizer
from tailwise.train import load_state

Format = Literal["onnx", "torch-export", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)


def plain_model(made: Made) -> Recognizer:
    """The model of a method, its classifier in plain tensors."""
    own = made.model.classifier
    if isinstance(own, NormalizedClassifier):
        own = fold_tde(own, 0.0)
    elif isinstance(own, LinearClassifier):
        own = fold_linear(own)
    return Recognizer(made.model.backbone, own).eval()


def deployed(trained: Trained, model: Recognizer) -> DeployedModel:
    """A model of this run as it is deployed, with the run's normalization and class names, in eval mode."""
    shape, normalize, _ = images_of(trained.recipe)
    classifier = model.classifier
    kind: dict[str, Any]
    if isinstance(classifier, MlpClassifier):
        kind = {"mlp": {"num_layers": len(classifier.hidden) // 2 + 1, "hidden_features": classifier.weight.shape[1]}}
    elif not isinstance(classifier, FoldedClassifier):
        raise checks.InputError(
            f"method: expected one that is a matrix or layers of them, got a {type(classifier).__name__}"
        )
    else:
        there = {name: getattr(classifier, name) is not None for name in ("bias", "center")}
        kind = {"num_heads": classifier.num_heads, "norm": classifier.norm, **there}
    whole = DeployedModel(
        backbone=trained.recipe.backbone.name,
        class_names=trained.about["class_names"],
        image_shape=shape,
        scale=normalize.scale,
        mean=normalize.mean,
        std=normalize.std,
        **kind,
    )
    backbone = model.backbone.net if isinstance(model.backbone, FrozenNet) else model.backbone
    load_state(whole.backbone, backbone.state_dict())
    load_state(whole.classifier, classifier.state_dict())
    return whole.eval()


def export(trained: Trained, method: str, asked: Asked, kind: str, out: Path | None) -> Path:
    """Write a method's model, config.json and a model card (README.md) to a new folder, whole or not at all.

    Args:
        trained: one seed's model.
        method: its id.
        asked: a strength, or what to choose one by.
        kind: one of `FORMATS`.
        out: the folder; None for exported/METHOD-FORMAT in the seed's.

    Returns:
        The folder.

    Raises:
        InputError: a folder that holds something; what the method or the format needs is not there.
    """
    checks.choice("format", kind, FORMATS)
    path = out or trained.folder / "exported" / f"{method}-{kind}"
    with new_folder(path) as folder:
        made = trained.made(method, asked)
        model, row = deployed(trained, plain_model(made)), trained.row_of(made)
        shape = model.config["image_shape"]
        if kind == "onnx":
            write_onnx(model, folder / "model.onnx", shape)
        elif kind == "torch-export":
            write_program(model, folder / "model.pt2", shape)
        else:
            write_weights(model, folder / WEIGHTS)
        files.write_json(folder / CONFIG, model.config)
        settings = flat(recorded(trained.recipe))
        files.write_text(folder / "README.md", model_card(trained.about, row, method, settings))
    return path
