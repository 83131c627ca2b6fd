"""Builds vision-language models of the Idefics3 (SmolVLM) architecture, the stock class of transformers.

A vision transformer cuts the picture into patches, a connector folds `scale_factor` x `scale_factor`
neighbouring patches into one token, and a Llama reads these tokens among the words. The text model is either
new (`TextSettings`) or one that was trained before (a `LlamaForCausalLM`): the same builder serves both.

Small models learn to see from few pictures only when they start well. `start_vision` sets the patch embedding
to the whitened principal components of real patches, the positions to sines and cosines (Vaswani et al. 2017,
section 3.5, in two dimensions), and the attention to the mimetic form (Trockman and Kolter 2023,
arXiv:2305.09828, equations 4 and 5): query-key products near a multiple of the identity, value-output products
near a negative one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionAttention

from mmsrarec_ray.models.tokenizer import CHAT_TEMPLATE, IMAGE


@dataclass(frozen=True)
class VisionSettings:
    """The vision tower. Sizes are in pixels; `scale_factor` must divide the patches of a side."""

    image_size: int = 96
    patch_size: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    scale_factor: int = 3

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.side % self.scale_factor:
            raise ValueError(
                "image_size must be a multiple of patch_size, and the patches of a side one of scale_factor. "
                f"Got {self.image_size}, {self.patch_size} and {self.scale_factor}."
            )
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4. Got {self.width} and {self.heads}.")

    @property
    def side(self) -> int:
        """Patches on a side of the picture."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens a picture takes in the prompt, without the marks around it."""
        return (self.side // self.scale_factor) ** 2


@dataclass(frozen=True)
class TextSettings:
    """A new text model. `context` is the longest input in tokens."""

    width: int = 160
    depth: int = 4
    heads: int = 5
    inner_width: int = 416
    context: int = 4096

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads. Got {self.width} and {self.heads}.")


def _text_config(text: TextSettings | LlamaForCausalLM, tokenizer: Tokenizer) -> dict:
    ends = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if isinstance(text, LlamaForCausalLM):
        return text.config.to_dict() | ends
    return ends | {
        "model_type": "llama",
        "hidden_size": text.width,
        "intermediate_size": text.inner_width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.heads,
        "head_dim": text.width // text.heads,
        "max_position_embeddings": text.context,
        "initializer_range": 0.04,
    }


def model_config(vision: VisionSettings, text: TextSettings | LlamaForCausalLM, tokenizer: Tokenizer) -> Idefics3Config:
    """The transformers configuration of a model made of these parts."""
    return Idefics3Config(
        text_config=_text_config(text, tokenizer),
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        image_token_id=tokenizer.get_vocab()[IMAGE],
        scale_factor=vision.scale_factor,
        pad_token_id=tokenizer.pad_token_id,
        # transformers reads it here, vLLM in the text model's part.
        tie_word_embeddings=isinstance(text, LlamaForCausalLM) and text.config.tie_word_embeddings,
    )


def build_processor(vision: VisionSettings, tokenizer: Tokenizer) -> Idefics3Processor:
    """What turns messages and pictures into model inputs: one view of `image_size` pixels a picture."""
    edge = {"longest_edge": vision.image_size}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(images, tokenizer, image_seq_len=vision.tokens, chat_template=CHAT_TEMPLATE)


def build_model(
    vision: VisionSettings,
    text: TextSettings | LlamaForCausalLM,
    tokenizer: Tokenizer,
    pictures: np.ndarray,
    seed: int,
) -> Idefics3ForConditionalGeneration:
    """An untrained model, float32; a trained `text` keeps its weights, its new tokens start as its mean one.

    pictures: uint8 (n, image_size, image_size, 3), a few hundred examples of what it will look at.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(model_config(vision, text, tokenizer)).float()
        start_vision(model, pictures)
        if isinstance(text, LlamaForCausalLM):
            _adopt(model, text)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _adopt(model: Idefics3ForConditionalGeneration, text: LlamaForCausalLM) -> None:
    """Copy a trained text model in. Rows of the vocabulary it does not know become the mean of those it does."""
    for name, value in text.model.state_dict().items():
        target = model.model.text_model.state_dict()[name]
        if name == "embed_tokens.weight":
            _copy_rows(target, value)
        else:
            target.copy_(value)
    if model.lm_head.weight is not model.model.text_model.embed_tokens.weight:
        _copy_rows(model.lm_head.weight, text.lm_head.weight)


def _copy_rows(target: torch.Tensor, known: torch.Tensor) -> None:
    target[:] = known.mean(0)
    rows = min(len(target), len(known))
    target[:rows] = known[:rows]


def normalise(pictures: np.ndarray) -> torch.Tensor:
    """Pictures as the image processor gives them: uint8 (n, height, width, 3) to float32 (n, 3, height, width)."""
    pixels = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return pixels.div_(127.5).sub_(1)


@torch.no_grad()
def start_vision(model: Idefics3ForConditionalGeneration, pictures: np.ndarray) -> None:
    """Set the vision tower to weights that learn fast (see the module's docstring); uses torch's global generator."""
    tower = model.model.vision_model
    for name, weight in tower.named_parameters():
        if weight.dim() >= 2 and "embedding" not in name:
            nn.init.xavier_uniform_(weight)
    settings = tower.config
    side = settings.image_size // settings.patch_size
    tower.embeddings.position_embedding.weight.copy_(0.5 * _sines(side, settings.hidden_size))
    _whiten(tower.embeddings.patch_embedding, normalise(pictures))
    for layer in tower.encoder.layers:
        _mimic(layer.self_attn, settings.num_attention_heads)


def _sines(side: int, width: int) -> torch.Tensor:
    """Sine and cosine positions of a square of patches: float32 (side * side, width)."""
    rate = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * rate for place in (column, row)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)


def _whiten(embedding: nn.Conv2d, pixels: torch.Tensor) -> None:
    """Make the patch embedding the whitened leading principal components of the pictures' patches, turned at random."""
    width, size = embedding.out_channels, embedding.kernel_size[0]
    patches = functional.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    kept = min(width, len(values))
    values, vectors = values[-kept:].clamp_min(0), vectors[:, -kept:]
    # The small constant keeps the faintest components from being blown up to noise.
    components = 0.7 * (vectors / (values + 0.02 * values.mean()).sqrt()).T
    turn = torch.linalg.qr(torch.randn(width, width))[0][:, :kept]
    weight = turn @ components
    embedding.weight.copy_(weight.view_as(embedding.weight))
    assert embedding.bias is not None
    embedding.bias.copy_(-(weight @ mean))


def _mimic(attention: Idefics3VisionAttention, heads: int) -> None:
    """The mimetic start of one attention layer: Wq Wk^T near 0.7 I in each head, Wv Wo near -0.4 I."""
    width = attention.q_proj.in_features
    noise, unit = width**-0.5, torch.eye(width)
    left, scale, right = torch.linalg.svd(0.4 * noise * torch.randn(width, width) - 0.4 * unit)
    attention.v_proj.weight.copy_(scale.sqrt()[:, None] * right)
    attention.out_proj.weight.copy_(left * scale.sqrt())
    size = width // heads
    for head in range(heads):
        left, scale, right = torch.linalg.svd(0.7 * noise * torch.randn(width, width) + 0.7 * unit)
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] = (left[:, :size] * scale[:size].sqrt()).T
        attention.k_proj.weight[rows] = scale[:size].sqrt()[:, None] * right[:size]
