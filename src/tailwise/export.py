"""Files that a trained model leaves the library in: ONNX, torch.export, safetensors, with a card that describes it."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tailwise import checks

GROUPS = ("many", "medium", "few", "all")


def write_onnx(model: nn.Module, path: Path, image_shape: Sequence[int]) -> None:
    """Write a model of images as bytes as ONNX: input `images` uint8 [batch, channels, H, W], output `logits`.

    Args:
        model: in eval mode, uint8 [N, *image_shape] to logits [N, C].
        path: one file, weights included.
        image_shape: channels, H, W.

    Raises:
        InputError: onnx or onnxscript are not installed.
    """
    names = {"input_names": ["images"], "output_names": ["logits"]}
    try:
        torch.onnx.export(
            model,
            (_example(image_shape),),
            path,
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
            **names,  # type: ignore[arg-type]  # mypy takes them for any of its arguments
        )
    except ModuleNotFoundError as error:
        raise checks.InputError(
            f"format: onnx needs {error.name}, which is not installed; {checks.extra('onnx')}"
        ) from error


def write_program(model: nn.Module, path: Path, image_shape: Sequence[int]) -> None:
    """Write a model of images as bytes with torch.export; `torch.export.load(path).module()` runs it, tailwise or not.

    Arguments as in `write_onnx`.
    """
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (_example(image_shape),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers as safetensors, under their names."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path)


def _example(image_shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros(2, *image_shape, dtype=torch.uint8)  # two: torch.export takes a batch of one for a constant


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` when the block ends well, and goes when it does not.

    Raises:
        InputError: `path` holds something already, or cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise checks.InputError(f"out: expected a new or empty folder, got {path}, which holds something")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    except OSError as error:
        raise checks.InputError(f"{path}: cannot write ({error})") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def model_card(about: Mapping[str, Any], row: Mapping[str, Any], method: str, settings: Mapping[str, Any]) -> str:
    """A model's description in Markdown: data, counts, metrics, settings, intended use, limits.

    Args:
        about: what its checkpoint says: recipe, seed, protocol, counts, published_counts, class_names, subset_hash,
            versions.
        row: its accuracies on test in percent, by group and per class, and how strong its adjustment is.
        method: its row in tables.
        settings: every setting by its dotted name.

    Returns:
        The text, with a head that the Hugging Face hub reads.
    """
    counts, names = about["counts"], about["class_names"]
    data, protocol = about["recipe"]["data"]["name"], about["protocol"]
    strengths = {key: row[key] for key in ("alpha", "norm_power") if key in row}
    strength = "".join(f", {key.replace('_', ' ')} {s['value']:g} (from {s['from']})" for key, s in strengths.items())
    adjusted = "It was adjusted for classes that are met equally often. Where they are not, choose the strength anew."
    lines = [
        "---",
        "library_name: tailwise",
        "tags: [image-classification, long-tailed-recognition]",
        "---",
        f"# {about['recipe']['name']}: {method}",
        "",
        f"An image classifier of {len(names)} classes, trained on long-tailed data. Classifier: {method}{strength}.",
        "",
        "## Data",
        "",
        f"{data}: {sum(counts)} training images, at most {max(counts)} and at least {min(counts)} of a class.",
        f"Protocol {protocol}, seed {about['seed']}, subset `{about['subset_hash'][:12]}`.",
        "",
        "## Metrics",
        "",
        "Accuracy in percent on the test split, by images of the class in the published training set: many (> 100),",
        "medium, few (< 20).",
        "",
        "| " + " | ".join(GROUPS) + " |",
        "|" + "---|" * len(GROUPS),
        "| " + " | ".join(_shown(row[group]) for group in GROUPS) + " |",
        "",
        "| class | trained on | accuracy |",
        "|---|---|---|",
        *(f"| {_cell(n)} | {c} | {_shown(a)} |" for n, c, a in zip(names, counts, row["per_class"], strict=True)),
        "",
        "## Use",
        "",
        "For images like those it was trained on, as bytes, in the size and range that `config.json` names.",
        "The output is one logit per class, in the order of the table above.",
        "",
        "## Limits",
        "",
        f"- Every image gets one of these {len(names)} classes, whatever it shows.",
        "- The numbers are of one seed and one test split; over few images they spread.",
        "- Probabilities are not calibrated.",
        *([f"- {adjusted}"] if strengths else []),
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in settings.items()),
        *(f"| made with {_cell(name)} | {_cell(value)} |" for name, value in about["versions"].items()),
    ]
    return "\n".join(lines) + "\n"


def _shown(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.1f}"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
