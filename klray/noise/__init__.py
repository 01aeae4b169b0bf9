"""Noise floor: the KL that one checkpoint has with itself when it is scored in different ways.

``exact`` has the float64 reference, ``measuring`` scores a checkpoint in all ways, ``floor`` has what came of it.
"""
