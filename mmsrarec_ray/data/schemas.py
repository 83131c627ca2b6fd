"""The tables that pass between stages, as Arrow schemas. All are written as Parquet."""

from __future__ import annotations

import pyarrow as pa

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("text", pa.string()),
        pa.field("image", pa.binary()),  # the encoded picture, where the source held bytes
        pa.field("image_uri", pa.string()),  # else where it lies: an absolute path or a URI
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
