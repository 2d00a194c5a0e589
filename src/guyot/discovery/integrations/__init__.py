"""Callbacks for training programs of others; a module here is imported by who uses that program.

- `guyot.discovery.integrations.lightning`: a callback for Lightning's `Trainer`.
- `guyot.discovery.integrations.transformers`: a callback for the `Trainer` of Hugging Face.
- `guyot.discovery.integrations.accelerate`: the state of a discovery in Accelerate's checkpoints.
"""
