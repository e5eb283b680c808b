"""What every public classifier promises, whatever its formula."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn import functional as F

import tailwise.classifiers
from tailwise.classifiers import (
    CapsuleClassifier,
    CausalClassifier,
    CosineClassifier,
    FoldedClassifier,
    LinearClassifier,
    MlpClassifier,
    ScaledClassifier,
    capsule_logits,
    causal_logits,
    cosine_logits,
)

D, C = 12, 5


def scaled(bias):
    classifier = ScaledClassifier(torch.randn(C, D), bias)
    classifier.scale.data.copy_(torch.rand(C) + 0.5)  # not where it starts
    return classifier


# No default among the settings: a classifier that forgets one shows. After a comma: a variant of the same type.
CLASSIFIERS = {
    "CapsuleClassifier": lambda: CapsuleClassifier(D, C, num_heads=3, tau=8.0),
    "CausalClassifier": lambda: CausalClassifier(D, C, num_heads=3, tau=8.0, gamma=0.25),
    "CosineClassifier": lambda: CosineClassifier(D, C, num_heads=3, tau=8.0),
    "FoldedClassifier": lambda: FoldedClassifier(torch.randn(C, D), num_heads=3, norm="capsule"),
    "FoldedClassifier, bias": lambda: FoldedClassifier(torch.randn(C, D), bias=torch.randn(C)),
    "FoldedClassifier, center": lambda: FoldedClassifier(torch.randn(C, D), norm="unit", center=torch.randn(D)),
    "FoldedClassifier, both": lambda: FoldedClassifier(
        torch.randn(C, D), num_heads=3, norm="unit", bias=torch.randn(C), center=torch.randn(D)
    ),
    "LinearClassifier": lambda: LinearClassifier(D, C),
    "LinearClassifier, no bias": lambda: LinearClassifier(D, C, bias=False),
    "MlpClassifier": lambda: MlpClassifier(D, C, num_layers=3, hidden_features=9),
    "MlpClassifier, one layer": lambda: MlpClassifier(D, C, num_layers=1),
    "ScaledClassifier": lambda: scaled(bias=torch.randn(C)),
    "ScaledClassifier, no bias": lambda: scaled(bias=None),
}
FUNCTIONS = {
    "CapsuleClassifier": lambda x, module: capsule_logits(x, module.weight, num_heads=3, tau=8.0),
    "CausalClassifier": lambda x, module: causal_logits(x, module.weight, num_heads=3, tau=8.0, gamma=0.25),
    "CosineClassifier": lambda x, module: cosine_logits(x, module.weight, num_heads=3, tau=8.0),
    "FoldedClassifier, bias": lambda x, module: F.linear(x, module.weight, module.bias),
    "LinearClassifier": lambda x, module: F.linear(x, module.weight, module.bias),
    "MlpClassifier, one layer": lambda x, module: F.linear(x, *module.parameters()),
    "ScaledClassifier": lambda x, module: module.scale * F.linear(x, module.weight, module.bias),
    "ScaledClassifier, no bias": lambda x, module: module.scale * F.linear(x, module.weight),
}

every_classifier = pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)


def features(num_rows=6, dtype=torch.float32):
    return torch.randn(num_rows, D, generator=torch.Generator().manual_seed(num_rows)).to(dtype)


def test_every_public_classifier_is_here():
    public = {name for name in tailwise.classifiers.__all__ if name.endswith("Classifier")}
    names = {name: name.split(",")[0] for name in CLASSIFIERS}
    assert set(names.values()) == public - {"NormalizedClassifier"}  # the type of the three that TDE takes
    for name, make in CLASSIFIERS.items():
        assert type(make()).__name__ == names[name]


@every_classifier
@pytest.mark.parametrize("num_rows", [0, 1, 2, 7])
def test_logits_have_a_row_per_example_and_a_column_per_class(make, num_rows):
    assert make()(features(num_rows)).shape == (num_rows, C)


@every_classifier
def test_logits_are_the_same_in_train_and_eval(make):
    classifier, x = make(), features()
    for _ in range(2):
        assert torch.equal(classifier.train()(x), classifier.eval()(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_equals_the_module(name):
    classifier, x = CLASSIFIERS[name](), features()
    assert torch.equal(classifier(x), FUNCTIONS[name](x, classifier))


@every_classifier
def test_repr_tells_class_and_sizes(make):
    classifier = make()
    assert repr(classifier).startswith(type(classifier).__name__)
    assert f"{D}, {C}" in repr(classifier)


def through_state_dict(classifier, make):
    file = io.BytesIO()
    torch.save(classifier.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


COPIES = {
    "state_dict": through_state_dict,
    "pickle": lambda classifier, make: pickle.loads(pickle.dumps(classifier)),
    "deepcopy": lambda classifier, make: copy.deepcopy(classifier),
}


@every_classifier
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_gives_equal_logits_and_is_independent(make, copied):
    classifier, x = make(), features()
    logits = classifier(x).detach()
    twin = copied(classifier, make)
    assert torch.equal(twin(x), logits)
    with torch.no_grad():
        for tensor in (*classifier.parameters(), *classifier.buffers()):
            tensor.zero_()
    assert torch.equal(twin(x), logits)


@every_classifier
def test_a_state_dict_of_other_tensors_is_refused(make):
    state = make().state_dict()
    name = list(state)[-1]
    with pytest.raises(RuntimeError, match=name):
        make().load_state_dict({key: value for key, value in state.items() if key != name})


@every_classifier
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 5e-2)], ids=str)
def test_other_precisions_give_the_same_logits_in_their_own_type(make, dtype, tolerance):
    classifier, x = make(), features()
    expected = classifier(x)
    logits = classifier.to(dtype)(x.to(dtype))
    assert logits.dtype is dtype
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


@every_classifier
def test_autocast_gives_near_logits_and_finite_gradients(make):
    classifier, x = make(), features().requires_grad_()
    expected = classifier(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(x)
        loss = F.cross_entropy(logits, torch.arange(len(x)) % C)
    loss.backward()
    assert (logits - expected).abs().max() <= 5e-2 * expected.abs().max()
    for leaf in (x, *classifier.parameters()):
        assert leaf.grad.isfinite().all()


@every_classifier
def test_features_are_not_modified(make):
    x = features()
    before = x.clone()
    make()(x)
    assert torch.equal(x, before)
