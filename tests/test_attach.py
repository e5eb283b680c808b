"""On other libraries' models, built tiny and without weights: found, trained, saved, adjusted, refused."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tailwise
from tailwise.attachment import AttachedClassifier
from tailwise.checks import InputError

C = 4


# ------------------------------------------------------------------------------------------------------ the models


def timm(name):
    from timm import create_model

    return create_model(name, num_classes=C)


def torchvision(name, *args, **kwargs):
    from torchvision import models

    return getattr(models, name)(*args, num_classes=C, **kwargs)


def torchvision_resnet():
    from torchvision.models.resnet import BasicBlock

    return torchvision("ResNet", BasicBlock, [1, 1, 1, 1])


def torchvision_convnext():
    from torchvision.models.convnext import CNBlockConfig

    return torchvision("ConvNeXt", [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)])


def torchvision_swin():
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    return torchvision("SwinTransformer", patch_size=[4, 4], window_size=[4, 4], **sizes)


def torchvision_vit():
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    return torchvision("VisionTransformer", image_size=32, patch_size=16, **sizes)


def transformers(name, **sizes):
    import transformers as library

    config = getattr(library, f"{name.split('For')[0]}Config")(num_labels=C, pad_token_id=0, **sizes)
    return getattr(library, name)(config)


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# name: what builds it, where its last linear layer is, what goes in (images or tokens)
MODELS = {
    "timm resnet": (lambda: timm("test_resnet"), "fc", "images"),
    "timm efficientnet": (lambda: timm("test_efficientnet"), "classifier", "images"),
    "timm convnext": (lambda: timm("test_convnext"), "head.fc", "images"),
    "timm mambaout": (lambda: timm("test_mambaout"), "head.fc", "images"),
    "torchvision resnet": (torchvision_resnet, "fc", "images"),
    "torchvision mobilenet": (lambda: torchvision("mobilenet_v3_small"), "classifier.3", "images"),
    "torchvision convnext": (torchvision_convnext, "classifier.2", "images"),
    "torchvision swin": (torchvision_swin, "head", "images"),
    "torchvision vit": (torchvision_vit, "heads.head", "images"),
    "transformers vit": (
        lambda: transformers("ViTForImageClassification", image_size=32, patch_size=16, **SMALL),
        "classifier",
        "images",
    ),
    "transformers resnet": (
        lambda: transformers("ResNetForImageClassification", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        "classifier.1",
        "images",
    ),
    "transformers bert": (lambda: transformers("BertForSequenceClassification", **SMALL), "classifier", "text"),
    "transformers roberta": (
        lambda: transformers("RobertaForSequenceClassification", **SMALL),
        "classifier.out_proj",
        "text",
    ),
    "transformers gpt2": (
        lambda: transformers("GPT2ForSequenceClassification", vocab_size=50, n_embd=16, n_layer=1, n_head=2),
        "score",
        "pooled",
    ),
    "transformers llama": (
        lambda: transformers("LlamaForSequenceClassification", **SMALL),
        "score",
        "pooled",
    ),
    "transformers bert tokens": (lambda: transformers("BertForTokenClassification", **SMALL), "classifier", "tokens"),
}
every_model = pytest.mark.parametrize("name", MODELS)

LENGTHS = (6, 3, 1, 5)


def batch(kind):
    """What goes into a model, as its forward takes it."""
    generator = torch.Generator().manual_seed(1)
    if kind == "images":
        return (torch.randn(4, 3, 32, 32, generator=generator),), {}
    tokens = torch.randint(1, 50, (4, 6), generator=generator)
    mask = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()
    return (tokens * mask,), {"attention_mask": mask}


def logits_of(model, args, kwargs):
    out = model(*args, **kwargs)
    return out if isinstance(out, torch.Tensor) else out.logits


def averaged_rows(features, kind):
    """The feature vectors that the average is to take in: no padding; of a pooled row, the last token."""
    if kind == "images" or features.dim() == 2:
        return [*features]
    rows = []
    for row, length in zip(features, LENGTHS, strict=True):
        rows += [row[length - 1]] if kind == "pooled" else [*row[:length]]
    return rows


def causal(in_features, num_classes):
    return tailwise.CausalClassifier(in_features, num_classes, num_heads=2, gamma=0.25, momentum=0.5)


def near(a, b, tolerance=1e-5):
    return (a - b).abs().max() <= tolerance * b.abs().max()


@every_model
def test_a_model_is_found_trained_saved_and_adjusted(name):
    build, path, kind = MODELS[name]
    args, kwargs = batch(kind)
    torch.manual_seed(0)
    model = build().train()
    assert tailwise.attach(model, causal) is model
    attached = model.get_submodule(path)
    assert isinstance(attached, AttachedClassifier)
    classifier = attached.classifier
    seen = []
    watching = attached.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))

    logits = logits_of(model, args, kwargs)  # one step of whatever loop
    assert logits.shape == ((4, 6, C) if kind == "tokens" else (4, C))
    expected = torch.stack(averaged_rows(seen[-1], kind)).mean(dim=0)
    assert near(classifier.average.value, expected)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    F.cross_entropy(logits.flatten(0, -2), torch.arange(len(logits.flatten(0, -2))) % C).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    changed = [name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])]
    assert f"{path}.classifier.weight" in changed
    assert not all(name.startswith(path) for name in changed)  # the backbone learns, too
    logits_of(model, args, kwargs)
    moved = classifier.average.value.clone()
    assert near(moved, 0.5 * expected + torch.stack(averaged_rows(seen[-1], kind)).mean(dim=0))

    model.eval()
    logits = logits_of(model, args, kwargs).detach()
    assert torch.equal(classifier.average.value, moved)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = tailwise.attach(build(), causal).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(logits_of(fresh, args, kwargs), logits)
    assert torch.equal(fresh.get_submodule(path).classifier.average.value, moved)

    watching.remove()
    adjusted = logits_of(tailwise.detach_adjusted(model, 1.5), args, kwargs)
    assert near(logits_of(tailwise.detach_adjusted(model, 0.0), args, kwargs), logits)
    with torch.no_grad():  # Eq. 8 in the place of Eq. 7, the rest of the model as it is
        tde = attached.register_forward_hook(
            lambda module, inputs, _: tailwise.tde(inputs[0].flatten(0, -2), classifier, 1.5).unflatten(
                0, inputs[0].shape[:-1]
            )
        )
        expected = logits_of(model, args, kwargs)
    tde.remove()
    assert near(adjusted, expected)
    assert not near(adjusted, logits, 1e-3)  # it does something


def test_what_is_detached_holds_plain_tensors_and_no_average():
    model = tailwise.attach(MODELS["transformers bert tokens"][0](), causal)
    args, kwargs = batch("tokens")
    model(*args, **kwargs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adjusted = tailwise.detach_adjusted(model, 1.0)
    assert not any(isinstance(module, tailwise.FeatureAverage) for module in adjusted.modules())
    assert [name for name in adjusted.state_dict() if name.startswith("classifier.")] == [
        "classifier.classifier.weight"
    ]
    assert not any(name.startswith("classifier.") for name, _ in adjusted.named_parameters())
    assert not adjusted.training
    assert (len(model._forward_pre_hooks), len(adjusted._forward_pre_hooks)) == (1, 0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_unseen_classes_are_masked_in_what_is_detached():
    model = tailwise.attach(torchvision_resnet(), causal)
    images = torch.randn(2, 3, 32, 32)
    counts = tailwise.ClassCounts((3, 2, 0, 1))
    with pytest.warns(UserWarning, match="1 of 4 classes have no training image"):
        logits = tailwise.detach_adjusted(model, 0.0, counts=counts)(images)
    assert torch.equal(logits.isneginf(), torch.tensor([[False, False, True, False]] * 2))
    unmasked = tailwise.detach_adjusted(model, 0.0, counts=counts, allow_unseen=True)(images)
    assert unmasked.isfinite().all()


# ---------------------------------------------------------------------------------------------------------- tokens


class Tokens(nn.Module):
    """A small model of tokens [N, L, D], with a mask of its own name."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x, keep=None):
        return self.out(self.inner(x))


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
KEEP = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool)


def attached_tokens(**options):
    classifier = tailwise.CausalClassifier(8, 3)
    return tailwise.attach(Tokens(), classifier, layer="out", **options), classifier


@pytest.mark.parametrize("called", [lambda m: m(X, KEEP), lambda m: m(X, keep=KEEP), lambda m: m(keep=KEEP, x=X)])
def test_the_mask_is_found_however_it_is_passed(called):
    model, classifier = attached_tokens(mask="keep")
    called(model)
    assert near(classifier.average.value, model.inner(X)[KEEP].mean(dim=0))


def test_without_a_mask_every_token_counts_and_a_mask_counts_for_one_forward():
    model, classifier = attached_tokens(mask="keep")
    classifier.average.momentum = 0.0
    model(X, KEEP)
    model(X)
    assert near(classifier.average.value, model.inner(X).mean(dim=(0, 1)))
    model(X, KEEP)
    model.out(model.inner(X))  # past the model, so past its arguments
    assert near(classifier.average.value, model.inner(X).mean(dim=(0, 1)))


def test_padding_may_hold_anything():
    model, classifier = attached_tokens(mask="keep")
    model(X.where(KEEP[..., None], torch.nan), KEEP)
    assert near(classifier.average.value, model.inner(X)[KEEP].mean(dim=0))


def test_hold_and_update_every_are_the_averages_own():
    model, classifier = attached_tokens(mask="keep")
    with classifier.average.hold():
        model(X, KEEP)
    classifier.average.update_every = 2
    model(X, KEEP)
    assert not classifier.average.value.any()
    model(X[:1], ~KEEP[:1])
    rows = [*model.inner(X)[KEEP], *model.inner(X[:1])[~KEEP[:1]]]  # every token alike, not every batch
    assert near(classifier.average.value, torch.stack(rows).mean(dim=0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_looks_at_its_own_masks(copied):
    model, classifier = attached_tokens(mask="keep")
    twin = copied(model)
    twin(X, KEEP)
    assert near(twin.out.classifier.average.value, model.inner(X)[KEEP].mean(dim=0))
    assert not classifier.average.value.any()


def test_a_mask_of_another_shape_is_refused_while_training_and_not_asked_for_after():
    model, _ = attached_tokens(mask="keep")
    with pytest.raises(InputError, match=r"mask: expected shape \[2, 5\], as the features, got \[2, 4\]"):
        model(X, KEEP[:, :4])
    assert model.eval()(X, KEEP[:, :4]).shape == (2, 5, 3)


def test_a_classifier_without_an_average_takes_tokens_too():
    model = tailwise.attach(Tokens(), lambda width, classes: tailwise.LinearClassifier(width, classes), layer="out")
    model(X, KEEP).sum().backward()
    linear = model.out.classifier
    assert near(model(X), F.linear(model.inner(X), linear.weight, linear.bias))


def test_one_feature_vector_without_a_batch():
    """As nn.Linear takes it."""
    model = tailwise.attach(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), causal, layer="1")
    x = torch.randn(4)
    logits = model(x)
    assert logits.shape == (3,)
    assert near(model[1].classifier.average.value.flatten(), model[0](x))
    assert near(model.eval()(x), model(x[None])[0])
    assert model(x.expand(0, 4)).shape == (0, 3)


# ------------------------------------------------------------------------------------- which layer, and what replaces


def test_a_classifier_of_other_classes_may_be_given_and_stays_within_reach():
    model = torchvision_resnet().double()
    classifier = tailwise.CausalClassifier(512, 7)
    tailwise.attach(model, classifier)
    assert model.fc.classifier is classifier
    assert classifier.weight.dtype is torch.float64
    assert model(torch.randn(2, 3, 32, 32).double()).shape == (2, 7)


def test_asking_for_the_number_of_classes_moves_nothing():
    model = torchvision_resnet()
    classifier = causal(512, C)
    classifier.average.update_every = 2
    tailwise.attach(model, classifier)
    model.fc(torch.ones(1, 512))  # the first of two
    assert model.fc.training
    assert model.fc.classifier.training
    assert model.fc.classifier.average.training
    assert not model.fc.classifier.average.value.any()
    assert not tailwise.attach(torchvision_resnet().eval(), causal).fc.classifier.training


def test_timm_still_knows_how_many_classes_there_are():
    model = tailwise.attach(timm("test_resnet"), tailwise.CausalClassifier(timm("test_resnet").num_features, 9))
    assert model.num_classes == 9


def test_the_one_layer_with_as_many_outputs_as_classes():
    layers = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    assert isinstance(tailwise.attach(nn.Sequential(*layers), tailwise.CausalClassifier(8, 3))[2], AttachedClassifier)
    model = nn.Sequential(*layers)
    model.num_classes = 3
    assert isinstance(tailwise.attach(model, causal)[2], AttachedClassifier)


class TwoNames(nn.Module):
    """Its last layer is `fc` and `net.2`, and is asked by the second name."""

    def __init__(self):
        super().__init__()
        self.fc, self.body = nn.Linear(8, 3), nn.Linear(6, 8)
        self.net = nn.Sequential(self.body, nn.ReLU(), self.fc)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("layer", [None, "fc", "net.2"])
def test_a_layer_of_two_names_is_replaced_at_both(layer):
    model, classifier = TwoNames(), tailwise.CausalClassifier(8, 3)
    tailwise.attach(model, classifier, layer=layer)
    assert model.fc is model.net[2]
    logits = model(X[0])
    assert near(logits, classifier(model.net[:2](X[0])))
    logits.sum().backward()
    assert classifier.weight.grad.any()
    assert classifier.average.value.any()
    model.eval()
    with torch.no_grad():
        expected = tailwise.tde(model.net[:2](X[0]), classifier, 1.0)
    assert near(tailwise.detach_adjusted(model, 1.0)(X[0]), expected)


def test_norms_parametrizations_and_lazy_layers_do_not_hide_the_last_layer():
    weight_norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.LazyLinear(8), weight_norm(nn.Linear(8, 3)), nn.LayerNorm(3), nn.PReLU())
    assert isinstance(tailwise.attach(model, tailwise.CausalClassifier(8, 3))[1], AttachedClassifier)


WIDE = "classifier: expected one for features of width 512, got "
REFUSED = {
    "two classifiers": (
        lambda: tailwise.attach(timm("deit_tiny_distilled_patch16_224"), causal),
        "the last linear layer of VisionTransformerDistilled may be any of head, head_dist; name it: layer='head_dist'",
    ),
    "nothing tells": (
        lambda: tailwise.attach(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), causal),
        "the last linear layer of Sequential may be any of 0, 1; name it: layer='1'",
    ),
    "no classifier": (
        lambda: tailwise.attach(transformers("BertForMaskedLM", **SMALL), causal),
        "the last linear layer of BertForMaskedLM was not found",
    ),
    "a hidden layer of as many outputs": (
        lambda: tailwise.attach(
            nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 8), nn.Linear(8, 5)), tailwise.CausalClassifier(8, 3)
        ),
        "the last linear layer of Sequential may not be 0, for 2 comes after it; name it: layer='...'",
    ),
    "a convolution comes after": (
        lambda: tailwise.attach(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Conv2d(8, 3, 1)), causal),
        "the last linear layer of Sequential may not be 0.out_proj, for 1 comes after it",
    ),
    "no linear layer": (
        lambda: tailwise.attach(nn.Sequential(nn.Flatten(), nn.ReLU()), causal),
        "the last linear layer of Sequential was not found",
    ),
    "convolution": (
        lambda: tailwise.attach(torchvision("squeezenet1_1"), causal),
        "expected an nn.Linear as last layer, got AdaptiveAvgPool2d at 'classifier.3'",
    ),
    "no classes": (
        lambda: tailwise.attach(no_classes(), causal),
        "expected an nn.Linear as last layer, got Identity at 'fc'",
    ),
    "the layer alone": (lambda: tailwise.attach(nn.Linear(8, 3), causal), "got Linear, the whole model"),
    "unknown layer": (
        lambda: tailwise.attach(torchvision_resnet(), causal, layer="fcc"),
        "layer: unknown value 'fcc'; did you mean 'fc'?",
    ),
    "another layer": (
        lambda: tailwise.attach(torchvision_resnet(), causal, layer="conv1"),
        "expected an nn.Linear as last layer, got Conv2d at 'conv1'",
    ),
    "narrow": (lambda: tailwise.attach(torchvision_resnet(), tailwise.CausalClassifier(8, C)), WIDE),
    "narrow, torch's own": (lambda: tailwise.attach(torchvision_resnet(), nn.Linear(8, C)), WIDE),
    "no logits": (
        lambda: tailwise.attach(torchvision_resnet(), nn.Flatten(0)),
        r"classifier: expected logits \[N, C\]",
    ),
    "twice": (
        lambda: tailwise.attach(tailwise.attach(torchvision_resnet(), causal), causal),
        "model: expected one without an attached classifier, got one at 'fc'",
    ),
    "other classes": (
        lambda: tailwise.attach(
            transformers("BertForSequenceClassification", **SMALL), tailwise.CausalClassifier(16, 9)
        ),
        "classifier: expected 4 classes, the model's num_labels, got 9",
    ),
    "unknown mask": (
        lambda: tailwise.attach(Tokens(), causal, layer="out", mask="padding"),
        "mask: expected an argument of the model's forward, got 'padding'",
    ),
    "nothing attached": (
        lambda: tailwise.detach_adjusted(torchvision_resnet(), 1.0),
        "model: expected one with an attached classifier, got ResNet without",
    ),
    "no average": (
        lambda: tailwise.detach_adjusted(tailwise.attach(torchvision_resnet(), tailwise.LinearClassifier), 1.0),
        r"model: expected an attached classifier with a feature average \(.*\), got LinearClassifier",
    ),
    "detached twice": (
        lambda: tailwise.detach_adjusted(
            tailwise.detach_adjusted(tailwise.attach(torchvision_resnet(), causal), 1.0), 1.0
        ),
        r"model: expected an attached classifier with a feature average \(.*\), got FoldedClassifier",
    ),
}


def no_classes():
    model = timm("test_resnet")
    model.reset_classifier(0)
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        call()


def test_a_refusal_leaves_the_model_as_it_was():
    model, other = torchvision_resnet(), tailwise.CausalClassifier(512, C + 1)
    model.num_classes, layer = C, model.fc
    with pytest.raises(InputError):
        tailwise.attach(model, other, mask="zzz")
    assert (model.fc, model.num_classes, other.training) == (layer, C, True)


def test_the_ambiguous_layer_can_be_named():
    model = timm("deit_tiny_distilled_patch16_224")
    tailwise.attach(model, causal, layer="head")
    assert isinstance(model.head, AttachedClassifier)
    assert isinstance(model.head_dist, nn.Linear)


def test_ten_architectures_of_three_libraries_are_here():
    assert {name.split()[0] for name in MODELS} == {"timm", "torchvision", "transformers"}
    assert len(MODELS) >= 10
