"""What each rival changes in a plain stage: its loss, step, sampler or optimiser, with the defaults of its paper."""

from typing import Any

from tailwise.recipes.stages import (
    BalancedSoftmaxSettings,
    BilateralSettings,
    ClassBalancedSettings,
    CosineScheduleSettings,
    CutMixSettings,
    EqualizationSettings,
    FocalSettings,
    GlmcSettings,
    LdamSettings,
    LogitAdjustedSettings,
    MetricSettings,
    MixupSettings,
    MultistepSettings,
    RemixSettings,
    SeesawSettings,
    VectorScalingSettings,
)

RIVALS: dict[str, dict[str, Any]] = {
    "focal": {"loss": FocalSettings()},
    "class-balanced": {"loss": ClassBalancedSettings()},
    "class-balanced-focal": {"loss": ClassBalancedSettings(gamma=0.5)},
    "class-balanced-sigmoid": {"loss": ClassBalancedSettings(gamma=0.5, form="sigmoid")},
    "ldam": {"loss": LdamSettings()},
    "ldam-drw": {"loss": LdamSettings(), "reweight_after": 0.8},
    "equalization": {"loss": EqualizationSettings()},
    "seesaw": {"loss": SeesawSettings()},
    "balanced-softmax": {"loss": BalancedSoftmaxSettings()},
    "logit-adjusted": {"loss": LogitAdjustedSettings()},
    "vector-scaling": {"loss": VectorScalingSettings()},
    "range": {"step": MetricSettings(loss="range"), "sampler": "p-by-k"},
    "lifted-structured": {"step": MetricSettings(loss="lifted-structured"), "sampler": "p-by-k"},
    "mixup": {"step": MixupSettings()},
    "cutmix": {"step": CutMixSettings()},
    "remix": {"step": RemixSettings()},
    "bbn": {"step": BilateralSettings()},
    "glmc": {"step": GlmcSettings()},
    "weight-decay": {"weight_decay": 5e-3},
    "sharpness-aware": {"sharpness": 0.05},
}
# What depends on the data: Du et al.'s own CIFAR-10-LT setting, Kini et al.'s CIFAR-100-LT values; a rare class of ten
# instead of a hundred, where 5e-3 is half of an equal share; P x K batches of at most ten classes; and weights from
# epoch 120 on where the learning rate has had both its steps by 160, and four fifths would leave them nothing to move.
ON_DATA: dict[tuple[str, str], dict[str, Any]] = {
    ("cifar10-lt", "glmc"): {"step": GlmcSettings(q=1.0, power=1.2, gamma=4.0)},
    ("cifar10-lt", "equalization"): {"loss": EqualizationSettings(threshold=0.05)},
    **{(data, "ldam-drw"): {"reweight_after": 119 / 200} for data in ("cifar10-lt", "cifar100-lt")},
    ("cifar10-lt", "range"): {"images_per_class": 32},
    ("cifar10-lt", "lifted-structured"): {"images_per_class": 32},
    ("cifar100-lt", "vector-scaling"): {"loss": VectorScalingSettings(gamma=0.05, temperature=0.75)},
    ("digits-lt", "equalization"): {"loss": EqualizationSettings(threshold=0.05)},
}
TWO_BRANCH = {"digits-net": "digits-net-two-branch", "resnet32": "resnet32-two-branch"}  # what BBN trains

# Published settings on CIFAR-LT, where they are not the catalog's. That of Zhou et al. 2020 (BBN) is where the rivals'
# rows of Tang et al.'s Table 3 come from: plain ResNet-32, epochs and steps of the learning rate as Tang et al. LDAM's
# row is Cao et al.'s own: a warm-up from 0, steps of the learning rate after epochs 160 and 180, weights from the first
# step on, the last partial batch used. Du et al. and Alshammari et al. decay the weights more and the learning rate by
# a cosine; GLMC's own numbers are of a ResNet-32 four times as wide.
BBN_SETTING = {"batch_size": 128, "learning_rate": 0.1, "weight_decay": 2e-4}
CAO_SETTING = {
    **BBN_SETTING,
    "schedule": MultistepSettings(milestones=(161, 181), factor=0.01, warmup_epochs=5, warmup_from=0.0),
    "drop_last": False,
}
STRONG_DECAY = {
    "batch_size": 64,
    "learning_rate": 0.01,
    "weight_decay": 5e-3,
    "schedule": CosineScheduleSettings(),
}
PUBLISHED_SETTING: dict[str, dict[str, Any]] = dict.fromkeys(("joint", *RIVALS), BBN_SETTING) | {
    "ldam": CAO_SETTING,
    "ldam-drw": {**CAO_SETTING, "reweight_after": 0.8},
    "glmc": STRONG_DECAY,
    "weight-decay": STRONG_DECAY,
}


def changed(data: str, method: str, *, published: bool) -> dict[str, Any]:
    """What the stage of a rival has in place of the data's own settings; published: in its published setting.

    >>> changed("cifar100-lt", "focal", published=True)["batch_size"]
    128
    """
    setting = PUBLISHED_SETTING[method] if published else {}
    return {**RIVALS.get(method, {}), **ON_DATA.get((data, method), {}), **setting}
