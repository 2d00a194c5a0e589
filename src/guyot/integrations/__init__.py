"""Callbacks for training programs of others; a module here is imported by who uses that program.

- `guyot.integrations.lightning`: a callback for Lightning's `Trainer`.
- `guyot.integrations.transformers`: a callback for the `Trainer` of Hugging Face.
- `guyot.integrations.accelerate`: the state of a discovery in Accelerate's checkpoints.
"""
