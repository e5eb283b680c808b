"""Adjusted models beside the checkpoint they were made from: a file each, tensors and how they are put together."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tailwise import checks
from tailwise.classifiers import FoldedClassifier, MlpClassifier
from tailwise.experiments.settings import whole_stage
from tailwise.methods.oltr import MetaEmbeddingClassifier, ModulatedBackbone
from tailwise.recognizer import Recognizer
from tailwise.train import load_checkpoint, load_state, save_checkpoint


def adjusted_path(folder: Path, method: str) -> Path:
    """Where the adjusted model of a method is kept, below a seed's folder."""
    return folder / "adjusted" / f"{method}.safetensors"


def save_adjusted(path: Path, model: Recognizer, about: dict[str, Any], *, own_features: bool) -> str:
    """Write an adjusted classifier, with its backbone where that is its own; returns the digest.

    Raises:
        InputError: the file cannot be written.
    """
    classifier = model.classifier
    if isinstance(classifier, FoldedClassifier):
        kind: dict[str, Any] = {"classifier": "folded", "num_heads": classifier.num_heads, "norm": classifier.norm}
    elif isinstance(classifier, MetaEmbeddingClassifier):
        num_classes, width = classifier.weight.shape
        sizes = {"in_features": width, "num_classes": num_classes, "tau": classifier.tau}
        kind = {"classifier": "meta-embedding", "meta_embedding": sizes}
        if isinstance(model.backbone, ModulatedBackbone):
            kind["map_size"] = list(model.backbone.attention.map_size)
    else:
        assert isinstance(classifier, MlpClassifier)
        num_classes, width = classifier.last.weight.shape
        sizes = {"in_features": classifier.in_features, "num_classes": num_classes, "hidden_features": width}
        kind = {"classifier": "mlp", "mlp": {**sizes, "num_layers": len(classifier.hidden) // 2 + 1}}
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"{path.parent}: cannot make the folder ({error.strerror})") from error
    whole = model.state_dict()
    state = {name: tensor for name, tensor in whole.items() if own_features or name.startswith("classifier.")}
    return save_checkpoint(path, state, {**about, **kind, "own_features": own_features})


@dataclass(frozen=True)
class Kept:
    """An adjusted model read back. about: what was written with it."""

    model: Recognizer
    digest: str
    own_features: bool
    about: dict[str, Any]


def load_adjusted(path: Path, first: Recognizer, digest: str) -> Kept:
    """The adjusted model in a file, on the backbone of the first stage's model where it has none of its own.

    Raises:
        InputError: no such file, a corrupt one, or one made from another checkpoint than `digest`.
    """
    checkpoint = load_checkpoint(path)
    meta, state = checkpoint.meta, checkpoint.state
    if meta.get("of") != digest:
        raise checks.InputError(f"{path}: made from checkpoint {str(meta.get('of'))[:12]}, expected {digest[:12]}")
    if "second_stage" in (notes := meta.get("notes", {})):
        notes["second_stage"] = whole_stage(notes["second_stage"])
    own_features = bool(meta["own_features"])
    backbone = copy.deepcopy(first.backbone) if own_features else first.backbone
    if "map_size" in meta:
        backbone = ModulatedBackbone(backbone, tuple(meta["map_size"]))
    if own_features:
        load_state(backbone, state, prefix="backbone.")
    classifier: nn.Module
    if meta["classifier"] == "folded":
        tensors = {name: state.get(f"classifier.{name}") for name in ("weight", "bias", "center")}
        classifier = FoldedClassifier(**tensors, num_heads=meta["num_heads"], norm=meta["norm"])  # type: ignore[arg-type]  # only weight is never None
    else:
        memory = meta["classifier"] == "meta-embedding"
        classifier = MetaEmbeddingClassifier(**meta["meta_embedding"]) if memory else MlpClassifier(**meta["mlp"])
        load_state(classifier, state, prefix="classifier.")
    return Kept(Recognizer(backbone, classifier).eval(), checkpoint.digest, own_features, meta)
