"""Names for what a client may refer to later."""

import random
import secrets

_random = random.Random(secrets.randbits(256))


def new_id() -> str:
    """32 hexadecimal digits, different every time. No secret: the system's own randomness takes longer than all
    else that an id needs."""
    return f"{_random.getrandbits(128):032x}"
