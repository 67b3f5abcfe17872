"""ResNet: convolutions with batch norms, which differ in shape, so that nothing is stacked."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_NORM = {
    "weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var",
}  # fmt: skip


def resnet(config: Config) -> blocks.Table:
    """The table of a ResNet, of basic blocks or with bottlenecks."""
    prefix = config.prefix("resnet.", "embedder.embedder.convolution.weight")
    block = f"{prefix}encoder.stages.{{s}}.layers.{{b}}."
    rows = [
        *_convolution(f"{prefix}embedder.embedder.", "stem."),
        *_convolution(f"{block}layer.{{c}}.", "stage_{s}.block_{b}.conv_{c}."),
        *_convolution(f"{block}shortcut.", "stage_{s}.block_{b}.shortcut."),
        ("classifier.1.weight?", "head.kernel", "label _in -> _in label"),
        ("classifier.1.bias?", "head.bias", "label"),
    ]
    return blocks.Table(rows, {})


def _convolution(their: str, our: str) -> blocks.Rows:
    axes = "_out _in _height _width -> _height _width _in _out"
    norm = f"{their}normalization."
    return [
        (f"{their}convolution.weight", f"{our}kernel", axes),
        *((f"{norm}{theirs}", f"{our}norm.{ours}", "_out") for theirs, ours in _NORM.items()),
        (f"{norm}num_batches_tracked", f"{our}norm.count", ""),
    ]
