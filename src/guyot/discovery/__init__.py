"""`Discovery`: structure is found during training, removed, and checkpointed."""
