"""The shapes of a language model, from its configuration alone: what memory and arithmetic are worked out from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from mmsrarec_ray.adapters import adapted_modules
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.load import source
from mmsrarec_ray.settings import Lora, Model

_TEXT = re.compile(r"text_model|language_model")
_MERGER = re.compile(r"merger|connector")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# What decides the shapes in config.json of the models that configurations of ours name, for machines without the model:
# https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/cc594898137f460bfe9f0759e9844b3ce807cfb5/config.json
_KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
    }
}


@dataclass(frozen=True)
class Shapes:
    """Parameters are numbers, not bytes; `width` is bytes of one."""

    width: int
    blocks: int
    """Parameters of the text model without embedding and head."""
    embedding: int
    head: int
    """Parameters of the matrix before the softmax; 0 where it is the embedding over again."""
    tower: int
    """Parameters that every patch of a picture passes."""
    merger: int
    """Parameters that every token of a picture passes before the text model."""
    vocabulary: int
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    linears: tuple[tuple[str, int, int], ...]
    """Name, inputs and outputs of each linear layer of the text model."""
    tower_layers: int
    tower_hidden: int
    patch: int
    """Pixels on a side of a patch."""
    merge: int
    """Patches on a side of a token."""
    fixed_side: int | None
    """Pixels that every picture is resized to; None where the number of patches follows the picture."""

    @property
    def parameters(self) -> int:
        return self.blocks + self.embedding + self.head + self.tower + self.merger

    @property
    def weights(self) -> int:
        """Bytes of all of them."""
        return self.width * self.parameters

    @property
    def read_by_decode(self) -> int:
        """Bytes of weights that are read for a step of decoding: all but the tower and, where it is not the head, the
        embedding, of which a step looks up a row a sequence."""
        return self.width * (self.blocks + self.hidden * self.vocabulary)

    def kv_bytes(self, parallel: int = 1) -> int:
        """Bytes of keys and values a token, on each of `parallel` GPUs: a head is on one GPU at least."""
        return 2 * self.layers * max(1, self.kv_heads // parallel) * self.head_width * self.width

    def patches(self, image_size: int) -> int:
        """Of a square picture of so many pixels a side, resized to whole tokens."""
        tokens = max(1, round((self.fixed_side or image_size) / (self.patch * self.merge)))
        return (tokens * self.merge) ** 2

    def lora_parameters(self, lora: Lora) -> int:
        """Of an adapter: rank x (inputs + outputs) for each adapted layer (arXiv:2106.09685)."""
        return lora.rank * sum(inputs + outputs for _, inputs, outputs in self._adapted(lora))

    def lora_inputs(self, lora: Lora) -> int:
        """Values a token that enter the adapted layers of one block."""
        return sum(inputs for _, inputs, _ in self._adapted(lora)) // self.layers

    def _adapted(self, lora: Lora) -> list[tuple[str, int, int]]:
        names = re.compile(adapted_modules(lora.modules))
        return [layer for layer in self.linears if names.fullmatch(layer[0])]

    def text_flops(self, tokens: float, before: float = 0) -> float:
        """Of a forward pass of the text model over `tokens` tokens that follow `before` known ones: two for each
        parameter and token (Kaplan et al. 2020, arXiv:2001.08361), and attention's scores and sums."""
        attention = 4 * self.layers * self.heads * self.head_width * tokens * (before + tokens / 2)
        return 2 * self.blocks * tokens + attention

    def head_flops(self, tokens: float) -> float:
        """Of the logits of so many tokens."""
        return 2 * self.hidden * self.vocabulary * tokens

    def picture_flops(self, patches: float) -> float:
        """Of a forward pass of the tower over one picture. Attention is left out: windows keep it at a few percent."""
        return 2 * self.tower * patches + 2 * self.merger * patches / self.merge**2

    def layer_bytes(self, lora: Lora) -> float:
        """Bytes a token that the backward pass of one block needs, its input left out: both norms in 32 bit and their
        results, queries before and after rotation and attention's result, keys and values, and the four vectors of the
        gated network; with dropout, each adapted layer's input once more, and a mask of a byte a value."""
        values = 7 * self.hidden + 3 * self.heads * self.head_width + 3 * self.kv_heads * self.head_width
        dropped = (self.width + 1) * self.lora_inputs(lora) if lora.dropout else 0
        return self.width * (values + 4 * self.inner) + dropped


def shapes_of(model: Model) -> Shapes:
    """From `config.json` where the model is on this machine, else from what is known here.

    The model is built without memory for its weights, so parameters are counted, not guessed. Raises ConfigError where
    there is no configuration.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    config = configuration(model)
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(config)
    text, vision = config.get_text_config(), config.vision_config
    heads = text.num_attention_heads
    return Shapes(
        width=_BYTES[model.dtype],
        **_counted(built),
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=text.intermediate_size,
        heads=heads,
        kv_heads=text.num_key_value_heads or heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // heads,
        linears=tuple(
            (name, layer.in_features, layer.out_features)
            for name, layer in built.named_modules()
            if isinstance(layer, torch.nn.Linear) and _TEXT.search(name)
        ),
        tower_layers=getattr(vision, "depth", None) or vision.num_hidden_layers,
        tower_hidden=vision.hidden_size,
        patch=vision.patch_size,
        merge=getattr(vision, "spatial_merge_size", None) or config.scale_factor,
        fixed_side=getattr(vision, "image_size", None),
    )


def configuration(model: Model) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    where = source(model)
    try:
        return AutoConfig.from_pretrained(where, revision=model.revision, local_files_only=True)
    except OSError:
        if where not in _KNOWN:
            raise ConfigError(
                f"model.source: the shapes of {where!r} are not known on this machine; "
                f"`hf download {where} config.json --revision {model.revision}` brings them."
            ) from None
        known = dict(_KNOWN[where])
        return CONFIG_MAPPING[known.pop("model_type")](**known)


def _counted(model: Any) -> dict[str, int]:
    """Parameters of each part; one that is in two parts counts once."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    counts = dict.fromkeys(("blocks", "embedding", "head", "tower", "merger"), 0)
    for name, parameter in model.named_parameters():
        if parameter is embedding:
            part = "embedding"
        elif parameter is head:
            part = "head"
        elif _TEXT.search(name):
            part = "blocks"
        else:
            part = "merger" if _MERGER.search(name) else "tower"
        counts[part] += math.prod(parameter.shape)
    return counts
