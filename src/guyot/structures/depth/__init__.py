"""Networks with many equal blocks: what is found in one block holds for all."""
