"""Rewards of your own: a configuration names them as `rewards:close`, that is `module:function`."""


def close(completion: str, answer: str) -> float:
    """1 for the right number, less the further off, 0 for what is no number."""
    try:
        return 1 / (1 + abs(int(completion) - int(answer)))
    except ValueError:
        return 0.0
