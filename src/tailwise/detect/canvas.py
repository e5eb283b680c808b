"""Drawing in whole numbers: random bits, enlarged digits, clutter. No rounding, no library's stream."""

import functools

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Draws:
    """Whole numbers from raw Philox bits, a stream that is the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)

    def between(self, low: int, high: int, size: int | tuple[int, ...] = ()) -> Ints:
        """Uniform in low..high, both included."""
        raw = self._bits.random_raw(int(np.prod(size, dtype=np.int64)))
        return (np.asarray(raw) % np.uint64(high - low + 1)).astype(np.int64).reshape(size) + low

    def one(self, low: int, high: int) -> int:
        """One number in low..high."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def order(self, count: int) -> Ints:
        """0..count-1 in random order."""
        return np.argsort(np.asarray(self._bits.random_raw(count)), kind="stable")


def enlarged(small: Ints, height: int, width: int) -> Ints:
    """[..., h, w] interpolated to [..., height, width], bilinearly, with weights in 256ths."""
    # whole numbers below 2^53: float products are exact, and much faster
    rows, columns = _weights(height, small.shape[-2]), _weights(width, small.shape[-1])
    exact: NDArray[np.float64] = rows @ small @ columns.T
    return exact.astype(np.int64) >> 16


def cluttered(draws: Draws, side: int) -> Ints:
    """A canvas [side, side, 3] in 0..255: uneven ground, long bars, filled triangles, discs and boxes, grain.

    Nothing in it has the strokes of a digit, though colours are as strong.
    """
    ground = draws.between(20, 110, (1, 5, 5)) + draws.between(-15, 15, (3, 5, 5))
    canvas = enlarged(ground, side, side).transpose(1, 2, 0)
    y, x = np.mgrid[:side, :side]
    for _ in range(draws.one(1, 2)):  # bars from one edge to another
        x0, x1 = (int(v) for v in draws.between(0, side, 2))
        across = (side * x - side * x0 - (x1 - x0) * y) ** 2 <= draws.one(1, 2) ** 2 * (side**2 + (x1 - x0) ** 2)
        canvas[across if draws.one(0, 1) else across.T] = draws.between(30, 190, 3)
    for _ in range(draws.one(4, 8)):
        cx, cy, radius, kind = draws.one(0, side), draws.one(0, side), draws.one(2, 9), draws.one(0, 2)
        if kind == 0:
            inside = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
        elif kind == 1:
            inside = (abs(x - cx) <= radius) & (abs(y - cy) <= draws.one(2, 9))
        else:
            px, py = draws.between(-radius, radius, 3) + cx, draws.between(-radius, radius, 3) + cy
            sides = [(px[i] - px[i - 1]) * (y - py[i - 1]) - (py[i] - py[i - 1]) * (x - px[i - 1]) for i in range(3)]
            inside = np.all([s >= 0 for s in sides], axis=0) | np.all([s <= 0 for s in sides], axis=0)
        canvas[inside] = draws.between(30, 190, 3)
    grain = draws.between(-12, 12, (side, side, 3))
    return np.clip(canvas + grain, 0, 255, out=canvas)


def blend(canvas: Ints, ink: Ints, cover: Ints) -> Ints:
    """`ink` over `canvas` where `cover` is 255, canvas where it is 0."""
    return (cover[..., None] * ink + (255 - cover[..., None]) * canvas + 127) // 255


@functools.cache
def _weights(length: int, small: int) -> NDArray[np.float64]:
    place = np.clip((2 * np.arange(length) + 1) * small * 128 // length - 128, 0, (small - 1) * 256)
    low, part = place >> 8, place & 255
    weights = np.zeros((length, small))
    np.add.at(weights, (np.arange(length), low), 256 - part)
    np.add.at(weights, (np.arange(length), np.minimum(low + 1, small - 1)), part)
    return weights
