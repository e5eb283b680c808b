"""Seeds made of seeds."""


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, so that neighbouring seeds and epochs are unrelated streams.

    >>> mixed_seed(0, 1) != mixed_seed(1, 0)
    True
    """
    mixed = 0
    for part in parts:  # splitmix64 (Steele et al. 2014) over the parts
        mixed = (mixed + int(part) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
