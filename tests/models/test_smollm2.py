"""The text model of the compact model: a trained Llama keeps its words, is saved and read again, and gains sight."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.architecture import VisionSettings, build_model, build_processor
from mmsrarec_ray.models.smollm2 import find_gguf, load_text_model, load_tokenizer, with_image_marks
from mmsrarec_ray.models.tokenizer import IMAGE, TURN_END, train_tokenizer

VISION = VisionSettings(image_size=48, patch_size=16, width=32, depth=1, heads=2, scale_factor=3)
GGUF = os.environ.get("MMSRAREC_SMOLLM2_GGUF")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (16, 48, 48, 3), dtype=np.uint8)


def reload(model, tokenizer, folder):
    model.save_pretrained(folder)
    build_processor(VISION, tokenizer).save_pretrained(folder)
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model, processor, picture):
    inputs = processor(text=[f"{IMAGE} a film about yes"], images=[[picture]], return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_the_same_after_it_was_saved(tied, pictures, tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a film about a ship"] * 9, [], 700, 128)
    text = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) - 4,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            pad_token_id=0,
        )
    )
    model = build_model(VISION, text, tokenizer, pictures, seed=0)
    loaded = reload(model, tokenizer, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, processor, pictures[0]), logits(model, processor, pictures[0]))
    assert (loaded.lm_head.weight is loaded.model.text_model.embed_tokens.weight) == tied
    assert loaded.config.tie_word_embeddings == loaded.config.text_config.tie_word_embeddings == tied
    assert loaded.config.text_config.vocab_size == len(tokenizer)


def test_image_marks_are_added_once_and_a_tokenizer_without_yes_is_refused():
    trained = train_tokenizer(["a film about a ship"] * 9, [], 700, 128)
    marked = with_image_marks(trained, 256)
    assert len(marked) == len(trained)  # the tiny model's tokenizer has them already
    assert marked.model_max_length == 256
    assert marked.eos_token == TURN_END
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate("yesno ")}, []))
    with pytest.raises(ValueError, match=r"\[' yes', ' no'\]"):
        with_image_marks(PreTrainedTokenizerFast(tokenizer_object=letters), 256)


def test_the_file_is_found_by_itself_in_a_folder_or_not_at_all(tmp_path):
    file = tmp_path / "package" / "weights.gguf"
    file.parent.mkdir()
    with pytest.raises(ConfigError, match="found 0"):
        find_gguf(tmp_path)
    file.touch()
    assert find_gguf(file) == find_gguf(tmp_path) == file
    (tmp_path / "other.gguf").touch()
    with pytest.raises(ConfigError, match="found 2"):
        find_gguf(tmp_path)


@pytest.mark.skipif(not GGUF, reason="MMSRAREC_SMOLLM2_GGUF names no GGUF file of SmolLM2-135M-Instruct")
def test_smollm2_keeps_what_it_says_and_gains_sight(pictures, tmp_path):
    file = find_gguf(Path(GGUF))
    text, tokenizer = load_text_model(file).eval(), load_tokenizer(file, 8192)
    assert [len(tokenizer(word)["input_ids"]) for word in (" yes", " no", IMAGE)] == [1, 1, 1]
    assert tokenizer.decode(tokenizer("Grüße, 12 你好")["input_ids"]) == "Grüße, 12 你好"
    model = build_model(VISION, text, tokenizer, pictures, seed=0).eval()
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    inputs = tokenizer(question, return_tensors="pt")
    with torch.no_grad():
        expected = text(**inputs).logits
        assert torch.allclose(model(**inputs).logits[..., : expected.shape[-1]], expected, atol=1e-4)
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(said)
    loaded = reload(model, tokenizer, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, processor, pictures[0]), logits(model, processor, pictures[0]))
