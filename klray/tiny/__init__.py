"""The embedded family: small models trained on this machine, laid out as hub repositories, served by a local hub."""
