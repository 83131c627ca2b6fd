"""The law of the drawn shop: what its items are, what its users want, and how they choose.

This file is frozen: `tests/data/shop/test_law.py` holds its hash. It was fixed before any recommender
existed, so no method can have shaped the world it is judged in. To study another world, write another law.

An item has attributes that only its picture shows (colour, pattern), attributes that only its text names
(material, use, brand), a kind that the picture shows and the text sometimes hides, and two things that
nobody can see: the circle of people it appeals to, and the companions that tend to be bought after it.

A user has one hidden *look* (a taste in colours, patterns and kinds), one hidden *habit* (a taste in
materials, uses and brands) and belongs to one hidden circle. At each step the user draws

    with probability WANDER   an item uniformly from all that are on sale and not yet owned
    otherwise                 argmax_i  appeal_i + look_u(i) + habit_u(i) + CIRCLE * [circle_i = circle_u]
                                        + recency(i | history) + Gumbel(0, 1)

over the items that are on sale and not yet owned, where

    recency(i | h) = sum over lags l = 1, 2, 3 of  DECAY^(l-1) * (COMPANION * [i is a companion of h_-l]
                                                                  + MOOD * [use_i = use of h_-l])

The argmax with Gumbel noise is a softmax over utilities, so the law is a known probability for each choice,
and the best possible ranking can be computed (`mmsrarec_ray.data.shop.oracle`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("mug", "lamp", "chair", "bag", "shoe", "clock", "bottle", "book", "hat", "pot", "cushion", "umbrella")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag")
SETTINGS = ("studio", "kitchen", "garden")
MATERIALS = ("ceramic", "steel", "oak", "cotton", "leather", "glass", "bamboo", "wool", "linen", "plastic")
USES = ("cooking", "office", "travel", "hiking", "bedroom", "gifts", "school", "party")
BRANDS = (
    *("acme", "nordvik", "lumo", "harrow", "tessel", "brio", "oakley", "fenn"),
    *("zuma", "marlow", "quill", "sable", "verda", "pivot", "juno", "kestrel"),
)
VOCABULARY = {
    "kind": KINDS,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "setting": SETTINGS,
    "material": MATERIALS,
    "use": USES,
    "brand": BRANDS,
}
LOOK_ATTRIBUTES = ("kind", "colour", "pattern")
HABIT_ATTRIBUTES = ("material", "use", "brand")

LOOKS, HABITS, CIRCLES, COMPANIONS_PER_ITEM = 40, 40, 24, 3
# attribute -> (how many of its values a taste loves, what a loved value adds to the utility)
LOVED = {
    "kind": (3, 1.6),
    "colour": (2, 2.0),
    "pattern": (1, 1.4),
    "material": (2, 1.6),
    "use": (1, 1.2),
    "brand": (3, 1.6),
}
CIRCLE, COMPANION, MOOD, DECAY, LAGS = 2.4, 5.0, 0.8, 0.5, 3
APPEAL_STD, WANDER = 0.6, 0.08
HIDDEN_KIND, LATE_LAUNCH = 0.5, 0.15
SHORTEST, MEAN_EXTRA, LONGEST = 6, 5.0, 30
USERS_PER_BLOCK = 1000


@dataclass(frozen=True)
class Shop:
    """Everything the law knows of the items.

    attributes[name]: int64 (n_items,), an index into VOCABULARY[name]; `hidden_kind`: bool (n_items,), the
    text does not name the kind; `appeal`: float64 (n_items,); `circle`: int64 (n_items,); `companions`: int64
    (n_items, COMPANIONS_PER_ITEM); `launch`: float64 (n_items,), the fraction of the year at which the item
    goes on sale; `look_utility`: float64 (LOOKS, n_items) and `habit_utility`: float64 (HABITS, n_items).
    """

    seed: int
    attributes: dict[str, np.ndarray]
    hidden_kind: np.ndarray
    appeal: np.ndarray
    circle: np.ndarray
    companions: np.ndarray
    launch: np.ndarray
    look_utility: np.ndarray
    habit_utility: np.ndarray

    def __len__(self) -> int:
        return len(self.appeal)


@dataclass(frozen=True)
class Users:
    """A block of users: hidden state, int64 (n_users,) each, and their histories.

    `histories[u]`: int64 item indices in the order chosen; `times[u]`: float64, fractions of the year, rising.
    """

    look: np.ndarray
    habit: np.ndarray
    circle: np.ndarray
    histories: list[np.ndarray]
    times: list[np.ndarray]


def _tastes(rng: np.random.Generator, count: int, names: tuple[str, ...], attributes: dict) -> np.ndarray:
    """Utility of every item under `count` random tastes: float64 (count, n_items)."""
    utility = np.zeros((count, len(next(iter(attributes.values())))))
    for name in names:
        loved, weight = LOVED[name]
        size = len(VOCABULARY[name])
        likes = np.zeros((count, size))
        for taste in range(count):
            likes[taste, rng.permutation(size)[:loved]] = weight
        utility += likes[:, attributes[name]]
    return utility


def draw_shop(seed: int, n_items: int) -> Shop:
    """The items of a shop. The same seed and size give the same shop."""
    rng = np.random.default_rng([seed, 1])
    attributes = {name: rng.integers(len(values), size=n_items) for name, values in VOCABULARY.items()}
    late = rng.random(n_items) < LATE_LAUNCH
    return Shop(
        seed=seed,
        attributes=attributes,
        hidden_kind=rng.random(n_items) < HIDDEN_KIND,
        appeal=rng.normal(0, APPEAL_STD, n_items),
        circle=rng.integers(CIRCLES, size=n_items),
        companions=rng.integers(n_items, size=(n_items, COMPANIONS_PER_ITEM)),
        launch=np.where(late, rng.uniform(0.2, 0.9, n_items), 0.0),
        look_utility=_tastes(rng, LOOKS, LOOK_ATTRIBUTES, attributes),
        habit_utility=_tastes(rng, HABITS, HABIT_ATTRIBUTES, attributes),
    )


def recency(shop: Shop, recent: np.ndarray) -> np.ndarray:
    """What the last choices add to each item's utility, float64 (n_users, n_items).

    recent: int64 (n_users, LAGS), the newest first; -1 where the history is shorter.
    """
    utility = np.zeros((len(recent), len(shop)))
    use = shop.attributes["use"]
    rows = np.arange(len(recent))
    for lag in range(recent.shape[1]):
        known = rows[recent[:, lag] >= 0]
        last = recent[known, lag]
        scale = DECAY**lag
        for column in range(COMPANIONS_PER_ITEM):
            utility[known, shop.companions[last, column]] += COMPANION * scale
        utility[known] += MOOD * scale * (use[None, :] == use[last][:, None])
    return utility


def available(shop: Shop, owned: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Which items each user can choose now: bool (n_users, n_items)."""
    return ~owned & (shop.launch[None, :] <= times[:, None])


def draw_users(shop: Shop, block: int) -> Users:
    """Block number `block` of USERS_PER_BLOCK users. A user does not depend on how many blocks are drawn."""
    rng = np.random.default_rng([shop.seed, 2, block])
    n = USERS_PER_BLOCK
    look, habit = rng.integers(LOOKS, size=n), rng.integers(HABITS, size=n)
    circle = rng.integers(CIRCLES, size=n)
    lengths = np.minimum(SHORTEST + rng.exponential(MEAN_EXTRA, n).astype(int), LONGEST)
    start = rng.uniform(0, 0.6, n)
    times = [np.sort(rng.uniform(start[u], 1.0, lengths[u])) for u in range(n)]

    base = shop.appeal + shop.look_utility[look] + shop.habit_utility[habit]
    base += CIRCLE * (shop.circle[None, :] == circle[:, None])
    owned = np.zeros((n, len(shop)), bool)
    recent = np.full((n, LAGS), -1)
    histories: list[list[int]] = [[] for _ in range(n)]
    for step in range(lengths.max()):
        active = np.flatnonzero(lengths > step)
        now = np.array([times[u][step] for u in active])
        utility = base[active] + recency(shop, recent[active])
        utility[rng.random(len(active)) < WANDER] = 0.0
        utility += rng.gumbel(size=utility.shape)
        utility[~available(shop, owned[active], now)] = -np.inf
        choice = utility.argmax(1)
        owned[active, choice] = True
        recent[active] = np.column_stack([choice, recent[active, :-1]])
        for user, item in zip(active, choice, strict=True):
            histories[user].append(int(item))
    return Users(look, habit, circle, [np.array(h) for h in histories], times)
