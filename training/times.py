"""At which steps of a training something is done: a checkpoint is kept, or the network is evaluated."""

import re

from utils.errors import UserError

POWERS, NONE = "powers_of_two", "none"
_FORMS = f"{POWERS} (after 1, 2, 4, ... steps), every:N (steps), log:N (N times, evenly in the logarithm) or {NONE}"
_MOST = 10**6  # times in all


class Times:
    """A policy that says at which steps something is done; before the first step and after the last one always."""

    kind = str

    @staticmethod
    def read(where: str, value: object) -> str:
        """The checked policy; a UserError begins with `where`."""
        found = re.fullmatch(r"(every|log):(\d{1,7})(?:\^(\d{1,2}))?", value) if isinstance(value, str) else None
        if found and 1 <= int(found[2]) ** int(found[3] or 1) < 2**63:
            return f"{found[1]}:{int(found[2]) ** int(found[3] or 1)}"
        if value in (POWERS, NONE):
            return str(value)
        raise UserError(f"{where} is {value!r}; it must be {_FORMS}")


def times(policy: str, length: int) -> list[int]:
    """The steps, in their order, at which a policy is due in a training of `length` steps: 0, ..., `length`.

    UserError if there are more than a million.
    """
    kind, _, number = policy.partition(":")
    if kind == POWERS:
        between = [2**power for power in range(length.bit_length())]
    elif kind == "every":
        if length // int(number) > _MOST:
            raise UserError(f"{policy} is more than {_MOST:,} times in {length:,} steps; choose a larger N")
        between = list(range(int(number), length, int(number)))
    elif kind == "log":
        count = min(int(number), _MOST)
        between = [round(length ** (place / count)) for place in range(count)] if length > 1 else []
    else:
        between = []
    return sorted({0, *(step for step in between if step < length), length})
