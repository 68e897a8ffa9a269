"""How the embedded tiny multimodal model is made: architecture, tokenizer, tower, base.

The committed scripts, in the order in which they run::

    python -m t4s_helpers.lab.tiny_model.tower      # dense pre-training of the vision tower
    python -m t4s_helpers.lab.tiny_model.base       # connector and language model, exercises
    python -m t4s_helpers train                     # QLoRA adapters on descriptors

Each is seeded, logs to CSV, and goes on from its last checkpoint when it is started again.
"""
