"""A small rendered world: coloured shapes that move or stand before a drifting, textured backdrop.

`make_video(split, index)` gives one video and questions about it. Everything is drawn from `numpy.random.default_rng`
seeded with (world version, split, index), so a video of one split can never occur in another.

What the world is made to exercise: several things move at once, some objects are seen in three or four of sixteen
frames only, the backdrop drifts and the camera is noisy (few positions stand still), and in a third of the videos the
scene is cut. Every question has one right answer, and none asks whether something repeats: means could not tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SIZE = 128  # pixels, at scale 1
FRAMES = 16
CELL = 16  # pixels of one pooled visual token
GRID = SIZE // CELL
RADIUS = (7.2, 9.2)  # pixels
EDGE = 10.0  # centres keep this far from the frame's border
APART = 22.0  # and this far from each other

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
PLURALS = ("circles", "squares", "triangles", "crosses", "rings", "diamonds")
COLOURS = ("red", "green", "blue", "yellow", "cyan", "pink", "orange", "white")
RGB = np.array(
    [
        (225, 35, 35),
        (35, 190, 55),
        (55, 80, 250),
        (240, 220, 40),
        (50, 215, 225),
        (240, 80, 205),
        (250, 135, 15),
        (242, 242, 242),
    ],
    dtype=np.float32,
)
DIRECTIONS = ("left", "right", "up", "down")
STEPS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)], dtype=np.float32)  # (x, y); y grows downwards
PLACES = (
    "top left", "top", "top right",
    "left", "middle", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
NUMBERS = ("zero", "one", "two")
KINDS = ("colour", "shape", "direction", "place", "colour at", "shape at", "mover", "count", "count moving")

SPLITS = {"train": 1, "validation": 2, "test": 3, "clip": 4}
_WORLD = 20260  # world version: part of every seed


@dataclass(frozen=True)
class Thing:
    """One object: what it looks like, when it is seen (frames start..stop-1) and how it goes.

    `x`, `y` is the centre in the first frame and `radius` its size, in pixels at scale 1; `direction` is an
    index into DIRECTIONS or -1 for an object that stands; `speed` is in pixels a frame.
    """

    shape: int
    colour: int
    x: float
    y: float
    radius: float
    start: int
    stop: int
    direction: int = -1
    speed: float = 0.0

    def centres(self) -> np.ndarray:
        """Centres (x, y) in the frames it is seen in, float32 [stop - start, 2]."""
        steps = np.arange(self.stop - self.start, dtype=np.float32)[:, None] * self.speed
        move = STEPS[self.direction] if self.direction >= 0 else np.zeros(2, np.float32)
        return np.array([self.x, self.y], np.float32) + steps * move


@dataclass(frozen=True)
class Backdrop:
    """A periodic texture that drifts; shown in frames start..stop-1."""

    grid: np.ndarray  # float32 [G, G, 3], grey levels at the knots
    origin: tuple[float, float]
    drift: tuple[float, float]  # pixels a frame
    start: int
    stop: int


@dataclass(frozen=True)
class Question:
    """A question of one of KINDS and its only right answer, in the model's vocabulary."""

    kind: str
    text: str
    answer: str
    things: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scene:
    """All that is needed to render a video: things, backdrops, the noise of the camera (grey levels)."""

    things: list[Thing]
    backdrops: list[Backdrop]
    noise: float
    noise_seed: int


@dataclass
class Sample:
    """A video, uint8 [FRAMES, SIZE, SIZE, 3], and its questions."""

    frames: np.ndarray
    questions: list[Question]
    scene: Scene
    owner: np.ndarray = field(repr=False)  # int16 [FRAMES, GRID, GRID]: see `render`


def generator(split: str, index: int, stream: int = 0) -> np.random.Generator:
    """The random generator of video `index` of a split; other `stream` numbers give independent ones."""
    return np.random.default_rng(np.random.SeedSequence((_WORLD, SPLITS[split], int(index), stream)))


# --- what happens -------------------------------------------------------------------------------------


def _attributes(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """`count` different (shape, colour) pairs; one shape and one colour may come twice."""
    popular_shape, popular_colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
    shapes = [popular_shape] * int(rng.integers(1, 3)) + [s for s in rng.permutation(len(SHAPES)) if s != popular_shape]
    colours = [popular_colour] * int(rng.integers(1, 3)) + [
        c for c in rng.permutation(len(COLOURS)) if c != popular_colour
    ]
    chosen_shapes, chosen_colours = rng.permutation(shapes[:count]), rng.permutation(colours[:count])
    pairs = list(dict.fromkeys(zip(map(int, chosen_shapes), map(int, chosen_colours), strict=False)))
    return pairs


def _place_of(x: float, y: float, margin: float) -> int:
    """Index into PLACES of a point at least `margin` pixels inside a ninth of the frame, else -1."""
    third = SIZE / 3
    column, row = int(x // third), int(y // third)
    for value, part in ((x, column), (y, row)):
        if part > 0 and value - part * third < margin or part < 2 and (part + 1) * third - value < margin:
            return -1
    return row * 3 + column


def _fits(thing: Thing, others: list[Thing]) -> bool:
    """Whether a thing keeps clear of the others in every frame that they share."""
    mine = thing.centres()
    for other in others:
        first, last = max(thing.start, other.start), min(thing.stop, other.stop)
        if first < last:
            theirs = other.centres()[first - other.start : last - other.start]
            gap = mine[first - thing.start : last - thing.start] - theirs
            if np.min(np.hypot(gap[:, 0], gap[:, 1])) < APART:
                return False
    return True


def _thing(rng: np.random.Generator, shape: int, colour: int, first: int, last: int, bias: int) -> Thing | None:
    """A random thing that lives within frames first..last-1, or None if this draw is not usable."""
    span = last - first
    radius = float(rng.uniform(*RADIUS))
    moves = rng.random() < 0.55
    brief = rng.random() < 0.55
    length = min(span, int(rng.integers(4, 6) if moves else rng.integers(3, 5)) if brief else int(rng.integers(6, 13)))
    start = first + int(rng.integers(0, span - length + 1))
    low, high = EDGE, SIZE - EDGE
    if not moves:
        x, y = rng.uniform(low, high, 2)
        if _place_of(x, y, 4.5) < 0:
            return None
        return Thing(shape, colour, float(x), float(y), radius, start, start + length)
    direction = bias if rng.random() < 0.4 else int(rng.integers(4))
    fastest = min(9.0, (high - low) / (length - 1))
    slowest = max(3.0, 26.0 / (length - 1))
    if slowest > fastest:
        return None
    speed = float(rng.uniform(slowest, fastest))
    travel = STEPS[direction] * speed * (length - 1)
    x = rng.uniform(low - min(travel[0], 0), high - max(travel[0], 0))
    y = rng.uniform(low - min(travel[1], 0), high - max(travel[1], 0))
    return Thing(shape, colour, float(x), float(y), radius, start, start + length, direction, speed)


def _backdrop(rng: np.random.Generator, start: int, stop: int) -> Backdrop:
    knots = int(rng.integers(8, 15))
    tint = rng.uniform(50, 100) + rng.uniform(-14, 14, 3)
    # Mostly light and dark, a little hue: colour stays the objects' business.
    grey = rng.uniform(-1, 1, (knots, knots, 1)) * rng.uniform(25, 40)
    hue = rng.uniform(-1, 1, (knots, knots, 3)) * 12
    angle, speed = rng.uniform(0, 2 * np.pi), (0.0 if rng.random() < 0.03 else rng.uniform(5, 12))
    return Backdrop(
        np.clip(tint + grey + hue, 0, 160).astype(np.float32),
        (float(rng.uniform(0, 192)), float(rng.uniform(0, 192))),
        (float(speed * np.cos(angle)), float(speed * np.sin(angle))),
        start,
        stop,
    )


def make_scene(rng: np.random.Generator) -> Scene:
    """Draws a scene: one or two shots, five to eight things."""
    cut = int(rng.integers(6, 11)) if rng.random() < 0.35 else FRAMES
    shots = [(0, cut)] + ([(cut, FRAMES)] if cut < FRAMES else [])
    bias = int(rng.integers(4))
    things: list[Thing] = []
    for shape, colour in _attributes(rng, int(rng.integers(5, 9))):
        for _ in range(40):
            first, last = shots[int(rng.integers(len(shots)))]
            thing = _thing(rng, shape, colour, first, last, bias)
            if thing is not None and _fits(thing, things):
                things.append(thing)
                break
    backdrops = [_backdrop(rng, first, last) for first, last in shots]
    return Scene(things, backdrops, float(rng.uniform(2, 9)), int(rng.integers(2**31)))


# --- what it looks like -------------------------------------------------------------------------------


def _distance(shape: int, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline of a shape at the origin, negative inside."""
    name = SHAPES[shape]
    if name == "circle":
        return np.hypot(x, y) - 0.95 * radius
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius
    if name == "triangle":
        return np.maximum(y - 0.75 * radius, 0.9 * np.abs(x) - 0.436 * (y + radius))
    if name == "cross":
        bar = 0.32 * radius
        across = np.maximum(np.abs(x) - radius, np.abs(y) - bar)
        return np.minimum(across, np.maximum(np.abs(x) - bar, np.abs(y) - radius))
    if name == "ring":
        return np.abs(np.hypot(x, y) - 0.74 * radius) - 0.24 * radius
    return (np.abs(x) + np.abs(y) - 1.2 * radius) * 0.7071


def _texture(grid: np.ndarray, period: int) -> np.ndarray:
    """A knot grid as a periodic, linearly interpolated texture, float32 [period, period, 3]."""
    knots = len(grid)
    at = np.arange(period, dtype=np.float32) * knots / period
    low = at.astype(int)
    part = at - low
    weights = np.zeros((period, knots), np.float32)
    weights[np.arange(period), low] = 1 - part
    weights[np.arange(period), (low + 1) % knots] += part
    rows = np.tensordot(weights, grid, (1, 0))
    return np.ascontiguousarray(np.tensordot(weights, rows, (1, 1)).transpose(1, 0, 2))


def render(scene: Scene, scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Renders a scene.

    Returns the frames, uint8 [FRAMES, SIZE * scale, SIZE * scale, 3], and for each token's cell of each frame
    the index of the thing that it shows, int16 [FRAMES, GRID, GRID]: -1 for backdrop, -2 for a cell that shows
    too little of a thing to tell.
    """
    size, period = SIZE * scale, 192 * scale
    frames = np.empty((FRAMES, size, size, 3), np.float32)
    for backdrop in scene.backdrops:
        texture = _texture(backdrop.grid, period)
        for t in range(backdrop.start, backdrop.stop):
            left, top = (int((backdrop.origin[i] + backdrop.drift[i] * t) * scale) for i in (0, 1))
            rows, columns = (np.arange(start, start + size) % period for start in (top, left))
            frames[t] = texture[rows[:, None], columns]
    area = np.zeros((len(scene.things), FRAMES, GRID, GRID), np.float32)
    for index, thing in enumerate(scene.things):
        reach = int((thing.radius + 3) * scale)
        for t, (x, y) in zip(range(thing.start, thing.stop), thing.centres() * scale, strict=True):
            left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
            right, bottom = min(int(x) + reach + 1, size), min(int(y) + reach + 1, size)
            columns = np.arange(left, right, dtype=np.float32) + 0.5 - x
            rows = np.arange(top, bottom, dtype=np.float32) + 0.5 - y
            mask = np.clip(0.5 - _distance(thing.shape, columns[None, :], rows[:, None], thing.radius * scale), 0, 1)
            patch = frames[t, top:bottom, left:right]
            patch += mask[..., None] * (RGB[thing.colour] - patch)
            cell = CELL * scale
            row_ids, column_ids = np.arange(top, bottom) // cell, np.arange(left, right) // cell
            np.add.at(area[index, t], (row_ids[:, None], column_ids[None, :]), mask / scale**2)
    rng = np.random.default_rng(scene.noise_seed)
    # The camera's grain is in its own pixels: a larger rendering has coarser grain, not more of it.
    grain = rng.standard_normal((FRAMES, SIZE, SIZE, 3), dtype=np.float32)
    grain *= scene.noise
    frames += grain if scale == 1 else grain.repeat(scale, 1).repeat(scale, 2)
    owner = np.full((FRAMES, GRID, GRID), -1, np.int16)
    if len(scene.things):
        most, which = area.max(0), area.argmax(0)
        owner = np.where(most >= 30, which, np.where(most > 1, -2, -1)).astype(np.int16)
    np.rint(frames, out=frames)
    return np.clip(frames, 0, 255, out=frames).astype(np.uint8), owner


# --- what is asked ------------------------------------------------------------------------------------


def all_questions(things: list[Thing]) -> dict[str, list[Question]]:
    """Every unambiguous question about the things, by kind."""
    found: dict[str, list[Question]] = {kind: [] for kind in KINDS}

    def add(kind: str, text: str, answer: str, about: tuple[int, ...]) -> None:
        found[kind].append(Question(kind, text, answer, about))

    for index, thing in enumerate(things):
        shape, colour = SHAPES[thing.shape], COLOURS[thing.colour]
        others = things[:index] + things[index + 1 :]
        if all(o.shape != thing.shape for o in others):
            add("colour", f"what colour is the {shape}?", colour, (index,))
        if all(o.colour != thing.colour for o in others):
            add("shape", f"what shape is the {colour} object?", shape, (index,))
        if thing.direction >= 0:
            way = DIRECTIONS[thing.direction]
            add("direction", f"which way does the {colour} {shape} move?", way, (index,))
            if all(o.direction != thing.direction for o in others):
                add("mover", f"what shape is the object that moves {way}?", shape, (index,))
                add("mover", f"what colour is the object that moves {way}?", colour, (index,))
        else:
            place = _place_of(thing.x, thing.y, 0)
            add("place", f"where is the {colour} {shape}?", PLACES[place], (index,))
            if not any(_near(x, y, place) for o in others for x, y in o.centres()):
                add("colour at", f"what colour is the object at the {PLACES[place]}?", colour, (index,))
                add("shape at", f"what shape is the object at the {PLACES[place]}?", shape, (index,))
    for shape_index, plural in enumerate(PLURALS):
        counted = tuple(i for i, t in enumerate(things) if t.shape == shape_index)
        if len(counted) < len(NUMBERS):
            add("count", f"how many {plural} are there?", NUMBERS[len(counted)], counted)
    for colour_index, name in enumerate(COLOURS):
        counted = tuple(i for i, t in enumerate(things) if t.colour == colour_index)
        if len(counted) < len(NUMBERS):
            add("count", f"how many {name} objects are there?", NUMBERS[len(counted)], counted)
    for way_index, way in enumerate(DIRECTIONS):
        counted = tuple(i for i, t in enumerate(things) if t.direction == way_index)
        if len(counted) < len(NUMBERS):
            add("count moving", f"how many objects move {way}?", NUMBERS[len(counted)], counted)
    return found


def _near(x: float, y: float, place: int, margin: float = 9.0) -> bool:
    """Whether a centre is in a ninth of the frame or within `margin` pixels of it."""
    third = SIZE / 3
    row, column = divmod(place, 3)
    return (
        column * third - margin < x < (column + 1) * third + margin
        and row * third - margin < y < (row + 1) * third + margin
    )


def _draw(rng: np.random.Generator, kind: str, pool: list[Question], count: int) -> list[Question]:
    """Up to `count` questions of a pool; of the counting kinds every number is as likely as the others."""
    if not kind.startswith("count"):
        return [pool[i] for i in rng.permutation(len(pool))[:count]]
    by_answer: dict[str, list[Question]] = {}
    for i in rng.permutation(len(pool)):
        by_answer.setdefault(pool[i].answer, []).append(pool[i])
    answers = [sorted(by_answer)[i] for i in rng.permutation(len(by_answer))]
    return [by_answer[answer][0] for answer in answers][:count]


def make_video(split: str, index: int, per_kind: int = 1) -> Sample:
    """Video `index` of a split with up to `per_kind` questions of each kind that applies to it.

    The questions come in random order, so the first of them is of a random kind.
    """
    scene = make_scene(generator(split, index))
    frames, owner = render(scene)
    rng = generator(split, index, stream=1)
    questions = [q for kind, pool in all_questions(scene.things).items() for q in _draw(rng, kind, pool, per_kind)]
    return Sample(frames, [questions[i] for i in rng.permutation(len(questions))], scene, owner)


def make_crowd(split: str, index: int, per_frame: int = 12) -> Sample:
    """Frames that have nothing to do with each other, full of things: for training the tower, no questions."""
    rng = generator(split, index, stream=2)
    things: list[Thing] = []
    for t in range(FRAMES):
        here: list[Thing] = []
        for _ in range(per_frame * 2):
            x, y = map(float, rng.uniform(EDGE, SIZE - EDGE, 2))
            shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
            thing = Thing(shape, colour, x, y, float(rng.uniform(*RADIUS)), t, t + 1)
            if len(here) < per_frame and _fits(thing, here):
                here.append(thing)
        things += here
    backdrops = [_backdrop(rng, t, t + 1) for t in range(FRAMES)]
    scene = Scene(things, backdrops, float(rng.uniform(2, 9)), int(rng.integers(2**31)))
    frames, owner = render(scene)
    return Sample(frames, [], scene, owner)


def words() -> list[str]:
    """Every word and mark that questions and answers are made of, in a fixed order."""
    text = (*SHAPES, *PLURALS, *COLOURS, *DIRECTIONS, *(w for place in PLACES for w in place.split()), *NUMBERS)
    frame = "what colour shape which way where how many is are the does do object objects that move moves at there ?"
    return list(dict.fromkeys([*frame.split(), *text]))
