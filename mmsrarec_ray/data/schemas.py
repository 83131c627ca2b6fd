"""The tables that pass between stages, as Arrow schemas. All are written as Parquet."""

from __future__ import annotations

import pyarrow as pa

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("text", pa.string()),
        pa.field("image", pa.binary()),  # the encoded picture, where the source held bytes or it was fetched
        pa.field("image_uri", pa.string()),  # where it lies, or was fetched from: an absolute path or a URI
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
        pa.field("content_hash", pa.string(), nullable=False),  # of title, text and the picture's bytes
        pa.field("split", pa.string(), nullable=False),  # train, validation or test: what a summariser may learn from
        pa.field("in_core", pa.bool_(), nullable=False),  # left by the k-core filter
    ]
)

INTERACTIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),  # ms since 1970, or the position where there is no time
        pa.field("weight", pa.float32()),
        pa.field("position", pa.int32(), nullable=False),  # 0 is the user's first interaction
        pa.field("split", pa.string(), nullable=False),  # train, validation or test
    ]
)

USERS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("interactions", pa.int32(), nullable=False),
        pa.field("split", pa.string()),  # of the user as a whole; null where the split is not by user
    ]
)

# What users were shown by our own API; absent where the data holds none.
IMPRESSIONS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),  # ms since 1970
        pa.field("request_id", pa.string()),  # items of one answer share it
        pa.field("rank", pa.int32()),  # place in the answer, as the API counts
        pa.field("bundle", pa.string()),  # what the API served from
    ]
)

FAILURES = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),  # items or interactions
        pa.field("id", pa.string()),  # item_id, or user_id of an interaction; null where it cannot be read
        pa.field("source", pa.string()),  # file
        pa.field("row", pa.int64()),  # line or row in that file, from 1
        pa.field("error", pa.string(), nullable=False),  # class of the failure, such as DuplicateId
        pa.field("message", pa.string(), nullable=False),  # what was expected and what came
        pa.field("content_hash", pa.string()),
    ]
)

KEYWORDS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("image_keywords", pa.list_(pa.string()), nullable=False),
        pa.field("text_keywords", pa.list_(pa.string()), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # fingerprint of the weights
        pa.field("prompt_version", pa.string(), nullable=False),  # of prompt, grammar and their limits
        pa.field("tokens", pa.int32(), nullable=False),  # generated
    ]
)

CONTEXTS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cut", pa.int32(), nullable=False),  # length of the history: the item at this position is asked for
        pa.field("split", pa.string(), nullable=False),  # train, validation or test
        pa.field("fold", pa.int32(), nullable=False),  # whose encoder and index: -1 those of all training users
        pa.field("vector", pa.list_(pa.float32()), nullable=False),  # what that encoder makes of the history
        pa.field("history", pa.list_(pa.string()), nullable=False),  # the last n items, the newest last
        pa.field(
            "neighbours",  # the nearest first
            pa.list_(
                pa.struct(
                    [
                        pa.field("user_id", pa.string(), nullable=False),
                        pa.field("position", pa.int32(), nullable=False),  # of the next item in that user's history
                        pa.field("similarity", pa.float32(), nullable=False),  # cosine
                        pa.field("next_item_id", pa.string(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
        pa.field(
            "votes",  # of the `retrieve.voters` nearest moments: the share of each next item, by item
            pa.list_(
                pa.struct(
                    [pa.field("item_id", pa.string(), nullable=False), pa.field("share", pa.float32(), nullable=False)]
                )
            ),
            nullable=False,
        ),
    ]
)

COOCCURRENCE = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("next_item_id", pa.string(), nullable=False),  # came later in the same training user's history
        pa.field("count", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),  # mean places between the two
    ]
)

LISTS = pa.schema(
    [
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cut", pa.int32(), nullable=False),  # length of the history
        pa.field("positive", pa.string(), nullable=False),  # item_id
        pa.field("negatives", pa.list_(pa.string())),  # null: the whole pool, without the history
    ]
)

RANKINGS = pa.schema(
    [
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cut", pa.int32(), nullable=False),
        pa.field("greater", pa.int64(), nullable=False),  # candidates that score higher than the positive
        pa.field("equal", pa.int64(), nullable=False),  # and the same
        pa.field("others", pa.int64(), nullable=False),  # candidates beside the positive
        pa.field("unknown", pa.int64(), nullable=False),  # of these, items without a training interaction
        pa.field("unknown_above", pa.float64(), nullable=False),  # and of these, above the positive, ties half
        pa.field("items", pa.list_(pa.string()), nullable=False),  # the candidates, the best first, at most 100
        pa.field("scores", pa.list_(pa.float64()), nullable=False),
        pa.field("recommended", pa.list_(pa.string()), nullable=False),  # the best of the pool without the history
    ]
)
