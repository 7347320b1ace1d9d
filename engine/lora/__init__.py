"""LoRA: adapters on a frozen model, their file formats, and merging them into weights."""
