"""Model families: each file maps a config to encoders. `registry.py` says what a family is and finds it."""
