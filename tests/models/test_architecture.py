"""The builder makes stock Idefics3 models, starts them well, and takes in a text model that was trained before."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from mmsrarec_ray.models.architecture import TextSettings, VisionSettings, build_model, build_processor, normalise
from mmsrarec_ray.models.tokenizer import IMAGE, PHRASES, WHOLE_WORDS, train_tokenizer
from mmsrarec_ray.summarize.teach import Recipe

VISION = VisionSettings(image_size=48, patch_size=16, width=32, depth=2, heads=2, scale_factor=3)
TEXT = TextSettings(width=32, depth=2, heads=2, inner_width=64, context=256)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red mug by Acme\nimage: red, mug"] * 50, ["red", "mug", "oakley"], 1000, 256)


@pytest.fixture(scope="module")
def pictures():
    """Smooth random pictures: uint8 (64, 48, 48, 3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (64, 12, 12, 3), dtype=np.uint8)
    return small.repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def model(tokenizer, pictures):
    return build_model(VISION, TEXT, tokenizer, pictures, seed=1)


def test_words_that_matter_are_one_token_with_their_space(tokenizer):
    for word in (*WHOLE_WORDS, "red", "mug", "oakley"):
        assert len(tokenizer(f" {word}")["input_ids"]) == 1, word


def test_any_text_comes_back_from_its_tokens(tokenizer):
    for text in ("Grüße, 你好 🙂\t€7", "  two  spaces ", *PHRASES):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_wording_of_later_stages_is_cheap(tokenizer):
    words = sum(len(phrase.split()) for phrase in PHRASES)
    tokens = sum(len(tokenizer(phrase)["input_ids"]) for phrase in PHRASES)
    assert tokens < 1.7 * words


def test_a_vocabulary_too_small_for_its_words_is_refused():
    with pytest.raises(ValueError, match="Got 270"):
        train_tokenizer(["mug"], ["oakley"], 270, 64)


def test_the_chat_template_knows_both_spellings_of_a_picture_and_plain_text(tokenizer):
    parts = [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        f"<|im_start|>user\na {IMAGE}{IMAGE}<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_size": 100}, "Got 100, 16 and 3"),
        ({"scale_factor": 4}, "Got 96, 16 and 4"),
        ({"heads": 3}, "Got 128 and 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        VisionSettings(**settings)


def test_the_recipes_model_has_between_2_and_2_8_million_parameters(pictures, tokenizer):
    recipe = Recipe()
    large = np.zeros((8, 96, 96, 3), np.uint8)
    built = build_model(recipe.vision, recipe.text, tokenizer, large, seed=0)
    size = sum(parameter.numel() for parameter in built.parameters())
    # The real vocabulary is larger than this test's: one row in each of two tables a token.
    size += 2 * (recipe.vocabulary_size - len(tokenizer)) * recipe.text.width
    assert 2.0e6 < size < 2.8e6
    assert built.config.text_config.max_position_embeddings == 4096


def test_the_same_seed_builds_the_same_model_and_leaves_the_global_generator_alone(tokenizer, pictures, model):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    again, other = (build_model(VISION, TEXT, tokenizer, pictures, seed=seed) for seed in (1, 2))
    assert torch.rand(1) == expected
    for (name, one), two, three in zip(model.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
        if one.std() > 0 and "position" not in name:
            assert not torch.equal(one, three), name


def test_pixels_are_what_the_image_processor_makes(tokenizer, pictures):
    processor = build_processor(VISION, tokenizer)
    made = processor.image_processor([[picture] for picture in pictures[:3]], return_tensors="pt")["pixel_values"]
    assert torch.allclose(made[:, 0], normalise(pictures[:3]), atol=1e-6)


def test_the_patch_embedding_starts_whitened(model, pictures):
    """Over real patches the features are centred, and their variance is spread over them: none is constant."""
    embedding = model.model.vision_model.embeddings.patch_embedding
    with torch.no_grad():
        features = embedding(normalise(pictures)).flatten(2).transpose(1, 2).flatten(0, 1)
    assert features.mean(0).abs().max() < 1e-3
    assert features.std(0).min() > 0.2
    assert features.std(0).max() < 2


def test_attention_starts_mimetic(model):
    """Query-key products of a head lie near 0.7 I in its subspace, value-output products near -0.4 I."""
    for layer in model.model.vision_model.encoder.layers:
        attention = layer.self_attn
        mixed = attention.out_proj.weight @ attention.v_proj.weight
        assert mixed.diagonal().mean().item() == pytest.approx(-0.4, abs=0.1)
        size = VISION.width // VISION.heads
        for head in range(VISION.heads):
            rows = slice(head * size, (head + 1) * size)
            product = attention.q_proj.weight[rows].T @ attention.k_proj.weight[rows]
            assert product.diagonal().mean() > 0.2


def test_a_saved_model_answers_the_same_when_loaded_by_name(model, tokenizer, pictures, tmp_path):
    processor = build_processor(VISION, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    reader = AutoProcessor.from_pretrained(tmp_path)
    prompt = reader.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a red mug"}]}],
        add_generation_prompt=True,
    )
    inputs = reader(text=[prompt], images=[[pictures[0]]], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == VISION.tokens == 1
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model.eval()(**inputs).logits, atol=1e-5)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_picture_changes_the_answer(model, tokenizer, pictures):
    processor = build_processor(VISION, tokenizer)
    inputs = processor(
        text=[f"{IMAGE} mug"] * 2, images=[[pictures[0]], [pictures[1]]], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        first, second = model.eval()(**inputs).logits[:, -1]
    assert not torch.allclose(first, second, atol=1e-4)


def test_a_trained_text_model_keeps_what_it_says_about_text(tokenizer, pictures):
    """Its vocabulary grows by new tokens, which start as the mean one; on old tokens nothing changes."""
    torch.manual_seed(0)
    old = len(tokenizer) - 20
    config = LlamaConfig(
        vocab_size=old,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    text = LlamaForCausalLM(config).eval()
    built = build_model(VISION, text, tokenizer, pictures, seed=0).eval()
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert torch.allclose(built(input_ids=ids).logits[..., :old], text(input_ids=ids).logits, atol=1e-5)
    rows = built.model.text_model.embed_tokens.weight
    assert torch.allclose(rows[old:], text.model.embed_tokens.weight.mean(0).expand(20, -1))
