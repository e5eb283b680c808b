"""The deployed model with the Hugging Face hub's own methods; needs the extra `hub`."""

from huggingface_hub import PyTorchModelHubMixin

from tailwise.deployment.deployed import DeployedModel


class HubModel(DeployedModel, PyTorchModelHubMixin, library_name="tailwise"):
    """`DeployedModel` with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    It reads and writes the folders of `tailwise export --format safetensors`.
    """
