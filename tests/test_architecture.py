"""Who may import whom, read from the source; what the core needs; what importing costs."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import tailwise

SRC = Path(tailwise.__file__).parent
LAYERS = [
    {"shapes", "checks", "seeds", "recognizer", "ranks", "machine"},
    {"counts"},
    {"data", "sampling", "backbones", "classifiers", "losses", "train", "evaluate"},
    {"adjust", "methods"},
    {"detect", "attachment", "estimator", "export", "own_features"},
    {"report"},
    {"recipes"},
    {"experiments"},
    {"deployment", "reproduction"},
    {"figures"},
    {"cli"},
    {"__main__"},
]
CORE = ("classifiers", "adjust", "losses", "sampling", "train")


def layer_of(part):
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def part_of(path):
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@functools.cache  # every test reads every file
def imports(path):
    """Dotted names of every module that a file imports, wherever in the file."""
    return tuple(_imports(path))


def _imports(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


FILES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_down(path):
    part = part_of(path)
    for name in imports(path):
        root, *rest = name.split(".")
        if root != "tailwise" or not rest:
            continue
        other = rest[0]
        if other == part:
            continue
        assert layer_of(other) < layer_of(part), (
            f"{part} (layer {layer_of(part)}) imports {other} (layer {layer_of(other)})"
        )


def test_every_part_has_a_layer():
    parts = {part_of(path) for path in FILES}
    assert parts <= set().union(*LAYERS)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("matplotlib", {"report"}),
        ("captum", {"adjust/grad_cam.py"}),
        ("rich", {"report", "cli"}),
        ("jinja2", {"report"}),
        ("sklearn", {"data/digits.py", "estimator"}),
        ("pydantic", {"recipes", "experiments", "reproduction"}),
        ("cyclopts", {"cli"}),
        ("faster_coco_eval", {"detect"}),
        ("jaxtyping", {"shapes"}),
        ("wandb", {"report"}),
        ("mlflow", {"report"}),
        ("PIL", {"data/files.py", "report"}),
        ("torchvision", {"backbones", "data/transforms.py", "data/prepare_cifar.py", "detect"}),
        ("timm", {"backbones"}),
        ("transformers", {"backbones"}),
        ("pyarrow", {"data/tables.py"}),
        ("datasets", {"data/hugging_face.py"}),
        ("webdataset", {"data/streaming.py"}),
        ("huggingface_hub", {"deployment/hub.py"}),
    ],
)
def test_libraries_stay_where_they_belong(library, allowed):
    users = {path for path in FILES if any(name.split(".")[0] == library for name in imports(path))}
    assert all(part_of(path) in allowed or str(path.relative_to(SRC)) in allowed for path in users), users


def test_core_imports_torch_numpy_and_safetensors_only():
    """In a process where nothing else that is not of the standard library can be imported by our code."""
    script = f"""
import sys, importlib
sys.path.insert(0, {str(SRC.parent)!r})
import torch, numpy, safetensors.torch, torch.utils.checkpoint  # their own needs are theirs
class Refuse:
    def find_spec(self, name, path=None, target=None):
        root = name.split(".")[0]
        if root in sys.stdlib_module_names or root in ("tailwise", "torch", "numpy", "safetensors"):
            return None
        raise ModuleNotFoundError(f"refused {{name}}", name=name)
sys.meta_path.insert(0, Refuse())
for name in {CORE!r}:
    importlib.import_module("tailwise." + name)
classifier = tailwise.CausalClassifier(8, 3) if (tailwise := sys.modules["tailwise"]) else None
x = torch.rand(4, 8)
classifier(x)
assert torch.allclose(tailwise.fold_tde(classifier, 1.0)(x), tailwise.tde(x, classifier, 1.0), atol=1e-5)
for library in ("pydantic", "cyclopts", "rich", "sklearn", "jaxtyping"):
    assert library not in sys.modules, library
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


def test_importing_the_package_loads_nothing():
    script = "import sys, tailwise; print(sorted({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_public_names_exist_and_are_listed_once():
    assert sorted(tailwise._HOME) == sorted(set(tailwise.__all__))
    for name in tailwise.__all__:
        assert getattr(tailwise, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tailwise.nonsense  # noqa: B018  # the access is the test
