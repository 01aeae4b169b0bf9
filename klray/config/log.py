"""Group ``log``: what is said while a verb is at work, on the standard error output."""

from dataclasses import dataclass


@dataclass
class LogConfig:
    """How it is said."""

    json: bool = False  # one JSON object a line, for machines that gather logs; klray status prints its facts so
