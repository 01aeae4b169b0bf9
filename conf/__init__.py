"""Hydra config groups; klray/config/ says what each key means."""
