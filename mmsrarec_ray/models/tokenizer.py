"""The tokenizer of the models built here: byte-level BPE with the marks of the Idefics3 architecture.

Every text can be written with it, since bytes are the fallback, but the words it was trained on are cheap:
what the shop says, what the prompts ask, and `PHRASES`, the wording in which later stages speak of users.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# The marks that transformers' Idefics3Processor and vLLM's look up by name.
IMAGE, AROUND_IMAGE, GLOBAL_IMAGE, END_OF_UTTERANCE = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, IMAGE, AROUND_IMAGE, GLOBAL_IMAGE, END_OF_UTTERANCE)

# A turn is "<|im_start|>role\n ... <|im_end|>\n". Both spellings of an image part are known: transformers' own
# ("image") and the chat API's ("image_url").
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Always one token each, with the space before it.
WHOLE_WORDS = ("yes", "no", "image", "text", "item", "user", "keywords")

PHRASES = (
    *("user", "assistant", "system"),  # the roles of a turn, which stand without a space before them
    "User history, oldest first:",
    "The user chose these items, from the oldest to the newest:",
    "The history of the user is empty.",
    "Items the user bought, viewed or rated, the most recent last:",
    "Interests of the user:",
    "The interests of this user are",
    "Keywords of the user:",
    "Long term interests, recent interests",
    "List the interests of this user as keywords.",
    "Describe what the user likes in up to 6 keywords.",
    "Similar users chose next:",
    "After a similar history, other users chose next:",
    "Users with a similar history chose these items next:",
    "Evidence from similar users, the most similar first:",
    "The similarity of the history is high, medium or low.",
    "Often taken together with:",
    "This item is often taken together with the last items of the history.",
    "Often chosen after these items:",
    "Bought together 3 times, 12 times, 45 times.",
    "Popular items now:",
    "This item is popular: chosen by 128 users, rank 7 of 960.",
    "Not popular, rarely chosen, new, no evidence.",
    "Candidate item:",
    "The candidate item is",
    "Candidate keywords:",
    "Will the user choose it? Answer yes or no:",
    "Will the user choose this item next? Answer with one word, yes or no.",
    "Answer: yes",
    "Answer: no",
    "Next item keywords:",
    "What are the keywords of the next item?",
    "Predict the keywords of the item the user will choose next.",
    "Which of these items will the user choose next? Answer with its number.",
    "Rank the candidate items for this user, the best first.",
    "Choose the next item from the candidates:",
    "Recommend an item to this user and say why.",
    "Because the user likes",
    "Recommended because similar users with the same interests chose it.",
    "The picture of the item shows",
    "The text of the item says",
    "Summarise the item in keywords: first image keywords, then text keywords.",
    "Title: Description: Brand: Category: Price:",
    "0 1 2 3 4 5 6 7 8 9 10",
    "1. 2. 3. 4. 5. 6. 7. 8. 9. 10.",
)
# How often PHRASES and whole words count beside the texts: often enough to become tokens.
_PHRASE_WEIGHT, _WHOLE_WORD_WEIGHT = 200, 2000


def train_tokenizer(
    texts: Iterable[str], whole_words: Sequence[str], vocabulary_size: int, context: int
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `texts`, `PHRASES` and `whole_words`.

    whole_words: each becomes one token with a space before it, beside `WHOLE_WORDS`. vocabulary_size: the most
    tokens there may be. context: the longest input, in tokens, of the model it is for. Raises ValueError where
    the vocabulary is too small for the whole words.
    """
    words = (*WHOLE_WORDS, *whole_words)
    corpus = [*texts, *PHRASES * _PHRASE_WEIGHT, *(f" {word}" * _WHOLE_WORD_WEIGHT for word in words)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    broken = [word for word in words if len(bpe.encode(f" {word}").ids) != 1]
    if broken:
        raise ValueError(f"vocabulary_size must leave room for whole words. Got {vocabulary_size}: {broken} split.")
    return as_chat_tokenizer(bpe, context)


def as_chat_tokenizer(vocabulary: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    """A vocabulary with the marks of a turn and the chat template. context: tokens of the longest input."""
    return PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
