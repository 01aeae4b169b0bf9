"""Hydra config groups; klray/config.py says what each key means."""
