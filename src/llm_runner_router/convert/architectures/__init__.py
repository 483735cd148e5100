"""Families of models that become GGUF, one module for each kin.

A module offers `FAMILIES: tuple[Family, ...]`; an installed package may offer more of them under
the entry point group `llm_runner_router.convert.architectures`. Names of tensors and fields are
those that llama.cpp b11549 reads (`src/llama-arch.cpp`, `src/models/*.cpp`); what is done to the
weights follows from comparing these with `transformers`.
"""
